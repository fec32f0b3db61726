"""Data loading: resumable loaders, worker processes, prefetching, custom datasets."""

from ..command_line import dataset_root
from .loader import TrainLoader, evaluation_loader

__all__ = ["TrainLoader", "dataset_root", "evaluation_loader"]
