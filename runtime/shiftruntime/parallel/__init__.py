"""How the ranks of one pod exchange tensors."""
