"""Facts about the image pyramid as a whole."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from piip import PIIP, InteractionConfig, split_stages

from .models import DIMS, TINY_INTERACTION, randomise, tiny_branch, tiny_piip


def image(*size: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@torch.inference_mode()
def test_new_interactions_change_nothing() -> None:
    """Gammas start at zero: PIIP is its branches, run alone, and their merge."""
    piip = tiny_piip().double().eval()
    x = image(64, 96)
    maps = [b.run_blocks(b.embed(i), 0, 1) for b, i in zip(piip.branches, piip.image_pyramid(x), strict=True)]
    torch.testing.assert_close(piip(x), piip.merge(maps, 2), rtol=0, atol=0)


@torch.inference_mode()
def test_directions_of_a_unit_are_parallel() -> None:
    """Evaluating the second direction first gives the same numbers: both read the pair as it was."""
    unit = randomise(tiny_piip().double().eval()).interactions[0].units["1_2"]
    small, large = torch.randn(1, 4, 4, 64).double(), torch.randn(1, 6, 6, 48).double()
    expected = (unit.large_to_small(small, large), unit.small_to_large(large, small))
    torch.testing.assert_close(unit(small, large), expected, rtol=0, atol=0)
    new_large = unit.small_to_large(large, small)
    assert not torch.allclose(unit.large_to_small(small, new_large), expected[0], atol=1e-3)


@torch.inference_mode()
def test_units_are_sequential() -> None:
    """The pair of the largest images comes first, and the next unit sees what it left."""
    interaction = randomise(tiny_piip().double().eval()).interactions[0]
    assert interaction.pairs == [(2, 3), (1, 2)]
    maps = [torch.randn(1, n, n, d).double() for n, d in zip((4, 6, 8), DIMS, strict=True)]
    b, c = interaction.units["2_3"](maps[1], maps[2])
    a, b = interaction.units["1_2"](maps[0], b)
    torch.testing.assert_close(interaction(maps), [a, b, c], rtol=0, atol=0)
    other_a, _ = interaction.units["1_2"](maps[0], maps[1])
    assert not torch.allclose(other_a, a, atol=1e-3)


@settings(deadline=None, max_examples=15)
@given(st.integers(16, 90), st.integers(16, 90), st.integers(1, 2))
def test_any_input_size(height: int, width: int, batch: int) -> None:
    piip = tiny_piip(branch={"window_sizes": [3, None]})
    assert piip(torch.randn(batch, 3, height, width)).shape == (batch, 64, height // 8, width // 8)


@torch.inference_mode()
def test_images_of_a_batch_do_not_meet() -> None:
    piip = randomise(tiny_piip(branch={"window_sizes": 3}).double().eval())
    x = image(64, 80, batch=2)
    together = piip(x)
    # 1e-12: only the order of sums differs between batch sizes
    torch.testing.assert_close(together, torch.cat([piip(x[:1]), piip(x[1:])]), rtol=1e-12, atol=1e-12)


def test_resize_samples_at_the_exact_step() -> None:
    """floor(H * scale) rows, sampled 1/scale apart: what resizing to the same size does is
    different.
    """
    piip = tiny_piip((64, 32), (40, 100))
    x = image(63, 63)
    small = piip.image_pyramid(x)[0]
    assert small.shape[2:] == (25, 25)
    centres = (torch.arange(25).double() + 0.5) * 100 / 40 - 0.5
    low = centres.clamp(min=0).floor().long()
    weight = centres.clamp(min=0) - low
    high = (low + 1).clamp(max=62)
    rows = x[..., low, :] * (1 - weight)[:, None] + x[..., high, :] * weight[:, None]
    expected = rows[..., low] * (1 - weight) + rows[..., high] * weight
    torch.testing.assert_close(small, expected, rtol=0, atol=1e-12)
    assert (small - F.interpolate(x, (25, 25), mode="bilinear", align_corners=False)).abs().max() > 1e-2


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_any_number_of_branches(count: int) -> None:
    piip = tiny_piip((64, 48, 32, 32, 32)[:count])
    side = max(piip.image_sizes)
    assert piip(torch.randn(1, 3, side, side)).shape == (1, 64, side // 8, side // 8)
    assert len(piip.interactions) == (2 if count > 1 else 0)


@pytest.mark.parametrize("sizes", [(64, 64, 64), (64, 48, 32)], ids=["equal", "parameter-direct"])
def test_pyramids_of_other_shapes(sizes: tuple[int, ...]) -> None:
    """No pyramid (Fig. 1c) and larger models on larger images (Fig. 1d): the merged map has the largest
    image's grid.
    """
    piip = randomise(tiny_piip(image_sizes=sizes))
    assert [i.shape[-1] for i in piip.image_pyramid(torch.zeros(1, 3, 64, 64))] == list(sizes)
    assert piip(torch.randn(1, 3, 64, 64)).shape == (1, 64, 8, 8)


@pytest.mark.parametrize("number", [0, 1, 2, 4])
def test_number_of_interactions(number: int) -> None:
    piip = tiny_piip(depth=4, num_interactions=number)
    assert len(piip.interactions) == number
    assert piip(torch.randn(1, 3, 64, 64)).shape == (1, 64, 8, 8)


@torch.inference_mode()
def test_blocks_outside_all_stages_are_not_run() -> None:
    piip = randomise(
        tiny_piip((64, 32), depth=3, stages=[[(0, 0), (2, 2)], [(0, 1), (2, 2)]]).double().eval()
    )
    x = image(48, 48)
    before = piip(x)
    piip.branches[0].blocks[1].mlp.fc2.bias.add_(1)
    torch.testing.assert_close(piip(x), before, rtol=0, atol=0)
    piip.branches[1].blocks[1].mlp.fc2.bias.add_(1)
    assert not torch.allclose(piip(x), before, atol=1e-3)


def test_published_stages() -> None:
    assert split_stages(12, 12) == [(i, i) for i in range(12)]
    assert split_stages(24, 12)[:2] == [(0, 1), (2, 3)]
    assert split_stages(12, 2) == [(0, 5), (6, 11)]
    huge = [
        (0, 1),
        (2, 3),
        (4, 5),
        (6, 7),
        (8, 10),
        (11, 13),
        (14, 16),
        (17, 19),
        (20, 22),
        (23, 25),
        (26, 28),
        (29, 31),
    ]
    assert split_stages(32, 12) == huge


@given(st.integers(1, 60), st.integers(1, 60))
def test_stages_tile_the_depth(depth: int, count: int) -> None:
    if count > depth:
        with pytest.raises(ValueError, match=f"cannot cut {depth} blocks into {count} stages"):
            split_stages(depth, count)
        return
    stages = split_stages(depth, count)
    assert [i for first, last in stages for i in range(first, last + 1)] == list(range(depth))
    lengths = [last - first + 1 for first, last in stages]
    assert sorted(lengths) == lengths and max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [((448, 896, 1120), 80), ((672, 1120, 1568), 112), ((1024,), 16), ((848, 848, 848), 16)],
)
def test_divisibility_is_the_smallest_exact_one(sizes: tuple[int, ...], expected: int) -> None:
    piip = tiny_piip((64, 32, 32)[: len(sizes)], sizes, branch={"patch_size": 16})

    def exact(side: int) -> bool:
        return all(side * size % (16 * max(sizes)) == 0 for size in sizes)

    assert piip.size_divisibility == expected
    assert exact(expected) and not any(exact(side) for side in range(1, expected))


def test_grad_checkpointing_gives_the_same_gradients() -> None:
    piip = randomise(
        tiny_piip(interaction=InteractionConfig(num_heads=4, drop_path_rate=0.0)).double().train()
    )
    gradients = []
    for enable in (False, True):
        piip.set_grad_checkpointing(enable)
        piip.zero_grad()
        piip(image(64, 64)).square().sum().backward()
        gradients.append([p.grad.clone() for p in piip.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    piip = randomise(tiny_piip().eval())
    x = image(64, 64).float()
    expected = piip(x)
    actual = piip.to(dtype)(x.to(dtype))
    assert actual.dtype == dtype
    # two stages of about ten roundings each: 20 ulp of the largest value
    bound = 20 * torch.finfo(dtype).eps * expected.abs().max()
    assert (actual.float() - expected).abs().max() < bound


@torch.inference_mode()
def test_autocast() -> None:
    piip = randomise(tiny_piip().eval())
    x = image(64, 64).float()
    with torch.autocast("cpu", torch.bfloat16):
        actual = piip(x)
    assert (actual.float() - piip(x)).abs().max() < 20 * torch.finfo(torch.bfloat16).eps * piip(x).abs().max()


BRANCHES = [tiny_branch(64), tiny_branch(32, depth=3)]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PIIP(BRANCHES, [32]), "1 image sizes for 2 branches"),
        (lambda: PIIP(BRANCHES, [4, 32]), "image size 4 of branch 1 is below its patch of 8 px"),
        (lambda: PIIP(BRANCHES, [16, 32], num_interactions=3), "cannot cut 2 blocks into 3 stages"),
        (
            lambda: PIIP(BRANCHES, [16, 32], stages=[[(0, 1)], [(0, 1), (2, 2)]]),
            r"unequal numbers of stages, \[1, 2\]",
        ),
        (
            lambda: PIIP(BRANCHES, [16, 32], stages=[[(0, 2)], [(0, 2)]]),
            r"stage \[0, 2\] of branch 1 .* 2 blocks",
        ),
        (lambda: PIIP(BRANCHES, [16, 32], stages=[[(1, 0)], [(0, 2)]]), r"stage \[1, 0\] of branch 1"),
        (lambda: PIIP(BRANCHES, [16, 32], stages=[[(0, 1)]]), "stages are given for 1 branches, there are 2"),
        (lambda: tiny_piip(links=[(1, 1)]), r"link \(1, 1\)"),
        (lambda: tiny_piip(links=[(1, 4)]), r"link \(1, 4\) does not join two of the 3 branches"),
        (lambda: tiny_piip(links=[(1, 2), (1, 2)]), "a link twice"),
        (lambda: tiny_piip(links="some"), "unknown links 'some'"),
        (lambda: tiny_piip(merge_branches=[4]), r"cannot merge branches \[4\]"),
        (lambda: tiny_piip(merge_branches=[]), r"cannot merge branches \[\]"),
        (lambda: tiny_piip(merge="sum"), "unknown merge 'sum'"),
        (lambda: tiny_piip(merge="identity"), "merge 'identity' needs branches of one width"),
        (lambda: tiny_piip((48, 32)), "merge 'conv' normalises 48 channels in 32 groups"),
        (lambda: tiny_piip(tap_stages=[1]), r"tap stages \[1\] must lie before the last stage, 1"),
        (lambda: tiny_piip(interaction=InteractionConfig(num_heads=5)), "5 heads cannot share"),
        (lambda: tiny_piip(interaction=InteractionConfig(attention="dense")), "unknown attention 'dense'"),
        (lambda: tiny_branch(64, num_heads=5), "64 channels cannot be split into 5 heads"),
        (lambda: tiny_branch(64, window_sizes=0), "window size 0 is not a number of tokens"),
        (lambda: tiny_branch(64, window_sizes=[2]), "1 window sizes for 2 blocks"),
        (
            lambda: tiny_branch(64, pretrain_image_size=4),
            "pretrain_image_size 4 is smaller than one patch of 8 px",
        ),
    ],
)
def test_settings_that_cannot_be(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        build()  # type: ignore[operator]
    assert "\n" not in str(caught.value)


def test_image_smaller_than_a_patch() -> None:
    with pytest.raises(
        ValueError, match="branch 1 would see an image of 7x10 px, smaller than its patch of 8 px"
    ):
        tiny_piip()(torch.zeros(1, 3, 15, 20))


@torch.inference_mode()
@pytest.mark.parametrize("members", [[1], [2], [3], [1, 2], [1, 3], [2, 3], [1, 2, 3]])
def test_merged_branches(members: list[int]) -> None:
    """Any subset can be merged (Table 8), on the grid of the largest image; the others are not seen."""
    piip = randomise(tiny_piip(merge_branches=members).double().eval())
    maps = [torch.randn(1, n, n, d).double() for n, d in zip((4, 6, 8), DIMS, strict=True)]
    merged = piip.merge(maps, 2)
    assert merged.shape == (1, 64, 8, 8)
    for j in (1, 2, 3):
        changed = list(maps)
        changed[j - 1] = torch.randn_like(maps[j - 1])
        assert torch.equal(piip.merge(changed, 2), merged) == (j not in members)


@torch.inference_mode()
def test_merge_is_a_weighted_sum() -> None:
    piip = randomise(tiny_piip().double().eval())
    maps = [torch.randn(1, n, n, d).double() for n, d in zip((4, 6, 8), DIMS, strict=True)]
    whole = piip.merge(maps, 2)
    for j in "12":
        piip.merge.weights[j].zero_()
    piip.merge.weights["3"].fill_(1)
    alone = piip.merge(maps, 2)
    torch.testing.assert_close(alone, piip.merge.transforms["3"](maps[2].permute(0, 3, 1, 2)), rtol=0, atol=0)
    assert not torch.allclose(whole, alone)


def test_interaction_without_links_is_none() -> None:
    assert len(tiny_piip(links=[]).interactions) == 0
    assert TINY_INTERACTION.attention == "deformable"
