"""`cctmn evaluate` on the cluster that holds the predictions; the same function, the same options.

In: what `cctmn evaluate` takes. Out: what it writes. Submit it from a checkout with
    ray job submit --working-dir . -- python jobs/evaluate.py s3://out --labels s3://labels.parquet
OUT and LABELS must be where the job can read them; it needs one process and no GPU.
"""

from __future__ import annotations

import sys

from cctmn.cli import cli, main

if __name__ == "__main__":
    main(lambda: cli(["evaluate", *sys.argv[1:]], prog_name="jobs/evaluate.py"))
