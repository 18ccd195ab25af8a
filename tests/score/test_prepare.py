"""From inventory rows to model inputs: one prepared row each, in order, whatever fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cctmn.contract import InputContract
from cctmn.errors import StoreError
from cctmn.pseudonym import pseudonym
from cctmn.read import decode, inventory
from cctmn.schema import INVENTORY
from cctmn.score import prepare as module
from cctmn.score.prepare import PREPARED, prepare
from tests.makers import dicom, png, zipped

KEY = b"k" * 32
CONTRACT = InputContract(size_px=64, max_size_px=128)


def index(folder: Path) -> pa.Table:
    return pa.concat_tables(list(inventory.index([str(folder)], key=KEY, exclude="")))


def prepared(table: pa.Table) -> list[dict[str, Any]]:
    got = prepare(table, contract=CONTRACT, key=KEY, threads=2)
    assert got.schema.equals(PREPARED)
    return list(got.to_pylist())


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    folder.mkdir()
    (folder / "a.png").write_bytes(png(1))
    (folder / "b.dcm").write_bytes(dicom(1))
    (folder / "c.png").write_bytes(b"")
    (folder / "d.zip").write_bytes(zipped({"whole": png(2), "cut": dicom(2)[:-5000]}))
    return folder


def test_rows_keep_their_order_and_an_error_has_no_pixels(archive: Path) -> None:
    table = index(archive)
    rows = prepared(table)
    assert [row["slice_id"] for row in rows] == table["slice_id"].to_pylist()
    places = zip(table["uri"].to_pylist(), table["member"].to_pylist(), strict=True)
    names = [Path(uri).name + member for uri, member in places]
    codes = {name: row["error_code"] for name, row in zip(names, rows, strict=True)}
    assert codes == {
        "a.png": "",
        "b.dcm": "",
        "c.png": "empty_file",
        "d.zipwhole": "",
        "d.zipcut": "truncated",
    }
    for row in rows:
        assert len(row["pixels"]) == row["input_rows"] * row["input_cols"]
        assert bool(row["pixels"]) == (not row["error_code"])


def test_the_affine_leads_from_the_input_to_the_stored_image(archive: Path) -> None:
    of_dicom = prepared(index(archive))[1]
    assert (of_dicom["rows"], of_dicom["cols"]) == (512, 512)
    assert (of_dicom["input_rows"], of_dicom["input_cols"]) == (64, 64)
    assert of_dicom["to_stored"] == pytest.approx([8, 0, 0, 0, 8, 0])


def test_no_identifier_leaves_the_header(archive: Path) -> None:
    row = prepared(index(archive))[1]
    slice_ = decode.open_image(dicom(1)).frame(0)
    assert slice_.patient_id
    assert row["patient_key"] == pseudonym(KEY, "patient", slice_.patient_id)
    assert row["study_key"] == pseudonym(KEY, "study", str(slice_.study_uid))
    text = repr({name: value for name, value in row.items() if name != "pixels"})
    for secret in (slice_.patient_id, slice_.study_uid, slice_.series_uid):
        assert str(secret) not in text


def test_storage_that_does_not_answer_ends_the_block(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(rows: Any, *, threads: int) -> Any:
        raise StoreError("it does not answer")

    monkeypatch.setattr(module, "fetch", fetch)
    with pytest.raises(StoreError, match="it does not answer"):
        prepared(index(archive))


def test_a_file_that_changed_its_frames_since_the_index_is_an_error(archive: Path) -> None:
    table = index(archive)
    frames = pa.array([2] * len(table), pa.int32())
    changed = table.set_column(table.schema.get_field_index("frames"), "frames", frames)
    codes = {row["error_code"] for row in prepared(changed)}
    assert codes == {"invalid_header", "empty_file", "truncated"}


def test_no_rows_give_no_rows() -> None:
    assert prepared(INVENTORY.empty_table()) == []
