"""One evaluation: read, measure, write; the function behind `cctmn evaluate` and jobs/evaluate.py.

In: an EvaluationJob. Out: DIR/metrics.json, which names nobody, and DIR/private with what does: the
slices that were not joined, who is in two sets, and the pictures of the gallery.
"""

from __future__ import annotations

import datetime
import json
from typing import Any, Final

from cctmn import store, versions
from cctmn.errors import ConfigError
from cctmn.evaluate import lesion_metrics, slice_metrics
from cctmn.evaluate.join import read_scored
from cctmn.evaluate.options import EvaluationJob, file_name, model_of
from cctmn.metrics import bootstrap
from cctmn.reporter import Reporter, silent

FORMAT: Final = 1  # of metrics.json


def evaluate(job: EvaluationJob, *, report: Reporter = silent) -> dict[str, Any]:
    """Write DIR/metrics.json and return it. Raises a CctmnError for what the user can mend."""
    if job.labels is None and job.masks is None:
        raise ConfigError("nothing to evaluate by: give --labels LABELS, --masks DATA or both")
    scored = read_scored(job.out)
    model = model_of(scored, job.model)
    parts = []
    if job.labels is not None:
        parts.append(slice_metrics.evaluate(job, scored=scored, model=model, report=report))
    if job.masks is not None:
        parts.append(lesion_metrics.evaluate(job, scored=scored, model=model, report=report))
    by = " and ".join(file_name(place) for place in (job.labels, job.masks) if place)
    metrics: dict[str, Any] = {
        "format": FORMAT,
        "made": {
            "cctmn": versions.libraries()["cctmn"],
            "at": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        },
        "title": f"{model['name']} on {by}",
        "classes": list(scored.classes),
        "model": model,
        "model_size": {"parameters": model.get("parameters")},
        "bootstrap": {
            "resamples": job.resampling.resamples,
            "seed": job.resampling.seed,
            "level": bootstrap.LEVEL,
        },
        "accounting": scored.accounting(),
        "curves": {},
        "versions": versions.libraries(),
        "scoring": {
            "fingerprint": scored.manifest.get("fingerprint"),
            "versions": scored.manifest.get("versions", {}),
        },
    }
    for part in parts:
        curves = metrics["curves"] | part.sections.pop("curves", {})
        metrics |= part.sections | {"curves": curves}
    metrics["figures"] = {k: f.as_json() for part in parts for k, f in part.figures.items()}
    metrics["warnings"] = list(dict.fromkeys(text for part in parts for text in part.warnings))
    # not sorted: figures and classes stay in the order in which they are read
    text = json.dumps(metrics, indent=2, allow_nan=False) + "\n"
    store.put(store.join(store.to_uri(job.to), "metrics.json"), text.encode())
    return metrics
