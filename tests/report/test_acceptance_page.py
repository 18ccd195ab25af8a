"""The page of an acceptance test: its numbers, in a browser, and on paper."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cctmn.report import acceptance_page
from tests.report.test_browser import CONTRAST, FLAGS, SIZES, UNREADABLE, browser, show

__all__ = ["browser"]

SHA = "0123456789abcdef" * 4
ROW = {"by": [], "values": [], "hidden": False, "patients": 240, "slices": 72_000}


def judged(metric: str, limit: float, value: float | None, bound: float | None) -> dict[str, Any]:
    smaller = metric == "lr_negative"
    limited = {"at_most" if smaller else "at_least": limit}
    met = bound is None or (bound <= limit if smaller else bound >= limit)
    texts = {"verdict": "pass" if met else "fail", "reason": "the lower bound is below it"}
    return ROW | {"metric": metric, "value": value, "bound": bound} | limited | texts


def content(*rows: dict[str, Any], verdict: str = "fail") -> dict[str, Any]:
    """The content of an acceptance.json with these rows."""
    steps = [k / 100 for k in range(1, 100)]
    chosen = {"sensitivity": 0.95, "labels": "valid.csv", "labels_sha256": SHA, "patients": 180}
    return {
        "made": {"cctmn": "0.1.0", "at": "2026-11-28T19:00:00Z"},
        "title": "Chest CT triage at a hospital with a long name, second acceptance test",
        "verdict": verdict,
        "criteria": list(rows),
        "rules": {"prevalence": 0.1, "level": 0.95, "sided": "two", "fewest_patients": 20},
        "operating_point": {
            "unit": "patient", "positive": "any", "threshold": 0.652062, "chosen_on": chosen,
        },
        "tested": {
            "patients": 240, "slices": 72_000, "positive": 160, "negative": 80, "unscored": 2,
        },
        "criteria_file": {"name": "criteria.toml", "sha256": SHA},
        "labels": {"name": "labels_of_the_second_half.csv", "sha256": SHA},
        "predictions": {"fingerprint": SHA, "sha256": SHA},
        "model": {"name": "resnet34-t1, S + batch norm", "model_id": "9f31c02ab77e"},
        "decision_curve": {
            "threshold": steps,
            "model": [0.1 * (1 - t) for t in steps],
            "treat_all": [0.1 - 0.9 * t / (1 - t) for t in steps],
        },
        "notes": ["2 labelled patients without a usable score count as wrong."],
    }  # fmt: skip


def full() -> dict[str, Any]:
    few = {"value": None, "bound": None, "patients": None, "slices": None}
    hidden = judged("sensitivity", 0.8, 0.9, 0.9) | few | {"hidden": True, "by": ["scanner"]}
    hidden |= {"values": ["2 more"], "verdict": "too few patients", "reason": "fewer than 20 each"}
    return content(
        judged("sensitivity", 0.85, 0.8875, 0.828),
        judged("specificity", 0.8, 0.9875, 0.9323),
        judged("npv", 0.97, 0.9875, 0.9786),
        judged("ppv", 0.3, 0.8875, 0.5412),
        judged("lr_positive", 3, None, 10.619),
        judged("lr_negative", 0.2, 0.114, 0.196),
        judged("auc", 0.9, 0.9892, 0.9791),
        *(
            judged("sensitivity", 0.8, 0.9, 0.81) | {"by": ["sex"], "values": [value]}
            for value in "FM"
        ),
        hidden,
    )


def texts(row: dict[str, Any]) -> tuple[str, str, str]:
    found = re.search(
        r"<td>([^<]*)</td><td>([^<]*)</td><td>([^<]*)</td>", acceptance_page.render(content(row))
    )
    assert found is not None
    return found[1], found[2], found[3]


def test_a_bound_is_rounded_to_the_side_that_misses_the_required_value() -> None:
    assert texts(judged("sensitivity", 0.85, 0.9, 0.84999)) == ("≥ 85 %", "90.00 %", "84.99 %")
    assert texts(judged("lr_negative", 0.2, 0.1, 0.20001)) == ("≤ 0.2", "0.100", "0.201")
    assert texts(judged("sensitivity", 0.29, 0.3, 0.29)) == ("≥ 29 %", "30.00 %", "29.00 %")


def test_an_infinite_ratio_and_an_undefined_value_are_said_so() -> None:
    assert texts(judged("lr_positive", 3, None, 10.619))[1:] == ("∞", "10.619")
    assert texts(judged("ppv", 0.3, None, 0.0))[1] == "not defined"


def test_the_same_result_gives_the_same_page() -> None:
    assert acceptance_page.render(full()) == acceptance_page.render(full())


def test_a_result_without_a_decision_curve_has_a_page() -> None:
    page = acceptance_page.render(full() | {"decision_curve": {}})
    assert "<svg" not in page


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("acceptance")
    return acceptance_page.write(str(folder), content=full())


@pytest.mark.parametrize("size", SIZES)
def test_the_page_fits_a_desktop_and_a_phone(browser: Any, page: str, size: str) -> None:
    show(browser, page, size=size)
    assert browser.get_log("browser") == []
    width, inner = browser.execute_script(
        "return [document.documentElement.scrollWidth, window.innerWidth]"
    )
    assert width <= inner
    assert browser.execute_script(UNREADABLE) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_contrast(browser: Any, page: str, scheme: str) -> None:
    show(browser, page, size="desk", scheme=scheme)
    ratio, where = browser.execute_script(CONTRAST)
    assert ratio >= 4.5, where


@pytest.mark.browser
def test_it_prints_on_one_page(page: str, tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is not on PATH")
    pdf = tmp_path / "page.pdf"
    flags = [*FLAGS, f"--user-data-dir={tmp_path}/profile", "--no-pdf-header-footer"]
    command = [chromium, *flags, f"--print-to-pdf={pdf}", page]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    assert len(re.findall(rb"/Type\s*/Page\b(?!s)", pdf.read_bytes())) == 1
