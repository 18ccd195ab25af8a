"""What the first page of the report of an output folder shows: the archive at a glance.

Reads: the counts of the archive, its worklist and its manifest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cctmn import numerics, schema
from cctmn.errors import EXIT_ERROR_RATE, SLICE_CODES, state_of
from cctmn.metrics.metric import number, whole
from cctmn.model.card import ASSETS, SHIPPED, read_card
from cctmn.report.archive import LISTED_SCANNERS, SCANNER, Census, ScoredArchive
from cctmn.report.numbers import count_text, decimal_text
from cctmn.report.worklist import WorklistRow
from cctmn.reporter import duration

TEMPLATE: Final = "archive.html.j2"
# Lines of the worklist on the first page; they fill a screen.
FIRST_ROWS: Final = 20
_SCANNER_TITLES: Final = {
    "manufacturer": "manufacturer",
    "scanner_model": "model",
    "kernel": "kernel",
    "slice_thickness_mm": "slice thickness, mm",
    "tube_voltage_kv": "tube voltage, kV",
}


@dataclass(frozen=True)
class Bar:
    """One bar of a chart."""

    name: str
    count: int
    percent: float  # of all
    index: int  # of the class, for its colour; -1 for none


def context(archive: ScoredArchive, census: Census, rows: Sequence[WorklistRow]) -> dict[str, Any]:
    """Return what the template shows."""
    scored = census.states["ok"]
    return {
        "rows": rows[:FIRST_ROWS],
        "num_studies": len(rows),
        "has_studies_table": archive.studies is not None,
        "facts": [
            ("studies", len(rows) if archive.studies is not None else len(census.slices_of)),
            ("patients", len(census.patients)),
            ("series", len(census.series)),
            ("slices", census.rows - census.states["passed_over"]),
        ],
        "census": census,
        "steps": list(_steps(archive, census)),
        "codes": [
            (code, state_of(code).replace("_", " "), n, SLICE_CODES.get(code, ""))
            for code, n in census.codes.most_common()
        ],
        "flags": [
            (name, n, n / scored, name in schema.ABSTAIN_FLAGS, schema.FLAGS.get(name, ""))
            for name, n in census.flags.most_common()
        ],
        "study_classes": bars([row.predicted for row in rows], archive.classes),
        "slice_classes": bars(list(census.classes.elements()), archive.classes),
        "scanner_titles": [_SCANNER_TITLES[name] for name in SCANNER],
        "scanners": _scanners(census),
        "more_scanners": max(0, len(census.scanners) - LISTED_SCANNERS),
        "slices_listed": census.slices_listed,
        "provenance": [(key, text) for key, text in _provenance(archive, census) if text],
    }


def bars(names: Sequence[str | None], classes: Sequence[str]) -> list[Bar]:
    """Return one bar per class, in the order of the classes, and one for those without."""
    counts = Counter(name or "" for name in names)
    total = max(1, len(names))
    shown = [
        Bar(name, counts[name], 100 * counts[name] / total, index)
        for index, name in enumerate(classes)
    ]
    if counts[""]:
        shown.append(Bar("no answer", counts[""], 100 * counts[""] / total, -1))
    return shown if names else []


def model_of(archive: ScoredArchive) -> dict[str, Any]:
    """Return the manifest's description of the model; {} in folders without one."""
    model = archive.manifest.get("model")
    return dict(model) if isinstance(model, dict) else {}


def cautions(archive: ScoredArchive) -> list[str]:
    """Return what a reader must know before any number, the gravest first."""
    model, manifest = model_of(archive), archive.manifest
    counts = _dict(manifest.get("counts"))
    texts = []
    if model.get("trained") is False:
        texts.append("At least one part of the model has random weights: the scores mean nothing.")
    texts += _notes(model)
    if manifest.get("complete") is False:
        pending = count_text(whole(counts.get("pending")))
        texts.append(
            f"The job is not complete: {pending} slices are still to be scored, and the answer of "
            "a study may change. Run the same command again to resume."
        )
    if manifest.get("exit_code") == EXIT_ERROR_RATE:
        rate = decimal_text(100 * (number(manifest.get("error_rate")) or 0.0))
        texts.append(
            f"{rate} % of the slices could not be scored, more than the job allows. Studies may "
            "be missing the slices that matter."
        )
    if archive.classes and "patient_slope" not in _dict(model.get("calibration")):
        texts.append(
            "The rule that turns slices into a study was not fitted to labelled patients, so the "
            "probabilities rank studies but need not be true frequencies."
        )
    if use := str(model.get("intended_use") or ""):
        texts.append(use)
    return texts


