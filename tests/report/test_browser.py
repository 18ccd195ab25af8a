"""The report in a browser: on a desktop, on a phone, in dark mode and on paper."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cctmn.report import render
from tests.report import made

SIZES = {"desk": (1280, 900, False), "phone": (390, 844, True)}
PNG = b"\x89PNG"
SIX = ("control", "pneumonia_bacterial", "pneumonia_viral_oth", "covid", "tuberculosis_active", "x")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip

# The width of each decoded picture, or the error.
LOADED = """
const done = arguments[arguments.length - 1];
const hrefs = [...document.querySelectorAll('img, image')].map(
  one => one.currentSrc || one.getAttribute('href'));
Promise.all(hrefs.map(href => { const i = new Image(); i.src = href;
  return i.decode().then(() => i.naturalWidth, why => String(why)); })).then(done);
"""
# Texts of plots that are cut by the edge of the plot or overlap another text.
UNREADABLE = """
const bad = [];
for (const svg of document.querySelectorAll('svg.plot')) {
  const frame = svg.getBoundingClientRect();
  const boxes = [...svg.querySelectorAll('text')].map(
    one => [one.textContent, one.getBoundingClientRect()]);
  boxes.forEach(([text, a], i) => {
    if (a.left < frame.left - 1 || a.right > frame.right + 1 || a.top < frame.top - 1 ||
        a.bottom > frame.bottom + 1) bad.push(text + ' is cut');
    for (const [other, b] of boxes.slice(i + 1))
      if (Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
          Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3)
        bad.push(text + ' lies over ' + other);
  });
}
return bad;
"""
# The lowest contrast of any text with its background colour (WCAG 2, AA: 4.5).
CONTRAST = """
const lum = c => { const f = v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  return .2126 * f(c[0]) + .7152 * f(c[1]) + .0722 * f(c[2]); };
const parse = text => { const c = text.match(/[\\d.]+/g).map(Number); return c.length < 4 ?
  [...c, 1] : c; };
const over = (top, under) => [0, 1, 2].map(k => top[k] * top[3] + under[k] * (1 - top[3]));
const behind = one => { const stack = [];
  for (let e = one; e; e = e.parentElement) stack.push(parse(getComputedStyle(e).backgroundColor));
  return stack.reverse().reduce((under, top) => over(top, under), [255, 255, 255]); };
let least = [99, ''];
for (const one of document.querySelectorAll('main *')) {
  if (one.closest('svg') || ![...one.childNodes].some(n => n.nodeType == 3 && n.data.trim()))
    continue;
  const [a, b] = [lum(parse(getComputedStyle(one).color)), lum(behind(one))];
  const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  if (ratio < least[0]) least = [ratio, one.outerHTML.slice(0, 120)];
}
return least;
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    chromedriver = shutil.which("chromedriver")
    if not (chromium and chromedriver):
        pytest.skip("chromium and chromedriver are not both on PATH")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(chromedriver))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("reports")
    contents = {
        "full": made.metrics(cases=4),
        "minimum": made.minimum(),
        "six": made.metrics(classes=SIX, cases=1),
        "guessing": made.guessing(SIX),
    }
    written = {
        name: render.write(made.folder(folder / name, content))
        for name, content in contents.items()
    }
    labels = made.metrics(cases=0)["labels"]
    variants = [
        made.folder(
            folder / f"variant{seed}", made.metrics(cases=0, seed=seed) | {"labels": labels}
        )
        for seed in range(3)
    ]
    return written | {"several": render.write(variants[0], others=variants[1:])}


