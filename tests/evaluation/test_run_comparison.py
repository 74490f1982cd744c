"""One run against another: which images count, whose labels, and when the difference is significant."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from spectacles.core.config import EvaluateConfig
from spectacles.core.errors import UserError
from spectacles.core.results import EvaluateReport
from spectacles.core.run_dir import RunDir, create_run
from spectacles.evaluation import run_comparison
from spectacles.metrics import bootstrap, decisions
from spectacles.metrics.bootstrap import mean_interval
from spectacles.metrics.decisions import Scored

CLASSES = ["cat", "dog"]
CONFIG = EvaluateConfig(bootstrap_resamples=400)


def write_run(
    folder: Path, name: str, splits: Sequence[str], predicted: Sequence[str], classes: Sequence[str]
) -> RunDir:
    """Image i has the content hash{i} and the path <name>/{i}.png; those of val and test have been scored."""
    made = create_run(folder, name)
    table = pd.DataFrame({"path": [f"{name}/{i}.png" for i in range(len(splits))], "split": list(splits)})
    table["sha256"] = [f"hash{i}" for i in range(len(splits))]
    made.splits.parent.mkdir(parents=True)
    table.to_csv(made.splits, index=False)
    scored = table["split"] != "train"
    rows = table[scored].assign(
        file="", label="cat", cluster="0", status="predicted", predicted=np.array(predicted)[scored]
    )
    for label in classes:
        rows[f"p_{label}"] = np.where(rows["predicted"] == label, 0.9, 0.1 / (len(classes) - 1))
    made.predictions.parent.mkdir(parents=True)
    rows.to_csv(made.predictions, index=False)
    facts = {"summary": [], "metrics": {}, "artifacts": [], "model_id": "x", "accuracy_interval": (0.0, 1.0)}
    made.save_result("evaluate", EvaluateReport(scored_on="test", **facts))
    return made


def scored_as(labels: Sequence[str], predicted: Sequence[str], clusters: Sequence[int] | None = None) -> Scored:
    indices = [np.array([CLASSES.index(name) for name in names]) for names in (labels, predicted)]
    probabilities = np.eye(2)[indices[1]] * 0.8 + 0.1
    return Scored(
        indices[0], probabilities, indices[1], np.arange(len(labels)) if clusters is None else np.array(clusters)
    )


def hashes(numbers: Sequence[int]) -> pd.Series[str]:
    return pd.Series([f"hash{i}" for i in numbers])


def compare(this: RunDir, other: str, scored: Scored, numbers: Sequence[int], split: str = "test") -> dict:
    found = run_comparison.load(other, this, CLASSES)
    return run_comparison.compare(scored, hashes(numbers), found, split, CONFIG)


def test_a_run_that_makes_far_fewer_errors_is_better_and_the_other_worse(tmp_path: Path) -> None:
    labels = ["cat", "dog"] * 30
    turned = ["dog" if i % 3 else label for i, label in enumerate(labels)]
    good = write_run(tmp_path, "good", ["test"] * 60, labels, CLASSES)
    bad = write_run(tmp_path, "bad", ["test"] * 60, turned, ["dog", "cat"])  # another order of the columns
    found = compare(good, "bad", scored_as(labels, labels), range(60))
    json.dumps(found, allow_nan=False)
    assert (found["verdict"], found["images"], found["other"], found["split"]) == ("better", 60, "bad", "test")
    wrong = sum(a != b for a, b in zip(labels, turned, strict=True))
    accuracy = found["differences"]["accuracy"]
    assert (accuracy["this"], accuracy["other"]) == pytest.approx((1, 1 - wrong / 60))
    assert accuracy["difference"] == pytest.approx(wrong / 60)
    assert found["differences"]["hter"]["difference"] == pytest.approx(-wrong / 60)
    assert found["mcnemar_p"] == pytest.approx(2 * 0.5**wrong)
    assert found["sentence"].startswith("better than bad on 60 test images: accuracy 100.0 % against 66.7 %")
    assert "other significant differences: log loss -" in found["sentence"] and ", HTER -0." in found["sentence"]
    back = compare(bad, "good", scored_as(labels, turned), range(60))
    assert back["verdict"] == "worse"
    assert back["mcnemar_p"] == found["mcnemar_p"]
    assert back["differences"]["accuracy"]["interval"] == pytest.approx(
        [-end for end in reversed(accuracy["interval"])]
    )


def test_the_difference_is_of_pairs(tmp_path: Path) -> None:
    """Both wrong on mostly the same images: the pairs tell what two separate intervals could not."""
    rng = np.random.default_rng(0)
    labels = ["cat", "dog"] * 200
    hard = rng.random(400) < 0.4
    ours = [CLASSES[1 - CLASSES.index(name)] if wrong else name for name, wrong in zip(labels, hard, strict=True)]
    theirs = list(ours)
    for place in np.flatnonzero(~hard)[:14]:
        theirs[place] = CLASSES[1 - CLASSES.index(labels[place])]
    this = write_run(tmp_path, "this", ["test"] * 400, ours, CLASSES)
    write_run(tmp_path, "that", ["test"] * 400, theirs, CLASSES)
    found = compare(this, "that", scored_as(labels, ours), range(400))
    values = (decisions.decide(np.eye(2)[[CLASSES.index(n) for n in names]], None) for names in (ours, theirs))
    one, two = (np.array([CLASSES.index(name) for name in labels]) == each for each in values)
    low, high = mean_interval(one.astype(float) - two, np.arange(400), 0, 4000)
    assert found["differences"]["accuracy"]["interval"] == pytest.approx((low, high), abs=0.006)
    assert found["verdict"] == "better"
    separate = [bootstrap.share_interval(each, np.arange(400), 0, 400) for each in (one, two)]
    assert separate[0][0] < separate[1][1]


def test_the_same_predictions_are_not_significantly_different(tmp_path: Path) -> None:
    labels = ["cat", "dog"] * 10
    this = write_run(tmp_path, "this", ["test"] * 20, labels, CLASSES)
    write_run(tmp_path, "that", ["test"] * 20, labels, CLASSES)
    found = compare(this, "that", scored_as(labels, labels), range(20))
    assert (found["verdict"], found["mcnemar_p"]) == ("inconclusive", 1.0)
    assert found["differences"]["accuracy"]["interval"] == [0, 0]
    assert found["sentence"].startswith("not significantly different from that on 20 test images")


def test_whole_clusters_decide_and_both_tests_must_agree(tmp_path: Path) -> None:
    """Ten photos of one person on which this run is better are one piece of evidence, whatever McNemar says."""
    labels = ["cat"] * 60
    theirs = ["dog"] * 10 + ["cat"] * 50
    this = write_run(tmp_path, "this", ["test"] * 60, labels, CLASSES)
    write_run(tmp_path, "that", ["test"] * 60, theirs, CLASSES)
    found = compare(this, "that", scored_as(labels, labels, [0] * 10 + list(range(1, 51))), range(60))
    assert found["mcnemar_p"] < 0.01
    assert found["differences"]["accuracy"]["interval"][0] == 0
    assert found["verdict"] == "inconclusive"
    assert "hter" not in found["differences"]  # one class only


def test_images_that_either_was_trained_on_or_only_one_scored_are_left_out_with_the_reason(tmp_path: Path) -> None:
    theirs = ["train", "train", "val", "test", "test"]
    this = write_run(tmp_path, "this", ["test"] * 7, ["cat"] * 7, CLASSES)
    write_run(tmp_path, "that", theirs, ["cat"] * 5, CLASSES)
    found = compare(this, "that", scored_as(["cat"] * 7, ["cat"] * 7), range(7))
    assert found["images"] == 3
    assert found["left_out"] == {"trained_on": 2, "not_scored": 2}
    assert found["validation_of_other"] == 1
    assert "2 images left out that one of the two was trained on" in found["sentence"]
    assert "2 images left out that that has not scored" in found["sentence"]
    assert "1 image of them helped to choose that's weights" in found["sentence"]


def test_a_copy_of_this_runs_own_training_image_does_not_count(tmp_path: Path) -> None:
    this = write_run(tmp_path, "this", ["train", "test", "test"], ["cat"] * 3, CLASSES)
    write_run(tmp_path, "that", ["test"] * 3, ["cat"] * 3, CLASSES)
    found = compare(this, "that", scored_as(["cat"] * 3, ["cat"] * 3), [0, 1, 2])
    assert found["images"] == 2


def test_this_runs_labels_count_for_both(tmp_path: Path) -> None:
    this = write_run(tmp_path, "this", ["test"] * 4, ["cat"] * 4, CLASSES)
    write_run(tmp_path, "that", ["test"] * 4, ["dog"] * 4, CLASSES)
    found = compare(this, "that", scored_as(["dog"] * 4, ["cat"] * 4), range(4))  # write_run's table says cat
    assert (found["differences"]["accuracy"]["this"], found["differences"]["accuracy"]["other"]) == (0, 1)


@pytest.mark.parametrize(("only_this", "only_that"), [(0, 0), (1, 0), (5, 5), (9, 2), (3, 30)])
def test_mcnemar_equals_the_sum_of_its_definition(only_this: int, only_that: int) -> None:
    this = np.array([True] * only_this + [False] * only_that + [True] * 7 + [False] * 4)
    that = np.array([False] * only_this + [True] * only_that + [True] * 7 + [False] * 4)
    count, fewer = only_this + only_that, min(only_this, only_that)
    tail = sum(math.comb(count, k) for k in range(fewer + 1)) / 2**count
    assert run_comparison.mcnemar(this, that) == (pytest.approx(min(1.0, 2 * tail)), only_this, only_that)


def test_runs_that_cannot_be_compared_are_rejected_with_the_remedy(tmp_path: Path) -> None:
    this = write_run(tmp_path, "this", ["test"] * 2, ["cat"] * 2, CLASSES)
    write_run(tmp_path, "birds", ["test"] * 2, ["owl"] * 2, ["owl", "jay"])
    write_run(tmp_path, "seen", ["train"] * 2 + ["val"], ["cat"] * 3, CLASSES)
    (tmp_path / "elsewhere").mkdir()
    strange = write_run(tmp_path / "elsewhere", "strange", ["test"] * 9, ["cat"] * 9, CLASSES)
    strange.path.rename(tmp_path / "strange")
    create_run(tmp_path, "fresh")
    with pytest.raises(UserError, match=r"no run .*nowhere; --compare can be one of"):
        run_comparison.load("nowhere", this, CLASSES)
    with pytest.raises(UserError, match="this run itself"):
        run_comparison.load("this", this, CLASSES)
    with pytest.raises(UserError, match=r"no scores yet: run `python evaluate\.py --run_name fresh`"):
        run_comparison.load("fresh", this, CLASSES)
    with pytest.raises(UserError, match="has the classes 'owl', 'jay', this run 'cat', 'dog'"):
        run_comparison.load("birds", this, CLASSES)
    with pytest.raises(UserError, match="none of this run's 2 test images:"):
        compare(this, "strange", scored_as(["cat"] * 2, ["cat"] * 2), [20, 21])
    with pytest.raises(UserError, match="none of this run's 2 test images"):
        compare(this, "seen", scored_as(["cat"] * 2, ["cat"] * 2), [0, 1])


def test_class_names_that_look_like_missing_values_are_names(tmp_path: Path) -> None:
    this = write_run(tmp_path, "this", ["test"] * 4, ["NA", "0", "NA", "0"], ["0", "NA"])
    write_run(tmp_path, "that", ["test"] * 4, ["NA"] * 4, ["0", "NA"])
    found = run_comparison.load("that", this, ["0", "NA"])
    probabilities = np.eye(2)[[1, 0, 1, 0]]
    scored = Scored(np.array([1, 0, 1, 0]), probabilities, np.array([1, 0, 1, 0]), np.arange(4))
    result = run_comparison.compare(scored, hashes(range(4)), found, "test", CONFIG)
    assert result["differences"]["accuracy"]["other"] == 0.5
