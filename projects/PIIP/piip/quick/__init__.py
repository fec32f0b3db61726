"""Data sets that draw themselves, for demos and tests."""
