"""Pooling of regions by the deformable attention operator, which reads channels-last maps as they are."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from piip_ops import build_info, ms_deform_attn

from ..numerics import without_autocast

__all__ = ["SampledRoIAlign", "sample_regions"]


class SampledRoIAlign(nn.Module):
    """RoIAlign as torchvision's, on a CPU several times faster, for inference only.

    A bin of a region is the mean of bilinear samples: attention of one head to a few places with weights that
    are known. torchvision's kernel wants contiguous maps in float32, a channel after the other; the operator
    here reads all channels of a place at once, in whatever precision the map is.

    Args:
        output_size: bins of a region, ``(height, width)`` or one number for both.
        spatial_scale: pixels of the map a pixel of the image.
        sampling_ratio: samples a bin in each direction; 0 for as many as it has pixels, rounded up.
        aligned: pixels have their centres at 0.5, not at 0.
    """

    def __init__(
        self,
        output_size: int | tuple[int, int],
        spatial_scale: float,
        sampling_ratio: int = 0,
        aligned: bool = True,
    ) -> None:
        super().__init__()
        self.output_size = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def forward(self, x: Tensor, regions: Tensor) -> Tensor:
        """Pool.

        Args:
            x: map ``(B, C, H, W)``, fastest channels-last.
            regions: ``(N, 5)``, the number of the image and x0, y0, x1, y1 in its pixels.

        Returns:
            ``(N, C, *output_size)`` in the precision of ``x``, channels-last.
        """
        _, channels, height, width = x.shape
        rows, columns = self.output_size
        pooled = x.new_zeros(len(regions), rows * columns, channels)
        image, corners = regions[:, 0].long(), regions[:, 1:].float() * self.spatial_scale
        start, end = (corners - 0.5 if self.aligned else corners).view(-1, 2, 2).flip(-1).unbind(1)  # (y, x)
        size = end - start if self.aligned else (end - start).clamp(min=1)
        bins = size / size.new_tensor((rows, columns))
        ratio = self.sampling_ratio
        samples = bins.ceil().clamp(min=0) if ratio <= 0 else torch.full_like(bins, ratio)
        number = samples.prod(1)
        # as many samples for all of a call: the next power of two of what each needs
        padded = torch.where(number > 0, number.clamp(min=1).log2().ceil().exp2(), 0)
        for points in padded.unique().tolist():
            for which in range(len(x)) if points else ():
                chosen = ((padded == points) & (image == which)).nonzero().flatten()
                if len(chosen):
                    places, weights = _places(
                        start[chosen],
                        bins[chosen],
                        samples[chosen],
                        (rows, columns),
                        int(points),
                        x.shape[2:],
                    )
                    value = x[which].permute(1, 2, 0).reshape(1, height * width, 1, channels)
                    with without_autocast(x.device):
                        found = ms_deform_attn(value, [(height, width)], places, weights)
                    pooled[chosen] = found.view(len(chosen), rows * columns, channels)
        return pooled.view(len(regions), rows, columns, channels).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        return f"{self.output_size}, {self.spatial_scale}, {self.sampling_ratio}, aligned={self.aligned}"


def _places(
    start: Tensor, bins: Tensor, samples: Tensor, grid: tuple[int, int], points: int, size: torch.Size
) -> tuple[Tensor, Tensor]:
    """Where the bins of n regions look and with what weight.

    Args:
        start: of each region in pixels of the map, (y, x): ``(n, 2)``.
        bins: size of its bins, likewise.
        samples: a bin, in each direction, likewise.
        grid: rows and columns of bins, R and Q.
        points: P, to which samples are filled up with some of weight 0.
        size: height and width of the map.

    Returns:
        Locations ``(1, n * R * Q, 1, 1, P, 2)``, (x, y) in fractions; weights ``(1, n * R * Q, 1, 1, P)``.
    """
    point = torch.arange(points)
    across = samples[:, 1:]
    # (n, P): row and column of a sample in its bin
    index = torch.stack([point.div(across, rounding_mode="floor"), point.remainder(across)], -1)
    inside = (index + 0.5) / samples[:, None]  # (n, P, 2), fractions of a bin
    used = point < samples.prod(1, keepdim=True)
    axes = []
    for axis in range(2):
        corner = torch.arange(grid[axis])[:, None]  # (R, 1) or (Q, 1)
        bin_size = bins[:, axis, None, None]
        # (n, R or Q, P)
        axes.append(start[:, axis, None, None] + bin_size * corner + bin_size * inside[:, None, :, axis])
    n, shape = len(start), (len(start), *grid, points)
    y, x = axes[0][:, :, None].expand(shape), axes[1][:, None].expand(shape)
    # more than a pixel outside: zero; closer: the border's value
    seen = (y >= -1) & (y <= size[0]) & (x >= -1) & (x <= size[1]) & used[:, None, None]
    places = torch.stack(
        [(v.clamp(0, length - 1) + 0.5) / length for v, length in ((x, size[1]), (y, size[0]))], -1
    )
    weights = seen / samples.prod(1)[:, None, None, None]
    queries = n * math.prod(grid)
    return places.reshape(1, queries, 1, 1, points, 2), weights.reshape(1, queries, 1, 1, points)


def sample_regions(model: nn.Module) -> None:
    """Replace Detectron2's and torchvision's RoIAlign in a model, in place, if the operator is compiled."""
    if build_info()["extension"] != "built":
        return
    for module in model.modules():
        for name, child in module.named_children():
            # by name: Detectron2 is not needed here
            if type(child).__name__ in ("ROIAlign", "RoIAlign"):
                settings = child.output_size, child.spatial_scale, child.sampling_ratio, child.aligned
                setattr(module, name, SampledRoIAlign(*settings))  # type: ignore[arg-type]
