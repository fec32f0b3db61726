"""Convert released PIIP-LLaVA checkpoints to transformers folders and back, shard by shard."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, LlamaConfig

from ..weights.converters import released_format
from ..weights.converters.llava import convert_llava, to_official_llava
from ..weights.files.state_dict import state_dict_of
from ..weights.files.tensors import read_file, write_file
from ..weights.zoo import models_of
from .auto import PIIPLlavaConfig, PIIPLlavaForConditionalGeneration, PIIPLlavaProcessor
from .configuration import PIIPVisionConfig
from .processing import IMAGE_TOKEN

__all__ = ["convert_folder"]

_EMBEDDINGS = ("model.language_model.embed_tokens.weight", "lm_head.weight")
_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_FILES = ("model.safetensors", "pytorch_model.bin")


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} holds no {path.name}: give the folder of a whole model")
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no json: {error}") from error
    return content


def _weight_files(folder: Path) -> list[Path]:
    """The files of weights in a folder, in order.

    Raises:
        FileNotFoundError: there are none, or one that the index names is missing.
    """
    for index in _INDICES:
        if (folder / index).is_file():
            files = [folder / name for name in sorted(set(_json(folder / index)["weight_map"].values()))]
            if missing := [file.name for file in files if not file.is_file()]:
                raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}, which {index} names")
            return files
    for name in _FILES:
        if (folder / name).is_file():
            return [folder / name]
    raise FileNotFoundError(f"{folder} holds none of {', '.join((*_INDICES, *_FILES))}: is it a model?")


def _shards(folder: Path) -> Iterator[dict[str, Tensor]]:
    for file in _weight_files(folder):
        yield state_dict_of(read_file(file, mmap=True), file)


def _tower_name(folder: Path, config: Mapping[str, Any], given: str | None) -> str:
    """The released tower of a checkpoint: as given, or as the path of its published settings says."""
    if given is not None:
        return given
    path = str(config.get("mm_vision_tower"))
    names = [model.name for model in models_of("multimodal")]
    found = [name for name in names if f"{name}." in f"{Path(path).name}."]
    if not found:
        raise ValueError(
            f"{folder}/config.json names the tower '{path}', which is no released one: give --tower, one of "
            f"{', '.join(names)}"
        )
    return found[0]


def _check(shapes: Mapping[str, torch.Size], wanted: Mapping[str, Tensor], what: str) -> None:
    problems = [
        *(f"{key} is missing" for key in wanted if key not in shapes),
        *(f"{key} is unknown" for key in shapes if key not in wanted),
        *(
            f"{key} has shape {tuple(shapes[key])}, expected {tuple(tensor.shape)}"
            for key, tensor in wanted.items()
            if key in shapes and shapes[key] != tensor.shape
        ),
    ]
    if problems:
        shown = "; ".join(problems[:5]) + ("; ..." if len(problems) > 5 else "")
        raise ValueError(f"{what}, {len(problems)} tensors differ: {shown}")


class _Writer:
    """Writes shards, and at the end the index of what is in which."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.number = folder, number
        self.weight_map: dict[str, str] = {}
        self.size = 0

    def add(self, state: Mapping[str, Tensor]) -> None:
        place = len(set(self.weight_map.values())) + 1
        name = f"model-{place:05d}-of-{self.number:05d}.safetensors" if self.number > 1 else _FILES[0]
        write_file(state, self.folder / name)
        self.weight_map |= dict.fromkeys(state, name)
        self.size += sum(tensor.numel() * tensor.element_size() for tensor in state.values())

    def close(self) -> None:
        if self.number > 1:
            index = {"metadata": {"total_size": self.size}, "weight_map": self.weight_map}
            (self.folder / _INDICES[0]).write_text(json.dumps(index, indent=1))


