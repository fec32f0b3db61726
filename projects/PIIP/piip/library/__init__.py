"""Models by name, for those who start from Python rather than from a config."""
