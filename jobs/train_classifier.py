r"""Run `cctmn train classifier` on the cluster that runs this job.

The options and the output are those of the command. `cctmn submit` runs the same without
a checkout, as the job `train-classifier`; from a checkout, submit this file with
    cctmn submit --address http://HEAD:8265 jobs/train_classifier.py -- \
        --data s3://covidx --split s3://covidx/train.txt -m s3://detector -o s3://out
DATA, OUT and MODEL must be where every node can read them.
"""

from __future__ import annotations

import sys

from cctmn.cli import cli, main

if __name__ == "__main__":
    # an address given by the caller comes later and wins
    command = ["train", "classifier", "--address", "auto", *sys.argv[1:]]
    main(lambda: cli(command, prog_name="jobs/train_classifier.py"))
