"""The parts of a decoder layer, each correct in every gear."""
