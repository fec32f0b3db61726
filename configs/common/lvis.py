"""LVIS v1 in the place of COCO, as ViTDet is trained on it: rare classes more often, and federated loss."""

from typing import Any

from detectron2.config import LazyCall as L
from detectron2.data.datasets.lvis import get_lvis_instances_meta

from piip.detection.lvis import FederatedWeights, LvisData, LVISEvaluator, register_lvis
from piip.engine.data import dataset_root

_classes = get_lvis_instances_meta("lvis_v1")
_number = len(_classes["thing_classes"])
_classes["thing_dataset_id_to_contiguous_id"] = {number + 1: number for number in range(_number)}
for _split in ("train", "val"):
    register_lvis(
        f"lvis_v1_{_split}", dataset_root() / f"lvis/lvis_v1_{_split}.json", dataset_root() / "coco", _classes
    )


def use_lvis(model: Any, dataloader: Any, optimizer: Any, lr_multiplier: Any, train: Any) -> None:
    """Make a Mask or Cascade R-CNN of ViTDet's recipe one for LVIS."""
    heads = model.roi_heads
    heads.num_classes = _number
    for predictor in heads.box_predictors if "box_predictors" in heads else [heads.box_predictor]:
        predictor.test_score_thresh = 0.02
        predictor.test_topk_per_image = 300
        predictor.use_sigmoid_ce = predictor.use_fed_loss = True
        predictor.get_fed_loss_cls_weights = L(FederatedWeights)(
            dataset="lvis_v1_train", num_classes="${..num_classes}"
        )

    dataloader.train.dataset.names, dataloader.test.dataset.names = "lvis_v1_train", "lvis_v1_val"
    dataloader.train.repeat_threshold = 0.001
    dataloader.evaluator = L(LVISEvaluator)(
        dataset_name="${..test.dataset.names}", output_dir="${train.output_dir}", max_dets_per_image=300
    )
    dataloader.own_data = L(LvisData)()

    # 100 epochs * 100000 images / 64 an iteration; steps after 8/9 and 26/27 of them
    train.max_iter = 156250
    train.eval_period = 30000
    lr_multiplier.scheduler.milestones = [138889, 150463]
    lr_multiplier.scheduler.num_updates = train.max_iter
    lr_multiplier.warmup_length = 250 / train.max_iter
    optimizer.lr = 2e-4
