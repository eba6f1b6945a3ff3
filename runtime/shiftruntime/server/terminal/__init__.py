"""`shift-runtime generate` and `chat`: the engine and its ranks for one person at a terminal, without ports."""
