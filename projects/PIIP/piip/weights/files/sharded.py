"""Reads folders of torch.distributed.checkpoint, whose index and values are pickles, without running code."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem

from .tensors import reading

__all__ = ["FolderReader", "is_sharded_checkpoint", "load_sharded"]

_INDEX = ".metadata"
_ALLOWED = {
    "collections": {"OrderedDict"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath"},
    "pathlib._local": {"PosixPath", "PurePosixPath"},
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
}


def is_sharded_checkpoint(path: str | Path) -> bool:
    """Whether a path is a complete folder of a sharded training: its index is written last."""
    return (Path(path) / _INDEX).is_file()


class _Unpickler(pickle.Unpickler):
    """Knows the classes of an index, and no other."""

    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or name in _ALLOWED.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"class {module}.{name} is not part of an index")


class FolderReader(dcp.FileSystemReader):
    """PyTorch's reader, with an index that is checked: classes, sizes, and files within the folder."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """
        Raises:
            ValueError: the index is damaged, holds foreign classes, or claims more than there is.
        """
        folder = Path(self.path)
        with reading(folder / _INDEX):
            with (folder / _INDEX).open("rb") as file:
                metadata = _Unpickler(file).load()
            _check(metadata, folder)
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


def _check(metadata: Any, folder: Path) -> None:
    if not isinstance(metadata, Metadata):
        raise ValueError(f"a {type(metadata).__name__} instead of an index")
    tensors = (e for e in metadata.state_dict_metadata.values() if isinstance(e, TensorStorageMetadata))
    claimed = sum(entry.size.numel() * entry.properties.dtype.itemsize for entry in tensors)
    held = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    if claimed > held:
        raise ValueError(f"it lists tensors of {claimed} bytes, the folder holds {held}")
    for entry in metadata.storage_data.values():
        if Path(entry.relative_path).name != entry.relative_path:
            raise ValueError(f"it names the file {entry.relative_path}, which is not in the folder")


class _Planner(dcp.DefaultLoadPlanner):
    """PyTorch's planner, which unpickles whatever is no tensor, with `weights_only`."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        path = self.mappings[read_item.dest_index.fqn]
        set_element(self.original_state_dict, path, torch.load(value, weights_only=True))


def load_sharded(state: dict[str, Any], reader: FolderReader, *, no_dist: bool = False) -> None:
    """Fill a state dict, nested or not, from a folder.

    Args:
        state: what to read, by name; tensors are filled in place, other entries replaced.
        reader: of the folder.
        no_dist: read all of it in this process.

    Raises:
        ValueError: the folder is damaged, or lacks an entry.
    """
    reader.read_metadata()
    with reading(reader.path):
        try:
            dcp.load(state, storage_reader=reader, planner=_Planner(), no_dist=no_dist)
        except CheckpointException as error:  # no Exception; it holds one of each process that failed
            first, _ = next(iter(error.failures.values()))
            raise ValueError(" ".join(str(first).split())) from error
