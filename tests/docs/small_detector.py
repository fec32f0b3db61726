"""A Mask R-CNN in the form of the released ones, with their neck, small enough for tests: it stands in for
those of configs/COCO where a tutorial trains, evaluates or predicts.
"""

from detectron2.config import LazyCall as L

from piip.branches import ViTBranch

from ..common.models.mask_rcnn_piip import model
from ..quick.mask_rcnn_piip_128_96_64_shapes import (  # noqa: F401, passed on
    dataloader,
    lr_multiplier,
    optimizer,
    train,
)

model.backbone.piip.branches = [
    L(ViTBranch)(embed_dim=dim, depth=2, num_heads=2, pretrain_image_size=size)
    for dim, size in ((64, 64), (32, 128))
]
model.backbone.piip.image_sizes = [64, 128]
model.backbone.piip.num_interactions = 2
model.backbone.piip.interaction.num_heads = 4
model.backbone.out_channels = 32
model.backbone.size_divisibility = 32
model.proposal_generator.head.in_channels = 32
model.proposal_generator.post_nms_topk = (50, 50)
model.roi_heads.num_classes = 6
model.roi_heads.box_head.input_shape.channels = 32
model.roi_heads.box_head.fc_dims = [48, 48]
model.roi_heads.box_predictor.input_shape.channels = 48
model.roi_heads.mask_head.input_shape.channels = 32
model.roi_heads.mask_head.conv_dims = [32] * 5
