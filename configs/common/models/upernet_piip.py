"""UPerNet on a PIIP backbone, as released; whoever imports it fills in branches, image sizes and widths.

The maps at strides 4 to 32 are those of the released detectors, without an FPN; crops have 512 px.
"""

from detectron2.config import LazyCall as L

from piip import PIIP, InteractionConfig
from piip.engine.backbone import released_maps
from piip.segmentation.heads import FCNHead, SegmentationHeads, UPerNetHead
from piip.segmentation.segmentor import Segmentor

model = L(Segmentor)(
    backbone=L(released_maps)(
        piip=L(PIIP)(branches=[], image_sizes=[], num_interactions=12, interaction=L(InteractionConfig)())
    ),
    heads=L(SegmentationHeads)(
        decode_head=L(UPerNetHead)(in_dims=[3200] * 4, dim=1536, num_classes=150),
        auxiliary_head=L(FCNHead)(
            in_dim="${..decode_head.in_dims.2}",
            dim="${..decode_head.dim}",
            num_classes="${..decode_head.num_classes}",
        ),
    ),
    in_features=["f1", "f2", "f3", "f4"],
    pixel_mean=[123.675, 116.28, 103.53],
    pixel_std=[58.395, 57.12, 57.375],
    crop_size=512,
    stride=341,
    sync_norm=True,
)


def set_width(channels: int, dim: int) -> None:
    """Channels of the merged map, and of the heads."""
    model.heads.decode_head.in_dims = [channels] * 4
    model.heads.decode_head.dim = dim
