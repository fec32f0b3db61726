"""PIIP as the eyes of a language model."""
