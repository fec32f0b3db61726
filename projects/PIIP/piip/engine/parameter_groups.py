"""Which part of a detector a parameter belongs to, in the words of the paper."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ..backbone import PIIP

__all__ = ["part_namer", "plain_name"]

_WRAPPERS = ("module.", "_orig_mod.", "_checkpoint_wrapped_module.")  # of DDP, torch.compile, checkpointing


def part_namer(model: nn.Module) -> Callable[[str], str]:
    """A function from the name of a parameter of the model to its part.

    Parts are "branch1" (the largest model), "branch2", ..., "interactions", "merge", and for what is no part
    of a PIIP the first piece of its name, such as "roi_heads", or "neck" for what else the backbone holds.

    Args:
        model: any module; wrapped by DDP or compiled, too.
    """
    roots = [plain_name(name) for name, module in model.named_modules() if isinstance(module, PIIP)]

    def part(name: str) -> str:
        name = plain_name(name)
        for root in roots:
            if name.startswith(f"{root}."):
                piece, _, below = name.removeprefix(f"{root}.").partition(".")
                return f"branch{int(below.partition('.')[0]) + 1}" if piece == "branches" else piece
        first = name.partition(".")[0]
        return "neck" if any(root.startswith(f"{first}.") for root in roots) else first

    return part


def plain_name(name: str) -> str:
    """A name without what wrappers of modules add to it."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name
