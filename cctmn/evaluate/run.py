"""One evaluation: read, measure, write. `cctmn evaluate` and jobs/evaluate.py call it.

Reads: an output folder, and labels, lesion masks or both.
Writes: DIR/metrics.json, which identifies nobody, and DIR/private with everything that does: slices
that could not be joined, patients in two sets, and the pictures of the gallery.
"""

from __future__ import annotations

import datetime
import json
from typing import Any

from cctmn import store, versions
from cctmn.contract import InputContract
from cctmn.errors import ConfigError, ResumeError
from cctmn.evaluate import case_pictures, lesion_metrics, slice_metrics
from cctmn.evaluate.join import read_scored
from cctmn.evaluate.model import evaluated_model
from cctmn.evaluate.options import EvaluationOptions, file_name
from cctmn.metrics import document
from cctmn.metrics.proportions import LEVEL
from cctmn.numerics import calibration_note
from cctmn.reporter import Reporter, silent


def evaluate(options: EvaluationOptions, *, report: Reporter = silent) -> dict[str, Any]:
    """Write DIR/metrics.json and return its content.

    Raises a CctmnError for anything the user can correct, before anything is written: ResumeError
    if DIR holds another evaluation and `overwrite` is not set.
    """
    if options.labels is None and options.masks is None:
        raise ConfigError("nothing to compare with; give --labels LABELS, --masks DATA or both")
    # 1. Read the predictions, and measure each part that was asked for.
    scored = read_scored(options.out)
    model = evaluated_model(scored, folder=options.model)
    truth = " and ".join(file_name(place) for place in (options.labels, options.masks) if place)
    title, fingerprint = f"{model.name} on {truth}", scored.manifest.get("fingerprint")
    to = store.to_uri(options.to)
    if not options.overwrite:
        _check_free(to, title=title, fingerprint=fingerprint)
    parts = []
    if options.labels is not None:
        parts.append(slice_metrics.evaluate(options, scored=scored, model=model, report=report))
    if options.masks is not None:
        parts.append(lesion_metrics.evaluate(options, scored=scored, model=model, report=report))
    # 2. Assemble the document. It is not sorted: metrics and classes keep their reading order.
    content: dict[str, Any] = {
        "format": document.FORMAT,
        "made": {
            "cctmn": versions.libraries()["cctmn"],
            "at": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        },
        "title": title,
        "classes": list(scored.classes),
        "model": model.as_json(),
        "model_size": dict(model.model_size),
        "bootstrap": {
            "resamples": options.resampling.resamples,
            "seed": options.resampling.seed,
            "level": LEVEL,
        },
        "accounting": scored.accounting(),
        "curves": {},
        "versions": versions.libraries(),
        "scoring": {
            "fingerprint": fingerprint,
            "versions": scored.manifest.get("versions", {}),
            **scored.computed.as_json(),
        },
    }
    for part in parts:
        shared = {
            name: content.get(name, {}) | part.sections.get(name, {})
            for name in ("curves", "cases")
        }
        content |= part.sections | shared
    content["metrics"] = {id_: m.as_json() for part in parts for id_, m in part.metrics.items()}
    computed = [
        *scored.computed.notes,
        *calibration_note(model.shown.get("calibration") or {}, scored.computed.numerics),
    ]
    warnings = [*computed, *(text for part in parts for text in part.warnings)]
    content["warnings"] = list(dict.fromkeys(warnings))
    assert not document.unknown(content), document.unknown(content)
    # 3. Draw the cases, and write all.
    if options.gallery:
        for part in parts:
            if part.true_lesions is not None:
                case_pictures.add_truth(content["cases"], part.true_lesions)
        contract = InputContract() if model.input is None else InputContract.from_card(model.input)
        written = case_pictures.write(
            content["cases"], out=scored.out, contract=contract, folder=to
        )
        report(f"{written} pictures for the gallery, in {options.to}/private/cases")
    else:
        del content["cases"]
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    store.put(store.join(to, document.FILE), text.encode())
    return content


def _check_free(to: str, *, title: str, fingerprint: str | None) -> None:
    """Raise ResumeError if the folder holds the evaluation of other predictions or labels."""
    data = store.read_optional(store.join(to, document.FILE))
    if data is None:
        return
    try:
        held = document.parse(data)
    except ValueError:
        held = {}
    scoring = held.get("scoring") or {}
    if (held.get("title"), scoring.get("fingerprint")) != (title, fingerprint):
        raise ResumeError(
            f"holds another evaluation, {held.get('title')!r}; give another -o, or --overwrite",
            store.display(to),
        )
