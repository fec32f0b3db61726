"""Metrics: what is measured during training, where it is written, and its curves."""
