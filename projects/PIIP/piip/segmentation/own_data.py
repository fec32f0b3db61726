"""Custom datasets of segmentors: folders of images and of label maps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from ..engine.data.custom_data import CustomDataset, pairs_of_paths
from .data import register_folders

__all__ = ["FolderData", "Folders"]

_FORM = "IMAGES:LABELS"
_NAMES = "classes.txt"


@dataclass(frozen=True)
class Folders:
    """A folder of images and one of label maps."""

    images: Path
    labels: Path

    @classmethod
    def parse(cls, text: str) -> Folders:
        """Read ``IMAGES:LABELS``; names may hold colons themselves: what counts is where two folders are.

        Raises:
            FileNotFoundError: a folder is not there.
        """
        for folders in (cls(*pair) for pair in pairs_of_paths(text)):
            if folders.images.is_dir() and folders.labels.is_dir():
                return folders
        raise FileNotFoundError(f"'{text}' does not name two folders: --data expects [train=|val=]{_FORM}")

    def __str__(self) -> str:
        return str(self.labels)

    def classes(self) -> list[str]:
        """Names of the classes 0, 1, ...: lines of `classes.txt` in the folder of the labels, or above it.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is empty, or has a name twice.
        """
        for folder in (self.labels, self.labels.parent):
            if (file := folder / _NAMES).is_file():
                break
        else:
            raise FileNotFoundError(
                f"{self.labels / _NAMES} does not exist: write the names of the classes 0, 1, ... there, one "
                "a line"
            )
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not UTF-8 text: save it as such") from error
        names = [line.strip() for line in lines if line.strip()]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"{file} must name one class a line, each once: it has {len(names)} lines")
        return names


class FolderData(CustomDataset):
    """What `--data` means for segmentors: folders of images and label maps, for training and validation."""

    split = Folders
    form = "IMAGES:LABELS"
    places = ("heads.decode_head",)
    names = "stuff_classes"

    def register(self, name: str, files: Folders) -> None:
        """As a dataset of pairs of files."""
        register_folders(name, files.images, files.labels, files.classes())

    def adapt(self, cfg: DictConfig, files: Mapping[str, Folders]) -> None:
        """Let the mappers know the number of classes."""
        for loader in (cfg.dataloader.train, cfg.dataloader.test):
            loader.mapper.num_classes = len(files["val"].classes())
