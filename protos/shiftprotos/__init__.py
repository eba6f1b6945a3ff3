"""Wire contract and shared names of Shift."""
