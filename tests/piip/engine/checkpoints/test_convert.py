"""Released detectors as Detectron2 models: names, numbers, bits, and what may be wrong with a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from .... import require
from ....shared_data import SHARED, Golden, golden

require.detectron2()

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from omegaconf import DictConfig, OmegaConf

from piip.engine.backbone import piip_backbone
from piip.engine.checkpoints.checkpoint import Checkpointer
from piip.engine.checkpoints.convert import convert_checkpoint
from piip.official import build_backbone, convert_detector, is_official, to_official_detector
from piip.weights.files.tensors import read_state

CASE = "a4_piip3_deform_neck"
if not (SHARED / "fixtures/backbone").is_dir():
    pytest.skip("needs the golden data in shared/fixtures, beside the checkout", allow_module_level=True)


def case() -> Golden:
    return golden("fixtures/backbone", CASE)


def backbone(branch3_dim: int = 32) -> nn.Module:
    """The golden backbone with the released neck."""
    config = {**case().meta["backbone_config"]}
    config["branch3"] = {**config["branch3"], "embed_dim": branch3_dim}
    channels = case().meta["neck"]["out_channels"]
    return piip_backbone(build_backbone(config).piip, neck="released", out_channels=channels)


def config(branch3_dim: int = 32) -> DictConfig:
    """Detectron2's Mask R-CNN on it, with narrow heads."""
    model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
    model.backbone = L(backbone)(branch3_dim=branch3_dim)
    channels = case().meta["neck"]["out_channels"]
    model.proposal_generator.head.in_channels = channels
    model.roi_heads.box_head.input_shape.channels = channels
    model.roi_heads.mask_head.input_shape.channels = channels
    model.roi_heads.box_head.fc_dims = [48, 48]
    model.roi_heads.box_predictor.input_shape.channels = 48
    model.roi_heads.mask_head.conv_dims = [channels] * 5
    return OmegaConf.create({"model": model}, flags={"allow_objects": True})


