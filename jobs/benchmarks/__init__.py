"""The lines of jobs/bench.py: each module times two things in turn in one run."""
