"""Calibration: whether predictions with a probability of 0.8 are right four times in five.

The metrics take weights, so that the bootstrap calls the same code.

Reads: logits and true classes.
Writes: ECE, Brier score, loss, reliability by bin, and the temperature that fits validation logits.

Shape suffixes: N slices, C classes, K bins, B resamples, G patients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from cctmn.errors import DataError
from cctmn.model.probabilities import probabilities

Floats = NDArray[np.float64]

# The usual number for ECE. The bins have equal mass, so that none holds only a few slices.
BINS: Final = 15
# Outside these bounds the logits carry no information, or no error to learn from.
TEMPERATURES: Final = (0.05, 20.0)


def losses(logits_NC: Floats, truth_N: NDArray[np.int64], *, activation: str) -> Floats:
    """Return each slice's loss, as in training: cross-entropy over the softmax, or the mean of the
    binary cross-entropies of the classes for a sigmoid.
    """
    hot_NC = np.eye(logits_NC.shape[1])[truth_N]
    if activation == "softmax":
        return -(special.log_softmax(logits_NC, axis=1) * hot_NC).sum(axis=1)
    signed_NC = np.where(hot_NC > 0, logits_NC, -logits_NC)
    return -special.log_expit(signed_NC).mean(axis=1)


def fit_temperature(logits_NC: Floats, truth_N: NDArray[np.int64], *, activation: str) -> float:
    """Return the temperature of the lowest loss. Raises DataError if it lies at a bound."""

    def loss(log_temperature: float) -> float:
        scaled_NC = logits_NC / np.exp(log_temperature)
        return float(losses(scaled_NC, truth_N, activation=activation).mean())

    low, high = np.log(TEMPERATURES)
    minimum = optimize.minimize_scalar(loss, bounds=(low, high), method="bounded")
    # The loss is lowest at a bound, so there is no minimum between the two.
    if min(loss(low), loss(high)) <= loss(minimum.x) + 1e-9:
        raise DataError(
            f"no temperature between {TEMPERATURES[0]:g} and {TEMPERATURES[1]:g} fits these "
            "labels; calibrate on more slices, some of them predicted wrongly"
        )
    return float(np.exp(minimum.x))


@dataclass(frozen=True, eq=False)
class Binned:
    """Slices in bins of equal mass, by the probability of their predicted class."""

    bin_N: NDArray[np.int64]  # from 0, by rising confidence
    confidence_N: Floats  # probability of the predicted class
    right_N: Floats  # 0 or 1
    brier_N: Floats  # sum over the classes of (p - y)^2
    loss_N: Floats
    bins: int

    @classmethod
    def from_logits(
        cls, logits_NC: Floats, truth_N: NDArray[np.int64], *, activation: str, temperature: float
    ) -> Binned:
        """Bin the whole sample; resamples keep these bins."""
        p_NC = probabilities(logits_NC, activation=activation, temperature=temperature)
        predicted_N = logits_NC.argmax(axis=1)
        confidence_N = p_NC[np.arange(len(p_NC)), predicted_N]
        bins = max(1, min(BINS, len(p_NC)))
        rank_N = np.empty(len(p_NC), np.int64)
        rank_N[np.argsort(confidence_N, kind="stable")] = np.arange(len(p_NC))
        return cls(
            bin_N=rank_N * bins // max(1, len(p_NC)),
            confidence_N=confidence_N,
            right_N=(predicted_N == truth_N).astype(np.float64),
            brier_N=((p_NC - np.eye(p_NC.shape[1])[truth_N]) ** 2).sum(axis=1),
            loss_N=losses(logits_NC / temperature, truth_N, activation=activation),
            bins=bins,
        )

    def metrics(self, weights_BG: Floats, *, group_N: NDArray[np.int64]) -> dict[str, Floats]:
        """Return `ece` (0..1), `brier` and `nll` of B resamples of G patients."""
        groups = weights_BG.shape[1]

        def per_group(value_N: Floats) -> Floats:
            return np.asarray(np.bincount(group_N, value_N, minlength=groups), np.float64)

        slices_B = weights_BG @ per_group(np.ones(len(group_N)))
        gap_GK = np.zeros((groups, self.bins))
        np.add.at(gap_GK, (group_N, self.bin_N), self.right_N - self.confidence_N)
        # A resample of patients without scores has no slice to measure, and is nan.
        with np.errstate(invalid="ignore"):
            return {
                "ece": np.abs(weights_BG @ gap_GK).sum(axis=1) / slices_B,
                "brier": weights_BG @ per_group(self.brier_N) / slices_B,
                "nll": weights_BG @ per_group(self.loss_N) / slices_B,
            }

    def reliability(self) -> dict[str, list[float]]:
        """Return mean confidence, accuracy and number of slices of each bin."""
        n_K = np.bincount(self.bin_N, minlength=self.bins)
        means = {
            name: np.bincount(self.bin_N, value_N, minlength=self.bins) / n_K
            for name, value_N in (("confidence", self.confidence_N), ("accuracy", self.right_N))
        }
        rounded = {k: [round(float(v), 5) for v in values] for k, values in means.items()}
        return {**rounded, "n": n_K.tolist()}
