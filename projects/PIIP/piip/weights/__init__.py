"""Weights: files of tensors, downloads, converters of released formats, pretrained branches, the zoo."""
