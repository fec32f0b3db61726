"""PIIP-TSB: T at 896, S at 448, B at 336 px, around crops of 512 px. Published mIoU: 51.6.

The smallest model sees the crop enlarged. No weights or settings of it were released: learning rate and decay
are those of the released segmentors, the width of the heads is usual for a ViT-B, windows are detection's.
"""

from ..common.branches import vit
from ..common.data.ade20k import dataloader
from ..common.models.upernet_piip import model, set_width
from ..common.recipe_ade20k import lr_multiplier, optimizer, set_iterations, train
from ..common.tta import segmentation_tta as tta

model.backbone.piip.branches = [vit(letter, 14) for letter in "BST"]
model.backbone.piip.image_sizes = [336, 448, 896]
model.backbone.piip.input_size = 512
set_width(768, 512)
set_iterations(160_000)
