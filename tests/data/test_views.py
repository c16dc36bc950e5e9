import io
from typing import Any

import numpy as np
import pytest
import torch
from helpers.pixels import flat, noise
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stml_semi.data.framing import Framing
from stml_semi.data.images import ImageSource, read_pixels
from stml_semi.data.views import (
    AUGMENTS,
    augment,
    fine_enough,
    view_rng,
)


@settings(max_examples=150)
@given(
    preset=st.sampled_from(AUGMENTS),
    shape=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    size=st.tuples(st.integers(2, 50), st.integers(2, 50)),
    place=st.tuples(st.integers(0, 2**31), st.integers(0, 10**6), st.integers(0, 10**4), st.integers(0, 8)),
    contiguous=st.booleans(),
)
def test_views_are_pure_functions_of_picture_and_place(preset, shape, size, place, contiguous):
    pixels = noise(*shape)
    if contiguous:
        pixels = pixels.contiguous()
    before = pixels.clone()
    view = augment(pixels, preset=preset, size=size, rng=view_rng(*place))
    assert view.dtype == torch.uint8
    assert tuple(view.shape) == (3, *size)
    assert torch.equal(view, augment(pixels, preset=preset, size=size, rng=view_rng(*place)))
    view.fill_(0)
    assert torch.equal(pixels, before), "a view shares memory with its image"


@pytest.mark.parametrize("preset", ["paper", "strong", "glyph"])
def test_views_differ_by_seed_step_position_and_view(preset):
    places = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    views = [augment(noise(40, 40), preset=preset, size=(32, 32), rng=view_rng(*place)) for place in places]
    for i, one in enumerate(views):
        assert not any(torch.equal(one, other) for other in views[:i])


def test_global_random_state_is_neither_read_nor_changed():
    def views() -> list[torch.Tensor]:
        return [augment(noise(40, 40), preset=p, size=(32, 32), rng=view_rng(0, 1, 2, 3)) for p in AUGMENTS]

    def draws() -> list[float]:
        return [*torch.rand(3).tolist(), *np.random.rand(3)]  # noqa: NPY002 (the global state is the point)

    def seed(value: int) -> None:
        torch.manual_seed(value)
        np.random.seed(value)  # noqa: NPY002

    seed(1)
    untouched = draws()
    seed(1)
    first = views()
    assert draws() == untouched
    seed(2)
    assert all(torch.equal(a, b) for a, b in zip(first, views(), strict=True))


def test_streams_are_independent_of_each_other_and_of_plain_generators():
    draws = [view_rng(s, t, p, v).random(4) for s in (0, 7) for t in (0, 7) for p in (0, 7) for v in (0, 7)]
    draws.append(np.random.default_rng([0, 7, 7, 0]).random(4))
    assert len(np.unique(np.concatenate(draws))) == 4 * 17
    many = np.array([view_rng(0, 3, position, view).random(2) for position in range(400) for view in range(2)])
    assert abs(many.mean() - 0.5) < 0.03
    assert abs(np.corrcoef(many[0::2, 0], many[1::2, 0])[0, 1]) < 0.15
    assert abs(np.corrcoef(many[:-2:2, 0], many[2::2, 0])[0, 1]) < 0.15


def test_paper_views_cover_the_published_scales_and_flip_half_the_time():
    x = torch.arange(256, dtype=torch.uint8).expand(3, 256, 256)
    y = x.transpose(1, 2)
    shares, ratios, flips = [], [], []
    for position in range(300):
        across, down = (
            augment(p, preset="paper", size=(64, 64), rng=view_rng(0, 0, position, 0)).float() for p in (x, y)
        )
        width = float(across[0, 0].max() - across[0, 0].min()) / 63 * 64 / 256
        height = float(down[0, :, 0].max() - down[0, :, 0].min()) / 63 * 64 / 256
        shares.append(width * height)
        ratios.append(width / height)
        flips.append(bool(across[0, 0, 0] > across[0, 0, -1]))
    assert 0.13 < min(shares) < 0.25
    assert 0.9 < max(shares) < 1.07
    assert 0.4 < np.mean(shares) < 0.65
    assert 0.7 < min(ratios) < 0.85
    assert 1.2 < max(ratios) < 1.45
    assert 0.4 < np.mean(flips) < 0.6


def test_strong_views_change_colors_and_paper_views_do_not():
    color = flat((200, 60, 20))
    strong = [augment(color, preset="strong", size=(32, 32), rng=view_rng(0, 0, p, 0)) for p in range(60)]
    assert all(torch.equal(view.amax((1, 2)), view.amin((1, 2))) for view in strong)
    colors = {tuple(view[:, 0, 0].tolist()) for view in strong}
    assert len(colors) > 40
    grays = sum(r == g == b for r, g, b in colors)
    assert 4 < grays < 25
    paper = augment(color, preset="paper", size=(32, 32), rng=view_rng(0, 0, 0, 0))
    assert torch.equal(paper, color)


def test_strong_views_of_gray_pictures_stay_gray():
    gray = noise(32, 32)[:1].expand(3, -1, -1)
    for position in range(20):
        view = augment(gray, preset="strong", size=(32, 32), rng=view_rng(0, 0, position, 0)).int()
        assert (view - view[:1]).abs().max() <= 1


def test_blur_smooths_half_the_strong_views():
    def roughness(preset: str, position: int) -> float:
        view = augment(noise(224, 224), preset=preset, size=(224, 224), rng=view_rng(0, 0, position, 0)).float()
        return float((view[0, :, 1:] - view[0, :, :-1]).abs().mean() / view[0].std())

    ratios = np.array([roughness("strong", p) / roughness("paper", p) for p in range(30)])
    assert 5 < (ratios < 0.8).sum() < 25
    assert (ratios > 0.95).sum() > 5


