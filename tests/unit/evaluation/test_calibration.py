"""Expected calibration error."""

import numpy as np
import pytest

from storyteller_ds.evaluation.calibration import BINS, expected_calibration_error
from storyteller_ds.evaluation.token_scores import TokenScores


def scores(confidence: list[float], right: list[bool]) -> TokenScores:
    return TokenScores(np.arange(len(right)), np.zeros(len(right)), np.array(confidence, np.float32), np.array(right))


def test_by_hand():
    # One bin with confidence 0.79 and accuracy 1/2, another with 0.5 and 1.
    found = expected_calibration_error(scores([0.79, 0.79, 0.5, 0.5], [True, False, True, True]))
    assert found.error == pytest.approx(0.5 * 0.29 + 0.5 * 0.5)
    assert found.accuracy == 0.75
    assert [each.tokens for each in found.bins] == [2, 2]
    assert [each.accuracy for each in found.bins] == [1.0, 0.5]


def test_equals_a_loop_over_bins():
    generator = np.random.default_rng(0)
    given = scores(generator.random(500).tolist(), (generator.random(500) < 0.5).tolist())
    expected = 0.0
    for i in range(BINS):
        inside = [
            (float(p), bool(hit))
            for p, hit in zip(given.confidence_T, given.right_T, strict=True)
            if i / BINS < p <= (i + 1) / BINS
        ]
        if inside:
            sure = sum(p for p, _ in inside) / len(inside)
            right = sum(hit for _, hit in inside) / len(inside)
            expected += len(inside) / 500 * abs(sure - right)
    assert expected_calibration_error(given).error == pytest.approx(expected)


def test_a_calibrated_model_has_none_and_a_boaster_has():
    generator = np.random.default_rng(1)
    confidence = generator.random(20_000)
    right = generator.random(20_000) < confidence
    assert expected_calibration_error(scores(confidence.tolist(), right.tolist())).error < 0.02
    boasts = np.sqrt(confidence)
    assert expected_calibration_error(scores(boasts.tolist(), right.tolist())).error > 0.15


@pytest.mark.parametrize("confidence", [0.0, 1.0])
def test_the_ends_of_the_scale_are_in_a_bin(confidence):
    assert expected_calibration_error(scores([confidence], [True])).error == 1 - confidence
