"""Which sums over a few patients could be computed from published ones, and what to hide for it.

A metric of a small cohort is hidden. That alone does not protect it: the metric of all, less those
of the other cohorts, is the one that was hidden. So further cohorts are hidden until no sum over
fewer than ten patients follows from the published ones by adding and subtracting. (Statistical
agencies call this secondary suppression.)

Limits: an attacker who knows single patients of a cohort, or who reasons with bounds or with the
difference of two groups instead of sums, is not considered. Tables of different reports on the same
slices are not considered together. Of tables with very many cells, differences of two sums and the
rests of a table are hidden, and no others (MOST_ATOMS).

Reads: for each sum, the slices that it is over; the patient of each slice.
Writes: which sums to publish.

Shape suffixes: N slices, S sums, T sums that are published in any case, P published sums, A atoms
(slices that no sum tells apart), G patients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

FEWEST_PATIENTS: Final = 10
# Vectors of 0 and 1 that are this close to a combination of others are one.
_CLOSE: Final = 1e-7
# A linear programme of so many atoms takes about 10 ms, and each atom needs one.
MOST_ATOMS: Final = 250


def publishable(
    sums_SN: Bools,
    *,
    always_TN: Bools,
    parts: Sequence[tuple[int, int]] = (),
    partitions: Sequence[Sequence[int]] = (),
    group_N: NDArray[np.int64],
    known_N: Bools,
) -> Bools:
    """Return which of S sums may be published beside T that are published in any case.

    `parts` holds pairs of sums (whole, part): without the whole, its part is not published either.
    The sums of one of the `partitions` have no slice in common, such as the cohorts of a table.
    A slice whose patient is not known (`known_N` is False) counts as no patient at all, because all
    such slices may be of one.
    """
    atoms = _Atoms(np.vstack([always_TN, sums_SN]), group_N=group_N, known_N=known_N)
    always_TA, sums_SA = np.split(atoms.members_SA, [len(always_TN)])
    patients_S = atoms.patients(sums_SA)
    shown_S = patients_S >= FEWEST_PATIENTS
    small = np.zeros((0, atoms.members_SA.shape[1]), np.bool_)
    while True:
        for whole, part in parts:
            shown_S[part] &= shown_S[whole]
        published = np.vstack([always_TA, sums_SA[shown_S]])
        rests = [_rests(published, sums_SA[[s for s in one if shown_S[s]]]) for one in partitions]
        # What follows now may follow from other sums too, so it is watched from here on.
        small = atoms.small(np.vstack([small, sums_SA, _differences(published), *rests]))
        follows, weights = _revealed(small, published=published, always_TA=always_TA)
        if not follows.any():
            # The search for any other sum is slow, so it comes last.
            others = atoms.small_sums(published)
            follows, weights = _revealed(others, published=published, always_TA=always_TA)
        if not follows.any():
            return shown_S
        places = np.flatnonzero(shown_S)
        for weights_S in weights[follows][:, len(always_TA) :]:
            used = places[np.abs(weights_S) > _CLOSE]
            if shown_S[used].all():  # else it is hidden already, for another sum
                shown_S[used[patients_S[used].argmin()]] = False


class _Atoms:
    """The slices, grouped by the sums that they are in."""

    def __init__(self, members_SN: Bools, *, group_N: NDArray[np.int64], known_N: Bools) -> None:
        packed = np.ascontiguousarray(np.packbits(members_SN, axis=0).T)
        rows_N = packed.view(f"V{packed.shape[1]}").ravel()
        _, first_A, atom_N = np.unique(rows_N, return_index=True, return_inverse=True)
        self.members_SA = members_SN[:, first_A]
        _, patient = np.unique(group_N[known_N], return_inverse=True)
        self._in_GA = np.zeros((patient.max(initial=-1) + 1, len(first_A)), np.float32)
        self._in_GA[patient, atom_N[known_N]] = 1

    def patients(self, sets_SA: Bools) -> NDArray[np.int64]:
        """Return the number of known patients of each set."""
        return (self._in_GA @ sets_SA.T.astype(np.float32) > 0).sum(axis=0)

    def small(self, sets_SA: Bools) -> Bools:
        """Return the sets that have slices, but of too few patients, each once."""
        sets_SA = np.unique(sets_SA[sets_SA.any(axis=1)], axis=0)
        return sets_SA[self.patients(sets_SA) < FEWEST_PATIENTS]

    def small_sums(self, published_PA: Bools) -> Floats:
        """Return sums of published ones, with weights, that are over too few patients.

        For each atom a linear programme finds the sum that holds it and the fewest patients, where
        a patient of k atoms counts as 1 / k in each. So every sum over few patients is found if no
        patient is in two atoms, and most of them otherwise.
        """
        # Atoms that are in the same published sums are one.
        columns, merged_A = np.unique(published_PA, axis=1, return_inverse=True)
        num_merged = columns.shape[1]
        if num_merged > MOST_ATOMS:
            return np.zeros((0, published_PA.shape[1]))
        in_GA = np.zeros((len(self._in_GA), num_merged))
        np.maximum.at(in_GA.T, merged_A, self._in_GA.T)
        cost_A = (in_GA / np.maximum(in_GA.sum(axis=1, keepdims=True), 1)).sum(axis=0)
        parts_AP = columns.T.astype(np.float64)
        found = []
        for atom in np.flatnonzero(in_GA.sum(axis=0) < FEWEST_PATIENTS):
            best = optimize.linprog(
                cost_A @ parts_AP,
                A_ub=-parts_AP,
                b_ub=np.zeros(num_merged),
                A_eq=parts_AP[[atom]],
                b_eq=[1.0],
                bounds=(None, None),
            )
            sum_A = np.zeros(num_merged) if best.x is None else parts_AP @ best.x
            sum_A[np.abs(sum_A) < _CLOSE] = 0
            if 0 < (in_GA @ (sum_A > 0) > 0).sum() < FEWEST_PATIENTS:
                found.append(sum_A[merged_A])
        return np.array(found).reshape(len(found), published_PA.shape[1])


def _revealed(
    small: Bools | Floats, *, published: Bools, always_TA: Bools
) -> tuple[Bools, NDArray[np.float64]]:
    """Return which small sums follow from the published ones, and their weights.

    What follows from the sums that are published in any case, such as a small class of the whole
    set, is not among them.
    """
    follows, weights = _weights(small, of=published)
    return follows & ~_weights(small, of=always_TA)[0], weights


def _differences(sets_SA: Bools) -> Bools:
    """Return each set less another that is a part of it."""
    left = []
    for whole_A in sets_SA:
        inside = sets_SA[~(sets_SA & ~whole_A).any(axis=1)]
        left.append(whole_A & ~inside[inside.sum(axis=1) < whole_A.sum()])
    empty = np.zeros((0, sets_SA.shape[1]), np.bool_)
    return np.unique(np.vstack([empty, *left]), axis=0)


def _rests(wholes_SA: Bools, members_MA: Bools) -> Bools:
    """Return what is left of each set without all the members that are parts of it."""
    rests = [
        whole_A & ~members_MA[~(members_MA & ~whole_A).any(axis=1)].any(axis=0)
        for whole_A in wholes_SA
    ]
    return np.array(rests, np.bool_).reshape(len(rests), wholes_SA.shape[1])


def _weights(sets_SA: Bools | Floats, *, of: Bools) -> tuple[Bools, NDArray[np.float64]]:
    """Return which sets are a weighted sum of others (`of`, T x A), and their weights, S x T."""
    others, sets = of.astype(np.float64), sets_SA.astype(np.float64)
    weights = sets @ np.linalg.pinv(others)
    return np.abs(weights @ others - sets).max(axis=1, initial=0.0) < _CLOSE, weights
