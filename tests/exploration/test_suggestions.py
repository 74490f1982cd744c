"""Each suggestion comes where it has a reason and stays away where it has none."""

import numpy as np
import pandas as pd
import pytest
from made_up_run import data_of

from spectacles.exploration import suggestions


def photos(width: object, height: object, count: int = 50) -> pd.DataFrame:
    return pd.DataFrame({"width": np.resize(width, count), "height": np.resize(height, count)})


def named(files: list[str], label: str = "a", group: str = "") -> pd.DataFrame:
    return pd.DataFrame({"file": files, "label": label, "group": group})


def test_imbalance_suggests_weights():
    assert suggestions.balance({"a": 40, "b": 14}) == []
    [line] = suggestions.balance({"a": 80, "b": 20, "c": 50})
    assert (
        line.startswith("try --class_weights balanced") and "'b' is 13.3 % of the training images, 'a' 53.3 %" in line
    )
    assert suggestions.imbalance({"a": 5, "b": 0}) == 5


def test_a_small_class_says_how_many_images_would_help():
    assert suggestions.more_images(data_of({"train": {"a": 200, "b": 20}, "val": {"a": 40, "b": 4}})) == []
    [line] = suggestions.more_images(data_of({"train": {"a": 200, "b": 12}, "val": {"a": 50, "b": 3}}))
    assert "class 'b': there are 12 to learn from and 3 to validate on" in line
    missing = int(line.split("about ")[1].split()[0])
    validated = (15 + missing) * 53 / 265
    half_interval = 1.96 * (0.9 * 0.1 / validated) ** 0.5
    assert half_interval == pytest.approx(0.1, abs=0.003)


def test_a_rare_label_says_how_many_images_would_help():
    data = data_of({"train": {"a": 190, "b": 12}, "val": {"a": 45, "b": 3}}, images={"train": 200, "val": 50})
    [line] = suggestions.more_images(data)
    assert "collect images with label 'b': there are 12 to learn from and 3 to validate on" in line
    validated = (15 + int(line.split("about ")[1].split()[0])) * 50 / 250
    assert 1.96 * (0.9 * 0.1 / validated) ** 0.5 == pytest.approx(0.1, abs=0.003)
    [line] = suggestions.rare_label(data.counts["train"], 200)
    assert (
        line.startswith("try --class_weights balanced") and "only 6.0 % of the training images have label 'b'" in line
    )
    assert suggestions.rare_label({"a": 190, "b": 20}, 200) == []


@pytest.mark.parametrize(
    ("interval", "suggested"), [([-0.05, -0.01], True), ([-0.02, 0.01], False), ([0.0, 0.0], False)]
)
def test_more_images_help_where_fewer_do_harm(interval, suggested):
    measured = {"differences": {"half": {"accuracy": sum(interval) / 2, "interval": interval}}}
    lines = suggestions.learning_curve(measured)
    assert bool(lines) == suggested
    if suggested:
        assert "3.0 points of accuracy (1.0 to 5.0;" in lines[0]
    assert suggestions.learning_curve(None) == []


def test_outliers_are_counted_by_file():
    outliers = pd.DataFrame({"file": ["1", "1", "2"], "what": ["dark", "blurred", "dark"]})
    [line] = suggestions.review_outliers(outliers, "explore/outliers.png")
    assert "look at 2 outliers (2 dark, 1 blurred) in explore/outliers.png" in line
    assert suggestions.review_outliers(outliers[:0], "") == []


@pytest.mark.parametrize(
    ("width", "height", "size", "words"),
    [
        (800, 600, 160, ["try --image_size 224", "800 x 600", "2.0 times as long"]),
        (800, 600, 224, None),
        (178, 218, 160, None),
        (100, 120, 224, ["try --image_size 96", "5.4 times"]),
        (48, 40, 96, None),
        (220, 400, 160, None),
    ],
)
def test_image_size(width, height, size, words):
    lines = suggestions.image_size(photos(width, height), size, 224)
    if words is None:
        assert lines == []
    else:
        assert all(word in lines[0] for word in words), lines


def test_mixed_sizes():
    mixed, off = photos([100, 2000], 3000), {"blur": 0.0, "zoom_out": 0.2}
    assert suggestions.size_mix(photos([300, 400, 900], 1000), off) == []
    [line] = suggestions.size_mix(mixed, off)
    assert line.startswith("try --blur 0.15: ") and "from 100 to 2000 pixels" in line
    assert suggestions.size_mix(mixed, {}) == []


@pytest.mark.parametrize(
    ("line", "setting"),
    [
        ("try --class_weights balanced if all classes matter equally", {"class_weights": "balanced"}),
        ("name it in a column and pass that as --group_column: 40 images", {"group_column": "person"}),
        ("or, if colour does not matter, remove it with --in_chans 1 (images", {"in_chans": 1}),
        ("try --resize pad: a centre crop loses", {"resize": "pad"}),
    ],
)
def test_what_is_set_is_not_advised(line, setting):
    others = {"class_weights": "none", "group_column": None, "in_chans": 3, "resize": "crop", "blur": 0.15}
    assert suggestions.unless_set([line], others) == suggestions.unless_set([line], {}) == [line]
    assert suggestions.unless_set([line, "try a larger --blur"], others | setting) == ["try a larger --blur"]


def test_extreme_shapes_suggest_another_resize():
    assert suggestions.resize(photos([640, 480], [480, 640]), "crop") == []
    [same] = suggestions.resize(photos(1600, 800), "crop")
    assert same.startswith("try --resize squash") and "50.0 % of the median photo" in same
    [mixed] = suggestions.resize(photos([1600, 500], [700, 1500]), "crop")
    assert mixed.startswith("try --resize pad")
    [some] = suggestions.resize(photos([500, 500, 500, 2000], [500, 500, 500, 500], 100), "crop")
    assert some.startswith("try --resize pad") and "of 25.0 % of the photos over half" in some
    assert suggestions.resize(photos(1600, 800), "pad") == []


@pytest.mark.parametrize(
    "files",
    [
        [f"p{person:02d}_{shot}.jpg" for person in range(15) for shot in range(3)],
        [f"scans/patient {person} ({shot}).png" for person in range(15) for shot in (1, 2)],
        [f"{person}-{side}.jpg" for person in range(100, 115) for side in ("left", "right")],
        [f"person{person}/{shot}.jpg" for person in range(15) for shot in "abc"],
        [f"c:\\photos\\p{person}_{shot}.jpg" for person in range(15) for shot in range(3)],
    ],
)
def test_names_that_look_like_several_photos_of_one_thing(files):
    [line] = suggestions.group_column(named(files))
    assert "--group_column" in line and f"{len(files)} images would belong to 15 groups" in line
    assert suggestions.group_column(named(files, group="known")) == []


@pytest.mark.parametrize(
    "files",
    [
        [f"{number:06d}.jpg" for number in range(60)],
        [f"IMG_{number:04d}.jpg" for number in range(60)],
        [f"a/cat.{number}.jpg" for number in range(60)],
        [f"a/{number}.jpg" for number in range(60)],
        [f"IMG_20240101_{number:06d}.jpg" for number in range(60)],
    ],
)
def test_numbered_names_are_no_groups(files):
    assert suggestions.group_column(named(files)) == []
