"""One rank: a process that loads the weights, holds its heads' KV and runs the steps it is told to."""
