"""Explore on images with any number of labels."""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_up_run import data_of
from pictures import noise
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import dataset
import explore
from spectacles.core.config import DatasetConfig, ExploreConfig
from spectacles.core.run_dir import create_run
from spectacles.data import label_sets
from spectacles.data.schemas import load_split
from spectacles.data.splits import SPLITS
from spectacles.data.stratification import stratified_folds
from spectacles.exploration import baseline, label_cooccurrence, shortcuts, statistics
from spectacles.models import backbones
from spectacles.models.feature_blocks import last_layer
from spectacles.models.linear_probe import CROSS_FIT_STRENGTHS


@pytest.fixture(scope="module")
def explored(tmp_path_factory):
    """80 photos: a on half of them, b on a quarter and only where a is, c wherever a is not, but for five; test images
    in a table of their own, three of them unlabelled."""
    folder = tmp_path_factory.mktemp("labels")
    torch.manual_seed(0)
    save_file(backbones.build("simple_cnn", 3, 32).state_dict(), folder / "net.safetensors")
    (folder / "images").mkdir()
    rows = []
    for number in range(88):
        a, b = number % 2 == 0, number % 4 == 0
        rows.append((f"{number}.png", int(a), int(b), int(not a and number > 10)))
        noise(number, 40 if b else 32, 32).save(folder / "images" / f"{number}.png")
    table = pd.DataFrame(rows, columns=["file", "a", "b", "c"])
    table[:80].to_csv(folder / "train.csv", index=False)
    test = table[80:].astype(object)
    test.loc[85:, ["a", "b", "c"]] = ""
    test.to_csv(folder / "test.csv", index=False)
    shared = {"backbone": "simple_cnn", "weights": folder / "net.safetensors", "image_size": 32, "device": "cpu"}
    run = create_run(folder / "outputs", "r")
    given_data = DatasetConfig(
        train_csv=folder / "train.csv", test_csv=folder / "test.csv", image_dir=folder / "images",
        label_column="a,b,c", **shared,
    )  # fmt: skip
    data = dataset.run(given_data, run)
    run.save_result("dataset", data)
    return data, explore.run(ExploreConfig(gallery_size=4, **shared), run), run.folder("explore"), run


def test_the_table_of_labels_counts_images(explored):
    data, report, folder, _ = explored
    table = pd.read_csv(folder / "class_distribution.csv", keep_default_na=False).set_index("class")
    assert table.index.tolist() == ["a", "b", "c", "none", ""]
    assert table["images"].to_dict() == {"a": 40 + 3, "b": 20 + 2, "c": 35 + 2, "none": 5, "": 3}
    assert table.loc["a", "share"] == pytest.approx(43 / 88, abs=1e-4)
    assert table["share"].sum() > 1
    assert table.loc["a", "train"] + table.loc["c", "train"] + table.loc["none", "train"] == data.images["train"]
    assert report.summary[0].startswith("88 usable images (0 rejected) with any of 3 labels; training images: ")
    assert f"training images: {data.images['train']}, of them with 'a' " in report.summary[0]


def test_each_label_and_none_has_a_contact_sheet(explored):
    _, report, folder, run = explored
    assert [path.name for path in sorted(folder.glob("contact_*.png"))] == [
        "contact_01_a.png", "contact_02_c.png", "contact_03_b.png", "contact_04_none.png"
    ]  # fmt: skip
    assert {"explore/label_pairs.csv", "explore/label_pairs.png"} <= set(report.artifacts)
    assert all((run.path / name).is_file() for name in report.artifacts)


def test_labels_that_occur_together_are_reported(explored):
    _, report, folder, run = explored
    seen = load_split(run, "train", "val")
    pairs = pd.read_csv(folder / "label_pairs.csv", keep_default_na=False)
    both = pairs.set_index(["label_a", "label_b"])
    assert both.loc[("a", "b"), "images"] == seen["label"].isin(["a|b"]).sum() == 20
    assert both.loc[("a", "b"), "note"] == "b only with a" and both.loc[("a", "c"), "note"] == "never together"
    assert "the 20 images with 'b' all have 'a' too" in report.summary
    assert any(line.startswith("never together: 'a' and 'c' (by chance about 18 images)") for line in report.summary)


