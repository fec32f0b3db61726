"""PIIP-LH6B: MAE-L at 640, MAE-H at 512, InternViT-6B at 256 px around crops of 512. mIoU unknown here."""

from .upernet_piip_lh6b_640_512_192_160k import dataloader, lr_multiplier, model, optimizer, train, tta

model.backbone.piip.image_sizes[0] = model.backbone.piip.branches[0].pretrain_image_size = 256
