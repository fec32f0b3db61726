"""A PIIP Mask R-CNN small enough to train on two CPU cores in minutes, on the shapes that `make demo` draws.

Three branches of 3 blocks, the widest on the smallest image: 64 channels at 64 px, 48 at 96 px, 32 at 128 px.
Patches of 8 px, but 4 px on the largest image: masks are as sharp as the finest map. So the merged map has
stride 4, and the pyramid strides 4 and 8.
"""

import detectron2.data.transforms as T
import torch
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.data import DatasetMapper
from detectron2.layers import ShapeSpec
from detectron2.solver import WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import CosineParamScheduler
from omegaconf import OmegaConf

from piip import PIIP, InteractionConfig
from piip.branches import ViTBranch
from piip.detection.data import dataset_dicts
from piip.detection.evaluation import COCOEvaluator
from piip.detection.own_data import CocoData
from piip.engine.backbone import piip_backbone
from piip.engine.data import TrainLoader, evaluation_loader
from piip.engine.resize import ResizeToFit
from piip.quick.shapes import CLASSES, register

from ..common.tta import rcnn_tta as tta

register()

_channels = 48
_strides = (4, 8)
_levels = ["p2", "p3"]

model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
model.pixel_mean = [127.5] * 3
model.pixel_std = [30.0] * 3  # inputs of up to +-4: loud ones shorten the start of so short a training
model.input_format = "RGB"
model.backbone = L(piip_backbone)(
    piip=L(PIIP)(
        branches=[
            L(ViTBranch)(
                embed_dim=dim,
                depth=3,
                num_heads=2,
                patch_size=patch,
                window_sizes=window,
                pretrain_image_size=size,
                weight_init="xavier",
            )
            for dim, size, patch, window in ((64, 64, 8, None), (48, 96, 8, None), (32, 128, 4, 8))
        ],
        image_sizes=[64, 96, 128],
        num_interactions=3,
        interaction=L(InteractionConfig)(num_heads=4, drop_path_rate=0.0),
    ),
    out_channels=_channels,
    scale_factors=(1.0, 0.5),
)

# Detectron2 derives none of the following from the pyramid.
model.proposal_generator.in_features = _levels
model.proposal_generator.anchor_generator.strides = _strides
model.proposal_generator.anchor_generator.sizes = [[10, 16, 24], [38, 60, 90]]
model.proposal_generator.anchor_generator.aspect_ratios = [1.0]  # the shapes are about as wide as tall
model.proposal_generator.head.in_channels = _channels
model.proposal_generator.head.num_anchors = 3
model.roi_heads.num_classes = len(CLASSES)
for _kind in ("box", "mask"):
    model.roi_heads[f"{_kind}_in_features"] = _levels
    _pooler = model.roi_heads[f"{_kind}_pooler"]
    _pooler.scales = [1 / stride for stride in _strides]
    _pooler.sampling_ratio = 1  # bins are about one cell wide
    _pooler.canonical_box_size = 48  # objects are small: 24 px already use stride 4
    _pooler.canonical_level = 3
model.roi_heads.box_pooler.output_size = 7
model.roi_heads.box_head.input_shape = ShapeSpec(channels=_channels, height=7, width=7)
model.roi_heads.mask_pooler.output_size = 14
model.roi_heads.mask_head.input_shape = ShapeSpec(channels=_channels, height=14, width=14)
model.roi_heads.box_head.conv_dims = [_channels]
model.roi_heads.box_head.fc_dims = [128]
model.roi_heads.box_predictor.input_shape = ShapeSpec(channels=128)
model.roi_heads.mask_head.conv_dims = [_channels] * 3  # two convolutions and the deconvolution
# One regressor and one mask for all classes: six times the examples for each in so short a training.
model.roi_heads.box_predictor.cls_agnostic_bbox_reg = True
model.roi_heads.mask_head.num_classes = 1

# The default numbers of proposals and samples, made for COCO, would cost five times the whole iteration.
# Evaluation learns from none of them, so that more are cheap there, and find more small objects.
model.proposal_generator.batch_size_per_image = 128
model.proposal_generator.pre_nms_topk = (250, 600)
model.proposal_generator.post_nms_topk = (150, 250)
model.roi_heads.batch_size_per_image = 32
model.roi_heads.box_predictor.test_score_thresh = 0.01

dataloader = OmegaConf.create()
dataloader.train = L(TrainLoader)(
    dataset=L(dataset_dicts)(names="shapes_train"),
    mapper=L(DatasetMapper)(
        is_train=True,
        augmentations=[
            L(ResizeToFit)(long_edge=128, short_edge=128),  # the shapes are of that size already
            L(T.RandomFlip)(horizontal=True),
        ],
        image_format="RGB",
        use_instance_mask=True,
        instance_mask_format="bitmask",
    ),
    total_batch_size=8,
)
dataloader.test = L(evaluation_loader)(
    dataset=L(dataset_dicts)(names="shapes_val", filter_empty=False),
    mapper=L(DatasetMapper)(
        is_train=False,
        augmentations=[L(ResizeToFit)(long_edge=128, short_edge=128)],
        image_format="${...train.mapper.image_format}",
    ),
    num_workers=0,
)
dataloader.evaluator = L(COCOEvaluator)(
    dataset_name="${..test.dataset.names}", output_dir="${train.output_dir}"
)
dataloader.own_data = L(CocoData)(rules="detectron2")  # what --data means

optimizer = L(torch.optim.AdamW)(
    params=L(get_default_optimizer_params)(weight_decay_norm=0.0),
    lr=8e-4,
    weight_decay=0.05,
    fused=True,  # on the CPU the default loops over the parameters, for a tenth of the iteration
)

train = model_zoo.get_config("common/train.py").train
train.device = "cpu"
train.seed = 0
train.precision = train.eval_precision = "float32"
train.tta = False
train.output_dir = "outputs/demo"
train.max_iter = 800  # 2.7 epochs: 800 iterations * 8 / 2400 images
train.eval_period = 0  # after the last iteration only
train.checkpointer.period = 200
train.checkpointer.max_to_keep = 2
train.log_period = 50

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.0),
    warmup_length=60 / train.max_iter,
    warmup_factor=0.01,
)
