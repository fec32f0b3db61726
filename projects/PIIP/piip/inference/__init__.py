"""Models as fast as they get, at the price of no longer being trainable."""

from .optimize import optimize_for_inference

__all__ = ["optimize_for_inference"]
