"""Prediction: sources of images, models that run on them, sinks of results. No training code imports it."""
