"""Run `cctmn score` on the cluster that runs this job.

The options and the output are those of the command. `cctmn submit` runs the same without
a checkout, as the job `score`; from a checkout, submit this file with
    cctmn submit --address http://HEAD:8265 jobs/score.py -- s3://in -o s3://out -m s3://model
INPUT, OUT and MODEL must be where every node can read them.
"""

from __future__ import annotations

import sys

from cctmn.cli import cli, main

if __name__ == "__main__":
    # an address given by the caller comes later and wins
    main(lambda: cli(["score", "--address", "auto", *sys.argv[1:]], prog_name="jobs/score.py"))
