"""Run `cctmn evaluate` on the cluster that runs this job.

The options and the output are those of the command. `cctmn submit` runs the same without
a checkout, as the job `evaluate`; from a checkout, submit this file with
    cctmn submit --address http://HEAD:8265 jobs/evaluate.py -- s3://out --labels s3://labels.parquet
SCORED and LABELS must be where the job can read them; it needs one process and no GPU.
"""

from __future__ import annotations

import sys

from cctmn.cli import cli, main

if __name__ == "__main__":
    main(lambda: cli(["evaluate", *sys.argv[1:]], prog_name="jobs/evaluate.py"))
