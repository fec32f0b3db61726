"""Detectors on PIIP: their parts, data, evaluation and drawing."""

from ..extras import explain_missing

explain_missing(__name__)
