"""The report of an output folder of `cctmn score`: a first page, a worklist, a page per study.

The pages need no network and no script. They name no patient: studies, series and patients appear
by their keyed pseudonyms. With pictures the whole report lies in OUT/private, for a picture of a
patient must not leave it.

Reads: OUT/manifest.json, OUT/predictions, OUT/studies; for pictures OUT/private/inventory and the
images themselves.
Writes: OUT/report, or OUT/private/report with pictures.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from cctmn import store, tables
from cctmn.contract import InputContract
from cctmn.errors import DataError
from cctmn.metrics.patients import PatientRule
from cctmn.read.preview import SMALL_PX, Preview, previews
from cctmn.report import archive_page, study_page, templates, worklist
from cctmn.report.archive import Census, ScoredArchive, count, read
from cctmn.report.study_slices import batches
from cctmn.report.worklist import WorklistRow
from cctmn.reporter import Reporter, silent

INDEX: Final = "index.html"
CSV: Final = "worklist.csv"
# Pages that an earlier report may have had and a later one has not.
_OWN: Final = re.compile(r"studies/[A-Za-z0-9_-]+\.html|worklist-\d+\.html")
STYLES: Final = ("base.css", "cases.css", "archive.css")
# Studies with a page of their own unless more are asked for: more than anybody reads in a day.
STUDY_PAGES: Final = 500
# Studies whose pictures are in memory at once, about 10 MB.
PICTURE_STUDIES: Final = 25


@dataclass(frozen=True)
class WrittenReport:
    """What was written."""

    uri: str  # of the first page
    rows: Sequence[WorklistRow]
    num_pages: int  # pages of studies


def write(
    folder: str,
    *,
    studies: int | None = STUDY_PAGES,
    pictures: bool = False,
    report: Reporter = silent,
) -> WrittenReport:
    """Write the report of an output folder; the first `studies` get a page (None: all of them).

    Raises DataError if the folder holds no predictions.
    """
    archive = read(folder)
    census = count(archive)
    rule = PatientRule.from_calibration(archive_page.model_of(archive).get("calibration") or {})
    rows = worklist.build(archive.studies or (), archive.classes, top_m=rule.top_m, pages=studies)
    out = store.join(archive.out, *(("private", "report") if pictures else ("report",)))
    writer = _Writer(archive, rows, out=out, pictures=pictures)
    writer.put(INDEX, archive_page.TEMPLATE, archive_page.context(archive, census, rows))
    store.put(store.join(out, CSV), worklist.to_csv(rows, archive.classes), private=pictures)
    for number in range(1, worklist.page_of(max(1, len(rows))) + 1):
        first = (number - 1) * worklist.PAGE_ROWS
        shown = rows[first : first + worklist.PAGE_ROWS]
        writer.put(
            worklist.page_name(number),
            "worklist.html.j2",
            {"rows": shown, "number": number, "num_studies": len(rows)},
        )
    num_pages = _write_studies(archive, census, rows, rule=rule, writer=writer, report=report)
    writer.remove_older()
    return WrittenReport(store.join(out, INDEX), rows, num_pages)


class _Writer:
    """Writes pages with what all of them share, and removes those of an earlier report."""

    def __init__(
        self, archive: ScoredArchive, rows: Sequence[WorklistRow], *, out: str, pictures: bool
    ) -> None:
        self._out, self.pictures = out, pictures
        self._written: set[str] = set()
        model = archive_page.model_of(archive)
        self._shared = {
            "archive": archive,
            "model": {key: str(model.get(key) or "") for key in ("name", "model_id")},
            "cautions": archive_page.cautions(archive),
            "cctmn": str((archive.manifest.get("versions") or {}).get("cctmn") or ""),
            "csv": CSV,
            "index": INDEX,
            "pages": [
                worklist.page_name(number)
                for number in range(1, worklist.page_of(max(1, len(rows))) + 1)
            ],
            "page_rows": worklist.PAGE_ROWS,
            "has_pictures": pictures,
        }

    def put(self, name: str, template: str, context: Mapping[str, Any]) -> None:
        """Write one page; `name` is relative to the report."""
        root = "../" * name.count("/")
        text = templates.render(template, {**self._shared, "root": root, **context}, styles=STYLES)
        uri = store.join(self._out, name)
        store.put(uri, text.encode(), private=self.pictures)
        self._written.add(uri)

    def remove_older(self) -> None:
        """Remove the pages of an earlier report that this one does not have."""
        for found in store.list_below(self._out):
            name = store.relative(found.uri, self._out)
            if _OWN.fullmatch(name) and found.uri not in self._written:
                store.delete(found.uri)


def _write_studies(
    archive: ScoredArchive,
    census: Census,
    rows: Sequence[WorklistRow],
    *,
    rule: PatientRule,
    writer: _Writer,
    report: Reporter,
) -> int:
    """Write the pages of studies and return their number."""
    with_page = [row for row in rows if row.has_page]
    by_key = {row.key: row for row in with_page}
    of_patient: dict[str, list[WorklistRow]] = {}
    for row in rows:
        of_patient.setdefault(row.study.get("patient_key") or "", []).append(row)
    pictures = _SlicePictures(archive, with_page) if writer.pictures else None
    most = PICTURE_STUDIES if pictures else len(with_page)
    written = 0
    for batch in batches(archive, census, [row.study for row in with_page], most=most):
        shown = pictures.of_studies(by_key[key] for key in batch) if pictures else None
        for key, slices in batch.items():
            row = by_key[key]
            patient = row.study.get("patient_key")
            context = study_page.context(archive, row, slices, rule=rule, previews=shown)
            context |= {
                "num_studies": len(rows),
                "before": _neighbour(rows, row.rank - 1),
                "after": _neighbour(rows, row.rank + 1),
                "others": [one for one in of_patient[patient] if one is not row] if patient else [],
            }
            writer.put(f"studies/{key}.html", study_page.TEMPLATE, context)
            written += 1
        report(f"pages of {written:,} of {len(with_page):,} studies", transient=True)
    return written


def _neighbour(rows: Sequence[WorklistRow], rank: int) -> WorklistRow | None:
    return rows[rank - 1] if 1 <= rank <= len(rows) and rows[rank - 1].has_page else None


class _SlicePictures:
    """The pictures of deciding slices, made from the images where they were scored."""

    def __init__(self, archive: ScoredArchive, rows: Iterable[WorklistRow]) -> None:
        described = archive_page.model_of(archive).get("input")
        if not isinstance(described, dict):
            raise DataError(
                "manifest.json does not say how the images were shown to the model; "
                "leave out --pictures, or score again",
                archive.out,
            )
        self._contract = InputContract.from_card(described)
        wanted = [one for row in rows for one in self._ids(row)]
        ids = pa.array(wanted, pa.string())
        self._objects: dict[str, dict[str, Any]] = {}
        for table in tables.inventory(store.join(archive.out, "private", "inventory")):
            for row in table.filter(pc.is_in(table["slice_id"], value_set=ids)).to_pylist():
                self._objects[row["slice_id"]] = row

    def of_studies(self, rows: Iterable[WorklistRow]) -> dict[str, Preview]:
        """Return the pictures by slice_id."""
        wanted = [
            self._objects[one] for row in rows for one in self._ids(row) if one in self._objects
        ]
        return dict(previews(wanted, contract=self._contract, side_px=SMALL_PX))

    @staticmethod
    def _ids(row: WorklistRow) -> list[str]:
        return list(row.study.get("deciding_slices") or ())[: study_page.SHOWN_SLICES]
