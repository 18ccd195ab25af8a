"""The job on a real Ray with a stand-in scorer: rows, resume, refusals, knobs, S3."""

from __future__ import annotations

import dataclasses
import fcntl
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cctmn import runtime, schema, tables
from cctmn.config import ScoreConfig
from cctmn.errors import CctmnError, ResumeError
from cctmn.score import pipeline, run
from cctmn.score.run import ScoreJob
from tests.conftest import RecordingReporter, S3Server
from tests.makers import dicom, png, stand_in, tarred, zipped
from tests.score.conftest import manifest, predictions, results

SOURCE = stand_in()


def job(inputs: Path | str, out: Path | str, **changes: object) -> ScoreJob:
    # one scorer: starting a process costs more here than all the work it does
    plain = ScoreJob([str(inputs)], out=str(out), source=SOURCE, settings=ScoreConfig(actors=1))
    return dataclasses.replace(plain, **changes)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Loose files and a zip; a cut one, a damaged one and a text in the zip."""
    folder = tmp_path_factory.mktemp("archive")
    for n in range(9):
        (folder / f"{n}.png").write_bytes(png(n))
    members = {f"m{n}": dicom(n) for n in range(4)}
    damaged = bytearray(png(1))
    damaged[len(damaged) // 2] ^= 0xFF
    members |= {"cut": dicom(8)[:-5000], "damaged": bytes(damaged), "text": b"notes"}
    (folder / "z.zip").write_bytes(zipped(members))
    return folder


@pytest.fixture(scope="module")
def done(archive: Path, cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one run over the archive."""
    out = tmp_path_factory.mktemp("out") / "done"
    summary = run.score(job(archive, out), address=cluster)
    assert summary.exit_code == 3
    return out


def test_every_slice_has_one_row_and_three_are_errors(done: Path) -> None:
    rows = predictions(done)
    assert len(rows) == 16
    codes = {name: row["error_code"] for name, row in rows.items() if row["error_code"]}
    assert codes == {
        "z.zip::cut::0": "truncated",
        "z.zip::damaged::0": codes["z.zip::damaged::0"],
        "z.zip::text::0": "not_an_image",
    }
    assert codes["z.zip::damaged::0"] in {"corrupt", "decode_error"}


def test_rows_have_the_documented_columns(done: Path) -> None:
    columns = schema.predictions(SOURCE.image_classes)
    for file in (done / "predictions").iterdir():
        written = pq.read_schema(file)
        assert written.equals(columns)
        assert written.metadata[schema.CLASSES_KEY] == columns.metadata[schema.CLASSES_KEY]
    rows = predictions(done)
    ok, error = rows["z.zip::m1::0"], rows["z.zip::text::0"]
    assert ok["pred_class"] in SOURCE.image_classes
    assert (ok["rows"], ok["spacing_row_mm"]) == (512, pytest.approx(360 / 512))
    assert ok["study_key"] == rows["z.zip::m2::0"]["study_key"] != ok["series_key"]
    [lesion] = ok["lesions"]  # the stand-in's box, back from 64 px to the stored 512
    assert [lesion[k] for k in ("x0", "y0", "x1", "y1")] == [0, 0, 256, 128]
    assert (ok["error_message"], error["error_message"][:11]) == ("", "The content")
    assert (error["p_covid"], error["pred_class"], error["lesions"]) == (None, None, [])
    assert error["model_id"] == ok["model_id"] == "standin"


def test_the_manifest_balances_and_names_nothing(done: Path, archive: Path) -> None:
    output = manifest(done)
    assert output["counts"] == {
        "inventory": 16,
        "ok": 13,
        "passed_over": 1,
        "error": 2,
        "pending": 0,
    }
    assert output["complete"]
    assert output["exit_code"] == 3
    assert sum(output["classes"].values()) == 13 - output["abstained"]
    assert str(archive) not in json.dumps(output)
    assert not list(done.glob("private/todo/*"))
    assert (done / "private").stat().st_mode & 0o077 == 0
    assert (done / "private" / "key").stat().st_mode & 0o777 == 0o600


def test_each_study_has_one_row_and_the_manifest_counts_them(done: Path) -> None:
    table = pq.read_table(done / "studies")
    assert table.schema.equals(schema.studies(SOURCE.image_classes))
    [study] = table.to_pylist()  # the four members of one study; pictures have none
    rows = [row for row in predictions(done).values() if row["study_key"]]
    assert study["study_key"] == rows[0]["study_key"]
    assert study["num_slices"] == len(rows)
    assert study["num_used"] == sum(not (r["error_code"] or r["abstained"]) for r in rows)
    assert set(study["deciding_slices"]) <= {row["slice_id"] for row in rows}
    assert manifest(done)["studies"] == {study["pred_class"] or "none": 1}


