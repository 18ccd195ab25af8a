"""From a slice to the model's input: window, resize, flags, and boxes back to the stored image."""

from __future__ import annotations

import dataclasses
from itertools import product

import numpy as np
import pytest

from cctmn.contract import InputContract
from cctmn.errors import SliceError
from cctmn.read.decode import Slice, Turn
from cctmn.read.preprocess import to_input
from cctmn.read.quality import check_hu, check_size
from tests.read.test_dicom import phantom_hu

TURNS = [Turn(*bits) for bits in product([False, True], repeat=3)]


def make_slice(pixels: np.ndarray, *, unit: str = "hu", turn: Turn = Turn()) -> Slice:  # noqa: B008
    rows, cols = pixels.shape[::-1] if turn.transpose else pixels.shape
    return Slice(
        pixels=pixels.astype(np.float32 if unit == "hu" else np.uint8),
        unit=unit,  # type: ignore[arg-type]
        turn=turn,
        rows=rows,
        cols=cols,
        flags=frozenset(),
    )


def window(hu: np.ndarray) -> np.ndarray:
    return (255 * np.clip((hu.astype(np.float64) + 1350) / 1500, 0, 1)).astype(np.uint8)


def flags_of(pixels: np.ndarray, unit: str = "hu") -> frozenset[str]:
    return to_input(make_slice(pixels, unit=unit), InputContract()).flags


def test_window_is_truncated_for_every_hu() -> None:
    ramp = np.tile(np.arange(-1500, 548), (512, 1)).astype(np.float32)
    ramp[:, 1000:] = ramp[:, 1000:][:, ::-1]
    contract = InputContract(size_px=512, max_size_px=2048)
    np.testing.assert_array_equal(to_input(make_slice(ramp), contract).pixels, window(ramp))


def test_the_window_is_the_contracts() -> None:
    soft = InputContract(window_center_hu=40, window_width_hu=400)
    pixels = to_input(make_slice(phantom_hu(512, 512)), soft).pixels
    assert pixels.min() == 0
    assert np.median(pixels[250:260, 250:260]) == pytest.approx(127, abs=8)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((512, 512), (512, 512)), ((256, 256), (512, 512)), ((1024, 1024), (512, 512)),
     ((512, 600), (512, 600)), ((300, 400), (512, 683)), ((200, 600), (341, 1024)),
     ((512, 2000), (262, 1024))],
)  # fmt: skip
def test_resize(shape: tuple[int, int], expected: tuple[int, int]) -> None:
    model_input = to_input(make_slice(phantom_hu(*shape)), InputContract())
    assert model_input.pixels.shape == expected
    assert model_input.pixels.dtype == np.uint8
    assert model_input.to_stored.yy == pytest.approx(shape[0] / expected[0])
    assert model_input.to_stored.xx == pytest.approx(shape[1] / expected[1])


def test_shrinking_is_antialiased() -> None:
    checker = np.indices((1024, 1024)).sum(0) % 2 * 1500 - 1350.0
    checker[:, :300] = np.linspace(-1350, 150, 300)  # enough grey levels
    pixels = to_input(make_slice(checker), InputContract()).pixels
    assert np.abs(pixels[8:-8, 200:-8].astype(int) - 127).max() <= 2


