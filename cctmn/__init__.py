"""Two-stage scoring of chest-CT slices: lesion detector, then a classifier on its ranked boxes."""

__version__ = "0.1.0"
