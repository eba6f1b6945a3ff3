"""Arithmetic: one seam (`ops`), a fast implementation and a bit-stable one."""