def show(browser: Any, uri: str, *, size: str, scheme: str = "light") -> None:
    width, height, mobile = SIZES[size]
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get(uri)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["full", "minimum", "six", "guessing", "several"])
def test_page_fits_and_pictures_load(
    browser: Any, reports: dict[str, str], tmp_path: Path, name: str, size: str
) -> None:
    show(browser, reports[name], size=size)
    assert browser.get_log("browser") == []
    width, inner = browser.execute_script(
        "return [document.documentElement.scrollWidth, window.innerWidth]"
    )
    assert inner == SIZES[size][0]
    assert width <= inner
    pictures = browser.execute_async_script(LOADED)
    assert pictures == [made.PICTURE_PX] * len(pictures)
    expected = {"full": 15, "minimum": 0, "six": 5, "guessing": 5, "several": 0}
    assert len(pictures) == expected[name]
    assert browser.execute_script(UNREADABLE) == []
    requests = browser.execute_script(
        "return performance.getEntriesByType('resource').map(e=>e.name)"
    )
    assert [one for one in requests if not one.startswith("data:")] == []
    shot = browser.execute_cdp_cmd(
        "Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True}
    )
    path = tmp_path / f"{name}-{size}.png"
    path.write_bytes(base64.b64decode(shot["data"]))
    assert path.read_bytes().startswith(PNG)
    assert path.stat().st_size > 10_000


@pytest.mark.parametrize("size", SIZES)
def test_a_click_enlarges_a_picture_and_the_page_still_fits(
    browser: Any, reports: dict[str, str], size: str
) -> None:
    show(browser, reports["full"], size=size)
    width = "return document.querySelector('.wall .zoom svg').getBoundingClientRect().width"
    before = browser.execute_script(width)
    browser.execute_script("document.querySelector('.wall .zoom summary').click()")
    assert browser.execute_script(width) > 1.5 * before
    browser.execute_script("document.querySelector('.row .zoom summary').click()")
    browser.execute_script("document.querySelector('.listed summary').click()")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= SIZES[size][0]


@pytest.mark.parametrize("size", SIZES)
def test_no_mark_of_a_picture_is_cut(browser: Any, reports: dict[str, str], size: str) -> None:
    show(browser, reports["full"], size=size)
    cut = browser.execute_script("""
      return [...document.querySelectorAll('.case svg')].flatMap(svg => {
        const frame = svg.getBoundingClientRect();
        return [...svg.querySelectorAll('text.side, text.length, path.bar')].filter(one => {
          const a = one.getBoundingClientRect();
          return a.left < frame.left - 1 || a.right > frame.right + 1 ||
                 a.top < frame.top - 3 || a.bottom > frame.bottom + 3; })
          .map(one => one.textContent || 'the bar'); });""")
    assert cut == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(browser: Any, reports: dict[str, str], scheme: str) -> None:
    show(browser, reports["full"], size="desk", scheme=scheme)
    least, where = browser.execute_script(CONTRAST)
    assert least >= 4.5, where
    background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")


def test_a_number_links_to_its_row(browser: Any, reports: dict[str, str]) -> None:
    show(browser, reports["full"], size="phone")
    browser.execute_script("document.querySelector('a.n[href=\"#m-slice.accuracy\"]').click()")
    row = "document.querySelector('tr:target')"
    assert browser.execute_script(f"return {row}.id") == "m-slice.accuracy"
    top = browser.execute_script(f"return {row}.getBoundingClientRect().top")
    assert 0 <= top < SIZES["phone"][1]


def test_print_layout(browser: Any, reports: dict[str, str], tmp_path: Path) -> None:
    """On paper nothing is dark, coloured like a link, or hidden behind a scroll bar."""
    show(browser, reports["full"], size="desk", scheme="dark")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    metrics = {"width": 690, "height": 1000, "deviceScaleFactor": 1, "mobile": False}  # A4
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    clipped = browser.execute_script(
        "return [...document.querySelectorAll('.scroll')].filter(one => "
        "getComputedStyle(one).overflowX != 'visible' || one.scrollWidth > one.clientWidth + 1)"
        ".map(one => one.getAttribute('aria-label'))"
    )
    assert clipped == []
    colours = browser.execute_script(
        "return [...new Set([...document.querySelectorAll('main a')]"
        ".map(a => getComputedStyle(a).color == getComputedStyle(a.parentElement).color))]"
    )
    assert colours == [True]
    assert (
        browser.execute_script("return getComputedStyle(document.querySelector('nav')).display")
        == "none"
    )
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    pdf = browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})
    path = tmp_path / "report.pdf"
    path.write_bytes(base64.b64decode(pdf["data"]))
    assert path.read_bytes().startswith(b"%PDF")
    assert path.stat().st_size > 50_000
