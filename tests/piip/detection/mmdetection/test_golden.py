"""The published Mask R-CNN, whole against whole: detections, losses and gradients from the same weights."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from .... import require

require.detectron2()

from detectron2.modeling import GeneralizedRCNN
from detectron2.utils.events import EventStorage

from ....shared_data import Golden, golden
from .golden_detector import build, published_gradients, training_batch, unpacked, use_float64

LOSSES = {"loss_rpn_loc": "loss_rpn_bbox", "loss_box_reg": "loss_bbox"}  # ours that have another name there
TOLERANCE = 1e-8  # the golden gradients sum in another order: 3e-10 was seen


@pytest.fixture(scope="module")
def case() -> Golden:
    return golden("fixtures/mask_rcnn", "golden_mask_rcnn_a")


@pytest.fixture
def detector(case: Golden, monkeypatch: pytest.MonkeyPatch) -> Iterator[GeneralizedRCNN]:
    use_float64(monkeypatch)
    with EventStorage():
        yield build(case)


@pytest.mark.parametrize("scene", ["apart", "small", "crowded", "padding"])
def test_training(scene: str, case: Golden, detector: GeneralizedRCNN) -> None:
    """All losses, and the norms of the gradients of all parameters."""
    expected = case.meta["train"][scene]
    losses = detector(training_batch(case, scene))
    found = {LOSSES.get(name, name): loss.item() for name, loss in losses.items()}
    assert found == {name: pytest.approx(expected["losses"][name], rel=TOLERANCE) for name in found}
    torch.stack(list(losses.values())).sum().backward()
    gradients = published_gradients(detector)
    norms = {name: gradients[name].norm().item() for name in expected["gradient_norms"]}
    assert norms == pytest.approx(expected["gradient_norms"], rel=TOLERANCE, abs=1e-12)
    for name, gradient in case.group(f"train/{scene}/grad").items():
        torch.testing.assert_close(gradients[name].to(gradient.dtype), gradient, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("number", range(3))
@torch.no_grad()
def test_inference(number: int, case: Golden, detector: GeneralizedRCNN) -> None:
    """Proposals, boxes, scores, classes, their order, probabilities and every pixel of the masks."""
    described = case.meta["cases"][number]
    batch = []
    for place, (height, width) in enumerate(described["originals"]):
        image = case.arrays[f"case{number}/{place}/image"].permute(2, 0, 1)
        batch.append({"image": image, "height": height, "width": width})
    detector.eval()
    images = detector.preprocess_image(batch)
    assert list(images.tensor.shape[2:]) == described["padded"]
    proposals, _ = detector.proposal_generator(images, detector.backbone(images.tensor))
    raw = detector.inference(batch, do_postprocess=False)
    probabilities = [found.pred_masks[:, 0].clone() for found in raw]
    for place, output in enumerate(GeneralizedRCNN._postprocess(raw, batch, images.image_sizes)):
        expected, found = case.group(f"case{number}/{place}"), output["instances"]
        close = {"rtol": TOLERANCE, "atol": TOLERANCE}
        boxes = expected["proposals"]
        torch.testing.assert_close(proposals[place].proposal_boxes.tensor, boxes[:, :4], **close)
        torch.testing.assert_close(proposals[place].objectness_logits.sigmoid(), boxes[:, 4], **close)
        torch.testing.assert_close(found.pred_boxes.tensor, expected["boxes"], **close)
        torch.testing.assert_close(found.scores, expected["scores"], **close)
        assert found.pred_classes.tolist() == expected["labels"].tolist()
        reference = expected["mask_probs"]  # rounded to float32
        torch.testing.assert_close(
            probabilities[place][: len(reference)].float(), reference, rtol=1e-6, atol=0
        )
        masks = unpacked(expected["masks"], (len(found), *described["originals"][place]))
        assert found.pred_masks.equal(masks)
