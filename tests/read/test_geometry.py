"""Turns and affine maps: what is turned can be turned back, and every point finds its pixel."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from cctmn.read.geometry import Affine, Turn

TURNS = [Turn(*bits) for bits in product([False, True], repeat=3)]
ROWS, COLS = 5, 7


def test_undo_gives_the_stored_image_back() -> None:
    stored = np.arange(ROWS * COLS).reshape(ROWS, COLS)
    for turn in TURNS:
        np.testing.assert_array_equal(turn.undo(turn.apply(stored)), stored)


def test_every_pixel_is_mapped_to_the_stored_pixel_it_came_from() -> None:
    stored = np.arange(ROWS * COLS).reshape(ROWS, COLS)
    for turn in TURNS:
        seen = np.kron(turn.apply(stored), np.ones((2, 3), int))
        to_stored = Affine.from_turn_and_scale(turn, scale_row=2, scale_col=3, rows=ROWS, cols=COLS)
        y_HW, x_HW = np.indices(seen.shape) + 0.5
        x, y = to_stored.points(x_HW, y_HW)
        np.testing.assert_array_equal(stored[y.astype(int), x.astype(int)], seen)
        assert to_stored.area_factor == pytest.approx(1 / 6)


def test_inverse_undoes_the_map_for_points_and_boxes() -> None:
    boxes = np.array([[1, 2, 3, 4], [0, 0, 6, 5]], float)
    for turn in TURNS:
        to_stored = Affine.from_turn_and_scale(
            turn, scale_row=0.7, scale_col=1.3, rows=ROWS, cols=COLS
        )
        np.testing.assert_allclose(
            to_stored.inverse().boxes(to_stored.boxes(boxes)), boxes, atol=1e-12
        )
        assert Affine.from_list(to_stored.to_list()) == to_stored
    assert Affine().boxes(np.empty((0, 4))).shape == (0, 4)
