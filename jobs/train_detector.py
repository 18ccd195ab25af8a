"""Run `cctmn train detector` on the cluster that runs this job.

The options and the output are those of the command. `cctmn submit` runs the same without
a checkout, as the job `train-detector`; from a checkout, submit this file with
    cctmn submit --address http://HEAD:8265 jobs/train_detector.py -- --data s3://cncb -o s3://out
DATA, OUT and MODEL must be where every node can read them.
"""

from __future__ import annotations

import sys

from cctmn.cli import cli, main

if __name__ == "__main__":
    # an address given by the caller comes later and wins
    command = ["train", "detector", "--address", "auto", *sys.argv[1:]]
    main(lambda: cli(command, prog_name="jobs/train_detector.py"))
