"""Detectron2's own ViTDet-B at 1024 px, as its model zoo sets it: what the speed of PIIP is compared with."""

from detectron2 import model_zoo

model = model_zoo.get_config("common/models/mask_rcnn_vitdet.py").model
