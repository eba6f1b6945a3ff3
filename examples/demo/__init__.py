"""`make demo`: the whole of Shift on one machine, in a few minutes."""
