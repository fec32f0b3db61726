"""Faster inference; an optimised model can no longer be trained."""

from .optimize import optimize_for_inference

__all__ = ["optimize_for_inference"]
