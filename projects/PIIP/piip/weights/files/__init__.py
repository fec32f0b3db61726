"""Files: tensors, writing whole or not at all, downloads."""
