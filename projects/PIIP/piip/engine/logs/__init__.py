"""Metrics: what is measured during training, and where it is written."""
