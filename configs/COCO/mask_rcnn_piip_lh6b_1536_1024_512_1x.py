"""PIIP-LH6B: L at 1536, H at 1024, InternViT-6B at 512 px. No result published."""

from ..common.branches import internvit_6b, mae, vit
from ..common.data.coco_multiscale import dataloader, set_multiscale
from ..common.models.mask_rcnn_piip import model
from ..common.recipe_1x import lr_multiplier, optimizer, train
from ..common.tta import rcnn_tta as tta

model.backbone.piip.branches = [internvit_6b("gelu_tanh"), mae("H", None, "gelu_tanh"), vit("L", None, 384)]
model.backbone.piip.branches[2].activation = "gelu_tanh"
model.backbone.piip.image_sizes = [512, 1024, 1536]
model.backbone.piip.num_interactions = 4
model.backbone.piip.interaction.projection = False
model.backbone.piip.interaction.norm = False
optimizer.lr = 2e-4
dataloader.train.total_batch_size = 32
# 12 epochs still, in half the iterations
train.max_iter //= 2
train.eval_period //= 2
train.checkpointer.period //= 2
lr_multiplier.warmup_length = 500 / train.max_iter
model.backbone.piip.grad_checkpointing = True
model.backbone.size_divisibility = 64
set_multiscale(1536)
train.float32_heads = True  # as released; next to such a backbone it costs little
