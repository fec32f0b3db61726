"""Mask R-CNN on a PIIP backbone; whoever imports it fills in the branches and their image sizes.

Detectron2's heads are the published ones: anchors of 32 to 512 px, RoIAlign without rounding, 2 fully
connected layers on boxes, 4 convolutions on masks. The neck is that of the released detectors, so that their
weights fit; `model.backbone.neck="simple"` is ViTDet's.
"""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L

from piip import PIIP, InteractionConfig
from piip.detection.mmdetection.rules import use_rules
from piip.engine.backbone import piip_backbone

model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
model.input_format = "RGB"
model.pixel_mean = model.pixel_std = [127.5, 127.5, 127.5]
model.backbone = L(piip_backbone)(
    piip=L(PIIP)(branches=[], image_sizes=[], num_interactions=12, interaction=L(InteractionConfig)()),
    neck="released",
    size_divisibility=224,
)
use_rules("mmdetection", model)
