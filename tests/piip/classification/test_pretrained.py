"""Classifiers that start from pretrained ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from piip import PIIP
from piip.branches import Pretrained, ViTBranch
from piip.classification.classifier import PIIPClassifier
from piip.classification.pretrained import load_pretrained_classifier


def vit(classes: int, path: Path) -> Any:
    """A vision transformer of timm, saved as AugReg's are."""
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, embed_dim=32, depth=2, num_heads=2, num_classes=classes
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    torch.save(model.state_dict(), path)
    return model.eval()


def classifier(path: Path, num_classes: int = 5) -> PIIPClassifier:
    branch = ViTBranch(
        embed_dim=32,
        depth=2,
        num_heads=2,
        pretrain_image_size=32,
        pos_embed_has_cls=True,
        layer_scale=None,
        class_token=True,
        pretrained=Pretrained(source=str(path), family="augreg"),
    )
    return PIIPClassifier(PIIP([branch], [32], num_interactions=0, merge=None), num_classes).eval()


def test_one_branch_is_timms_model(tmp_path: Path) -> None:
    """Class token, norm and head included: the head reads what timm's gives at the first patch.

    A released classifier leaves the class token without its position, so timm's is taken off here.
    """
    source = vit(5, tmp_path / "vit.pth")
    model = classifier(tmp_path / "vit.pth")
    loaded = load_pretrained_classifier(model)
    assert loaded == ["piip.branches.0", "head.norms.0", "head.heads.0"]
    with torch.no_grad():
        source.pos_embed[:, 0] = 0
        image = torch.randn(2, 3, 32, 32)
        tokens = source.forward_features(image)
        torch.testing.assert_close(model(image), source.head(tokens[:, 1]), rtol=1e-4, atol=1e-4)


def test_other_classes_keep_the_norm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    vit(7, tmp_path / "vit.pth")
    model = classifier(tmp_path / "vit.pth")
    assert load_pretrained_classifier(model) == ["piip.branches.0", "head.norms.0"]
    assert "head.heads.0 starts anew" in caplog.text


def test_no_head(tmp_path: Path) -> None:
    """All or nothing: the branch is as it was."""
    vit(0, tmp_path / "vit.pth")
    model = classifier(tmp_path / "vit.pth")
    before = model.piip.branches[0].state_dict()["blocks.0.attn.qkv.weight"].clone()
    with pytest.raises(ValueError, match=r"holds no classifier \(head\.weight, head\.bias missing\)"):
        load_pretrained_classifier(model)
    assert torch.equal(model.piip.branches[0].state_dict()["blocks.0.attn.qkv.weight"], before)