def published(seed: int = 0) -> dict[str, Tensor]:
    """A released detector: the golden backbone and neck, heads of random numbers, in mmdetection's names."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "rpn_head.rpn_conv": (32, 32, 3, 3),
        "rpn_head.rpn_cls": (3, 32, 1, 1),
        "rpn_head.rpn_reg": (12, 32, 1, 1),
        "roi_head.bbox_head.fc_cls": (81, 48),
        "roi_head.bbox_head.fc_reg": (320, 48),
        "roi_head.bbox_head.shared_fcs.0": (48, 32 * 49),
        "roi_head.bbox_head.shared_fcs.1": (48, 48),
        **{f"roi_head.mask_head.convs.{i}.conv": (32, 32, 3, 3) for i in range(4)},
        "roi_head.mask_head.upsample": (32, 32, 2, 2),
        "roi_head.mask_head.conv_logits": (80, 32, 1, 1),
    }
    state = {f"backbone.{key}": value for key, value in case().group("state").items()}
    state |= {f"neck.{key}": value for key, value in case().group("neck_state").items()}
    for layer, shape in shapes.items():
        state[f"{layer}.weight"] = torch.randn(shape, generator=generator) * 0.1
        state[f"{layer}.bias"] = torch.randn(shape[0], generator=generator) * 0.1
    return state


def mixed_precision() -> dict[str, Tensor]:
    """As trained: the backbone bfloat16, neck and heads float32."""
    return {k: v.bfloat16() if k.startswith("backbone.") else v for k, v in published().items()}


def assert_same_bits(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for key, tensor in expected.items():
        assert actual[key].dtype == tensor.dtype and torch.equal(actual[key], tensor), key


def wrap(state: dict[str, Tensor], container: str) -> Any:
    if container == "module.":
        return {"state_dict": {f"module.{key}": value for key, value in state.items()}, "meta": {"epoch": 12}}
    return {container: state, "optimizer": {"param_groups": []}} if container else state


@pytest.mark.parametrize("container", ["state_dict", "module", "", "module."])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_round_trip_of_files(container: str, suffix: str, tmp_path: Path) -> None:
    """Released -> Detectron2 -> released: the same names, types and bits, whatever the file wraps them in."""
    state = mixed_precision()
    torch.save(wrap(state, container), tmp_path / "released.pth")
    ours, back = tmp_path / f"ours{suffix}", tmp_path / f"back{suffix}"
    lines = convert_checkpoint(str(tmp_path / "released.pth"), str(ours), config())
    assert lines[1].startswith(f"{len(state)} tensors") and "bfloat16" in lines[1]
    convert_checkpoint(str(ours), str(back), config(), to_official=True)
    assert_same_bits(read_state(back), state)


@pytest.mark.parametrize("converted_first", [False, True])
def test_loads_and_computes_as_published(converted_first: bool, tmp_path: Path) -> None:
    """A released file, converted or as it is, loads strictly; the maps of the neck are the published ones."""
    path = tmp_path / "released.pth"
    torch.save({"state_dict": published(), "meta": {"CLASSES": ("person",)}}, path)
    if converted_first:
        convert_checkpoint(str(path), str(tmp_path / "ours.safetensors"), config())
        path = tmp_path / "ours.safetensors"
    model = instantiate(config().model).eval()
    Checkpointer(model).load(str(path))
    with torch.inference_mode():
        levels = model.backbone.double()(case().arrays["input"].double())
    for key, expected in case().group("neck").items():
        error = (levels[key] - expected.double()).abs().max()
        assert error <= 2e-6 * max(1, expected.abs().max()), key  # golden data are stored as float32


def test_heads_land_where_they_belong() -> None:
    """Background is the last class in both; RPN channels are (anchor), (anchor, 4) in both."""
    ours, theirs = convert_detector(published()), published()
    pairs = {
        "roi_heads.box_predictor.cls_score.weight": "roi_head.bbox_head.fc_cls.weight",
        "roi_heads.box_predictor.bbox_pred.bias": "roi_head.bbox_head.fc_reg.bias",
        "roi_heads.box_head.fc2.weight": "roi_head.bbox_head.shared_fcs.1.weight",
        "roi_heads.mask_head.mask_fcn4.weight": "roi_head.mask_head.convs.3.conv.weight",
        "roi_heads.mask_head.deconv.bias": "roi_head.mask_head.upsample.bias",
        "proposal_generator.rpn_head.anchor_deltas.weight": "rpn_head.rpn_reg.weight",
        "backbone.fpn_lateral2.weight": "neck.lateral_convs.0.conv.weight",
        "backbone.fpn_output5.bias": "neck.fpn_convs.3.conv.bias",
    }
    for our_name, their_name in pairs.items():
        assert torch.equal(ours[our_name], theirs[their_name])


def test_whose_names() -> None:
    assert is_official(published()) and not is_official(convert_detector(published()))


def broken(how: str) -> dict[str, Tensor]:
    state = {key: value.clone() for key, value in published().items()}
    if how == "missing":
        del state["rpn_head.rpn_cls.bias"], state["backbone.branch2.pos_embed"]
    elif how == "unknown":
        state["roi_head.extra.weight"] = state["bbox_head.cls_branches.0.weight"] = torch.zeros(1)
    elif how == "backbone":
        state["backbone.branch1.cls_token"] = torch.zeros(1)
    elif how == "shape":
        state["roi_head.bbox_head.fc_cls.weight"] = torch.zeros(92, 48)
    elif how == "NaN":
        state["neck.fpn_convs.1.conv.bias"][3] = torch.nan
    return state


@pytest.mark.parametrize(
    ("how", "messages"),
    [
        (
            "missing",
            [
                "released.pth does not fit the model of tiny.py",
                "2 keys missing",
                "rpn_head.objectness_logits.bias",
                "backbone.bottom_up.piip.branches.1.pos_embed",
            ],
        ),
        (
            "unknown",
            ["is no released Mask R-CNN, 2 keys are unknown", "roi_head.extra", "bbox_head.cls_branches.0"],
        ),
        ("backbone", ["1 keys are unknown: backbone.branch1.cls_token"]),
        ("shape", ["1 shapes differ", "cls_score.weight (92, 48) in the checkpoint, (81, 48) here"]),
        ("NaN", ["released.pth: backbone.fpn_output3.bias holds NaN"]),
    ],
)
def test_what_does_not_fit_is_refused(how: str, messages: list[str], tmp_path: Path) -> None:
    """Every key is named, and OUT keeps what it held."""
    torch.save({"state_dict": broken(how)}, tmp_path / "released.pth")
    out = tmp_path / "out.safetensors"
    out.write_text("before")
    with pytest.raises(ValueError, match=r"released\.pth") as error:
        convert_checkpoint(str(tmp_path / "released.pth"), str(out), config(), config_name="tiny.py")
    assert all(message in str(error.value) for message in messages), error.value
    assert "\n" not in str(error.value)
    assert out.read_text() == "before"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.safetensors", "released.pth"]


@pytest.mark.parametrize("how", ["missing", "unknown", "shape", "NaN"])
def test_loading_directly_is_as_strict(how: str, tmp_path: Path) -> None:
    torch.save({"state_dict": broken(how)}, tmp_path / "released.pth")
    model = instantiate(config().model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError):
        Checkpointer(model).load(str(tmp_path / "released.pth"))
    assert_same_bits(dict(model.state_dict()), before)


def test_another_branch_width(tmp_path: Path) -> None:
    """Of all the tensors that differ in shape none goes unnamed."""
    torch.save(published(), tmp_path / "released.pth")
    with pytest.raises(ValueError, match="shapes differ") as error:
        convert_checkpoint(str(tmp_path / "released.pth"), str(tmp_path / "out.pth"), config(64))
    assert "piip.branches.2.pos_embed (1, 36, 32) in the checkpoint, (1, 36, 64) here" in str(error.value)
    assert "more" not in str(error.value)


def test_wrong_way(tmp_path: Path) -> None:
    torch.save(published(), tmp_path / "released.pth")
    arguments = (str(tmp_path / "released.pth"), str(tmp_path / "out.pth"), config())
    with pytest.raises(
        ValueError, match="is already a released Mask R-CNN: convert it without --to-official"
    ):
        convert_checkpoint(*arguments, to_official=True)
    convert_checkpoint(*arguments)
    with pytest.raises(ValueError, match="is not a released Mask R-CNN: convert it with --to-official"):
        convert_checkpoint(arguments[1], str(tmp_path / "again.pth"), config())


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ("out.onnx", ValueError, "must end in .pth or .safetensors"),
        ("none/out.pth", FileNotFoundError, "folder .*none .* does not exist"),
    ],
)
def test_targets(target: str, error: type[Exception], message: str, tmp_path: Path) -> None:
    torch.save(published(), tmp_path / "released.pth")
    with pytest.raises(error, match=message):
        convert_checkpoint(str(tmp_path / "released.pth"), str(tmp_path / target), config())


def test_what_was_never_published(tmp_path: Path) -> None:
    state = {**convert_detector(published()), "sem_seg_head.weight": torch.zeros(1)}
    with pytest.raises(
        ValueError, match=r"x\.pth has no released form .* 1 keys are unknown: sem_seg_head\.weight"
    ):
        to_official_detector(state, "x.pth")


def test_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[4] / "tools"))
    import convert_checkpoint as tool

    cfg = config()
    monkeypatch.setattr("piip.engine.config.load_config", lambda path, overrides: cfg)
    torch.save({"state_dict": mixed_precision()}, tmp_path / "released.pth")
    released, ours, back = (str(tmp_path / name) for name in ("released.pth", "ours.pth", "back.pth"))
    tool.main([released, ours, "--config-file", "tiny.py"])
    tool.main([ours, back, "--to-official", "--config-file", "tiny.py"])
    out = capsys.readouterr().out
    assert f"{released} fits tiny.py" in out and f"written to {back}" in out
    assert_same_bits(torch.load(back, weights_only=True)["state_dict"], mixed_precision())
    with pytest.raises(SystemExit, match="2"):
        tool.main([str(tmp_path / "none.pth"), ours, "--config-file", "tiny.py"])
    assert (
        capsys.readouterr().err
        == f"error: file of weights {tmp_path}/none.pth does not exist: check the path\n"
    )
