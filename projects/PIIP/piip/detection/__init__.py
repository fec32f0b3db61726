"""Detectors on PIIP: their parts, data, evaluation and drawing."""
