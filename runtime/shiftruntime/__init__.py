"""Shift-parallel inference runtime."""
