"""Planted shortcuts are found and described in words; where there are none, none is reported."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from sklearn.metrics import balanced_accuracy_score
from sklearn.tree import DecisionTreeClassifier

from spectacles.data.file_index import inspect_files
from spectacles.exploration import shortcuts
from spectacles.exploration.file_properties import properties

PER_CLASS = 30
COLOURS = ["red", "green", "blue", "border_red", "border_green", "border_blue", "saturation"]


def photo(seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """Neither dark nor bright, and every one in another light."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(30, 226, (4, 5, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    fine = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    return ImageEnhance.Brightness(Image.blend(coarse, fine, rng.uniform(0.1, 0.3))).enhance(rng.uniform(0.7, 1.3))


def framed(image: Image.Image) -> Image.Image:
    return ImageOps.expand(image.crop((4, 4, 44, 36)), border=4)


Plant = Callable[[Image.Image], Image.Image]


def indexed(folder: Path, plant: Plant, name: str, quality: int) -> pd.DataFrame:
    """The index of two classes of photos; those of class a are changed, named and saved as given."""
    rows = []
    for number in range(2 * PER_CLASS):
        planted, image = number % 2 == 0, photo(number)
        file = name.format(number) if planted else f"{number:04d}.jpg"
        (plant(image) if planted else image).save(folder / file, quality=quality if planted else 90)
        rows.append((file, "a" if planted else "b", str(folder / file), number))
    index = pd.DataFrame(rows, columns=["file", "label", "path", "cluster"])
    return pd.concat([index, inspect_files(index["path"].tolist(), 1)[0]], axis=1)


@pytest.mark.parametrize(
    ("plant", "name", "quality", "words"),
    [
        (lambda image: image, "{:04d}.png", 90, ["stored as"]),
        (lambda image: image, "IMG_{:04d}.jpg", 90, ["named 'IMG_*'"]),
        (lambda image: image, "{:04d}.jpg", 30, ["compressed", "quantisation"]),
        (lambda image: ImageEnhance.Brightness(image).enhance(2.2), "{:04d}.jpg", 90, ["brighter than", "of 255"]),
        (framed, "{:04d}.jpg", 90, ["with a border", "of 255"]),
        (lambda image: image.resize((96, 80)), "{:04d}.jpg", 90, ["wider than", "px"]),
        (lambda image: image.resize((60, 40)), "{:04d}.jpg", 90, ["wider than", "px"]),
        (lambda image: image.convert("L"), "{:04d}.jpg", 90, ["colour than", "of 255"]),
    ],
    ids=["format", "name", "compression", "brightness", "border", "size", "shape", "grey"],
)
def test_a_planted_shortcut_is_found_and_named(tmp_path, plant, name, quality, words):
    rows = indexed(tmp_path, plant, name, quality)
    [found], separation = shortcuts.find(rows, seed=0)
    sentence = found.sentence()
    assert all(word in sentence for word in words), sentence
    assert separation == found.balanced_accuracy > 0.9
    assert found.share > 0.9 > 0.1 > found.elsewhere
    assert f"class {found.label!r}" in sentence and "may learn that" in sentence
    table = shortcuts.table([found])
    assert table.loc[0, "rule"] == found.rule and table.loc[0, "images"] == found.matches.sum()


def index_of(size: int, seed: int = 0, **columns: object) -> pd.DataFrame:
    """A table like the dataset stage's in which nothing depends on the label."""
    rng = np.random.default_rng(seed)
    border = {f"border_{channel}": rng.normal(100, 20, size) for channel in ("red", "green", "blue")}
    frame = pd.DataFrame(
        {
            "file": [f"{number:05d}.jpg" for number in range(size)],
            "label": np.tile(["a", "b"], size)[:size],
            "cluster": np.arange(size),
            "format": rng.choice(["JPEG", "PNG"], size),
            "width": rng.integers(300, 600, size),
            "height": rng.integers(300, 600, size),
            "bytes": rng.normal(20000, 2000, size).round(),
            "brightness": rng.normal(120, 20, size),
            "contrast": rng.normal(50, 8, size),
            "sharpness": rng.normal(500, 80, size),
            "saturation": rng.normal(40, 10, size),
            "quantisation": rng.choice([5.0, 12.0], size),
            **{channel: rng.normal(120, 20, size) for channel in ("red", "green", "blue")},
            **border,
        }
    )
    return frame.assign(**columns)


@settings(max_examples=12)
@given(st.integers(0, 10**6), st.sampled_from([40, 60, 150]), st.integers(2, 4))
def test_chance_is_no_shortcut(seed, size, classes):
    rng = np.random.default_rng(seed)
    rows = index_of(size, seed, label=rng.permutation(np.arange(size) % classes).astype(str))
    found, separation = shortcuts.find(rows, seed=0)
    assert found == []
    assert separation is None or 0 <= separation <= 1


def test_the_threshold_is_round_and_divides_as_it_says():
    width = np.r_[np.arange(320, 398), np.arange(403, 481)]
    rows = index_of(156, width=width, label=np.repeat(["small", "large"], 78))
    [found], _ = shortcuts.find(rows, seed=0)
    assert found.rule == "wider than 400 px"
    assert found.label == "large"
    np.testing.assert_array_equal(found.matches, width > 400)


