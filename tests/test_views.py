"""The views: what is drawn, and within which bounds."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torchvision import transforms as T

from fastreid_ice.data.pixels import gaussian_blur
from fastreid_ice.data.randomness import seeded
from fastreid_ice.data.views import (
    BytesAtOnce,
    BytesToErase,
    GaussianBlur,
    PaddedCrop,
    RandomErasing,
    _erase_at_once,
    build_strong_view,
    build_weak_view,
    erase,
    keep_bytes,
    split_common_resize,
    takes_arrays,
)
from tests.conftest import ice_config


@pytest.fixture
def image():
    pixels = np.random.default_rng(0).integers(0, 256, (100, 50, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_weak_view_only_resizes(image):
    cfg = ice_config(INPUT__SIZE_TEST=[32, 16])
    view = build_weak_view(cfg)(image)
    expected = np.asarray(image.resize((32, 64), Image.BICUBIC), dtype=np.float32).transpose(2, 0, 1)
    np.testing.assert_array_equal(view.numpy(), expected)


def test_strong_view_has_the_reference_steps_in_order():
    names = [type(step).__name__ for step in build_strong_view(ice_config()).transforms]
    expected = ["Resize", "PaddedCrop", "RandomHorizontalFlip", "RandomApply", "ToTensor", "RandomErasing"]
    assert names == expected
    assert isinstance(build_strong_view(ice_config()).transforms[-1], RandomErasing)


def test_strong_view_without_options_is_the_weak_view(image):
    off = {f"INPUT__{name}__ENABLED": False for name in ("PADDING", "FLIP", "BLUR", "REA")}
    cfg = ice_config(**off)
    assert torch.equal(build_strong_view(cfg)(image), build_weak_view(cfg)(image))


def test_an_image_is_resized_once_for_all_views(image):
    """Bit for bit what each view by itself makes of it."""
    cfg = ice_config()
    views = build_strong_view(cfg), build_weak_view(cfg)
    resize, *rest = split_common_resize(*views)
    assert type(resize).__name__ == "Resize" and all(type(r.transforms[0]).__name__ != "Resize" for r in rest)
    resized = resize(image)
    for _ in range(3):  # what a view does to the image does not reach the next
        for whole, behind in zip(views, rest):
            with seeded(3):
                expected = whole(image)
            with seeded(3):
                assert torch.equal(behind(resized), expected)


def test_views_that_begin_otherwise_stay_as_they_are(image):
    with_more = build_strong_view(ice_config(INPUT__AUTOAUG__ENABLED=True))
    weak = build_weak_view(ice_config())
    for strong in (with_more, build_strong_view(ice_config(INPUT__SIZE_TRAIN=[48, 24])), lambda image: image):
        same, *views = split_common_resize(strong, weak)
        assert views == [strong, weak] and same(image) is image


def test_erasing_colour_is_the_reference_after_normalisation():
    cfg = ice_config()
    mean, std, value = map(torch.tensor, (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, cfg.INPUT.REA.VALUE))
    torch.testing.assert_close((value - mean) / std, torch.tensor([0.485, 0.456, 0.406]), atol=1e-5, rtol=0)


def erased(height=64, width=32, **arguments) -> torch.Tensor:
    defaults = {"prob": 1.0, "area": (0.02, 0.4), "aspect": (0.3, 1 / 0.3), "value": (1.0, 2.0, 3.0)}
    return RandomErasing(**{**defaults, **arguments})(torch.zeros(3, height, width))


def test_erasing_fills_one_rectangle_within_bounds():
    aspects = []
    with seeded(0):
        for _ in range(300):
            result = erased()
            rows, columns = result[0].any(dim=1).nonzero()[:, 0], result[0].any(dim=0).nonzero()[:, 0]
            height, width = len(rows), len(columns)
            assert result[0].count_nonzero() == height * width  # a full rectangle
            assert 0.015 < height * width / (64 * 32) < 0.42
            assert result[:, rows[0], columns[0]].tolist() == [1.0, 2.0, 3.0]
            aspects.append(height / width)
    # Uniform in the aspect ratio: half of them above the middle of (0.3, 3.33), less what does not fit the width.
    # With a uniform logarithm a quarter would be.
    assert 0.4 < np.mean(np.array(aspects) > (0.3 + 1 / 0.3) / 2) < 0.65


def test_erasing_never_with_probability_zero():
    assert erased(prob=0.0).count_nonzero() == 0


def test_erasing_that_cannot_fit_changes_nothing():
    assert erased(height=4, width=4, area=(4.0, 5.0)).count_nonzero() == 0


@pytest.mark.parametrize("keys", [{}, {"INPUT__AUGMIX__ENABLED": True}])
def test_bytes_erased_later_are_the_view_bit_for_bit(image, keys):
    cfg = ice_config(INPUT__SIZE_TRAIN=[33, 17], **keys)
    view = build_strong_view(cfg)
    value = torch.tensor(cfg.INPUT.REA.VALUE)[:, None, None]
    assert not torch.equal(value, value.round())  # a colour that bytes cannot hold
    expected, later, rectangles = [], [], []
    for seed in range(60):
        with seeded(seed):
            expected.append(view(image))
        with seeded(seed):
            pixels, rectangle = keep_bytes(view)(image)
            following = torch.rand(())
        with seeded(seed):
            view(image)
            assert torch.equal(following, torch.rand(()))  # what comes behind draws the same
        later.append(pixels)
        rectangles.append(rectangle)
    assert {pixels.dtype for pixels in later} == {torch.uint8}
    rectangles = torch.stack(rectangles)
    assert 10 < (rectangles.sum(dim=1) == 0).sum() < 50  # some are erased and some are not
    for fill in (erase, _erase_at_once):
        found = fill(torch.stack(later), rectangles, value)
        assert found.dtype == torch.float32 and torch.equal(found, torch.stack(expected))


@pytest.mark.parametrize("fill", [erase, _erase_at_once])
def test_rectangles_at_the_borders(fill):
    images = torch.zeros(3, 3, 4, 5, dtype=torch.uint8)
    found = fill(images, torch.tensor([[0, 0, 4, 5], [3, 4, 4, 5], [0, 0, 0, 0]]), torch.ones(3, 1, 1))
    assert found.sum(dim=(1, 2, 3)).tolist() == [60, 3, 0] and found[1, :, 3, 4].tolist() == [1, 1, 1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_erasing_on_a_gpu_waits_for_nothing():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 3, 9, 7), dtype=torch.uint8, generator=generator)
    rectangles, value = torch.tensor([[0, 0, 9, 7], [2, 1, 8, 3], [0, 0, 0, 0], [8, 6, 9, 7]]), torch.rand(3, 1, 1)
    there = images.cuda(), rectangles.cuda(), value.cuda()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
    try:
        found = erase(*there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found.cpu(), erase(images, rectangles, value))


def test_blur_radius_stays_in_range(image, monkeypatch):
    radii = []
    blur = GaussianBlur((0.1, 2.0))
    monkeypatch.setattr("fastreid_ice.data.views.gaussian_blur", lambda pixels, radius: radii.append(radius) or pixels)
    for _ in range(200):
        blur(image)
    assert 0.1 <= min(radii) < 0.3 and 1.8 < max(radii) <= 2.0


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 1), (2, 3), (17, 33), (64, 32)])
def test_blur_is_pillows_bit_for_bit(size):
    """Radii of the views, tiny ones, and ones at which a box is larger than the image."""
    rng = np.random.default_rng(0)
    for radius in (0.01, 0.1, 2.0, *rng.uniform(0.1, 2.0, 30), *rng.uniform(2.0, 12.0, 10), 30.0):
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        expected = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(float(radius))))
        np.testing.assert_array_equal(gaussian_blur(pixels, float(radius)), expected)
    assert np.array_equal(gaussian_blur(pixels, 0), pixels)


@pytest.mark.parametrize("padding, size", [(4, (64, 32)), (0, (64, 32)), (0, (40, 20)), (30, (9, 90))])
def test_padded_crop_is_torchvisions_bit_for_bit(image, padding, size):
    image = image.resize((32, 64))
    plain, joined = T.Compose([T.Pad(padding), T.RandomCrop(size)]), PaddedCrop(padding, size)
    for seed in range(40):
        with seeded(seed):
            expected, after = np.asarray(plain(image)), torch.rand(())
        with seeded(seed):
            assert np.array_equal(np.asarray(joined(image)), expected) and torch.rand(()) == after
    with pytest.raises(ValueError, match="64 x 32 pixels, padded by 2, is too small"):
        PaddedCrop(2, (69, 36))(image)


@pytest.mark.parametrize("off", [(), ("FLIP",), ("BLUR",), ("REA",), ("FLIP", "BLUR", "REA"), ("PADDING",)])
def test_a_view_at_once_is_the_view_step_by_step(image, off):
    """The same draws and pixels, from pictures and from arrays, and nothing else drawn."""
    cfg = ice_config(**{f"INPUT__{name}__ENABLED": False for name in off})
    resize, *steps = keep_bytes(build_strong_view(cfg)).transforms
    at_once, resized = T.Compose(steps), resize(image)
    assert (type(steps[0]) is BytesAtOnce) == ("PADDING" not in off) == takes_arrays(at_once)
    plain = T.Compose([T.Resize([64, 32], interpolation=3), *build_strong_view(cfg).transforms[1:]])
    for seed in range(60):
        with seeded(seed):
            expected, after = plain(image), torch.rand(())
        for given in (resized, np.asarray(resized))[: 1 + takes_arrays(at_once)]:
            with seeded(seed):
                found = at_once(given)
                assert torch.rand(()) == after
            if isinstance(found, BytesToErase):
                found = erase(
                    found.image[None], found.rectangle[None], torch.tensor(cfg.INPUT.REA.VALUE)[:, None, None]
                )[0]
            assert torch.equal(found.float(), expected)


def test_views_that_cannot_be_made_at_once(image):
    jitter = {"INPUT__CJ__ENABLED": True, "INPUT__CJ__HUE": 0.0}  # torchvision 0.18 turns no hue beside numpy 2
    for keys in (jitter, {"INPUT__PADDING__MODE": "reflect"}, {"INPUT__AUGMIX__ENABLED": True}):
        view = keep_bytes(build_strong_view(ice_config(**keys)))
        assert not any(isinstance(step, BytesAtOnce) for step in view.transforms)
        view(image)


def test_seeded_restores_all_generators():
    import random

    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    with seeded(5):
        first = torch.rand(()), np.random.rand(), random.random()
    with seeded(5):
        assert first == (torch.rand(()), np.random.rand(), random.random())
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all() and before[2] == random.getstate()
