"""Model families, their weights and the decoder that runs them in every gear."""