def test_glyph_views_move_a_little_and_fill_with_the_border_color():
    picture = flat((250, 240, 10), 64)
    picture[:, 24:40, 28:36] = 0
    for position in range(40):
        view = augment(picture, preset="glyph", size=(64, 64), rng=view_rng(0, 0, position, 0)).int()
        background = view[:, 0, 0]
        assert (view[:, :3] - background[:, None, None]).abs().max() <= 1, "a corner is not the border's color"
        assert (view[:, :, -3:] - background[:, None, None]).abs().max() <= 1
        ink = (view[0] < background[0] / 2).nonzero().float()
        assert 0.6 < len(ink) / (16 * 8) < 1.5
        assert (ink.mean(0) - 31.5).abs().max() < 0.15 * 64
        extent = ink.amax(0) - ink.amin(0)
        assert extent[0] > extent[1], "an upright bar lies down"


def test_glyph_views_are_never_mirrored():
    ramp = torch.arange(0, 256, 4, dtype=torch.uint8).expand(3, 64, 64)
    for position in range(40):
        view = augment(ramp, preset="glyph", size=(64, 64), rng=view_rng(0, 0, position, 0)).float()
        assert view[0, 32, 48] > view[0, 32, 16]


class OnlyRotation:
    """A generator whose first draw, the angle, is the largest and whose others change nothing."""

    draws = 0

    def uniform(self, low: float, high: float, size: int | None = None) -> Any:
        self.draws += 1
        value = high if self.draws == 1 else min(max(0.0, low), high) if low < 0 else 1.0
        return value if size is None else np.full(size, value)


@pytest.mark.parametrize("upright", [True, False])
def test_glyph_rotation_keeps_its_angle_in_wide_pictures(upright):
    """The grid counts both axes from -1 to 1: without the aspect, a rotation would shear the image."""
    picture = flat((255, 255, 255), 128)[:, :64].contiguous()
    if upright:
        picture[:, 12:52, 62:66] = 0
    else:
        picture[:, 30:34, 44:84] = 0
    rng: Any = OnlyRotation()
    view = augment(picture, preset="glyph", size=(64, 128), rng=rng)
    ink = (view[0] < 128).nonzero().double()
    spread, axes = torch.linalg.eigh(torch.cov(ink.T))
    down, right = axes[:, 1].abs().tolist()
    angle = np.degrees(np.arctan2(right, down) if upright else np.arctan2(down, right))
    assert abs(angle - 10) < 1
    assert abs(float(spread[1]) / (40**2 / 12) - 1) < 0.06


def test_none_is_the_whole_picture_resized():
    assert torch.equal(augment(noise(32, 32), preset="none", size=(32, 32), rng=view_rng(0, 0, 0, 0)), noise(32, 32))
    ramp = torch.arange(64, dtype=torch.uint8).mul(4).expand(3, 64, 64)
    half = augment(ramp, preset="none", size=(32, 32), rng=view_rng(0, 0, 0, 0)).float()
    assert (half[0, 0] - torch.arange(32) * 8 - 2).abs().max() <= 2


def test_unknown_presets_name_the_flag_and_the_choices():
    with pytest.raises(ValueError, match="--augment 'papper' is unknown: choose one of paper, strong, glyph, none"):
        augment(noise(4, 4), preset="papper", size=(4, 4), rng=view_rng(0, 0, 0, 0))


@given(
    st.integers(0, 2**32),
    st.integers(1, 200),
    st.integers(1, 200),
    st.integers(2, 64),
    st.integers(2, 64),
    st.sampled_from(AUGMENTS),
    st.sampled_from(["crop", "pad", "squash"]),
)
def test_no_view_of_a_picture_that_is_fine_enough_is_enlarged(
    seed, height, width, view_height, view_width, preset, fit
):
    shapes: list[tuple[int, ...]] = []
    rngs = lambda: (view_rng(seed, 0, 0, view) for view in range(2))  # noqa: E731
    fine = fine_enough(height, width, preset=preset, size=(view_height, view_width), rngs=rngs())

    def look(pixels, size):
        shapes.append((*pixels.shape[1:], *size))
        return torch.zeros(3, *size, dtype=torch.uint8)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stml_semi.data.views.resize", look)
        patch.setattr("stml_semi.data.framing.resize", look)
        for rng in rngs():
            pixels = torch.zeros(3, height, width, dtype=torch.uint8)
            size = (view_height, view_width)
            augment(pixels, preset=preset, size=size, rng=rng, framing=Framing(fit))
    none = all(shape[0] >= shape[2] and shape[1] >= shape[3] for shape in shapes)
    # Padded, an image may be thinner than its view.
    assert fine <= none if fit == "pad" else fine == none


@pytest.mark.parametrize("preset", ["paper", "none"])
def test_large_jpegs_are_decoded_smaller_and_look_the_same(preset):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((800, 600), Image.Resampling.BICUBIC).save(buffer, "JPEG")
    source: ImageSource = {"bytes": buffer.getvalue(), "path": None}

    def rngs():
        return (view_rng(0, 0, i, 0) for i in range(20))

    def enough(height, width):
        return fine_enough(height, width, preset=preset, size=(32, 32), rngs=rngs())

    small = read_pixels(source, enough=enough)
    assert min(small.shape[1:]) < 600

    def views(picture):
        return torch.stack([augment(picture, preset=preset, size=(32, 32), rng=rng).float() for rng in rngs()])

    # Parts that are cropped begin and end at whole pixels of either image.
    assert (views(small) - views(read_pixels(source))).abs().mean() < 4
