"""Large sets of ids: equal to what Python's own sets say."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest

from cctmn import id_set
from cctmn.id_set import IdSet


def some_ids(count: int, *, seed: int) -> list[str]:
    return [f"{random.Random(f'{seed}{n}').getrandbits(128):032x}" for n in range(count)]


def test_find_says_where_an_id_was_given() -> None:
    ids = some_ids(5_000, seed=1)
    asked = [*random.Random(2).sample(ids, 500), *some_ids(500, seed=3)]
    places = IdSet(id_set.of_hex(pa.array(ids))).find(id_set.of_hex(pa.array(asked)))
    assert places.tolist() == [ids.index(one) if one in ids else -1 for one in asked]


def test_ids_that_differ_in_their_low_half_alone_are_different() -> None:
    ids = [f"{7:016x}{low:016x}" for low in (9, 3, 5, 3)]
    asked = [f"{7:016x}{low:016x}" for low in (3, 4, 5, 9, 10)]
    places = IdSet(id_set.of_hex(pa.array(ids))).find(id_set.of_hex(pa.array(asked)))
    assert places.tolist() == [1, -1, 2, 0, -1]


def test_repetitions_are_all_but_the_first_of_equal_ids() -> None:
    ids = some_ids(4, seed=4)
    given = [ids[0], ids[1], ids[0], ids[2], ids[1], ids[0]]
    assert IdSet(id_set.of_hex(pa.array(given))).repetitions().tolist() == [2, 4, 5]


def test_an_empty_set_contains_nothing() -> None:
    assert not IdSet().contains(id_set.of_hex(pa.array(some_ids(3, seed=5)))).any()
    assert IdSet(id_set.of_hex(pa.array(some_ids(3, seed=5)))).find(id_set.no_ids()).shape == (0,)


def test_a_slice_of_a_column_of_several_chunks_is_read_rightly() -> None:
    ids = some_ids(10, seed=6)
    column = pa.chunked_array([ids[:4], [], ids[4:]]).slice(3, 5)
    values = [int(one, 16) for one in ids[3:8]]
    read = [int(high) << 64 | int(low) for high, low in id_set.of_hex(column)]
    assert read == values


@pytest.mark.parametrize("wrong", [["abc"], [None], ["g" * 32], ["0" * 31, "0" * 33], [" " * 32]])
def test_what_is_no_id_is_refused(wrong: list[str | None]) -> None:
    with pytest.raises(ValueError, match="hex"):
        id_set.of_hex(pa.array(wrong, pa.string()))


def test_names_have_equal_ids_only_if_they_are_equal() -> None:
    ids = id_set.of_names(["a", "b", "a"])
    assert (ids[0] == ids[2]).all()
    assert not (ids[0] == ids[1]).any()
    assert ids.dtype == np.uint64


def test_ids_of_chosen_places_and_of_another_set() -> None:
    ids = some_ids(300, seed=7)
    whole, other = (IdSet(id_set.of_hex(pa.array(part))) for part in (ids, ids[100:120]))
    chosen = np.zeros(300, np.bool_)
    chosen[100:120] = True
    assert sorted(whole.places_in(other).tolist()) == list(range(100, 120))
    assert (
        IdSet(whole.ids_of(chosen)).find(id_set.of_hex(pa.array(ids[90:130]))).tolist().count(-1)
        == 20
    )
