"""Any bytes give rows: whatever a library raises for one object, the index goes on."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import struct
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cctmn.contract import InputContract
from cctmn.errors import SLICE_CODES
from cctmn.read import inventory
from cctmn.score.prepare import prepare
from tests.makers import dicom, png, tarred, zipped

KEY = b"k" * 32
CONTRACT = InputContract(size_px=64, max_size_px=128)
PNG = png(1)


def scored(*inputs: object) -> list[dict[str, Any]]:
    """Index and prepare everything below the inputs: member, error code and frame of each row."""
    tables = list(inventory.index([str(i) for i in inputs], key=KEY))
    if not tables:
        return []
    table = pa.concat_tables(tables)
    ready = prepare(table, contract=CONTRACT, key=KEY, threads=2).to_pylist()
    return [
        row | {"error_code": done["error_code"]}
        for row, done in zip(table.to_pylist(), ready, strict=True)
    ]


def codes(folder: Path, data: bytes, name: str = "x") -> list[str]:
    (folder / name).write_bytes(data)
    rows = scored(folder)
    assert len({row["slice_id"] for row in rows}) == len(rows)
    return [row["error_code"] for row in rows]


def raw_tar(*members: tuple[str, bytes], **fields: bytes) -> bytes:
    """A tar whose last header has other fields: `size`, `type`, `magic`; checksums are right."""
    blocks = []
    for number, (name, data) in enumerate(members, start=1):
        header = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
        header[124:136] = b"%011o\0" % len(data)
        if number == len(members):
            for field, value in fields.items():
                at = {"size": 124, "type": 156, "magic": 257}[field]
                header[at : at + len(value)] = value
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        blocks.append(bytes(header) + data + bytes(-len(data) % 512))
    return b"".join(blocks) + bytes(1024)


# --- archives by their structure


def test_a_stored_member_that_was_streamed_is_read(tmp_path: Path) -> None:
    """Its sizes follow its data, so they are in the directory only."""

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def tell(self) -> int:
            raise OSError

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_STORED) as archive:
        for name in ("a.png", "b.png"):
            archive.writestr(name, PNG)
    assert codes(tmp_path, pipe.getvalue()) == ["", ""]


@pytest.mark.parametrize("gap", [64, 5 << 20])
def test_bytes_between_members_are_not_read(gap: int, tmp_path: Path) -> None:
    plain = zipped({"a.png": PNG, "b.png": PNG}, method=zipfile.ZIP_STORED)
    second = plain.index(b"PK\x03\x04", 4)
    data = bytearray(plain[:second] + os.urandom(gap) + plain[second:])
    entry = data.rindex(b"PK\x01\x02")
    data[entry + 42 : entry + 46] = struct.pack("<L", second + gap)
    end = data.rindex(b"PK\x05\x06")
    data[end + 16 : end + 20] = struct.pack("<L", struct.unpack_from("<L", data, end + 16)[0] + gap)
    (tmp_path / "x").write_bytes(data)
    rows = scored(tmp_path)
    assert [row["error_code"] for row in rows] == ["", ""]
    assert rows[0]["packed_size"] < len(PNG) + (70 << 10)


@pytest.mark.parametrize("prefix", [b"PK00", b"PK\x07\x08", b"MZ program " * 50], ids=repr)
def test_a_zip_is_known_by_its_end(prefix: bytes, tmp_path: Path) -> None:
    assert codes(tmp_path, prefix + zipped({"a.png": PNG, "b.png": PNG})) == ["", ""]


def test_a_zip_with_a_comment_behind_a_program(tmp_path: Path) -> None:
    buffer = io.BytesIO(b"MZ program")
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("a.png", PNG)
        archive.comment = b"a viewer " * 1000
    assert codes(tmp_path, buffer.getvalue()) == [""]


def test_bzip2_members(tmp_path: Path) -> None:
    assert codes(tmp_path, zipped({"a.png": PNG, "b": dicom(1)}, method=zipfile.ZIP_BZIP2)) == [
        "",
        "",
    ]


def test_a_zip_without_its_beginning(tmp_path: Path) -> None:
    assert codes(tmp_path, zipped({"a.png": PNG, "b.png": PNG})[1000:]) == ["archive_truncated"]


@pytest.mark.parametrize("name", ["", "\0", "a\0b.png", "/", "../" * 20 + "x", "a" * 60_000])
def test_member_names_of_any_kind(name: str, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.png", PNG)
        entry = zipfile.ZipInfo("x")
        entry.filename = name  # as it is: the constructor would cut it at a NUL
        with archive.open(entry, "w") as file:
            file.write(PNG)
    assert codes(tmp_path, buffer.getvalue()) == ([""] if name == "/" else ["", ""])


def test_an_extra_field_that_overruns_is_left_out(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        entry = zipfile.ZipInfo("a.png")
        entry.extra = struct.pack("<2H", 0x5455, 5) + b"12345"
        archive.writestr(entry, PNG)
    data = bytearray(buffer.getvalue())
    at = data.rindex(struct.pack("<2H", 0x5455, 5))
    data[at + 2 : at + 4] = struct.pack("<H", 5000)
    assert codes(tmp_path, bytes(data)) == [""]


def test_a_split_zip_is_named_as_such(tmp_path: Path) -> None:
    data = bytearray(zipped({"a.png": PNG}))
    end = data.rindex(b"PK\x05\x06")
    data[end + 4 : end + 8] = struct.pack("<2H", 2, 0)
    assert codes(tmp_path, bytes(data)) == ["archive_split"]


def test_an_old_tar_is_known_by_its_checksum(tmp_path: Path) -> None:
    assert codes(tmp_path, raw_tar(("a.png", PNG), ("b.png", PNG), magic=bytes(8))) == ["", ""]
    assert codes(tmp_path, raw_tar(("a.png", PNG), magic=bytes(8))) == [""]


def test_a_volume_label_is_no_member(tmp_path: Path) -> None:
    data = raw_tar(("label", b""), type=b"V")[:512] + raw_tar(("a.png", PNG))
    assert codes(tmp_path, data) == [""]


@pytest.mark.parametrize("inner", [tarred({"a": b"x"}), zipped({"a": b"x"})], ids=["tar", "zip"])
@pytest.mark.parametrize("outer", [tarred, zipped])
def test_small_archives_in_archives(outer: Callable[..., bytes], inner: bytes, tmp_path: Path):
    small = inner[:2048] if inner[257:262] == b"ustar" else inner
    assert codes(tmp_path, outer({"inner": small, "a.png": PNG})) == ["archive_depth", ""]


# --- damage and lies

NEGATIVE = b"\xff" * 10 + b"\xfe\0"  # -512 as a number of base 256
HUGE = b"\x80\0" + b"\1" + bytes(9)  # 2^72


def chained(count: int) -> bytes:
    """Long names for one member, each of which names the next."""
    name = raw_tar(("././@LongLink", b"long" * 40), type=b"L")[:1024]
    return name * count + raw_tar(("a.png", PNG))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (raw_tar(("a.png", PNG), ("b", b""), size=NEGATIVE), ["", "corrupt"]),
        (raw_tar(("a.png", PNG), ("b", b""), size=HUGE), ["", "too_large", "archive_truncated"]),
        (chained(600), ["corrupt"]),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + b"\xff" * 40, ["corrupt"]),
        (gzip.compress(tarred({"a.png": PNG}))[:-2000], ["truncated", "archive_truncated"]),
        (bz2.compress(b"no tar"), ["unsupported_format"]),
        (b"BZh9" + b"?" * 100, ["corrupt"]),
        (lzma.compress(b"no tar")[:-4], ["archive_truncated"]),
        (b"\xfd7zXZ\0" + b"?" * 100, ["corrupt"]),
        (dicom(1)[:291], ["truncated"]),
    ],
    ids=[
        "negative size", "huge size", "chained names", "bad gzip", "cut gzip", "bzip2 of text",
        "bad bzip2", "cut xz", "bad xz", "cut DICOM",
    ],
)  # fmt: skip
def test_a_damaged_object_is_a_row(data: bytes, expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(PNG)
    result = codes(tmp_path, data)
    assert result.pop(0) == ""
    assert result == expected


def test_a_long_name_of_a_gigabyte_is_not_read(tmp_path: Path) -> None:
    header = raw_tar(("././@LongLink", b""), type=b"L", size=b"%011o\0" % (1 << 30))[:512]
    packer = bz2.BZ2Compressor()
    data = packer.compress(header) + packer.compress(b"x" * (8 << 20)) + packer.flush()
    assert codes(tmp_path, data) == ["archive_bomb"]


@pytest.mark.parametrize("pack", [bz2.compress, gzip.compress, lzma.compress])
def test_zeros_without_end_behind_a_tar(pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    """The members count, and the flag says that more follows."""
    (tmp_path / "x").write_bytes(pack(tarred({"a.png": PNG}) + bytes(100 << 20)))
    [row] = scored(tmp_path)
    assert (row["error_code"], row["flags"]) == ("", ["trailing_data"])


def test_xz_may_not_ask_for_gigabytes(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 30, "preset": 0}]
    data = lzma.compress(tarred({"a.png": PNG}), filters=filters)
    assert codes(tmp_path, data) == ["corrupt"]


def test_a_folder_tree_of_any_depth(tmp_path: Path) -> None:
    folder, here = tmp_path / "deep", Path.cwd()
    folder.mkdir()
    (folder / "a.png").write_bytes(PNG)
    try:
        os.chdir(folder)
        for _ in range(1100):
            Path("d").mkdir()
            os.chdir("d")
        Path("b.png").write_bytes(PNG)
        os.chdir(here)
        assert [row["error_code"] for row in scored(folder)] == ["", ""]
    finally:
        os.chdir(here)
        # shutil and pytest remove folders by recursion
        subprocess.run(["rm", "-rf", str(folder)], check=True)


@pytest.mark.parametrize("name", ["~$x.png", "x" * 300 + ".png", "a\\b.png", "~nobody-here/x"])
def test_a_name_in_a_table_that_is_not_there(name: str, tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(PNG)
    (tmp_path / "t.csv").write_text(f"uri\n{name}\ngood.png\n")
    assert [row["error_code"] for row in scored(tmp_path / "t.csv")] == ["not_found", ""]


# --- any bytes

SEEDS = {
    "png": PNG,
    "dicom": dicom(1),
    "zip": zipped({"a.png": PNG, "b": dicom(2)}),
    "tar": tarred({"a.png": PNG, "b": dicom(2)}),
    "tar.gz": tarred({"a.png": PNG}, mode="w:gz"),
    "tar.bz2": tarred({"a.png": PNG}, mode="w:bz2"),
    "tar.xz": tarred({"a.png": PNG}, mode="w:xz"),
}


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The data with a cut, a repeat, or some bytes changed, most of them near both ends."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        near = rng.choice((64, 512, len(changed)))
        at = rng.randrange(min(near, len(changed)))
        at = rng.choice((at, len(changed) - 1 - at))
        what = rng.randrange(4)
        if what == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif what == 1:
            changed[at : at + 4] = rng.choice((b"\xff" * 4, bytes(4), rng.randbytes(4)))
        elif what == 2 and len(changed) > 100:
            del changed[at : at + rng.randrange(1, 600)]
        else:
            changed[at:at] = changed[max(0, at - rng.randrange(1, 600)) : at]
        if not changed:
            return b"\0"
    return bytes(changed)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SEEDS)
def test_any_bytes_give_rows(kind: str, tmp_path: Path) -> None:
    rng = random.Random(kind)
    for n in range(60):
        (tmp_path / f"{n:03d}").write_bytes(mutated(SEEDS[kind], rng))
    rows = scored(tmp_path)
    assert {row["uri"].rsplit("/", 1)[1] for row in rows} == {f"{n:03d}" for n in range(60)}
    assert {row["error_code"] for row in rows} <= {"", *SLICE_CODES}
