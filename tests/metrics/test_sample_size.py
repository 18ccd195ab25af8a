"""Numbers of patients, compared with simulated tests."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from cctmn.errors import ConfigError
from cctmn.metrics import sample_size
from cctmn.metrics.proportions import clopper_pearson, cluster_interval
from cctmn.metrics.sample_size import Clusters


def exact(hits: np.ndarray, n: int, level: float) -> tuple[np.ndarray, np.ndarray]:
    tail = (1 - level) / 2
    low = np.where(hits == 0, 0, stats.beta.ppf(tail, hits, n - hits + 1))
    high = np.where(hits == n, 1, stats.beta.ppf(1 - tail, hits + 1, n - hits))
    return low, high


def simulated_width(n: int, proportion: float, level: float) -> float:
    hits = np.random.default_rng(n).binomial(n, proportion, 2000)
    low, high = exact(hits, n, level)
    return float((high - low).mean())


@pytest.mark.parametrize(("proportion", "width", "level"), [(0.9, 0.1, 0.95), (0.7, 0.2, 0.9)])
def test_the_number_for_a_width_agrees_with_simulated_tests(
    proportion: float, width: float, level: float
) -> None:
    n = sample_size.for_width(proportion, width=width, level=level)
    by_simulation = next(
        k for k in range(int(0.7 * n), 2 * n) if simulated_width(k, proportion, level) <= width
    )
    assert n == pytest.approx(by_simulation, rel=0.1)


def test_the_expected_width_is_that_of_the_interval_of_evaluate() -> None:
    chances = stats.binom.pmf(np.arange(8), 7, 0.8)
    ends = [clopper_pearson(right, 7, level=0.9) for right in range(8)]
    by_hand = sum(chance * (high - low) for chance, (low, high) in zip(chances, ends, strict=True))
    width = sample_size.expected_width(7, proportion=0.8, level=0.9)
    assert width == pytest.approx(by_hand)


def test_the_number_for_a_width_is_the_smallest() -> None:
    n = sample_size.for_width(0.9, width=0.1, level=0.95)
    for k, enough in ((n, True), (n - 1, False)):
        width = sample_size.expected_width(k, proportion=0.9, level=0.95)
        assert (width <= 0.1) is enough


def test_the_number_for_a_bound_agrees_with_simulated_tests() -> None:
    def power(n: int) -> float:
        hits = np.random.default_rng(n).binomial(n, 0.95, 20_000)
        count, times = np.unique(hits, return_counts=True)
        return float(times[exact(count, n, 0.95)[0] >= 0.9].sum() / times.sum())

    n = sample_size.for_bound(0.95, bound=0.9, level=0.95, power=0.8)
    last = max(k for k in range(n // 2, 2 * n) if power(k) < 0.8)
    assert n == pytest.approx(last + 1, rel=0.1)


def test_the_power_stays_for_every_larger_number() -> None:
    n = sample_size.for_bound(0.95, bound=0.9, level=0.95, power=0.8)

    def power(k: int) -> float:
        return float(stats.binom.sf(stats.binom.isf(0.025, k, 0.9), k, 0.95))

    assert min(power(k) for k in range(n, n + 300)) >= 0.8
    assert power(n - 1) < 0.8


def test_the_number_of_patients_with_several_slices_agrees_with_simulated_tests() -> None:
    """Beta-binomial hits with this intraclass correlation have the wanted width on average."""
    proportion, icc, slices, wanted = 0.85, 0.2, 15, 0.12
    observations = sample_size.for_width(proportion, width=wanted, level=0.95)
    clusters = Clusters(slices, icc)
    patients = sample_size.patients_with(observations, clusters=clusters, level=0.95)
    rng = np.random.default_rng(1)
    scale = (1 - icc) / icc
    widths = []
    for _ in range(400):
        of_patient_G = rng.beta(proportion * scale, (1 - proportion) * scale, patients)
        ends = cluster_interval(
            rng.binomial(slices, of_patient_G).astype(float), np.full(patients, float(slices))
        )
        assert ends is not None
        widths.append(ends[1] - ends[0])
    # The width falls with the root of the number, so 5 % of it are 10 % of the patients.
    assert np.mean(widths) == pytest.approx(wanted, rel=0.05)


def test_a_set_holds_enough_of_the_class_by_its_prevalence() -> None:
    assert sample_size.in_all(20, prevalence=0.1) == 200
    assert sample_size.in_all(21, prevalence=0.2) == 105
    assert sample_size.in_all(5, prevalence=0.3) == 17


def test_slices_that_are_all_alike_are_worth_one() -> None:
    needed = sample_size.patients_with(200, clusters=Clusters(30, 1.0), level=0.95)
    assert 200 <= needed <= 210


def test_a_number_beyond_reason_is_refused() -> None:
    with pytest.raises(ConfigError, match="more than 1,000,000 patients would be needed; give a"):
        sample_size.for_width(0.5, width=0.0001, level=0.95)
    with pytest.raises(ConfigError, match="more than 1,000,000 patients"):
        sample_size.for_bound(0.9, bound=0.8999, level=0.95, power=0.8)
