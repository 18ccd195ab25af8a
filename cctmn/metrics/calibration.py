"""Calibration: whether predictions with a probability of 0.8 are right four times in five.

The metrics take weights, so that the bootstrap calls the same code.

Reads: logits and true classes.
Writes: ECE and what chance gives of it, Brier score, loss, intercept and slope of each class,
reliability by bin, and the temperature that fits validation logits.

Shape suffixes: N slices, C classes, K bins, B resamples, G patients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from cctmn.errors import DataError
from cctmn.metrics.proportions import FEWEST_PATIENTS, LEVEL
from cctmn.model.probabilities import probabilities

Floats = NDArray[np.float64]

# The usual number for ECE. The bins have equal mass, so that none holds only a few slices.
BINS: Final = 15
# Outside these bounds the logits carry no information, or no error to learn from.
TEMPERATURES: Final = (0.05, 20.0)
# Probabilities are kept this far from 0 and 1, whose logits have no end.
_LEAST: Final = 1e-9


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
        # Equal confidences share their mean rank, and so their bin.
        rank_N = stats.rankdata(confidence_N, method="average") - 0.5
        return cls(
            bin_N=np.floor(rank_N * bins / max(1, len(p_NC))).astype(np.int64),
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
        gap_GK = self._gaps(group_N, groups)
        # A resample of patients without scores has no slice to measure, and is nan.
        with np.errstate(invalid="ignore"):
            return {
                "ece": np.abs(weights_BG @ gap_GK).sum(axis=1) / slices_B,
                "brier": weights_BG @ per_group(self.brier_N) / slices_B,
                "nll": weights_BG @ per_group(self.loss_N) / slices_B,
            }

    def ece_by_chance(
        self, group_N: NDArray[np.int64], *, groups: int, resamples: int, seed: int
    ) -> Floats:
        """Return the ECE of B samples in which the errors of each patient have a random sign.

        It is what a model that is well calibrated would have: 0 is out of its reach, because chance
        alone moves the accuracy of a bin. The errors of a patient keep their sign together, as they
        are alike (a wild bootstrap of clusters).
        """
        signs_BG = np.random.default_rng(seed).choice([-1.0, 1.0], (resamples, groups))
        gap_GK = self._gaps(group_N, groups)
        return np.asarray(np.abs(signs_BG @ gap_GK).sum(axis=1) / len(group_N))

    def _gaps(self, group_N: NDArray[np.int64], groups: int) -> Floats:
        """Return the sum of accuracy less confidence of each patient in each bin."""
        gap_GK = np.zeros((groups, self.bins))
        np.add.at(gap_GK, (group_N, self.bin_N), self.right_N - self.confidence_N)
        return gap_GK

    def reliability(self) -> dict[str, list[float]]:
        """Return mean confidence, accuracy and number of slices of each bin."""
        n_K = np.bincount(self.bin_N, minlength=self.bins)
        filled_K = n_K > 0  # ties can leave a bin empty
        n_K = n_K[filled_K]
        means = {
            name: np.bincount(self.bin_N, value_N, minlength=self.bins)[filled_K] / n_K
            for name, value_N in (("confidence", self.confidence_N), ("accuracy", self.right_N))
        }
        rounded = {k: [round(float(v), 5) for v in values] for k, values in means.items()}
        return {**rounded, "n": n_K.tolist()}


@dataclass(frozen=True)
class Recalibration:
    """A coefficient of the logistic regression of the truth on a predicted logit."""

    value: float  # NaN where the classes can be told apart, so that no finite slope is best
    low: float | None = None
    high: float | None = None


def recalibration(
    p_N: Floats, is_class_N: NDArray[np.bool_], *, group_N: NDArray[np.int64], fewest: int
) -> dict[str, Recalibration]:
    """Return the calibration `intercept` and `slope` of one class (Van Calster et al. 2016).

    The slope is 1 for a calibrated model and less for one that is too sure; the intercept, at a
    slope of 1, is 0 and above it where the class is commoner than predicted. Both have 95 %
    intervals by variances over patients, with Student's t for the `fewest` patients with or without
    the class, and none below FEWEST_PATIENTS of them.
    """
    logit_N = special.logit(np.clip(p_N, _LEAST, 1 - _LEAST))
    ones_N1, both_N2 = np.ones((len(p_N), 1)), np.stack([np.ones(len(p_N)), logit_N], axis=1)
    none_N = np.zeros(len(p_N))
    fits = {"intercept": _logistic(ones_N1, is_class_N, offset_N=logit_N, group_N=group_N)}
    if _overlap(logit_N, is_class_N):
        fits["slope"] = _logistic(both_N2, is_class_N, offset_N=none_N, group_N=group_N)
    else:
        fits["slope"] = float("nan"), float("nan")
    coefficients = {}
    for name, (value, deviation) in fits.items():
        ends: tuple[float | None, float | None] = (None, None)
        if fewest >= FEWEST_PATIENTS and np.isfinite(value):
            half = float(stats.t.ppf((1 + LEVEL) / 2, fewest - 1)) * deviation
            ends = (value - half, value + half)
        coefficients[name] = Recalibration(value, *ends)
    return coefficients


def _overlap(logit_N: Floats, is_class_N: NDArray[np.bool_]) -> bool:
    """Return whether no threshold tells the class from the rest, so that a finite slope is best."""
    inside, outside = logit_N[is_class_N], logit_N[~is_class_N]
    if not len(inside) or not len(outside):
        return False
    return bool(inside.min() < outside.max() and outside.min() < inside.max())


def _logistic(
    x_NK: Floats, is_class_N: NDArray[np.bool_], *, offset_N: Floats, group_N: NDArray[np.int64]
) -> tuple[float, float]:
    """Return the last coefficient of a logistic regression, and its deviation over patients."""
    if is_class_N.all() or not is_class_N.any():
        return float("nan"), float("nan")

    def loss(beta_K: Floats) -> float:
        z_N = np.where(is_class_N, 1, -1) * (x_NK @ beta_K + offset_N)
        return float(np.logaddexp(0, -z_N).mean())

    def residuals(beta_K: Floats) -> Floats:
        return np.asarray(special.expit(x_NK @ beta_K + offset_N) - is_class_N)

    def gradient(beta_K: Floats) -> Floats:
        return np.asarray(residuals(beta_K) @ x_NK / len(x_NK))

    def hessian(beta_K: Floats) -> Floats:
        p_N = special.expit(x_NK @ beta_K + offset_N)
        return np.asarray((x_NK * (p_N * (1 - p_N))[:, None]).T @ x_NK / len(x_NK))

    start_K = np.eye(2)[1] if x_NK.shape[1] == 2 else np.zeros(1)
    fit = optimize.minimize(
        loss, start_K, jac=gradient, hess=hessian, method="trust-exact", options={"gtol": 1e-7}
    )
    if np.abs(gradient(fit.x)).max() > 1e-5:
        return float("nan"), float("nan")
    groups = int(group_N.max()) + 1
    score_GK = np.zeros((groups, x_NK.shape[1]))
    np.add.at(score_GK, group_N, residuals(fit.x)[:, None] * x_NK / len(x_NK))
    patients = len(np.unique(group_N))
    inverse_KK = np.linalg.inv(hessian(fit.x))
    variance_KK = inverse_KK @ score_GK.T @ score_GK @ inverse_KK * patients / max(patients - 1, 1)
    return float(fit.x[-1]), float(np.sqrt(variance_KK[-1, -1]))
