"""A released format: a table of rules, and what is remade rather than renamed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...branches.beit import relative_position_index
from ..differences import check_values
from .rules import Rule, inverse, rename

__all__ = ["ReleasedFormat"]

_INDEX, _TABLE = "attn.relative_position_index", "attn.relative_position_bias_table"
_ROTARY = re.compile(r".*\.rotary_emb\.inv_freq")  # which old versions of transformers wrote down


def _is_constant(key: str, tensor: Tensor, origin: object) -> bool:
    """Whether a tensor is made here: frequencies of rotary embeddings, BEiT's indices of relative positions.

    Raises:
        ValueError: an index is another one.
    """
    if not key.endswith(_INDEX):
        return bool(_ROTARY.fullmatch(key))
    side = math.isqrt(len(tensor)) if tensor.ndim else 0
    if not tensor.is_meta and not torch.equal(tensor.cpu(), relative_position_index(side)):
        raise ValueError(
            f"{origin}: {key} is not the index of relative positions in a window of {side}x{side} tokens: "
            "expected none or that"
        )
    return True


def _indices(released: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """BEiT's indices of relative positions, by their released names."""
    tables = {key: tensor for key, tensor in released.items() if key.endswith(_TABLE)}
    sides = {key: (math.isqrt(len(table)) + 1) // 2 for key, table in tables.items()}
    return {
        key.replace(_TABLE, _INDEX): relative_position_index(side).to(tables[key].device)
        for key, side in sides.items()
    }


@dataclass(frozen=True)
class ReleasedFormat:
    """The names of a kind of released checkpoint.

    Attributes:
        name: of what is in it.
        rules: the rules for a state dict in released names or in ours.
        released: how some of its names begin, and none of ours.
        ours: how some of our model's begin.
    """

    name: str
    rules: Callable[[Mapping[str, Tensor]], Sequence[Rule]]
    released: tuple[str, ...] = ()
    ours: tuple[str, ...] = ()

    def is_released(self, names: Collection[str]) -> bool:
        """Whether names of tensors are those of a released checkpoint."""
        return any(name.startswith(self.released) for name in names)

    def rename(self, state: Mapping[str, Tensor], origin: object = "the checkpoint") -> dict[str, Tensor]:
        """:meth:`convert` without a look at the values, which may still be on the disk."""
        kept = {key: tensor for key, tensor in state.items() if not _is_constant(key, tensor, origin)}
        return rename(kept, self.rules(kept), f"{origin} is no released {self.name}")

    def convert(self, state: Mapping[str, Tensor], origin: object = "the checkpoint") -> dict[str, Tensor]:
        """Rename the tensors of a released checkpoint to ours.

        Constants, such as BEiT's indices of relative positions, are left out. Shapes are not looked at: they
        are a matter of the model, see :func:`piip.weights.differences.differences`.

        Args:
            state: released name -> tensor, of any floating-point type. Tensors are passed on, not copied.
            origin: what to call the source in errors.

        Raises:
            ValueError: naming every name that is not known, two that mean the same, or the first tensor that
                holds something else than finite numbers.
        """
        converted = self.rename(state, origin)
        check_values(converted, origin)
        return converted

    def to_official(
        self, state: Mapping[str, Tensor], origin: object = "the checkpoint"
    ) -> dict[str, Tensor]:
        """Undo :meth:`convert`: from our names to the released ones, the tensors themselves untouched.

        Raises:
            ValueError: naming every tensor for which there is no released name.
        """
        complaint = f"{origin} has no released form as a {self.name}"
        official = rename(state, inverse(self.rules(state)), complaint)
        return official | _indices(official)
