"""Files that lie beside the slices of an archive and are none: told by content, seldom by name.

A PACS CD holds a viewer program and its pages, a folder that a Mac has packed holds Finder's files,
and a NAS puts thumbnails beside pictures. These files are passed over. They are not errors.
"""

from __future__ import annotations

import re
from typing import Final

# Folders whose files are made by a system, whatever they contain: thumbnails are pictures too.
_SYSTEM_FOLDERS: Final = frozenset({"@eadir", ".@__thumb", ".thumbnails", "__macosx"})
_SYSTEM_FILES: Final = frozenset({"thumbs.db", "ehthumbs.db"})
# What an output folder of cctmn holds beside tables and texts: its key, and pictures of its report.
_OUR_FILES: Final = re.compile(r"(?:^|/)private/(?:key|cases/[0-9a-f]{32}\.png)$")
# A file with such a name should have been a slice, whatever it contains.
_IMAGE_SUFFIXES: Final = (
    *(".dcm", ".dicom", ".ima", ".img", ".png", ".jpg", ".jpeg", ".tif", ".tiff"),
)
_SYSTEM_MAGIC: Final = (
    b"\x00\x05\x16\x07",  # AppleDouble: what a Mac keeps of a file elsewhere
    b"\x00\x05\x16\x00",  # AppleSingle
    b"\x00\x00\x00\x01Bud1",  # .DS_Store of Finder
    b"L\x00\x00\x00\x01\x14\x02\x00",  # shortcut of Windows
)
_OTHER_MAGIC: Final = (
    b"MZ",  # program or library of Windows
    b"\x7fELF",
    b"\xcf\xfa\xed\xfe",  # program of macOS
    b"\xce\xfa\xed\xfe",
    b"\xca\xfe\xba\xbe",  # program of macOS, class of Java
    b"%PDF-",
    b"PAR1",  # Parquet, as in an older output folder of cctmn
    b"SQLite format 3\x00",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",  # documents of Office before 2007, Thumbs.db
    b"ITSF",  # help of Windows
    b"\x00\x00\x01\x00",  # icon
    b"\x00\x01\x00\x00\x00",  # font
    b"OTTO",
    b"wOFF",
    b"wOF2",
    b"OggS",
    b"ID3",
)
_TEXT_CONTROL: Final = frozenset(b"\t\n\r\f\x1a")
_UTF16: Final = (b"\xff\xfe", b"\xfe\xff")


def code_of_name(name: str) -> str:
    """Return `system_file` if the path names a file that a system or cctmn has made, else ""."""
    path = name.replace("\\", "/").lower()
    *folders, file = path.split("/")
    is_system = bool(_SYSTEM_FOLDERS.intersection(folders)) or file in _SYSTEM_FILES
    return "system_file" if is_system or _OUR_FILES.search(path) else ""


def code_of_content(name: str, head: bytes) -> str:
    """Return the code of a file that begins like this, and is neither image nor archive."""
    if head.startswith(_SYSTEM_MAGIC):
        return "system_file"
    if name.lower().endswith(_IMAGE_SUFFIXES):
        return "unsupported_format"
    is_other = head.startswith(_OTHER_MAGIC) or head[4:8] == b"ftyp" or _is_text(head)
    return "not_an_image" if is_other else "unsupported_format"


def _is_text(head: bytes) -> bool:
    if head.startswith(_UTF16):
        return b"\0" in head[2:]
    if any(byte < 32 and byte not in _TEXT_CONTROL for byte in head):
        return False
    # Latin-1 and other old encodings decode nearly anything; a text is mostly ASCII.
    return sum(32 <= byte < 127 or byte in _TEXT_CONTROL for byte in head) >= 0.7 * len(head)
