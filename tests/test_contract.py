"""The input contract between a model's card, the reader and the networks."""

from __future__ import annotations

import pytest

from cctmn.contract import InputContract
from cctmn.errors import ModelError


def test_a_contract_survives_the_card() -> None:
    contract = InputContract(size_px=256, window_width_hu=1400.5)
    assert InputContract.from_card(contract.to_card()) == contract


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": 3}, "channels"),
        ({"mean": [0.5, 0.5, 0.5]}, "mean"),
        ({"size_px": "512"}, "not a number"),
        ({"size_px": float("nan")}, "not a number"),
        ({"size_px": 2048}, "size_px <= max_size_px"),
        ({"window_width_hu": 0}, "window_width_hu is 0 or less"),
    ],
)
def test_another_contract_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        InputContract.from_card(InputContract().to_card() | change)


def test_a_missing_key_is_refused() -> None:
    table = InputContract().to_card()
    del table["resize"]
    with pytest.raises(ModelError, match="resize"):
        InputContract.from_card(table)