@pytest.mark.parametrize("shape", [(512, 512), (96, 160), (1024, 700)])
def test_boxes_come_back_from_every_turn(shape: tuple[int, int]) -> None:
    """A bright block of the stored image is found in the model's input and mapped back."""
    stored = phantom_hu(*shape).astype(np.float32)
    box = np.array([shape[1] // 4, shape[0] // 8, shape[1] // 2, shape[0] // 2])
    stored[box[1] : box[3], box[0] : box[2]] = 3000
    for turn in TURNS:
        slice_ = make_slice(turn.apply(stored), turn=turn)
        assert (slice_.rows, slice_.cols) == shape
        model_input = to_input(slice_, InputContract())
        ys, xs = np.nonzero(model_input.pixels > 252)
        bright = np.array([[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]])
        back = model_input.to_stored.boxes(bright)
        scale = min(shape) / 512 if min(shape) != 512 else 1
        np.testing.assert_allclose(back, [box], atol=1.5 * max(1, scale))


def test_hu_that_no_body_has() -> None:
    hu = phantom_hu().astype(np.float32)
    check_hu(hu)
    rng = np.random.default_rng(1)
    scattered = rng.random(hu.shape)
    for wrong in (
        hu + 1500,
        hu * 40,
        np.where(scattered < 0.02, 33000, hu),
        np.where(scattered < 0.02, -20000 - 1000 * scattered, hu),
        np.maximum(hu + 1024, 0),  # without its rescale
    ):
        with pytest.raises(SliceError, match="implausible_hu"):
            check_hu(wrong.astype(np.float32))


def test_a_field_of_view_without_air_has_a_code_of_its_own() -> None:
    hu = np.random.default_rng(1).normal(50, 60, (256, 256)).astype(np.float32)
    with pytest.raises(SliceError, match="no_air"):
        check_hu(hu)


@pytest.mark.parametrize("fill", [-8192.0, -32768.0, -10240.0])
def test_fill_outside_the_scan_circle_becomes_air(fill: float) -> None:
    hu = phantom_hu().astype(np.float32)
    y, x = np.mgrid[-1 : 1 : hu.shape[0] * 1j, -1 : 1 : hu.shape[1] * 1j]
    outside = x**2 + y**2 > 1
    filled = np.where(outside, np.float32(fill), hu)
    assert check_hu(filled) == frozenset()
    np.testing.assert_array_equal(filled, np.where(outside, np.float32(-1024), hu))


@pytest.mark.parametrize("value", [64511.0, -31744.0])
def test_saturated_pixels_at_metal_are_clipped_and_flagged(value: float) -> None:
    hu = phantom_hu().astype(np.float32)
    middle = hu.shape[0] // 2
    hu[middle : middle + 5, middle : middle + 5] = value
    before = hu.copy()
    assert check_hu(hu) == {"saturated"}
    assert abs(hu).max() <= 32000
    np.testing.assert_array_equal(hu[: middle - 1], before[: middle - 1])


def test_pixels_that_are_not_square_are_resampled() -> None:
    """A body that is as wide as high stays so, and boxes lead back to the stored image."""
    stored = phantom_hu(256, 512).astype(np.float32)
    slice_ = dataclasses.replace(
        make_slice(stored, turn=Turn()), spacing_row_mm=1.4, spacing_col_mm=0.7
    )
    got = to_input(slice_, InputContract())
    assert got.pixels.shape == (512, 512)
    assert "not_square" in got.flags
    box = got.to_stored.boxes(np.array([[0, 0, 512, 512.0]]))
    np.testing.assert_allclose(box, [[0, 0, 512, 256]])
    nearly = dataclasses.replace(slice_, spacing_row_mm=0.7003)
    assert "not_square" not in to_input(nearly, InputContract()).flags


@pytest.mark.parametrize(
    ("code", "size"),
    [("too_small", (1, 256)), ("too_large", (9000, 64)), ("too_large", (8192, 4096))],
)
def test_size(code: str, size: tuple[int, int]) -> None:
    with pytest.raises(SliceError, match=code):
        check_size(*size)


def test_constant_image() -> None:
    for pixels, unit in (
        (np.full((512, 512), -1000), "hu"),
        (np.indices((512, 512))[0] // 128, "grey8"),
    ):
        with pytest.raises(SliceError, match="constant_image"):
            flags_of(pixels, unit)


def test_flags_of_hu() -> None:
    hu = phantom_hu(512, 512)
    assert flags_of(hu) == frozenset()
    assert flags_of(phantom_hu(200, 256)) == {"small"}
    no_lung = hu.copy()
    no_lung[100:420, 40:470] = np.maximum(no_lung[100:420, 40:470], 20)
    assert "no_lung" in flags_of(no_lung)
    blank = hu.copy()
    blank[300:] = -1024
    assert "partly_blank" in flags_of(blank)
    assert "partly_blank" in flags_of(blank.T)
    assert "not_ct_like" in flags_of(np.concatenate([hu] * 3, axis=1))


def test_pictures_that_are_not_one_upright_axial_slice() -> None:
    hu = phantom_hu(512, 512)
    lung, soft = window(hu), 255 * np.clip((hu + 160) / 400, 0, 1)
    pair = np.concatenate([lung, soft], axis=1)
    framed = np.pad(pair, ((256, 256), (0, 0)))
    sheet = np.concatenate([pair, pair[:, ::-1]])
    for picture in (pair, framed, sheet, np.rot90(lung), np.rot90(lung, 3)):
        assert "not_ct_like" in flags_of(np.ascontiguousarray(picture), "grey8")
    # the upper and lower rows of a coronal picture go on into neck and abdomen
    coronal = np.concatenate([lung[200:260]] * 9)[:512]
    assert "not_ct_like" in flags_of(coronal, "grey8")
    cropped = lung[60:460, 20:490]
    assert flags_of(cropped, "grey8") == frozenset()


def test_flags_of_pictures() -> None:
    hu = phantom_hu(512, 512)
    lung_window = window(hu)
    assert flags_of(lung_window, "grey8") == frozenset()
    assert "inverted" in flags_of(255 - lung_window, "grey8")
    soft_tissue = 255 * np.clip((hu + 160) / 400, 0, 1)
    assert "window" in flags_of(soft_tissue, "grey8")
    full_range = 255 * np.clip((hu + 1000) / 1400, 0, 1)
    assert "window" in flags_of(full_range, "grey8")