def _notes(model: Mapping[str, Any]) -> list[str]:
    """Return the notes of the model's card; a manifest of an older version lacks them."""
    if isinstance(notes := model.get("notes"), list):
        return [str(note) for note in notes]
    for folder in sorted(ASSETS.iterdir()):
        card = read_card(f"{SHIPPED}{folder.name}")
        if card.model_id == model.get("model_id"):
            return list(card.notes)
    return []


def _steps(archive: ScoredArchive, census: Census) -> Iterator[tuple[str, int, str]]:
    """Yield name, count and meaning of the parts into which the objects found are divided."""
    pending = whole(_dict(archive.manifest.get("counts")).get("pending")) or 0
    yield "found", census.rows + pending, "objects and slices in the archive"
    yield "passed over", census.states["passed_over"], "rightly not scored: no CT slice of a chest"
    yield "errors", census.states["error"], "slices that could not be scored"
    if pending:
        yield "pending", pending, "slices that are still to be scored"
    yield "scored", census.states["ok"], "slices with scores"
    yield "abstained", census.abstained, "of these, outside what the model is made for; not used"


def _scanners(census: Census) -> list[tuple[tuple[str, ...], int]]:
    """Return the scanners with most scored slices: the values of SCANNER as text, and the count."""
    if not census.scanner_columns:
        return []
    ordered = sorted(census.scanners.items(), key=lambda one: (-one[1], str(one[0])))
    return [(tuple(_value(value) for value in row), n) for row, n in ordered[:LISTED_SCANNERS]]


def _value(value: Any) -> str:
    if value in (None, ""):
        return "–"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _provenance(archive: ScoredArchive, census: Census) -> Iterator[tuple[str, str]]:
    manifest, model = archive.manifest, model_of(archive)
    last, scored = _dict(manifest.get("last_run")), census.states["ok"]
    yield "model", str(model.get("name") or "")
    yield "model id", str(model.get("model_id") or "")
    yield "backbone", str(model.get("backbone") or "")
    yield "classes", ", ".join(archive.classes)
    yield "lesion classes", ", ".join(map(str, model.get("lesion_classes") or ()))
    yield "training slices", count_text(whole(model.get("training_slices")))
    yield "best epoch chosen by", _validation(_dict(model.get("validation")))
    yield "computed in", numerics.described(_dict(manifest.get(numerics.KEY)))
    yield "scored until", archive.written
    elapsed, slices = number(last.get("elapsed_s")), whole(last.get("slices"))
    if elapsed and slices:
        yield "last run", f"{slices:,} slices in {duration(elapsed)}"
        yield "throughput", f"{decimal_text(slices / elapsed, 1)} slices per second"
    for name, title in (("t_decode_ms", "decoding"), ("t_score_ms", "network")):
        if scored and census.times_ms[name]:
            yield title, f"{decimal_text(census.times_ms[name] / scored, 0)} ms per slice, mean"
    yield "cctmn", str(_dict(manifest.get("versions")).get("cctmn") or "")
    yield "fingerprint", str(manifest.get("fingerprint") or "")


def _validation(part: Mapping[str, Any]) -> str:
    """Return the validation number that chose the best epoch, and what it stands on."""
    value = number(part.get("value"))
    if value is None:
        return ""
    text = f"validation {str(part.get('chosen_by')).replace('_', ' ')} {decimal_text(value, 3)}"
    counts = ((whole(part.get(name)), name) for name in ("slices", "patients"))
    text += " on " + " of ".join(f"{count:,} {name}" for count, name in counts if count)
    whole_set = whole(part.get("sample_of_slices"))
    return f"{text} (a sample of {whole_set:,} slices)" if whole_set else text


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
