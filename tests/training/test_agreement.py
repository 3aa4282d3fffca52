"""How far a model says what people say, against counts made by hand."""

from itertools import permutations

import numpy as np
import pytest

from batchfer.schema import EMOTIONS
from batchfer.training.agreement import (
    Agreements,
    measure_agreement,
    measure_agreements,
    measure_raters,
)

NEUTRAL = EMOTIONS.index("neutral")


def draw_votes(n_faces: int, n_raters: int = 10, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(7, 0.3), n_faces)
    return np.array([rng.multinomial(n_raters, row) for row in shares]).astype(np.float64)


def test_raters_agree_as_counted_pair_by_pair() -> None:
    votes = draw_votes(40, n_raters=5)
    same = total = followed = voices = 0.0
    for row in votes.astype(int):
        choices = np.repeat(np.arange(7), row)
        pairs = list(permutations(range(len(choices)), 2))
        same += sum(choices[one] == choices[two] for one, two in pairs) / len(pairs)
        total += 1
        for one, choice in enumerate(choices):
            others = np.bincount(np.delete(choices, one), minlength=7)
            most = np.flatnonzero(others == others.max())
            followed += (choice in most) / len(most)
            voices += 1
    raters = measure_raters(votes)
    assert raters is not None
    assert raters.two_raters.value == pytest.approx(same / total)
    assert raters.one_against_majority.value == pytest.approx(followed / voices)
    assert raters.two_raters.low < same / total < raters.two_raters.high
    assert measure_raters(np.eye(7)) is None, "one vote a face"


def test_whoever_says_the_shares_of_votes_is_at_no_distance() -> None:
    votes = draw_votes(300)
    shares = votes / votes.sum(axis=1, keepdims=True)
    own = measure_agreement(shares.astype(np.float32), votes)
    assert own.majority.value == 1 and own.random_rater.value == pytest.approx(
        shares.max(axis=1).mean()
    )
    assert own.brier.value < 1e-9 and own.jensen_shannon.value < 1e-6
    assert own.calibration_error.value < 1e-6
    for row, emotion in enumerate(EMOTIONS):
        told = own.per_class[emotion]
        assert (
            told.raters == pytest.approx(told.probability) == pytest.approx(shares[:, row].mean())
        )


def test_figures_of_one_who_always_says_neutral() -> None:
    votes = draw_votes(500)
    said = np.zeros((500, 7), np.float32)
    said[:, NEUTRAL] = 1
    shares = votes / votes.sum(axis=1, keepdims=True)
    own = measure_agreement(said, votes)
    unique = np.sort(votes, axis=1)[:, -1] > np.sort(votes, axis=1)[:, -2]
    assert own.n_unique == unique.sum() < own.n == 500
    right = (votes[unique].argmax(axis=1) == NEUTRAL).mean()
    assert own.majority.value == pytest.approx(right)
    # The interval of a share, as the normal approximation has it.
    half = 1.96 * np.sqrt(right * (1 - right) / unique.sum())
    assert own.majority.high - own.majority.low == pytest.approx(2 * half, rel=0.1)
    assert own.random_rater.value == pytest.approx(shares[:, NEUTRAL].mean())
    assert own.brier.value == pytest.approx(((said - shares) ** 2).sum(axis=1).mean())
    assert own.calibration_error.value == pytest.approx(1 - shares[:, NEUTRAL].mean())
    told = own.per_class["neutral"]
    assert told.named == 500 and told.clear == (shares[:, NEUTRAL] >= 0.7).sum()
    assert told.clear_named == told.majority_named == 1
    assert own.per_class["happy"].named == 0 == own.per_class["happy"].majority_named


def test_jensen_shannon_is_one_bit_at_most() -> None:
    votes = np.zeros((3, 7))
    votes[:, 0] = 10
    said = np.zeros((3, 7), np.float32)
    said[:, 1] = 1
    assert measure_agreement(said, votes).jensen_shannon.value == pytest.approx(1)


def test_a_missed_face_agrees_with_nobody_and_is_at_no_distance() -> None:
    votes = draw_votes(100)
    said = (votes / votes.sum(axis=1, keepdims=True)).astype(np.float32)
    whole = measure_agreement(said, votes)
    said[:50] = np.nan
    own = measure_agreement(said, votes)
    assert own.missed_faces == 50 and own.brier.value < 1e-9
    n_hit = np.sort(votes[50:], axis=1)
    assert own.majority.value * whole.n_unique == pytest.approx((n_hit[:, -1] > n_hit[:, -2]).sum())


def test_faces_without_votes_are_left_out() -> None:
    votes = draw_votes(60)
    votes[::2] = 0
    said = np.full((60, 7), 1 / 7, np.float32)
    told = measure_agreements({"people": said, "labels": said}, votes.astype(np.float32))
    assert isinstance(told, Agreements) and told.raters is not None
    assert told.agreement["people"].n == told.raters.n == 30
    assert told.tell().count("\n") == 1 and "people: " in told.tell()
