"""DINO computes what the published code computes, from the same weights and random numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from piip.detection.dino.neck import ChannelMapper
from piip.official import build_dino, convert_dino, to_official_dino

from ...shared_data import Golden, golden

FOLDER = "fixtures/dino"
AFTER_NECK = ["dino_infer_a"]
TRAINING = ["dino_train_a", "dino_train_few_a", "dino_train_none_a"]


def close(value: Tensor, reference: Tensor) -> bool:
    """To 1e-6 of the largest value, which the rounding of the stored numbers allows."""
    reference = reference.double()
    assert value.shape == reference.shape, (value.shape, reference.shape)
    if reference.numel() == 0:
        return True
    finite = torch.isfinite(reference)
    assert torch.equal(finite, torch.isfinite(value))
    value, reference = value[finite], reference[finite]
    return bool((value - reference).abs().max() <= 1e-6 * max(1.0, float(reference.abs().max())))


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """The published dict of a case that lists its sizes."""
    attention = {
        "embed_dims": config["embed_dims"],
        "num_heads": config["num_heads"],
        "num_levels": config["num_levels"],
        "num_points": config["num_points"],
    }
    ffn = {"feedforward_channels": config["ffn"]}
    return {
        "bbox_head": {
            "num_query": config["num_queries"],
            "num_classes": config["num_classes"],
            "dn_cfg": {"group_cfg": {"dynamic": True, "num_dn_queries": config["num_dn_queries"]}},
            "transformer": {
                "num_feature_levels": config["num_levels"],
                "encoder": {
                    "num_layers": config["enc_layers"],
                    "transformerlayers": {"attn_cfgs": attention, "ffn_cfgs": ffn},
                },
                "decoder": {"num_layers": config["dec_layers"]},
            },
        },
        "test_cfg": {"max_per_img": config["max_per_img"]},
    }


def build(case: Golden) -> Any:
    model = build_dino(case.meta.get("model") or settings(case.meta["config"])).double()
    state = {key: tensor.double() for key, tensor in case.group("state").items()}
    model.load_state_dict(convert_dino(state))
    return model


def sizes(shapes: Any) -> list[tuple[int, int]]:
    return [(height, width) for height, width in shapes]


def test_golden_inference() -> None:
    """With the neck: every layer's logits and boxes, and the detections."""
    case = golden(FOLDER, "dino_tiny")
    model, images = build(case), sizes(case.meta["img_shapes"])
    maps = [case.arrays[f"input/f{i}"].double() for i in range(3)]
    padded = tuple(case.meta["batch_input_shape"])
    with torch.no_grad():
        for index, level in enumerate(model.neck(maps)):
            assert close(level, case.arrays[f"neck/{index}"])
        found = model.predict(maps, images, padded)
        detections = model(maps, images, padded)
    assert close(found.logits, case.arrays["infer/class_logits"])
    assert close(found.boxes, case.arrays["infer/boxes_cxcywh"])
    assert close(found.encoder_logits, case.arrays["infer/encoder_topk_logits"])
    assert close(found.encoder_boxes, case.arrays["infer/encoder_topk_boxes"])
    for index, image in enumerate(detections):
        width_first = torch.tensor(case.meta["scale_factors"][index], dtype=torch.float64).repeat(2)
        reference = case.arrays[f"infer/detections{index}"].double()
        assert close(image["boxes"] / width_first, reference[:, :4])
        assert close(image["scores"], reference[:, 4])
        assert torch.equal(image["labels"], case.arrays[f"infer/labels{index}"])


@pytest.mark.parametrize("name", AFTER_NECK)
def test_golden_inference_from_levels(name: str) -> None:
    case = golden(FOLDER, name)
    config, model = case.meta["config"], build(case)
    levels = [case.arrays[f"input/level{i}"].double() for i in range(config["num_levels"])]
    images = sizes(image["img_shape"] for image in config["images"])
    with torch.no_grad():
        found = model.predict(levels, images, tuple(config["batch_input_shape"]))
        detections = model(levels, images, tuple(config["batch_input_shape"]))
    assert close(found.logits, case.arrays["out/class_logits"])
    assert close(found.boxes, case.arrays["out/boxes"])
    for index, image in enumerate(detections):
        prefix = f"out/detections{index}"
        assert close(image["boxes"], case.arrays[f"{prefix}/boxes_input_scale"])
        assert close(image["scores"], case.arrays[f"{prefix}/scores"])
        assert torch.equal(image["labels"], case.arrays[f"{prefix}/labels"])


def check_gradients(case: Golden, model: Any, prefix: str, inputs: dict[str, Tensor]) -> None:
    gradients = to_official_dino(
        {key: torch.zeros_like(p) if p.grad is None else p.grad for key, p in model.named_parameters()}
    )
    references = case.group(prefix)
    assert references
    for key, reference in references.items():
        value = inputs[key].grad if key in inputs else gradients[key.removeprefix("param/")]
        assert value is not None and close(value, reference), key


def test_golden_training() -> None:
    """Denoising queries, all losses and gradients, from the random numbers given."""
    case = golden(FOLDER, "dino_tiny")
    model = build(case)
    maps = {f"f{i}": case.arrays[f"input/f{i}"].double().requires_grad_() for i in range(3)}
    losses = model.losses(
        list(maps.values()),
        sizes(case.meta["img_shapes"]),
        tuple(case.meta["batch_input_shape"]),
        [case.arrays[f"train/gt_boxes{i}"].double() for i in range(2)],
        [case.arrays[f"train/gt_labels{i}"] for i in range(2)],
        draws=case.group("train/draw"),
    )
    references = case.group("train/loss")
    assert losses.keys() == references.keys()
    for name, reference in references.items():
        assert close(losses[name], reference), name
    sum(loss.sum() for loss in losses.values()).backward()
    check_gradients(case, model, "train/grad", maps)


