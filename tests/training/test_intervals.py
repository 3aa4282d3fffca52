import numpy as np
import pytest
from scipy.stats import binomtest

from batchfer.training.figures import count_confusion, measure
from batchfer.training.intervals import bound_difference, bound_macro_f1, bound_share


@pytest.mark.parametrize(
    ("n_hits", "n"), [(0, 1), (1, 1), (0, 10), (7, 10), (10, 10), (2400, 3589)]
)
def test_a_share_has_the_interval_of_wilson(n_hits: int, n: int) -> None:
    expected = binomtest(n_hits, n).proportion_ci(method="wilson")
    assert bound_share(n_hits, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_a_difference_of_independent_shares_is_newcombes() -> None:
    # Where neither model tells anything of the other, the square-and-add interval of two shares.
    one, other = np.repeat([True, False], 50), np.tile([True, False], 50)
    difference, (least, most) = bound_difference(one, other)
    own = bound_share(50, 100)
    assert difference == 0
    assert most == pytest.approx(np.sqrt(2) * (own.most - 0.5))
    assert least == pytest.approx(-most)


def test_a_difference_that_few_faces_tell_is_uncertain() -> None:
    right = np.ones(20, bool)
    wrong = right.copy()
    wrong[:3] = False
    difference, (least, most) = bound_difference(right, wrong)
    assert difference == pytest.approx(0.15) and least < 0 < most
    same, (least, most) = bound_difference(right, right)
    assert same == 0 and least < 0 < most, "20 faces do not show that two models are the same"
    turned, interval = bound_difference(wrong, right)
    assert turned == pytest.approx(-0.15) and interval[1] > 0 > interval[0]
    # Models that are right of the same faces are told apart by fewer of them.
    rng = np.random.default_rng(0)
    one = rng.random(1000) < 0.7
    near = one & (rng.random(1000) < 0.95)
    far = rng.permutation(near)
    (_, close), (_, wide) = bound_difference(one, near), bound_difference(one, far)
    assert close.most - close.least < 0.6 * (wide.most - wide.least)


def test_intervals_hold_the_truth_in_95_of_100_cases() -> None:
    rng = np.random.default_rng(1)
    shared, hits, held = rng.random((2000, 150)) < 0.5, [], 0
    for both in shared:
        one = both | (rng.random(150) < 0.3)
        other = both & (rng.random(150) < 0.9)
        hits.append(one.mean() - other.mean())
        _, (least, most) = bound_difference(one, other)
        held += least <= 0.65 - 0.45 <= most
    assert np.mean(hits) == pytest.approx(0.2, abs=0.005)
    assert 0.93 < held / 2000 < 0.985


def test_macro_f1_lies_within_its_interval_which_narrows_with_more_faces() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for n in (70, 7000):
        labels = rng.integers(0, 7, n)
        predictions = np.where(rng.random(n) < 0.7, labels, rng.integers(0, 7, n))
        confusion = count_confusion(predictions, labels)
        figure = measure(np.eye(7, dtype=np.float32)[predictions], labels).macro_f1
        least, most = bound_macro_f1(confusion)
        assert 0 <= least < figure < most <= 1
        assert bound_macro_f1(confusion) == (least, most), "the same whenever it is asked"
        widths.append(most - least)
    assert widths[1] < widths[0] / 7
    perfect = bound_macro_f1(np.eye(7, 8, dtype=np.int64) * 5)
    assert perfect == (1, 1)
