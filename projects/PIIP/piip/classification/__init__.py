"""Image classifiers on PIIP, in plain PyTorch and timm."""
