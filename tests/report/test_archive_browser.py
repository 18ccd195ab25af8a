"""The report of scored slices in a browser: on a desktop, on a phone and in dark mode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cctmn.report import archive_report
from tests.report import scored
from tests.report.scored import a_slice, an_error, scan, with_mask
from tests.report.test_archive_report import with_images
from tests.report.test_browser import CONTRAST, SIZES, browser, show

__all__ = ["browser", "with_images"]  # fixtures

PAGES = ("index.html", "worklist.html", "studies/sick.html", "studies/empty.html")
# Cells with a number that takes more than one line.
BROKEN = """
return [...document.querySelectorAll('td:not(.text), dd, .bars .value')].filter(cell => {
  const range = document.createRange();
  range.selectNodeContents(cell);
  const tops = [...range.getClientRects()].filter(r => r.width).map(r => Math.round(r.bottom / 8));
  return /^[-<>−.,\\d ]+( of [\\d,]+)?$/.test(cell.textContent) && new Set(tops).size > 1;
}).map(cell => cell.textContent);
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    rows = [with_mask(row, 100 * (n % 5)) for n, row in enumerate(scan("sick", 900, sick=9.0))]
    rows += scan("clean", 1200, sick=-4.0, flags=["small", "lossy", "oblique"])
    rows += [a_slice("empty", float(n), abstained=True, flags=["no_lung"]) for n in range(3)]
    rows += [an_error("clean", "truncated"), a_slice(None, None, sick=2.0)]
    out = scored.write(tmp_path_factory.mktemp("archive") / "out", rows, masks=True)
    base = archive_report.write(str(out)).uri.removesuffix("index.html")
    return {name: base + name for name in PAGES}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PAGES)
def test_page_fits_and_no_number_breaks(
    browser: Any, pages: dict[str, str], name: str, size: str
) -> None:
    show(browser, pages[name], size=size)
    assert browser.get_log("browser") == []
    width, inner = browser.execute_script(
        "return [document.documentElement.scrollWidth, window.innerWidth]"
    )
    assert width <= inner == SIZES[size][0]
    assert browser.execute_script(BROKEN) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_text_has_contrast(browser: Any, pages: dict[str, str], name: str, scheme: str) -> None:
    show(browser, pages[name], size="desk", scheme=scheme)
    least, where = browser.execute_script(CONTRAST)
    assert least >= 4.5, where


def test_a_line_of_the_worklist_leads_to_the_page_of_its_study(
    browser: Any, pages: dict[str, str]
) -> None:
    show(browser, pages["worklist.html"], size="phone")
    browser.execute_script("document.querySelector('#s-1 a').click()")
    assert browser.current_url == pages["studies/sick.html"]
    browser.execute_script("document.querySelector('.kind a').click()")
    assert browser.current_url == pages["worklist.html"] + "#s-1"


@pytest.mark.parametrize("size", SIZES)
def test_a_picture_fills_its_card(browser: Any, with_images: Path, size: str) -> None:
    uri = archive_report.write(str(with_images), pictures=True).uri
    show(browser, uri.replace("index.html", "studies/sick.html"), size=size)
    widths = browser.execute_script(
        "return [...document.querySelectorAll('.case')].map(one => [one.clientWidth,"
        "one.querySelector('svg').getBoundingClientRect().width])"
    )
    assert len(widths) == 3
    assert all(drawn == pytest.approx(card, abs=1) for card, drawn in widths)