def test_a_finished_job_scores_nothing_and_needs_no_ray(
    done: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "session", None)
    before = sorted(path.stat().st_mtime_ns for path in done.glob("predictions/*"))
    relaxed = ScoreConfig(max_error_rate=0.5, actors=1)
    summary = run.score(job(archive, done, settings=relaxed))
    assert (summary.scored_now, summary.exit_code) == (0, 0)
    assert before == sorted(path.stat().st_mtime_ns for path in done.glob("predictions/*"))


def test_limit_then_the_rest_then_new_files_alone(cluster: str, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for n in range(7):
        (source / f"{n}.png").write_bytes(png(n))
    first = run.score(job(source, out, limit=3), address=cluster)
    assert (first.scored_now, first.counts.ok, first.counts.pending) == (3, 3, 4)
    assert not manifest(out)["complete"]
    assert run.score(job(source, out), address=cluster).scored_now == 4
    (source / "new.png").write_bytes(png(99))
    assert run.score(job(source, out), address=cluster).scored_now == 1
    assert len(predictions(out)) == 8


def test_slices_of_a_vanished_input_stay_in_the_inventory(cluster: str, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for n in range(3):
        (source / f"{n}.png").write_bytes(png(n))
    run.score(job(source, out, limit=1), address=cluster)
    (source / "0.png").unlink()
    (source / "2.png").unlink()
    summary = run.score(job(source, out), address=cluster)
    assert (summary.counts.ok, summary.counts.codes) == (2, {"not_found": 1})


def test_retry_errors_scores_a_repaired_slice(
    cluster: str, tmp_path: Path, reporter: RecordingReporter
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    (source / "a.png").write_bytes(png(1))
    (source / "b.png").write_bytes(png(2)[:500])
    assert run.score(job(source, out), address=cluster).counts.error == 1
    (source / "b.png").write_bytes(png(2))
    assert run.score(job(source, out), address=cluster, report=reporter).scored_now == 0
    assert any(text.startswith("1 slices have changed") for text in reporter.lines)
    again = run.score(job(source, out, retry_errors=True), address=cluster)
    assert (again.scored_now, again.counts.ok, again.counts.error) == (1, 2, 0)
    assert len(predictions(out)) == 2


def test_another_model_or_setting_is_refused_and_named(done: Path, archive: Path) -> None:
    with pytest.raises(ResumeError, match=r"model\.model_id: standin there, other here"):
        run.score(job(archive, done, source=stand_in(model_id="other")))
    with pytest.raises(ResumeError, match="ranked_boxes"):
        run.score(job(archive, done, settings=ScoreConfig(ranked_boxes=True)))


def test_a_second_writer_is_refused_and_the_first_named(done: Path, archive: Path) -> None:
    with (done / "private" / "lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write("4711")
        lock.flush()
        with pytest.raises(ResumeError, match="process 4711 is writing here"):
            run.score(job(archive, done))


def test_unfinished_and_doubled_files_are_repaired(
    archive: Path, cluster: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run.score(job(archive, out), address=cluster)
    whole = predictions(out)
    [*_, last] = sorted((out / "predictions").iterdir())
    data = last.read_bytes()
    last.write_bytes(data[:-7])  # what a killed local writer leaves
    summary = run.score(job(archive, out), address=cluster)
    assert summary.scored_now > 0
    (out / "predictions" / "second-writer.parquet").write_bytes(data)
    summary = run.score(job(archive, out), address=cluster)
    assert summary.counts.inventory == 16
    assert {k: results(v) for k, v in predictions(out).items()} == {
        k: results(v) for k, v in whole.items()
    }


def test_a_folder_without_its_inventory_is_refused(
    archive: Path, cluster: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run.score(job(archive, out, limit=2), address=cluster)
    (out / "private" / "key").unlink()
    with pytest.raises(ResumeError, match="no private/key"):
        run.score(job(archive, out))


def test_an_interrupted_index_is_completed(archive: Path, cluster: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run.score(job(archive, out), address=cluster)
    folder = out / "private" / "inventory"
    [part] = folder.iterdir()
    (folder / "g000009-000000.parquet").write_bytes(part.read_bytes())  # of a later, cut index
    assert run.score(job(archive, out)).counts.inventory == 16
    assert [p.name for p in folder.iterdir()] == ["g000010-000000.parquet"]


def test_dry_run_writes_nothing(archive: Path, tmp_path: Path) -> None:
    plan = run.dry_run([str(archive)], out=str(tmp_path / "out"))
    assert (plan["slices"], plan["done"], plan["pending"]) == (16, 0, 16)
    assert (plan["passed_over"], plan["refused"]) == ({"not_an_image": 1}, {})
    assert plan["kinds"] == {"dicom": 5, "none": 1, "png": 10}
    assert not (tmp_path / "out").exists()


def test_dry_run_knows_what_is_done(done: Path, archive: Path) -> None:
    plan = run.dry_run([str(archive)], out=str(done))
    assert (plan["done"], plan["pending"]) == (16, 0)


def test_the_same_slices_anywhere_give_the_same_rows(
    s3: S3Server, cluster: str, tmp_path: Path
) -> None:
    """Loose, zip, tar, tar.gz, local and on S3; the output on S3 as well."""
    slices = {f"s{n}": dicom(n) if n % 2 else png(n, side=80) for n in range(5)}
    slices |= {"text": b"notes", "cut": png(7)[:200]}
    forms = {
        "x.zip": zipped(slices),
        "x.tar": tarred(slices),
        "x.tgz": tarred(slices, mode="w:gz"),
        **{f"loose/{name}": data for name, data in slices.items()},
    }
    s3.bucket("forms")
    s3.bucket("forms-out")
    (tmp_path / "in" / "loose").mkdir(parents=True)
    for name, data in forms.items():
        s3.upload("forms", name, data)
        (tmp_path / "in" / name).write_bytes(data)
    everywhere = ScoreJob(
        ["s3://forms", str(tmp_path / "in")], out="s3://forms-out/x", source=SOURCE
    )
    summary = run.score(everywhere, address=cluster)
    assert summary.counts.inventory == 8 * 7
    names = {}
    for table in tables.inventory("s3://forms-out/x/private/inventory"):
        for row in table.to_pylist():
            names[row["slice_id"]] = row["member"] or row["uri"].rsplit("/", 1)[1]
    by_slice: dict[str, list[object]] = {}
    for row in tables.rows("s3://forms-out/x/predictions"):
        by_slice.setdefault(names[row["slice_id"]], []).append(results(row))
    assert by_slice.keys() == slices.keys()
    for name, rows in by_slice.items():
        assert len(rows) == 8
        assert all(row == rows[0] for row in rows), name
    assert run.score(everywhere).scored_now == 0


def test_a_zip_on_s3_costs_its_directory_and_its_members(
    s3: S3Server, cluster: str, tmp_path: Path
) -> None:
    data = zipped({f"study/IM{n:04d}": png(n, side=96) for n in range(200)})
    s3.bucket("zips")
    s3.upload("zips", "z.zip", data)
    summary = run.score(job("s3://zips/z.zip", tmp_path / "out"), address=cluster)
    assert summary.counts.ok == 200
    sent = s3.bytes_sent("/zips/z.zip")
    assert len(data) / 2 < sent <= 1.10 * len(data)


def test_storage_that_dies_stops_the_job_and_loses_nothing(
    cluster: str, tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bucket is there for the index and gone for the workers."""
    s3.bucket("dying")
    for n in range(3):
        s3.upload("dying", f"{n}.png", png(n))
    client = s3.client()

    def gone(todo: str, **rest: object) -> Iterator[object]:
        for n in range(3):
            client.delete_object(Bucket="dying", Key=f"{n}.png")
        client.delete_bucket(Bucket="dying")
        return execute(todo, **rest)

    execute = pipeline.execute
    monkeypatch.setattr(pipeline, "execute", gone)
    with pytest.raises(CctmnError, match="no such bucket"):
        run.score(job("s3://dying", tmp_path / "out"), address=cluster)
    monkeypatch.setattr(pipeline, "execute", execute)
    s3.bucket("dying")
    for n in range(3):
        s3.upload("dying", f"{n}.png", png(n))
    assert run.score(job("s3://dying", tmp_path / "out"), address=cluster).counts.ok == 3


def test_ranked_boxes_are_written_on_request(cluster: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    settings = ScoreConfig(ranked_boxes=True, actors=1)
    run.score(job(tmp_path / "a.png", tmp_path / "out", settings=settings), address=cluster)
    [row] = predictions(tmp_path / "out").values()
    assert len(row["ranked_boxes"]) == 3
