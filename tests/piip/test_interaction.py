"""Who looks at whom, and with what."""

from __future__ import annotations

import math

import pytest
import torch

from piip import InteractionConfig
from piip.cross_attention import DeformableCrossAttention
from piip.interaction import Injector, Interaction, resolve_links

from .models import DIMS, randomise, tiny_piip

# Cost of a link of TSB 1120/896/448 over 12 interactions, in GFLOPs, and the paper's figures (Table
# 11)
LINK_COST = {(2, 1): 29.38, (1, 2): 12.18, (3, 2): 17.42, (2, 3): 8.12, (3, 1): 33.23, (1, 3): 6.20}
WITHOUT_INTERACTIONS = 176.03


def test_named_links() -> None:
    assert set(resolve_links("adjacent", 3)) == {(1, 2), (2, 1), (2, 3), (3, 2)}
    assert set(resolve_links("all", 3)) == set(LINK_COST)
    assert resolve_links("adjacent", 1) == []


@pytest.mark.parametrize(
    ("links", "published"),
    [
        # types 1 to 3 are drawn, not written, in the paper: these readings match its costs
        ([(3, 1)], 210),
        ([(2, 1), (1, 3), (3, 2)], 229),
        ([(2, 1), (3, 2), (2, 3)], 231),
        ("adjacent", 243),
        ("all", 283),
    ],
)
def test_direction_types_can_be_expressed(links: str | list[tuple[int, int]], published: int) -> None:
    piip = tiny_piip(links=links)
    built = set()
    for (small, large), unit in zip(
        piip.interactions[0].pairs, piip.interactions[0].units.values(), strict=True
    ):
        if unit.large_to_small is not None:
            built.add((large, small))
        if unit.small_to_large is not None:
            built.add((small, large))
    assert built == set(resolve_links(links, 3))  # type: ignore[arg-type]
    assert abs(WITHOUT_INTERACTIONS + sum(LINK_COST[link] for link in built) - published) < 1
    assert piip(torch.randn(1, 3, 64, 64)).shape == (1, 64, 8, 8)


@torch.inference_mode()
@pytest.mark.parametrize("link", LINK_COST)
def test_a_link_changes_its_target_only(link: tuple[int, int]) -> None:
    interaction = randomise(Interaction(DIMS, [link], InteractionConfig(num_heads=4)).eval())
    maps = [torch.randn(1, n, n, d) for n, d in zip((4, 6, 8), DIMS, strict=True)]
    after = interaction(maps)
    changed = {j for j in (1, 2, 3) if not torch.equal(after[j - 1], maps[j - 1])}
    assert changed == {link[1]}


@pytest.mark.parametrize("attention", ["deformable", "regular"])
@pytest.mark.parametrize("projection", [True, False])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("ffn", [True, False])
def test_switches(attention: str, projection: bool, norm: bool, ffn: bool) -> None:
    config = InteractionConfig(
        attention=attention,  # type: ignore[arg-type]
        num_heads=4,
        projection=projection,
        norm=norm,
        ffn=ffn,
        drop_path_rate=0.0,
    )
    injector = randomise(Injector(64, 48, config))
    names = {name.split(".")[0] for name, _ in injector.named_parameters()}
    assert ("proj" in names) == projection
    assert ({"query_norm", "feat_norm"} <= names) == norm
    assert ({"ffn", "cffn_gamma"} <= names) == ffn and ("ffn_norm" in names) == (ffn and norm)
    query = torch.randn(2, 3, 5, 64, requires_grad=True)
    feat = torch.randn(2, 4, 6, 48, requires_grad=True)
    injector(query, feat).square().sum().backward()
    assert all(t.grad is not None and t.grad.abs().sum() > 0 for t in (query, feat, *injector.parameters()))


@torch.inference_mode()
def test_without_ffn_equals_gamma_zero() -> None:
    with_ffn = randomise(Injector(64, 48, InteractionConfig(num_heads=4)).eval())
    with_ffn.cffn_gamma.zero_()
    without = Injector(64, 48, InteractionConfig(num_heads=4, ffn=False)).eval()
    without.load_state_dict({k: v for k, v in with_ffn.state_dict().items() if "ffn" not in k})
    query, feat = torch.randn(1, 3, 5, 64), torch.randn(1, 4, 6, 48)
    torch.testing.assert_close(without(query, feat), with_ffn(query, feat), rtol=0, atol=0)


def test_drop_path_is_on_the_ffn_only() -> None:
    injector = randomise(Injector(64, 48, InteractionConfig(num_heads=4, drop_path_rate=1.0)).train())
    query, feat = torch.randn(1, 3, 5, 64), torch.randn(1, 4, 6, 48)
    attended = query + injector.ca_gamma * injector.attn(
        injector.query_norm(query), injector.feat_norm(injector.proj(feat))
    )
    torch.testing.assert_close(injector(query, feat), attended, rtol=0, atol=0)


def test_initial_sampling_points() -> None:
    """Head h looks in direction 2 pi h / heads, scaled to reach the edge of the unit square; point p is p + 1
    steps out.
    """
    attention = DeformableCrossAttention(64, 48, num_heads=8)
    attention.reset_parameters()
    offsets = attention.sampling_offsets.bias.view(8, 4, 2)
    for head in range(8):
        x, y = math.cos(2 * math.pi * head / 8), math.sin(2 * math.pi * head / 8)
        edge = max(abs(x), abs(y))
        for point in range(4):
            expected = [x / edge * (point + 1), y / edge * (point + 1)]
            # float32 rounding of the angle and its cosine (4 ulp), times the distance, up to 4
            assert offsets[head, point].tolist() == pytest.approx(expected, abs=4e-6)
    assert attention.sampling_offsets.weight.count_nonzero() == 0
    assert attention.attention_weights.weight.count_nonzero() == 0
    assert attention.attention_weights.bias.count_nonzero() == 0


def test_initial_gammas_are_zero() -> None:
    injector = Injector(64, 48, InteractionConfig(num_heads=4))
    assert injector.ca_gamma.count_nonzero() == 0 and injector.cffn_gamma.count_nonzero() == 0


@torch.no_grad()
def test_attention_precision_under_autocast() -> None:
    """ "float32" leaves autocast as released; "autocast" has values in bfloat16 and places in float32."""
    released, half = (
        randomise(DeformableCrossAttention(64, 48, num_heads=8, precision=precision))
        for precision in ("float32", "autocast")
    )
    query, feat = torch.randn(2, 6, 5, 64), torch.randn(2, 4, 7, 48)
    half.load_state_dict(released.state_dict())
    expected = released(query, feat)
    assert torch.equal(half(query, feat), expected)
    seen: dict[str, torch.dtype] = {}
    for name, layer in half.named_children():
        layer.register_forward_hook(lambda _m, _i, output, name=name: seen.update({name: output.dtype}))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(released(query, feat), expected)
        approximate = half(query, feat)
    wide, narrow = torch.float32, torch.bfloat16
    assert seen == {
        "value_proj": narrow,
        "sampling_offsets": wide,
        "attention_weights": wide,
        "output_proj": narrow,
    }
    assert approximate.dtype == torch.float32
    # bfloat16 has 8 bits: two products of about 2**-8 of the largest value each
    torch.testing.assert_close(approximate, expected, rtol=0, atol=2**-6 * expected.abs().max().item())


def test_unknown_attention_precision() -> None:
    with pytest.raises(ValueError, match="unknown attention_precision 'half': expected 'float32' or"):
        InteractionConfig(attention_precision="half")  # type: ignore[arg-type]
