"""Slices: how they are found and scored, and that the weakest is not called so by chance."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from spectacles.evaluation import slices
from spectacles.evaluation.slices import Slice
from spectacles.metrics import classification
from spectacles.metrics.bootstrap import mean_interval
from spectacles.metrics.decisions import Scored


def rows(count: int = 90, **columns: object) -> pd.DataFrame:
    return pd.DataFrame({"file": [f"folder/{i}.jpg" for i in range(count)], **columns})


def scored_as(wrong: np.ndarray, labels: np.ndarray | None = None, clusters: np.ndarray | None = None) -> Scored:
    labels = np.arange(len(wrong)) % 2 if labels is None else labels
    predicted = np.where(wrong, 1 - labels, labels)
    clusters = np.arange(len(wrong)) if clusters is None else clusters
    return Scored(labels, np.eye(2)[predicted] * 0.8 + 0.1, predicted, clusters)


def thirds(seed: int, count: int, columns: int = 4) -> list[Slice]:
    rng = np.random.default_rng(seed)
    drawn = [rng.integers(3, size=count) for _ in range(columns)]
    return [Slice(str(i), str(value), "automatic", each == value) for i, each in enumerate(drawn) for value in range(3)]


def test_given_columns_have_one_slice_per_value_and_one_for_unknown() -> None:
    table = rows(6, slice_sex=["f", "m", "f", "", "f", "m"], slice_light=["NA"] * 6, label=["a"] * 6)
    found = slices.find(table, None, 0)
    assert [(each.column, each.value, each.source) for each in found] == [
        ("sex", "f", "column"), ("sex", "m", "column"), ("sex", "unknown", "column"), ("light", "NA", "column"),
    ]  # fmt: skip
    assert found[0].images.tolist() == [True, False, True, False, True, False]


def test_rare_values_of_a_column_are_one_slice() -> None:
    values = [str(i) for i in range(slices.MOST_VALUES + 20)] + [str(i) for i in range(slices.MOST_VALUES)]
    found = slices.find(rows(len(values), slice_person=values), None, 0)
    assert len(found) == slices.MOST_VALUES + 1
    assert (found[-1].value, found[-1].images.sum()) == ("one of 20 rarer values", 20)
    assert sum(each.images for each in found).tolist() == [1] * len(values)


def test_measured_columns_fall_into_thirds_named_by_their_range() -> None:
    table = rows(90, brightness=np.arange(90.0), sharpness=[5.0] * 90, width=[100, 200, 3000] * 30, height=[1000] * 90)
    found = slices.find(table, None, 0)
    assert [f"{each.column} {each.value}" for each in found] == [
        "brightness dark (0 to 29 of 255)",
        "brightness medium (30 to 59 of 255)",
        "brightness bright (60 to 89 of 255)",
        "image size small (0.1 megapixels)",
        "image size medium (0.2 megapixels)",
        "image size large (3 megapixels)",
    ]
    assert [each.images.sum() for each in found] == [30] * 6
    assert slices.find(rows(), None, 0) == []  # an index that has measured nothing


def test_looks_are_named_by_the_image_in_the_middle() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 8)) * 10
    kinds = np.repeat([0, 1, 2], [60, 40, 35])
    features = (centres[kinds] + rng.normal(size=(135, 8))).astype(np.float32)
    found = slices.find(rows(135), features, 0)
    assert len(found) == 135 // slices.ENOUGH_IMAGES
    for each in found:
        assert len(set(kinds[each.images])) == 1  # no cluster mixes what lies far apart
        place = int(each.value.removeprefix("like ").removesuffix(".jpg"))
        assert each.images[place]
    assert sum(each.images for each in found).tolist() == [1] * 135
    assert slices.find(rows(50), features[:50], 0) == []


def test_scores_equal_those_of_the_images_alone() -> None:
    rng = np.random.default_rng(1)
    scored = scored_as(rng.random(120) < 0.2)
    chosen = rng.random(120) < 0.5
    [entry] = slices.score([Slice("a", "b", "column", chosen)], scored, 0, 1500)["slices"]
    alone = classification.classification_metrics(
        scored.labels[chosen], scored.probabilities[chosen], scored.predicted[chosen], 2
    )
    for name in ("accuracy", "false_positive_rate", "false_negative_rate"):
        assert entry[name] == pytest.approx(alone[name])
    expected = mean_interval(scored.correct[chosen], np.arange(chosen.sum()), 0, 4000)
    assert entry["interval"] == pytest.approx(expected, abs=0.03)
    low, high = entry["false_negative_rate_interval"]
    assert low < entry["false_negative_rate"] < high
    assert entry["images"] == chosen.sum() and entry["sufficient"]


def test_few_images_or_few_clusters_are_insufficient() -> None:
    def sufficient(chosen: np.ndarray, clusters: np.ndarray | None = None) -> bool:
        found = slices.score(
            [Slice("a", "b", "column", chosen)], scored_as(np.arange(100) % 9 == 0, None, clusters), 0, 50
        )
        assert "insufficient" in slices.sentence(found)
        return bool(found["slices"][0]["sufficient"])

    assert sufficient(np.arange(100) < slices.ENOUGH_IMAGES)
    assert not sufficient(np.arange(100) < slices.ENOUGH_IMAGES - 1)
    assert not sufficient(np.arange(100) < 60, np.arange(100) // 20)


def test_a_slice_without_an_error_or_without_a_class_gets_numbers_that_json_can_hold() -> None:
    labels = np.array([0] * 50 + [1] * 50)
    wrong = np.arange(100) % 10 == 9
    wrong[:50] = False
    found = slices.score([Slice("a", "b", "column", labels == 0)], scored_as(wrong, labels), 0, 50)
    json.dumps(found, allow_nan=False)
    [entry] = found["slices"]
    assert entry["interval"] == pytest.approx([0.025 ** (1 / 50), 1])
    assert (entry["false_negative_rate"], entry["false_negative_rate_interval"]) == (None, None)
    many = Scored(np.arange(90) % 3, np.eye(3)[np.arange(90) % 3], np.arange(90) % 3, np.arange(90))
    [entry] = slices.score([Slice("a", "b", "column", np.arange(90) < 40)], many, 0, 50)["slices"]
    assert (entry["accuracy"], entry["false_positive_rate"]) == (1, None)


def test_a_slice_that_is_worse_is_named_with_its_gap() -> None:
    found = thirds(0, 600)
    wrong = np.random.default_rng(1).random(600) < np.where(found[4].images, 0.25, 0.04)
    result = slices.score(found, scored_as(wrong), 0, 300)
    worst = result["worst_gap"]
    assert (worst["column"], worst["value"], worst["among"]) == ("1", "1", 12)
    assert worst["gap"] == pytest.approx(wrong[found[4].images].mean() - wrong.mean())
    assert worst["interval"][0] > 0 and worst["p"] < 0.01
    assert slices.sentence(result).startswith("weakest slice: 1 1: ")


def test_the_weakest_of_many_equal_slices_is_rarely_called_worse() -> None:
    """The interval holds for the worst of 12: of 40 sets without a weak slice, 2 are expected to have one by chance."""
    gaps = [
        slices.score(thirds(seed, 300), scored_as(np.random.default_rng(seed + 999).random(300) < 0.1), seed, 200)
        for seed in range(40)
    ]
    assert sum(each["worst_gap"]["interval"][0] > 0 for each in gaps) <= 5
    assert all(each["worst_gap"]["gap"] > 0 for each in gaps)


def test_errors_of_one_person_are_not_evidence_against_a_slice() -> None:
    """All errors are in 20 photos each of two people in the slice: significant only if images were independent."""
    clusters = np.repeat(np.arange(15), 20)
    wrong = np.isin(clusters, [0, 1])
    in_slice = Slice("a", "b", "column", clusters < 6)
    others = Slice("a", "c", "column", clusters >= 6)
    people = slices.score([in_slice, others], scored_as(wrong, None, clusters), 0, 400)["worst_gap"]
    images = slices.score([in_slice, others], scored_as(wrong), 0, 400)["worst_gap"]
    assert images["p"] < 0.01 and people["p"] > 0.1
    assert people["interval"][0] <= 0 < images["interval"][0]


def test_without_errors_there_is_no_worst_slice() -> None:
    found = slices.score(thirds(0, 200), scored_as(np.zeros(200, dtype=bool)), 0, 50)
    assert found["worst_gap"] is None
    assert slices.score([], scored_as(np.zeros(3, dtype=bool)), 0, 50) == {"slices": [], "worst_gap": None}
    assert slices.sentence({"slices": [], "worst_gap": None}) == ""


def test_the_table_has_one_row_per_slice_and_plain_columns() -> None:
    found = slices.score(thirds(0, 200), scored_as(np.arange(200) % 7 == 0), 0, 50)
    table = slices.to_table(found)
    assert table["column"].tolist() == [entry["column"] for entry in found["slices"]]
    assert table[["accuracy_low", "accuracy_high"]].to_numpy().tolist() == [e["interval"] for e in found["slices"]]
    assert {"false_positive_rate_low", "sufficient"} <= set(table) and "interval" not in table
    assert len(slices.to_table({"slices": [], "worst_gap": None})) == 0
