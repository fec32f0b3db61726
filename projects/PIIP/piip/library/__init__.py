"""Models by name, for use from Python without a config."""
