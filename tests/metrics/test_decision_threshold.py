"""Every chosen threshold against trying all of them, one by one."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from spectacles.core.config import Goal, parse_goal
from spectacles.core.errors import UserError
from spectacles.metrics import decision_threshold
from spectacles.metrics.decision_threshold import Choice
from spectacles.metrics.decisions import decide

GOALS = ["f1", "hter", "balanced_accuracy", "precision:0.8", "precision:1", "recall:0.7", "recall:1", "cost:FP=1,FN=5",
         "cost:FP=3,FN=0.5"]  # fmt: skip


@st.composite
def scored(draw):
    """(labels of both classes, probabilities of class 1): coarse or fine, with and without ties, 0 and 1 too."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size, steps = draw(st.integers(2, 40)), draw(st.sampled_from([3, 10, 10**6]))
    labels = rng.integers(2, size=size)
    labels[:2] = 0, 1
    return labels, rng.integers(0, steps + 1, size=size) / steps


def rates(labels: np.ndarray, probabilities: np.ndarray, threshold: float) -> dict[str, float]:
    """By the project's decision rule, and counting."""
    predicted = decide(np.stack([1 - probabilities, probabilities], axis=1), threshold)
    pairs = list(zip(labels.tolist(), predicted.tolist(), strict=True))
    tp, fp, fn, tn = (pairs.count(pair) for pair in ((1, 1), (0, 1), (1, 0), (0, 0)))
    return {
        "precision": tp / (tp + fp) if tp + fp else 1.0,
        "recall": tp / (tp + fn),
        "f1": 2 * tp / (2 * tp + fp + fn),
        "balanced_accuracy": (tp / (tp + fn) + tn / (tn + fp)) / 2,
        "fp": fp,
        "fn": fn,
        "false_positive_rate": fp / (fp + tn),
        "claimed": tp + fp,
    }


def all_rates(labels: np.ndarray, probabilities: np.ndarray) -> list[dict[str, float]]:
    """Of every way to part the images by a threshold."""
    cuts = [*np.unique(probabilities), 2.0]
    return [rates(labels, probabilities, cut) for cut in cuts]


def worth(goal: Goal, found: dict[str, float]) -> tuple[float, ...]:
    """Higher is better."""
    if goal.name == "precision":
        reached = found["claimed"] > 0 and found["precision"] >= goal.least
        return (1, found["recall"], found["precision"]) if reached else (0, 0, 0)
    if goal.name == "recall":
        reached = found["claimed"] > 0 and found["recall"] >= goal.least
        return (1, found["precision"], found["recall"]) if reached else (0, 0, 0)
    if goal.name == "cost":
        return (-(goal.costs[0] * found["fp"] + goal.costs[1] * found["fn"]),)
    return (found["f1"] if goal.name == "f1" else found["balanced_accuracy"],)


@pytest.mark.parametrize("text", GOALS)
@settings(max_examples=40)
@given(scored())
def test_no_other_threshold_is_better(text, data):
    labels, probabilities = data
    goal = parse_goal(text)
    choice = decision_threshold.choose(goal, labels, probabilities)
    found = rates(labels, probabilities, choice.threshold)
    assert (choice.recall, choice.precision) == pytest.approx((found["recall"], found["precision"]))
    assert choice.false_positive_rate == pytest.approx(found["false_positive_rate"])
    best = max(worth(goal, each) for each in all_rates(labels, probabilities))
    if choice.reached:
        assert worth(goal, found) == pytest.approx(best)
    else:  # the nearest
        assert best == (0, 0, 0)
        hits = [each for each in all_rates(labels, probabilities) if each["claimed"] and each["recall"]]
        assert found["precision"] == pytest.approx(max(each["precision"] for each in hits))


@pytest.mark.parametrize("text", GOALS)
@settings(max_examples=40)
@given(scored())
def test_a_threshold_lies_on_no_image_and_in_the_middle(text, data):
    labels, probabilities = data
    assume(probabilities.min() > 0 and probabilities.max() < 1)
    threshold = decision_threshold.choose(parse_goal(text), labels, probabilities).threshold
    assert threshold not in probabilities
    below, above = probabilities[probabilities < threshold], probabilities[probabilities > threshold]
    low, high = max(below, default=0.0), min(above, default=1.0)
    assert threshold == pytest.approx((low + high) / 2)


def test_of_equal_thresholds_the_one_nearest_to_the_cost_ratio_is_chosen():
    labels, probabilities = np.array([0, 1, 0, 1]), np.array([0.1, 0.2, 0.6, 0.9])
    assert decision_threshold.choose(Goal("hter"), labels, probabilities).threshold == pytest.approx(0.75)
    costs = Goal("cost", costs=(1.0, 1.0)), Goal("cost", costs=(1.0, 1.000001)), Goal("cost", costs=(1.0, 9.0))
    assert [decision_threshold.choose(goal, labels, probabilities).threshold for goal in costs] == pytest.approx(
        [0.75, 0.15, 0.15]
    )


def test_separable_classes_are_separated_in_the_middle():
    labels, probabilities = np.array([0, 0, 1, 1]), np.array([0.1, 0.3, 0.7, 0.8])
    for text in GOALS:
        assert decision_threshold.choose(parse_goal(text), labels, probabilities) == Choice(0.5, 1.0, 1.0, 0.0, True)


def test_a_precision_that_cannot_be_reached_gives_the_nearest_and_is_marked():
    labels, probabilities = np.array([1, 0, 1, 0]), np.array([0.2, 0.9, 0.8, 0.1])
    choice = decision_threshold.choose(Goal("precision", least=0.95), labels, probabilities)
    assert not choice.reached and choice.precision == pytest.approx(2 / 3) and choice.recall == 1


def test_neighbouring_floats_have_no_middle_and_are_separated_all_the_same():
    low = 0.3
    high = np.nextafter(low, 1)
    labels, probabilities = np.array([0, 1]), np.array([low, high])
    threshold = decision_threshold.choose(Goal("f1"), labels, probabilities).threshold
    assert rates(labels, probabilities, threshold)["f1"] == 1


def test_a_single_class_has_no_threshold():
    with pytest.raises(ValueError, match="positive and negative"):
        decision_threshold.choose(Goal("f1"), np.array([1, 1]), np.array([0.2, 0.4]))


@pytest.mark.parametrize("text", GOALS)
def test_a_goal_reads_as_it_was_written(text):
    assert str(parse_goal(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "accuracy", "f1:0.9", "precision", "precision:", "precision:0", "precision:1.01", "precision:-1", "recall:95%",
     "recall:nan", "cost", "cost:FP=1", "cost:FP=0,FN=1", "cost:FP=1,FN=-1", "cost:FN=1,FP=2", "precision:0,95"],
)  # fmt: skip
def test_an_invalid_goal_is_rejected_with_the_choices(text):
    with pytest.raises(UserError, match=r"--threshold_for .* use f1, hter, balanced_accuracy, precision:0.95"):
        parse_goal(text)