def test_shares_are_of_all_rows_on_both_sides():
    """Class b is a fifth of the images; half of it, and a tenth of class a, is wide."""
    label = np.repeat(["a", "a", "a", "a", "b"], 60)
    wide = np.arange(300) % np.where(label == "b", 2, 12) == 0
    rows = index_of(300, label=label, width=np.where(wide, 900, 400))
    [found], _ = shortcuts.find(rows, seed=0)
    assert found.rule.startswith("wider than") and found.label == "b"
    assert found.share == pytest.approx((label == "b")[wide].mean())
    assert found.elsewhere == pytest.approx((label == "b")[~wide].mean())


def test_two_properties_that_separate_only_together():
    """Class b is what is bright or wide, but not both."""
    rng = np.random.default_rng(0)
    bright, wide = rng.permutation(np.arange(400) % 2 == 0), rng.permutation(np.arange(400) % 4 < 3)
    rows = index_of(
        400,
        label=np.where(bright & wide, "b", "a"),
        brightness=np.where(bright, 180, 90),
        width=np.where(wide, 800, 400),
    )
    [found], _ = shortcuts.find(rows, seed=0)
    assert found.label == "b" and found.share == 1
    assert "wider than" in found.rule and "brighter than" in found.rule and " and " in found.rule


def test_the_score_is_that_of_a_tree_on_held_out_folds():
    """Brightness separates two thirds of each class."""
    rng = np.random.default_rng(1)
    label = np.tile(["a", "b"], 150)
    separated = rng.random(300) < 2 / 3
    bright = np.where(separated, label == "b", rng.random(300) < 0.5)
    rows = index_of(300, label=label, brightness=np.where(bright, 180.0, 90.0))
    [found], _ = shortcuts.find(rows, seed=0)
    values = rows[["brightness"]].to_numpy()
    stump = DecisionTreeClassifier(max_depth=1).fit(values, label).predict(values)
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(label, stump), abs=0.02)


def test_copies_of_one_photo_stay_in_one_fold():
    """Thirty copies of each photo, labels at random: only a copy in another fold predicts the label."""
    rng = np.random.default_rng(0)
    photos = index_of(44, label=rng.permutation(np.arange(44) % 2).astype(str))
    rows = photos.loc[np.repeat(np.arange(44), 30)].reset_index(drop=True)
    split_groups = shortcuts.find(rows.assign(cluster=np.arange(len(rows))), seed=0)[1]
    whole = shortcuts.find(rows, seed=0)
    assert split_groups > 0.65
    assert whole[0] == [] and whole[1] < split_groups


def test_one_of_many_classes():
    label = np.array([f"class {number % 14}" for number in range(490)])
    rows = index_of(490, label=label, format=np.where(label == "class 7", "PNG", "JPEG"))
    [found], _ = shortcuts.find(rows, seed=0)
    assert found.label == "class 7" and found.rule == "stored as PNG"
    assert found.share == 1 and found.elsewhere == 0


def test_classes_with_few_images_are_not_tested():
    label = np.repeat(["a", "b"], [100, 19])
    assert shortcuts.find(index_of(119, label=label, width=np.where(label == "a", 300, 900)), 0) == ([], None)
    copies = index_of(200, label=np.repeat(["a", "b"], 100), cluster=np.repeat(np.arange(20), 10))
    assert shortcuts.find(copies, 0) == ([], None)


def test_an_invisible_difference_is_no_property():
    rows = index_of(120, format="JPEG", height=300, bytes=20000, brightness=100.0, contrast=50.0, sharpness=500.0)
    rows = rows.assign(width=np.where(rows["label"] == "a", 400, 401))
    rows = rows.assign(**dict.fromkeys(COLOURS, 100.0), quantisation=0.0)
    assert properties(rows) == []
    assert shortcuts.find(rows, 0) == ([], None)


def test_names_that_contain_the_class_are_no_shortcut():
    rows = index_of(100, label=np.tile(["cats", "dogs"], 50))
    rows["file"] = [f"{label}/{label[:3]}.{number}.jpg" for number, label in enumerate(rows["label"])]
    assert shortcuts.find(rows, 0)[0] == []
    renamed = rows.assign(label=np.where(rows["label"] == "cats", "0", "1"))
    [found], _ = shortcuts.find(renamed, 0)
    assert found.rule in ("named 'cat.*'", "named 'dog.*'")


def test_large_sets_are_sampled(monkeypatch):
    label = np.tile(["a", "b"], 400)
    rows = index_of(800, label=label, format=np.where(label == "a", "PNG", "JPEG"))
    monkeypatch.setattr(shortcuts, "MOST_ROWS", 100)
    [found], _ = shortcuts.find(rows, 0)
    assert len(found.matches) == 800 and found.share == 1


def test_properties_are_measured_right(tmp_path):
    red = Image.new("RGB", (40, 20), (200, 100, 100))
    red.paste((0, 0, 0), (2, 1, 38, 19))
    buffer = BytesIO()
    red.save(buffer, "PNG")
    (tmp_path / "one.png").write_bytes(buffer.getvalue())
    photo(1).save(tmp_path / "two.jpg")
    index = pd.DataFrame({"file": ["one.png", "two.jpg"], "label": ["a", "b"]})
    index = pd.concat([index, inspect_files([str(tmp_path / file) for file in index["file"]], 1)[0]], axis=1)
    found = {item.name: item.values[0] for item in properties(index)}
    assert found["width"] == 40 and found["height"] == 20 and found["aspect ratio"] == 2
    assert found["size"] == pytest.approx(800 / 1e6)
    assert found["border red"] == pytest.approx(50, abs=1)
    assert found["bytes per pixel"] == pytest.approx(len(buffer.getvalue()) / 800)
    assert found["format PNG"] == 1 and found["format JPEG"] == 0
    assert found["compression"] == 0