def _to_transformers(source: Path, target: Path, tower: str | None) -> list[str]:
    published = _json(source / "config.json")
    name = _tower_name(source, published, tower)
    tokenizer = AutoTokenizer.from_pretrained(source)
    rows = int(published["vocab_size"])
    tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
    image_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    if image_id != rows:
        raise ValueError(
            f"the tokenizer in {source} has {image_id} tokens, the model {rows}: give the files of one model"
        )
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.unk_token
    text = LlamaConfig(**{key: value for key, value in published.items() if not _is_ours(key)})
    text.vocab_size = rows + 1
    text.pad_token_id = tokenizer.pad_token_id
    config = PIIPLlavaConfig(
        vision_config=PIIPVisionConfig.from_released(name),
        text_config=text,
        image_token_index=image_id,
        published={key: value for key, value in published.items() if _is_ours(key)},
    )
    with torch.device("meta"):
        model = PIIPLlavaForConditionalGeneration(config)
    wanted = {
        key: tensor[:-1] if key in _EMBEDDINGS else tensor for key, tensor in model.state_dict().items()
    }
    shapes = {
        key: tensor.shape for shard in _shards(source) for key, tensor in convert_llava(shard, source).items()
    }
    _check(shapes, wanted, f"{source} is no {name}")

    config.architectures = [PIIPLlavaForConditionalGeneration.__name__]
    config.dtype = next(_shards(source)).popitem()[1].dtype
    config.save_pretrained(target)
    model.generation_config.save_pretrained(target)
    PIIPLlavaProcessor.of(config.vision_config, tokenizer).save_pretrained(target)
    writer = _Writer(target, len(_weight_files(source)))
    for shard in _shards(source):
        ours = convert_llava(shard, source)
        for key in _EMBEDDINGS:
            if key in ours:  # a row for the image token, which nothing reads: the mean of the others
                mean = ours[key].float().mean(0, keepdim=True)
                ours[key] = torch.cat([ours[key], mean.to(ours[key].dtype)])
        writer.add(ours)
    writer.close()
    return [f"{source} is {name}", *_parts(shapes), f"written to {target}"]


def _is_ours(key: str) -> bool:
    """Whether a setting of a published configuration is about images, or about the model's class."""
    return key.startswith(("mm_", "image_", "tune_mm", "use_mm", "freeze_mm", "tokenizer_")) or key in (
        "model_type",
        "architectures",
        "unfreeze_mm_vision_tower",
        "transformers_version",
    )


def _to_official(source: Path, target: Path) -> list[str]:
    config = AutoConfig.from_pretrained(source)
    if not isinstance(config, PIIPLlavaConfig):
        raise ValueError(f"{source} holds a model of type '{config.model_type}', expected 'piip_llava'")
    rows = config.image_token_id
    writer = _Writer(target, len(_weight_files(source)))
    shapes: dict[str, torch.Size] = {}
    for shard in _shards(source):
        kept = {key: tensor[:rows] if key in _EMBEDDINGS else tensor for key, tensor in shard.items()}
        shapes |= {key: tensor.shape for key, tensor in kept.items()}
        writer.add(to_official_llava(kept, source))
    writer.close()
    published = {**config.text_config.to_dict(), **(config.published or {}), "vocab_size": rows}
    (target / "config.json").write_text(json.dumps(published, indent=2, default=str))
    AutoTokenizer.from_pretrained(source).save_pretrained(target)
    return [f"{source} in published names", *_parts(shapes), f"written to {target}"]


def _parts(shapes: Mapping[str, torch.Size]) -> list[str]:
    """One line per component of a model, by our names, with its parameters."""
    names = {
        "model.vision_tower.": "vision tower",
        "model.multi_modal_projector.": "projector",
        "": "language model",
    }
    totals = dict.fromkeys(names.values(), 0)
    for key, shape in shapes.items():
        totals[next(name for prefix, name in names.items() if key.startswith(prefix))] += shape.numel()
    return [f"  {total / 1e6:10.2f} M  {name}" for name, total in totals.items()]


def convert_folder(
    source: str | Path, target: str | Path, *, tower: str | None = None, to_official: bool = False
) -> list[str]:
    """Convert a whole PIIP-LLaVA from the released names to transformers' or back, bit for bit.

    One shard is in memory at a time. A token for images is added to the vocabulary, and taken away on the way
    back.

    Args:
        source: folder with ``config.json``, the tokenizer and safetensors or ``.bin`` files of weights.
        target: folder to write, made if missing.
        tower: the released model, where ``config.json`` does not say.
        to_official: from transformers' names to the released ones.

    Returns:
        Lines that say what was converted.

    Raises:
        FileNotFoundError, OSError: something is missing.
        ValueError: the files are damaged, already converted, or of another tower.
    """
    source, target = Path(source), Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} exists and is not empty: give a new folder")
    released = released_format({key for shard in _shards(source) for key in shard}) is not None
    if released == to_official:
        kind, way = ("already a released", "without") if to_official else ("no released", "with")
        raise ValueError(f"{source} holds {kind} PIIP-LLaVA: convert it {way} --to-official")
    target.mkdir(parents=True, exist_ok=True)
    return _to_official(source, target) if to_official else _to_transformers(source, target, tower)
