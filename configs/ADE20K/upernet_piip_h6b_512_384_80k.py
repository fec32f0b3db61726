"""PIIP-H6B: MAE-H at 512, InternViT-6B at 384 px. Published mIoU: 59.32."""

from .upernet_piip_h6b_512_192_80k import dataloader, lr_multiplier, model, optimizer, train, tta

model.backbone.piip.image_sizes[0] = model.backbone.piip.branches[0].pretrain_image_size = 384
