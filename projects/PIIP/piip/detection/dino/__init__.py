"""DINO (arXiv 2203.03605) on PIIP's maps, in plain PyTorch; one idea a file."""
