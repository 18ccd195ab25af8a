"""Commands of `cctmn labels`: they make tables of labels, compare them, and draw from them."""

from __future__ import annotations

import json

import click

from cctmn.cli.common import NearestGroup, TerminalReporter, tree_text
from cctmn.errors import ConfigError


@click.group(cls=NearestGroup)
def labels() -> None:
    """Make tables of labels, compare them, and draw from them."""


@labels.command(
    "covidx-ct",
    epilog="""\b
Example:
  cctmn labels covidx-ct train_COVIDx_CT-1.txt --exclude train_split_classification.txt \\
      -o labels.parquet
""",
)
@click.argument("split", metavar="SPLIT")
@click.option("--exclude", metavar="LIST", help="File of names to leave out, one per line.")
@click.option(
    "-o",
    "--out",
    "--output",
    metavar="FILE",
    help=".csv or .parquet, local or s3://; without it, CSV on stdout.",
)
def labels_covidx_ct(split: str, *, exclude: str | None, out: str | None) -> None:
    """Convert a split file of COVIDx-CT to a table of labels.

    SPLIT is a list of COVIDx-CT v1, v2 or v3, or one of the author's lists of COVIDx-CT or iCTCF.
    `score` takes the table as a manifest, `train classifier` as DATA, `evaluate` as LABELS. The
    columns are uri (the name of the file), label, patient, scan and the box of the body. LIST may
    have the class digits of the author's lists: 0_1_2_3.png is Normal_1_2_3.png.
    """
    from cctmn import store
    from cctmn.data import labels as tables
    from cctmn.data.issues import first_few

    table, strange = tables.covidx_ct(split, exclude=exclude)
    if out is not None and not out.lower().endswith((".csv", ".parquet")):
        raise ConfigError("not a table; give a .csv or .parquet file", f"-o {out}")
    parquet = out is not None and out.lower().endswith(".parquet")
    data = tables.to_bytes(table, parquet=parquet)
    if out is None:
        click.echo(data.decode(), nl=False)
    else:
        store.put(store.to_uri(out), data)
    counts = table["label"].value_counts().to_pylist()
    by_class = ", ".join(f"{count['counts']:,} {count['values']}" for count in counts)
    of_slices = table["patient"].to_pylist()
    patients, unknown = len(set(of_slices) - {""}), of_slices.count("")
    without = f"; the patient of {unknown:,} slices is unknown" if unknown else ""
    click.echo(f"{len(table):,} slices of {patients:,} patients: {by_class}{without}", err=True)
    if strange:
        TerminalReporter(quiet=False)(
            f"{len(strange):,} names of the excluded are not in the split", names=first_few(strange)
        )


@labels.command(
    "audit",
    epilog="""\b
Example:
  cctmn labels audit train.csv test.csv --names
""",
)
@click.argument("sets", nargs=-1, required=True, metavar="SET SET...")
@click.option("--hash", "hashes", is_flag=True, help="Compare files and decoded pixels too.")
@click.option(
    "--root",
    default="",
    metavar="ROOT",
    help="Base folder or prefix for relative URIs, with --hash.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the counts as JSON.")
@click.option("--names", is_flag=True, help="Print each shared item on a line of CSV.")
def labels_audit(
    sets: tuple[str, ...], *, hashes: bool, root: str, as_json: bool, names: bool
) -> None:
    """Find what two SETs share.

    Patients, scans and slices are compared, with --hash also files and pictures. Case and Unicode
    form of patients do not matter. Equal paths of known, different patients are different slices.
    SET is a table of labels (.csv, .parquet) or a split file of COVIDx-CT (.txt).
    """
    import pyarrow as pa

    from cctmn.data.labels import read_table, to_bytes
    from cctmn.evaluate import audit

    if len(sets) < 2:
        raise ConfigError("one SET has nothing to be compared with; give two or more")
    read = [
        audit.read_set(read_table(place)[0], name=place, root=root, hashes=hashes) for place in sets
    ]
    overlaps = audit.compare(read)
    counts = audit.summary(read, overlaps)
    if names:
        table = pa.table(dict(audit.named(overlaps)))
        click.echo(to_bytes(table, parquet=False).decode(), nl=False)
    elif as_json:
        click.echo(json.dumps(counts, indent=2))
    else:
        for one in counts["sets"]:
            click.echo(tree_text(one).replace("\n", "  "))
        for pair in counts["pairs"]:
            shared = ", ".join(f"{pair[k]:,} {k}" for k in audit.KINDS if pair[k] is not None)
            click.echo(f"{pair['a']} and {pair['b']} share {shared}")
        for one in counts["sets"]:
            if unknown := one["unknown_patients"]:
                click.echo(
                    f"{one['name']}: {unknown:,} slices could not be checked for shared patients, "
                    "because their patient is unknown"
                )


@labels.command(
    "sample",
    epilog="""\b
Example:
  cctmn labels sample train_COVIDx_CT-1.txt --per-class 1000 --seed 1 -o train.txt
""",
)
@click.argument("place", metavar="LABELS")
@click.option(
    "--per-class",
    required=True,
    type=click.IntRange(min=1),
    metavar="N",
    help="Number of slices to draw of each class.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Other seeds draw other slices."
)
@click.option(
    "-o",
    "--out",
    "--output",
    required=True,
    metavar="FILE",
    help="List to write, local or s3://: .txt for a split file, .csv or .parquet for a table.",
)
def labels_sample(place: str, *, per_class: int, seed: int, out: str) -> None:
    """Draw a training list at random.

    LABELS is a split file of COVIDx-CT (.txt) or a table (.csv, .parquet) with label and one of
    uri, path, name; a column patient keeps patients apart. Every class gets N slices. Each patient
    of a class gives one slice before any gives a second, so that no few patients dominate. FILE
    holds the chosen lines or rows as they stand in LABELS.
    """
    from cctmn import store
    from cctmn.data import sample

    is_list = place.lower().endswith(sample.LIST_SUFFIX)
    suffixes = (sample.LIST_SUFFIX,) if is_list else (".csv", ".parquet")
    if not out.lower().endswith(suffixes):
        raise ConfigError(
            f"not of the kind of LABELS; give a {' or '.join(suffixes)} file", f"-o {out}"
        )
    if store.to_uri(out) == store.to_uri(place):
        raise ConfigError("is LABELS itself; give another file", f"-o {out}")
    drawn = sample.draw_list(place, per_class=per_class, seed=seed)
    store.put(store.to_uri(out), drawn.content(parquet=out.lower().endswith(".parquet")))
    by_class = ", ".join(
        f"{one.slices:,} {one.name} of {one.patients:,} patients" for one in drawn.classes
    )
    total = sum(one.slices for one in drawn.classes)
    click.echo(f"{total:,} slices, seed {seed}: {by_class}", err=True)
    if drawn.unknown:
        click.echo(
            f"The patient of {drawn.unknown:,} slices is unknown; each counts as a patient of its "
            "own, so a person may have more slices than others.",
            err=True,
        )
