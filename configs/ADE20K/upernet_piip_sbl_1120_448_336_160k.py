"""PIIP-SBL: S at 1120, B at 448, L at 336 px, around crops of 512 px. Published mIoU: 54.3.

The smallest model sees the crop enlarged. No weights or settings of it were released: learning rate and decay
are those of the released segmentors, the width of the heads is usual for a ViT-L, windows are detection's.
"""

from ..common.branches import vit
from ..common.data.ade20k import dataloader
from ..common.models.upernet_piip import model, set_width
from ..common.recipe_ade20k import lr_multiplier, optimizer, set_iterations, train
from ..common.tta import segmentation_tta as tta

model.backbone.piip.branches = [vit(letter, 28) for letter in "LBS"]
model.backbone.piip.image_sizes = [336, 448, 1120]
model.backbone.piip.input_size = 512
set_width(1024, 1024)
set_iterations(160_000)