def test_an_image_counts_for_the_baseline_where_all_labels_are_right(explored):
    _, report, folder, run = explored
    measured = json.loads((folder / "baseline.json").read_text())
    assert measured["images"] == len(load_split(run, "train", "val"))
    said = f"all labels correct for {100 * measured['grouped_split']['accuracy']:.1f} %"
    assert any(line.startswith(f"baseline before fine-tuning: {said}") for line in report.summary)


def test_a_shortcut_gives_a_label_away(explored):
    _, report, folder, _ = explored
    table = pd.read_csv(folder / "shortcuts.csv").set_index("class")
    assert table.loc["b", "share"] == 1 and table.loc["b", "share_elsewhere"] == 0
    [warning] = [line for line in report.warnings if "have label 'b'" in line]
    assert warning.startswith("100.0 % of the images ") and "and 0.0 % of the others: a model may learn" in warning
    assert (folder / "shortcuts.png").is_file()


def test_with_one_class_per_image_no_label_pairs_are_left(explored, tmp_path):
    data, _, folder, run = explored
    plain = data_of({split: {"a": 1, "b": 1} for split in SPLITS})
    for name in ("label_pairs.csv", "label_pairs.png"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    assert explore.describe_label_pairs(plain, load_split(run, "train"), False, tmp_path) == ([], [])
    assert list(tmp_path.iterdir()) == [] and data.multi_label


def test_warnings_count_images_not_labels():
    counts = {"train": {"a": 490, "b": 30}, "val": {"a": 60, "b": 0}, "test": {"a": 0, "b": 0}}
    warnings = statistics.check_classes(data_of(counts, images={"train": 500, "val": 60, "test": 9}))
    assert warnings[0] == "only 10 training images without label 'a'"
    assert warnings[1].startswith("no validation image with label 'b'") and "only 60 validation images" in warnings[2]
    assert len(warnings) == 3
    rare = {split: {"a": 300, "b": 7} for split in counts}
    assert statistics.check_classes(data_of(rare, images=dict.fromkeys(counts, 400))) == [
        "label 'b' has only 7 training images"
    ]


COLOURS = ["red", "green", "blue", "border_red", "border_green", "border_blue", "saturation"]
SETS = st.lists(st.sets(st.sampled_from("abcd")), min_size=1, max_size=60)


@given(SETS)
def test_pairs_are_counted_as_by_hand(sets):
    texts, classes = pd.Series([label_sets.join(each) for each in sets]), list("abcd")
    together = label_cooccurrence.count(texts, classes)
    table = label_cooccurrence.table(together, classes, len(sets)).set_index(["label_a", "label_b"])
    assert len(table) == 6
    for one, other in combinations(classes, 2):
        both, own = sum({one, other} <= each for each in sets), sum(one in each for each in sets)
        assert table.loc[(one, other), "images"] == both
        assert table.loc[(one, other), "share_of_a"] == pytest.approx(both / max(1, own), abs=1e-4)
    warned = label_cooccurrence.check(together, table.reset_index())
    assert any("could be classes" in line for line in warned) == all(len(each) < 2 for each in sets)


def test_labels_that_are_always_together_cannot_be_told_apart():
    texts = pd.Series(["a|b"] * 30 + ["c"] * 30 + ["a|b|c"] * 30 + ["none"] * 30)
    together = label_cooccurrence.count(texts, ["a", "b", "c"])
    pairs = label_cooccurrence.table(together, ["a", "b", "c"], len(texts))
    assert label_cooccurrence.sentences(pairs) == []
    [line] = label_cooccurrence.check(together, pairs)
    assert line.endswith("nothing tells them apart: 'a' and 'b'")


def test_a_few_images_together_or_apart_by_chance_are_no_finding():
    texts = pd.Series(["a|b"] * 19 + ["a"] * 100 + ["none"] * 100 + ["c"] * 25 + ["a|d"] * 30)
    classes = list("abcd")
    notes = label_cooccurrence.table(label_cooccurrence.count(texts, classes), classes, len(texts)).set_index(
        ["label_a", "label_b"]
    )
    assert notes.loc[("a", "b"), "note"] == ""  # 19 images say little
    assert notes.loc[("c", "d"), "note"] == ""  # by chance about 3
    assert notes.loc[("a", "d"), "note"] == "b only with a" and notes.loc[("a", "c"), "note"] == "never together"


def test_a_label_is_tested_against_the_images_without_it():
    rng = np.random.default_rng(0)
    flags = rng.random((300, 3)) < (0.5, 0.3, 0.5)
    rows = pd.DataFrame({
        "file": [f"{number:04d}.jpg" for number in range(300)], "format": "JPEG", "height": 300, "bytes": 20_000,
        "brightness": rng.normal(120, 20, 300), "contrast": 50.0, "sharpness": 500.0, "cluster": range(300),
        "quantisation": 5.0, **dict.fromkeys(COLOURS, 100.0),
        "width": np.where(flags[:, 1], 900, 400),
    })  # fmt: skip
    texts = pd.Series(label_sets.decode(flags.astype(int), ["a", "b", "c"]))
    [found], separation = shortcuts.find(rows.assign(label=texts), 0, multi_label=True)
    assert found.label == "b" and found.rule.startswith("wider than") and found.share == 1 and found.elsewhere == 0
    [alone], _ = shortcuts.find(rows.assign(label=np.where(flags[:, 1], "yes", "no")), 0)
    assert found.balanced_accuracy == alone.balanced_accuracy == separation
    np.testing.assert_array_equal(found.matches, flags[:, 1])


def labelled(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = (rng.random((count, 3)) < (0.5, 0.3, 0.6)).astype(np.int64)
    features = labels @ rng.normal(size=(3, 8)) + 0.7 * rng.normal(size=(count, 8))
    return features.astype(np.float32), labels


def test_the_baseline_of_labels_agrees_with_the_libraries():
    features, labels = labelled(120)
    clusters = np.arange(120) // 2
    measured = baseline.measure(last_layer(features), labels, clusters, seed=1)
    folds = PredefinedSplit(stratified_folds(labels, clusters, 5, 1))
    best = {}
    for strength in CROSS_FIT_STRENGTHS:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300))
        chances = cross_val_predict(OneVsRestClassifier(model), features, labels, cv=folds, method="predict_proba")
        loss = np.mean([log_loss(has, own) for has, own in zip(labels.T, chances.T, strict=True)])
        best[loss] = ((chances >= 0.5) == labels).all(axis=1).mean()
    assert measured["grouped_split"]["accuracy"] == pytest.approx(best[min(best)], abs=1e-6)
    unit = features - features.mean(axis=0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    others = [np.flatnonzero(clusters != cluster) for cluster in clusters]
    near = [
        (KNeighborsClassifier(1, metric="cosine").fit(unit[rest], labels[rest]).predict(unit[[row]])[0] == labels[row])
        for row, rest in enumerate(others)
    ]
    assert measured["nearest_neighbour"]["grouped_split"] == pytest.approx(np.all(near, axis=1).mean(), abs=1e-6)
    assert baseline.sentences(measured, multi_label=True)[0].startswith("baseline before fine-tuning: all labels")


def test_a_random_split_overstates_labels_too():
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(60), 2)
    labels = (rng.random((60, 3)) < 0.5).astype(np.int64)[clusters]
    measured = baseline.measure(last_layer(np.eye(60, dtype=np.float32)[clusters]), labels, clusters, seed=0)
    assert measured["grouped_split"]["accuracy"] < 0.4 < measured["random_split"]["accuracy"]
    assert measured["differences"]["random_split"]["interval"][0] > 0
    assert measured["nearest_neighbour"]["random_split"] == 1


@pytest.mark.parametrize("clusters", [[0, 0, 0], [0, 1, 2]])
def test_a_handful_of_images_is_no_error(clusters):
    features = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    measured = baseline.measure(last_layer(features), np.array([[1, 0], [1, 1], [1, 0]]), np.array(clusters), seed=0)
    assert 0 <= measured["grouped_split"]["accuracy"] <= 1
    assert json.loads(json.dumps(measured, allow_nan=False)) == measured


def test_many_labels_are_measured_on_fewer_images():
    assert [baseline.most_rows(labels) for labels in (1, 6, 40, 1000)] == [10_000, 10_000, 1_500, 1_000]
