"""The licence of every package that the product is installed with is one that was looked at."""

from __future__ import annotations

import re

from tests.conftest import REPO

# They allow use and redistribution, and ask nobody to publish code of his own. MPL 2.0 (certifi)
# concerns changes to its own files alone.
ALLOWED = {
    *("0BSD", "BSD", "BSD License", "BSD-2-Clause", "BSD-3-Clause", "3-Clause BSD License"),
    *(
        "FreeBSD",
        "MIT",
        "MIT-0",
        "MIT License",
        "MIT-CMU",
        "Zlib",
        "CC0-1.0",
        "ISC License (ISCL)",
        "HPND",
    ),
    *("Apache-2.0", "Apache 2.0", "Apache License 2.0", "Apache Software License"),
    *("PSF-2.0", "Python Software Foundation License", "The Unlicense (Unlicense)"),
    *("MPL-2.0", "Mozilla Public License 2.0 (MPL 2.0)"),
}


def test_every_licence_was_looked_at() -> None:
    page = (REPO / "docs" / "licences.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([a-z0-9-]+) \| (.+) \|$", page, re.MULTILINE))
    del rows["package"]
    pins = (REPO / "constraints.txt").read_text(encoding="utf-8")
    assert list(rows) == re.findall(r"^([a-z0-9-]+)==", pins, re.MULTILINE)
    parts = {name: set(re.split(r" AND | OR |; ", licence)) for name, licence in rows.items()}
    assert {name: of - ALLOWED for name, of in parts.items() if of - ALLOWED} == {}


def test_each_pin_has_hashes() -> None:
    for name in ("constraints.txt", "constraints-torch.txt", "constraints-dev.txt"):
        blocks = re.split(r"\n(?=\S)", (REPO / name).read_text(encoding="utf-8").strip())
        assert len(blocks) > 10
        assert all("==" in block and "--hash=sha256:" in block for block in blocks)
