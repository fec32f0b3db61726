"""Data loading: resumable loaders, worker processes, prefetching, custom datasets."""

from .loader import TrainLoader, dataset_root, evaluation_loader

__all__ = ["TrainLoader", "dataset_root", "evaluation_loader"]
