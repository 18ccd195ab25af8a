"""Settings: defaults, TOML, --set; what is unknown or of another type is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from cctmn import config
from cctmn.config import ScoreConfig
from cctmn.errors import ConfigError


def test_set_beats_file_beats_default(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("batch_size = 3\nactors = 2\nmax_error_rate = 1\n")
    settings = config.load(ScoreConfig, files=[file], sets=["batch_size=5", "ranked_boxes=true"])
    assert settings == ScoreConfig(
        batch_size=5, actors=2, max_error_rate=1.0, ranked_boxes=True, fetch_threads=16
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("batchsize=3", "no such setting"),
        ("batch_size", "key=value"),
        ("batch_size=many", "not of type int"),
        ("batch_size=1.5", "not of type int"),
        ("fetch_threads=0", "below 1"),
        ("max_error_rate=nan", "below 0"),
        ("a.b=1", "no such setting"),
    ],
)
def test_what_does_not_hold_is_one_line(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config.load(ScoreConfig, sets=[text])


def test_a_file_that_is_no_toml(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("actors 2")
    for file in (tmp_path / "x", tmp_path / "none"):
        with pytest.raises(ConfigError, match=str(file)):
            config.load(ScoreConfig, files=[file])


def test_the_fingerprint_is_of_the_content() -> None:
    assert config.fingerprint({"a": 1, "b": 2}) == config.fingerprint({"b": 2, "a": 1})
    assert config.fingerprint({"a": 1}) != config.fingerprint({"a": 2})