@pytest.mark.parametrize("name", TRAINING)
def test_golden_training_from_levels(name: str) -> None:
    """Among the chosen are padded cells; few objects, and none."""
    case = golden(FOLDER, name)
    config, model = case.meta["config"], build(case)
    levels = {
        f"input/level{i}": case.arrays[f"input/level{i}"].double().requires_grad_()
        for i in range(config["num_levels"])
    }
    number = range(len(config["images"]))
    losses = model.losses(
        list(levels.values()),
        sizes(image["img_shape"] for image in config["images"]),
        tuple(config["batch_input_shape"]),
        [case.arrays[f"input/gt_boxes{i}"].double().view(-1, 4) for i in number],
        [case.arrays[f"input/gt_labels{i}"].long() for i in number],
        draws=[case.arrays[f"draw/{key}"] for key in ("label_p", "new_labels", "sign01", "box_u")],
    )
    references = {key: value for key, value in case.group("loss").items() if key != "total"}
    assert losses.keys() == references.keys()
    for key, reference in references.items():
        assert close(losses[key], reference), key
    sum(loss.sum() for loss in losses.values()).backward()
    check_gradients(case, model, "grad", levels)


def test_golden_neck() -> None:
    case = golden(FOLDER, "dino_neck_a")
    state = convert_dino({key: tensor.double() for key, tensor in case.group("state").items()})
    maps = [case.arrays[key].double() for key in sorted(k for k in case.arrays if k.startswith("input/map"))]
    levels = sum(key.startswith("out/level") for key in case.arrays)
    dim = state["neck.convs.0.norm.weight"].shape[0]
    groups = case.meta["config"]["gn_groups"]
    neck = ChannelMapper([x.shape[1] for x in maps], dim, levels, groups).double()
    neck.load_state_dict({key.removeprefix("neck."): tensor for key, tensor in state.items()})
    for index, level in enumerate(neck(maps)):
        assert close(level.detach(), case.arrays[f"out/level{index}"])


def test_names_go_back() -> None:
    state = golden(FOLDER, "dino_tiny").group("state")
    back = to_official_dino(convert_dino(state))
    assert back.keys() == state.keys()
    assert all(back[key] is state[key] for key in state)
    with pytest.raises(ValueError, match=r"1 keys are unknown: bbox_head\.odd"):
        convert_dino({**state, "bbox_head.odd": torch.zeros(1)})


@pytest.mark.parametrize("width", [1024, 3200])
def test_released_sizes(width: int) -> None:
    """As many tensors and numbers as in the released detectors, all of which have a published name."""
    attention = {"embed_dims": 256, "num_heads": 8, "num_levels": 4, "num_points": 4}
    layers = {"num_layers": 6, "transformerlayers": {"attn_cfgs": attention}}
    model = {
        "neck": {"in_channels": [width] * 3, "out_channels": 256, "num_outs": 4},
        "bbox_head": {
            "num_query": 900,
            "num_classes": 80,
            "transformer": {"encoder": layers, "decoder": layers},
        },
    }
    with torch.device("meta"):
        state = to_official_dino(build_dino(model).state_dict())
    numbers = {"neck.": 0, "bbox_head.": 0}
    for key, tensor in state.items():
        numbers[key[: key.index(".") + 1]] += tensor.numel()
    assert len(state) == 12 + 297
    assert numbers == {"neck.": {1024: 3_147_776, 3200: 9_832_448}[width], "bbox_head.": 18_556_236}


def tiny_levels(seed: int, size: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(math.ceil(size[0] / s), math.ceil(size[1] / s)) for s in (8, 16, 32, 64)]
    return [torch.randn(1, 32, *shape, generator=generator, dtype=torch.float64) for shape in shapes]


def test_padding_changes_nothing_the_encoder_says() -> None:
    """Whatever lies in it. (The decoder codes boxes as shares of the padded map, as released.)"""
    model = build(golden(FOLDER, "dino_infer_a"))
    size, padded = (128, 192), (192, 256)
    alone = tiny_levels(0, size)
    wide = tiny_levels(1, padded)
    for level, x in zip(alone, wide, strict=True):
        x[:, :, : level.shape[2], : level.shape[3]] = level
    with torch.no_grad():
        expected = model.predict(alone, [size], size)
        found = model.predict([x.repeat(2, 1, 1, 1) for x in wide], [size, padded], padded)
    torch.testing.assert_close(found.encoder_boxes[:1], expected.encoder_boxes, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.encoder_logits[:1], expected.encoder_logits, rtol=0, atol=1e-12)


def test_a_new_model_proposes_what_its_references_are() -> None:
    """Box branches start at zero: each layer's boxes equal the proposals, but for the clamp at 0.001."""
    torch.manual_seed(0)
    model = build_dino(golden(FOLDER, "dino_tiny").meta["model"]).double().eval()
    maps = [torch.randn(1, 48, n, n, dtype=torch.float64) for n in (16, 8, 4)]
    with torch.no_grad():
        found = model.predict(maps, [(128, 128)], (128, 128))
    for boxes in found.boxes:
        torch.testing.assert_close(boxes, found.encoder_boxes.clamp(1e-3, 1 - 1e-3), rtol=0, atol=2e-3)


def test_costs_that_are_not_finite() -> None:
    model = build(golden(FOLDER, "dino_infer_a"))
    with torch.no_grad():
        model.class_branches[-1].weight.fill_(math.nan)
    levels = tiny_levels(0, (64, 64))
    with pytest.raises(FloatingPointError, match="not finite"):
        model.losses(levels, [(64, 64)], (64, 64), [torch.tensor([[1.0, 1, 9, 9]])], [torch.tensor([0])])
