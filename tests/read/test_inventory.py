"""One row per slice, by content, with stable keyed ids."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cctmn.errors import DataError, InputError
from cctmn.pseudonym import pseudonym as keyed_pseudonym
from cctmn.read import inventory
from tests.conftest import RecordingReporter, S3Server
from tests.makers import dicom, png, tarred, zipped

KEY = b"k" * 32


def rows(*inputs: object, exclude: str = "", key: bytes = KEY) -> list[dict[str, Any]]:
    tables = list(inventory.index([str(i) for i in inputs], key=key, exclude=exclude))
    return pa.concat_tables(tables).to_pylist() if tables else []


def test_kinds_are_told_by_content_and_text_is_a_row(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(png(1))
    (tmp_path / "b.png").write_bytes(dicom(1))
    (tmp_path / "c.dcm").write_bytes(b"hello")
    (tmp_path / "d.png").write_bytes(b"")
    got = [(r["kind"], r["error_code"]) for r in rows(tmp_path)]
    assert got == [("png", ""), ("dicom", ""), ("", "unsupported_format"), ("", "empty_file")]


def test_pages_and_members_are_rows_of_their_own(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.full((64, 64), n, np.uint8)) for n in range(3)]
    buffer = io.BytesIO()
    pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:])
    tiff = buffer.getvalue()
    members = {"x": png(1), "deep/pages": tiff}
    (tmp_path / "pages.tif").write_bytes(tiff)
    (tmp_path / "z.zip").write_bytes(zipped(members))
    (tmp_path / "t.tar").write_bytes(tarred(members))
    (tmp_path / "u.tgz").write_bytes(tarred(members, mode="w:gz"))
    got = rows(tmp_path)
    assert len(got) == 3 + 3 * (1 + 3)
    assert len({r["slice_id"] for r in got}) == len(got)
    assert {r["error_code"] for r in got} == {""}
    assert [r["frame"] for r in got if r["member"] == "deep/pages"] == [0, 1, 2] * 3
    assert {(r["container"], r["frames"]) for r in got if r["frames"] > 1} == {
        (c, 3) for c in ("", "zip", "tar", "tar.gz")
    }


def test_archives_inside_archives_are_rows_with_a_code(tmp_path: Path) -> None:
    (tmp_path / "z.zip").write_bytes(zipped({"in.zip": zipped({"x": png(1)}), "x": png(1)}))
    assert [r["error_code"] for r in rows(tmp_path)] == ["archive_depth", ""]


def test_a_cut_archive_keeps_its_readable_rows(tmp_path: Path) -> None:
    data = tarred({"a": png(1), "b": png(2)})
    (tmp_path / "t.tar").write_bytes(data[: len(data) // 4])
    got = rows(tmp_path)
    assert [r["error_code"] for r in got][-1] == "archive_truncated"
    assert got[0]["member"] == "a"


def test_trailing_data_is_flagged_on_every_member(tmp_path: Path) -> None:
    (tmp_path / "t.tgz").write_bytes(tarred({"a": png(1)}, mode="w:gz") + b"garbage after the end")
    [row] = rows(tmp_path)
    assert (row["flags"], row["error_code"]) == (["trailing_data"], "")


def test_ids_are_stable_keyed_and_of_the_place(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "b.png").write_bytes(png(1))
    ids = [r["slice_id"] for r in rows(tmp_path)]
    assert ids == [r["slice_id"] for r in rows(tmp_path / "*.png")]
    assert len(set(ids)) == 2
    assert not set(ids) & {r["slice_id"] for r in rows(tmp_path, key=b"other")}
    assert all(len(i) == 32 for i in ids)


def test_pseudonyms_do_not_run_together() -> None:
    def pseudonym(*parts: str) -> str:
        return keyed_pseudonym(KEY, *parts)

    assert pseudonym("slice", "a|b", "c") != pseudonym("slice", "a", "b|c")
    assert pseudonym("study", "1") != pseudonym("series", "1")


def test_the_output_folder_is_no_input(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "out" / "predictions").mkdir(parents=True)
    (tmp_path / "out" / "predictions" / "x.parquet").write_bytes(b"PAR1")
    (tmp_path / "outside.png").write_bytes(png(2))
    assert len(rows(tmp_path, exclude=(tmp_path / "out").as_uri())) == 2


def test_overlapping_inputs_give_each_slice_once(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    assert len(rows(tmp_path, tmp_path / "a.png")) == 1


def test_manifests(tmp_path: Path, s3: S3Server) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(png(1))
    s3.bucket("manifested")
    s3.upload("manifested", "b.png", png(2))
    uris = ["images/a.png", str(tmp_path / "images" / "a.png"), "s3://manifested/b.png", "gone.png"]
    with (tmp_path / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["label", "uri"], *(["x", uri] for uri in uris)])
    pq.write_table(pa.table({"uri": uris}), tmp_path / "list.parquet")
    for name in ("list.csv", "list.parquet"):
        reporter = RecordingReporter()
        tables = inventory.index([str(tmp_path / name)], key=KEY, report=reporter)
        got = pa.concat_tables(list(tables)).to_pylist()
        assert [r["error_code"] for r in got] == ["", "", "not_found"]
        assert reporter.lines == ["1 names of INPUT are repetitions; each object is scored once"]
    assert len({r["slice_id"] for r in rows(tmp_path / "list.csv", tmp_path / "images")}) == 3


@pytest.mark.parametrize(
    "content", [b"", b"file\nx\n", b"uri\n\n", b"uri,x\n,1\n", b"\xff\xfe\x00"]
)
def test_manifests_that_are_none(tmp_path: Path, content: bytes) -> None:
    for name in ("list.csv", "list.parquet"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            rows(tmp_path / name)


def test_a_manifests_relative_uris_are_below_a_root(tmp_path: Path, s3: S3Server) -> None:
    """One table of labels serves a folder here and a bucket there; what is missing is a row."""
    s3.bucket("rooted")
    names = ["a b/1 %41.png", "2.png", "gone.png"]
    for name in names[:2]:
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(png(1))
        s3.upload("rooted", f"images/{name}", png(1))
    (tmp_path / "m.csv").write_text("\n".join(["uri,label", *(f"{n},covid" for n in names)]))
    for root in (str(tmp_path / "images"), "s3://rooted/images", "s3://rooted/images/"):
        [table] = inventory.index([str(tmp_path / "m.csv")], key=KEY, root=root)
        assert table["error_code"].to_pylist() == ["", "", "not_found"]
        assert table["kind"].to_pylist() == ["png", "png", ""]
        assert table["uri"][1].as_py().endswith("/images/2.png")
    [table] = inventory.index([str(tmp_path / "m.csv")], key=KEY)
    assert table["error_code"].to_pylist() == ["not_found"] * 3


def test_a_bucket_that_cannot_be_listed_is_no_missing_file(tmp_path: Path, s3: S3Server) -> None:
    (tmp_path / "m.csv").write_text("uri\n1.png\n")
    with pytest.raises(InputError, match="no such bucket"):
        list(inventory.index([str(tmp_path / "m.csv")], key=KEY, root="s3://never-made/images"))
