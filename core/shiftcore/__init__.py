"""The decisions of Shift: pure functions of frozen data, standard library only."""
