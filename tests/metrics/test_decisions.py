"""From probabilities to decisions."""

import numpy as np

from spectacles.metrics.decisions import Scored, decide, is_correct


def test_the_decision_rule():
    probabilities = np.array([[0.5, 0.5], [0.6, 0.4], [0.1, 0.9]])
    assert decide(probabilities, None).tolist() == [0, 0, 1]  # a tie goes to the lowest index
    assert decide(probabilities, 0.4).tolist() == [1, 1, 1]  # at the threshold is class 1
    assert decide(probabilities, 0.95).tolist() == [0, 0, 0]
    assert decide(np.array([[0.2, 0.3, 0.5]]), 0.4).tolist() == [2]  # a threshold is for two classes


def test_a_decision_does_not_depend_on_the_dtype():
    probabilities = np.array([[0.3, 0.7]], dtype=np.float32)  # 0.7 is 0.69999999 in float32
    assert decide(probabilities, 0.7) == decide(probabilities.astype(np.float64), 0.7)


def test_all_labels_of_an_image_must_be_correct():
    labels = np.array([[1, 0], [1, 1], [0, 0]])
    assert is_correct(np.array([[1, 0], [1, 0], [0, 0]]), labels).tolist() == [True, False, True]
    assert is_correct(np.array([0, 2]), np.array([0, 1])).tolist() == [True, False]


def test_a_subset_keeps_what_belongs_together():
    labels, probabilities = np.array([0, 1, 1]), np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
    part = Scored(labels, probabilities, decide(probabilities, None), np.array([4, 5, 6])).subset(labels == 1)
    assert part.correct.tolist() == [False, True] and part.clusters.tolist() == [5, 6]
    assert part.probabilities.tolist() == [[0.8, 0.2], [0.3, 0.7]]
