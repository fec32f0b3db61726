"""The published branch models, by the letters the paper uses."""

from collections.abc import Sequence
from typing import Any

from detectron2.config import LazyCall as L

from piip.branches import ViTBranch

# channels, blocks, heads, drop path rate (constant over depth)
_VITS = {
    "T": (192, 12, 3, 0.05),
    "S": (384, 12, 6, 0.05),
    "B": (768, 12, 12, 0.15),
    "L": (1024, 24, 16, 0.40),
}


def vit(letter: str, window_sizes: int | Sequence[int | None] | None) -> Any:
    """A DeiT (T) or DeiT III (S, B, L) branch; windows as in `piip.branches.ViTBranch`."""
    embed_dim, depth, num_heads, drop_path_rate = _VITS[letter]
    return L(ViTBranch)(
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        drop_path_rate=drop_path_rate,
        window_sizes=window_sizes,
        pretrain_image_size=224,
    )
