"""Measurements and tables that the tools print, for those who work on this project. It is not installed."""
