"""Settings: precedence of their sources, errors, and the list that help and documentation use."""

from __future__ import annotations

from pathlib import Path

import pytest

from cctmn import config
from cctmn.classes import BACKBONES, LESION_MODES
from cctmn.config import SETTINGS, ClassifierConfig, DetectorConfig, ScoreConfig
from cctmn.errors import ConfigError
from cctmn.settings import describe, to_text


def test_set_wins_over_file_and_file_over_default(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("batch_size = 3\nactors = 2\nmax_error_rate = 1\n")
    settings = config.load(ScoreConfig, files=[file], sets=["batch_size=5", "ranked_boxes=true"])
    assert settings == ScoreConfig(
        batch_size=5, actors=2, max_error_rate=1.0, ranked_boxes=True, fetch_threads=16
    )


def test_file_wins_over_preset(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("[optim]\nlr = 0.5\n")
    settings = config.load(DetectorConfig, preset="demo", files=[file])
    assert (settings.backbone, settings.optim.lr, settings.optim.steps) == ("resnet18", 0.5, 1500)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batchsize=3", "no such setting; did you mean batch_size?; `cctmn settings score`"),
        ("batch_size", "key=value"),
        ("batch_size=many", "not of type int; allowed: integer, at least 0"),
        ("batch_size=1.5", "not of type int"),
        ("fetch_threads=0", "below 1"),
        ("max_error_rate=nan", "below 0"),
        ("max_error_rate=5", "above 1; allowed: number, 0 to 1"),
        ("a.b=1", "no such setting; `cctmn settings score` lists all"),
    ],
)
def test_invalid_set_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        config.load(ScoreConfig, sets=[text])
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr=1", "did you mean optim.lr?"),
        ("optim.learning=1", "no such setting"),
        ("optim.epoch=1", "did you mean optim.epochs?"),
        ("optim=1", "is a table; write optim.KEY=value"),
        ("loss=bec", "allowed: bce | cross-entropy; did you mean bce?"),
        ("classes=3", "is not a list of names"),
    ],
)
def test_nearest_setting_is_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        config.load(ClassifierConfig, sets=[text])
    assert message in str(refused.value)


def test_nearest_preset_is_named() -> None:
    with pytest.raises(ConfigError, match=r"paper-resnet-50: .* did you mean paper-resnet50\?"):
        config.load(DetectorConfig, preset="paper-resnet-50")


def test_error_names_the_settings_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[optim]\nlr = 'fast'\n")
    with pytest.raises(ConfigError, match=r"mine.toml: optim.lr: 'fast' is not of type float"):
        config.load(DetectorConfig, files=[file])


def test_unreadable_settings_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("actors 2")
    for file in (tmp_path / "x", tmp_path / "none"):
        with pytest.raises(ConfigError, match=str(file)):
            config.load(ScoreConfig, files=[file])


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_is_described(name: str) -> None:
    cls = SETTINGS[name]
    table = config.markdown(name)
    for one in describe(cls):
        assert one.help.endswith("."), one.key
        assert f"| `{one.key}` |" in table
        assert one.unit or one.type != "integer" or one.key == "optim.seed", f"{one.key}: no unit"
        # what is printed as the default is accepted by --set
        if to_text(one.default) != '""':
            assert config.load(cls, sets=[f"{one.key}={to_text(one.default)}"]) == cls()


@pytest.mark.parametrize("name", SETTINGS)
def test_every_preset_has_a_summary(name: str) -> None:
    assert config.preset_summaries(name).keys() == config.presets(name).keys()
    for preset, text in config.preset_summaries(name).items():
        assert text.endswith("."), preset
        config.load(SETTINGS[name], preset=preset)


def test_choices_are_those_of_the_model_card() -> None:
    choices = {one.key: one.choices for one in describe(DetectorConfig)}
    assert choices["backbone"] == BACKBONES
    assert choices["lesions"] == tuple(LESION_MODES)
