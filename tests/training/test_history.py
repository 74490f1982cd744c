"""What follows from the finished epochs alone: which is the best, and when a phase is over."""

from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectacles.training.history import (
    Epoch,
    best_epoch,
    epochs_of,
    from_json,
    history_frame,
    improvements,
    phase_finished,
)


def make_history(
    values: list[float], phases: str | None = None, metric: str = "accuracy", losses: list[float] | None = None
) -> list[Epoch]:
    """One epoch a value; phases is a letter an epoch: h(ead) or f(ine-tuning)."""
    names, count = {"h": "head", "f": "fine_tune"}, len(values)
    return [
        Epoch(number, names[phase], 0.5, loss, metric, value, 0.5, 0.5, 0.001, 1.0)
        for number, (value, phase, loss) in enumerate(
            zip(values, phases or "h" * count, losses or [0.5] * count, strict=True), start=1
        )
    ]


coarse = st.integers(0, 5).map(lambda value: value / 5)
runs = st.lists(coarse, min_size=1, max_size=12)
with_losses = st.lists(st.tuples(coarse, st.integers(0, 2).map(float)), min_size=1, max_size=12)


def is_better(one: tuple[float, float], other: tuple[float, float], metric: str) -> bool:
    """(value, loss): the value counts, and of equal ones the loss."""
    if one[0] == other[0]:
        return one[1] < other[1]
    return one[0] < other[0] if metric == "log_loss" else one[0] > other[0]


@given(with_losses, st.sampled_from(["accuracy", "log_loss"]))
def test_a_gain_is_better_than_all_before_it(pairs, metric):
    expected = [all(is_better(pair, before, metric) for before in pairs[:number]) for number, pair in enumerate(pairs)]
    values, losses = map(list, zip(*pairs, strict=True))
    assert improvements(make_history(values, metric=metric, losses=losses)) == expected


@given(with_losses, st.sampled_from(["accuracy", "log_loss"]))
def test_the_best_epoch_is_the_earliest_of_the_best(pairs, metric):
    values, losses = map(list, zip(*pairs, strict=True))
    found = best_epoch(make_history(values, metric=metric, losses=losses)).epoch - 1
    assert not any(is_better(pair, pairs[found], metric) for pair in pairs)
    assert pairs.index(pairs[found]) == found


def test_of_epochs_with_the_same_errors_the_one_with_the_lower_loss_is_better():
    history = make_history([0.8, 0.9, 0.9, 0.9], losses=[0.1, 0.5, 0.4, 0.4])
    assert improvements(history) == [True, True, True, False]
    assert best_epoch(history).epoch == 3


@given(runs, st.integers(1, 12), st.integers(1, 5))
def test_a_phase_ends_when_its_epochs_or_its_patience_are_used_up(values, epochs, patience):
    since_best = len(values) - 1 - values.index(max(values))
    expected = len(values) >= epochs or since_best >= patience
    assert phase_finished(make_history(values), "head", epochs, patience) == expected


def test_a_phase_counts_its_own_epochs_only():
    both = make_history([0.9, 0.1, 0.2, 0.3], "hfff")
    assert not phase_finished(both, "fine_tune", epochs=10, patience=2)
    assert phase_finished(both, "head", epochs=1, patience=5)
    assert [epoch.epoch for epoch in epochs_of(both, "fine_tune")] == [2, 3, 4]
    assert best_epoch(both).epoch == 1


def test_a_phase_that_has_not_begun_is_not_over():
    assert not phase_finished([], "head", epochs=1, patience=1)


def test_history_survives_json_and_becomes_a_table():
    both = make_history([0.5, 0.7], "hf")
    assert from_json([asdict(epoch) for epoch in both]) == both
    table = history_frame(both)
    assert table["epoch"].tolist() == [1, 2]
    assert table["phase"].tolist() == ["head", "fine_tune"]


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy", "macro_f1", "roc_auc", "log_loss"])
def test_the_table_has_a_column_for_whatever_metric_chose(metric):
    table = history_frame(make_history([0.25], metric=metric))
    own = {"accuracy", "balanced_accuracy"} - {metric}
    assert len(table.columns) == len(set(table.columns)) and {f"val_{name}" for name in own} <= set(table.columns)
    assert table[f"val_{metric}"].tolist() == [0.25]
