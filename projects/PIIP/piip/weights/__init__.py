"""Weights: files of tensors, downloads, pretrained branches, the model zoo, released names and ours."""
