"""What explore finds in small data sets whose faults are known, and that it stays quiet where there are none."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from made_up_run import data_of
from PIL import Image, ImageEnhance, ImageFilter
from safetensors.torch import save_file

import dataset
import explore
from spectacles.core.config import DatasetConfig, ExploreConfig
from spectacles.core.errors import UserError
from spectacles.core.results import ExploreReport
from spectacles.core.run_dir import RunDir, create_run
from spectacles.core.value_ranges import PER_FILE
from spectacles.data.schemas import DUPLICATE_PAIRS, INDEX, load_index, load_split
from spectacles.exploration import contact_sheets, statistics
from spectacles.exploration.outliers import find_outliers
from spectacles.models import backbones
from spectacles.report import thumbnails
from spectacles.sample_data import generate

CHARTS = [
    "class_distribution.png", "class_distribution.csv", "sizes.png", "aspect_ratios.png", "brightness.png",
    "contrast.png", "sharpness.png", "modes.csv", "outliers.csv", "conflicting_duplicates.csv", "shortcuts.csv",
    "warnings.txt", "suggestions.txt",
]  # fmt: skip
GALLERIES = ["mean_images.png", "duplicates.png", "outliers.png"]
SCRATCH = {"no_pretrained": True}


def loader(pool: ThreadPoolExecutor) -> contact_sheets.Load:
    return partial(contact_sheets.thumbnails, pool=pool, ranges=PER_FILE)


def photo(seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """Coarse and fine noise in colour: its hash is its own, and it has edges to lose."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    fine = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    return Image.blend(coarse, fine, 0.3)


def explored(
    tmp_path: Path, rows: list[tuple[str, str, Image.Image | bytes]], shared: dict | None = None, **config
) -> tuple[ExploreReport, Path]:
    """Writes (file, label, content) below images/, runs both stages, and returns the report and the explore folder.

    `shared` are settings of both stages, `config` of explore's.
    """
    images, shared = tmp_path / "images", SCRATCH if shared is None else shared
    for file, _, content in rows:
        path = images / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content.save(path, quality=95)
    labelled = [(file, label) for file, label, _ in rows if label]
    unlabelled = [file for file, label, _ in rows if not label]
    pd.DataFrame(labelled, columns=["file", "label"]).to_csv(tmp_path / "train.csv", index=False)
    test_csv = tmp_path / "test.csv" if unlabelled else None
    if test_csv:
        pd.DataFrame({"file": unlabelled}).to_csv(test_csv, index=False)
    run = create_run(tmp_path / "outputs", "r")
    given = DatasetConfig(train_csv=tmp_path / "train.csv", image_dir=images, test_csv=test_csv, **shared)
    run.save_result("dataset", dataset.run(given, run))
    for stale in ("contact_07_stale.png", "feature_outliers.png", "shortcuts.png", "baseline.json"):
        (run.folder("explore") / stale).touch()
    return explored_again(run, **shared, **config), run.folder("explore")


def explored_again(run: RunDir, **config) -> ExploreReport:
    report = explore.run(ExploreConfig(**config), run)
    run.save_result("explore", report)
    assert run.load_result("explore", ExploreReport) == report
    return report


def plain(count: int, label: str, first: int = 0) -> list[tuple[str, str, Image.Image]]:
    return [(f"{first + i}.jpg", label, photo(first + i)) for i in range(count)]


def mentions(warnings: list[str], *words: str) -> bool:
    return any(all(word in warning for word in words) for warning in warnings)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """27 ordinary photos of two classes, 6 faults, a conflicting duplicate and two unlabelled test images."""
    rows = [*plain(18, "cat"), *plain(9, "dog", first=20)]
    rows += [
        ("dark.jpg", "cat", ImageEnhance.Brightness(photo(40)).enhance(0.06)),
        ("bright.jpg", "cat", Image.blend(photo(41), Image.new("RGB", (48, 40), "white"), 0.95)),
        ("flat.jpg", "cat", Image.blend(photo(42), Image.new("RGB", (48, 40), (120, 120, 120)), 0.93)),
        ("blurred.jpg", "cat", photo(43).filter(ImageFilter.GaussianBlur(4))),
        ("wide.jpg", "cat", photo(44, (160, 30))),
        ("tiny.jpg", "cat", photo(45, (8, 8))),
        ("broken.jpg", "dog", b"no picture"),
        ("again.jpg", "dog", photo(0)),
        ("test1.jpg", "", photo(50)),
        ("test2.jpg", "", photo(51)),
    ]
    return explored(tmp_path_factory.mktemp("faulty"), rows, gallery_size=6)


@pytest.fixture(scope="module")
def uniform(tmp_path_factory):
    return explored(tmp_path_factory.mktemp("uniform"), [*plain(20, "a"), *plain(20, "b", first=20)], gallery_size=4)


def test_everything_is_written_and_nothing_is_left_over(faulty):
    report, folder = faulty
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*CHARTS, *GALLERIES, "contact_01_cat.png", "contact_02_dog.png", "result.json"]
    )
    for name in report.artifacts:
        assert (folder.parent / name).is_file()
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            assert min(image.size) > 100


def test_planted_faults_are_found_and_named(faulty):
    _, folder = faulty
    outliers = pd.read_csv(folder / "outliers.csv")
    found = outliers.groupby("what")["file"].agg(list).to_dict()
    assert found["dark"] == ["dark.jpg"]
    assert found["bright"] == ["bright.jpg"]
    assert found["low contrast"] == ["flat.jpg"]
    assert found["blurred"] == ["blurred.jpg"]
    assert found["odd aspect ratio"] == ["wide.jpg"]
    assert found["tiny"] == ["tiny.jpg"]
    assert len(outliers) == 6


def test_tables_add_up(faulty):
    _, folder = faulty
    classes = pd.read_csv(folder / "class_distribution.csv", keep_default_na=False)
    assert classes["class"].tolist() == ["cat", "dog", ""]
    assert classes["images"].tolist() == [24, 10, 2]
    assert classes["share"].sum() == pytest.approx(1, abs=1e-3)
    modes = pd.read_csv(folder / "modes.csv", keep_default_na=False)
    assert set(modes["format"]) == {"JPEG"}
    assert modes.groupby("class")["images"].sum().to_dict() == {"": 2, "cat": 24, "dog": 10}
    conflicts = pd.read_csv(folder / "conflicting_duplicates.csv")
    assert conflicts[["label_a", "label_b"]].to_numpy().tolist() == [["cat", "dog"]]


def test_report_counts_warns_and_suggests(faulty):
    report, folder = faulty
    assert report.metrics["outliers"] == 6
    assert report.metrics["conflicting_duplicates"] == 1
    assert (report.metrics["median_width"], report.metrics["median_height"]) == (48, 40)
    assert mentions(report.warnings, "1 of 37 rows cannot be used")
    assert mentions(report.warnings, "1 pair of duplicates carries different labels", "conflicting_duplicates.csv")
    assert mentions(report.warnings, "class 'dog' has only", "training images")
    assert mentions(report.warnings, "no labelled test image")
    assert mentions(report.suggestions, "look at 6 outliers", "explore/outliers.png")
    assert mentions(report.suggestions, "collect images of class 'dog'")
    assert (folder / "warnings.txt").read_text().splitlines() == report.warnings
    assert (folder / "suggestions.txt").read_text().splitlines() == report.suggestions
    lines = [f"warning: {line}" for line in report.warnings] + [f"suggestion: {line}" for line in report.suggestions]
    assert report.summary[-len(lines) :] == lines
    assert any(f"{len(report.warnings)} warnings, {len(report.suggestions)} suggestions" in x for x in report.summary)


def test_a_uniform_data_set_without_faults_stays_quiet(uniform):
    report, folder = uniform
    for name in ("outliers", "conflicting_duplicates", "shortcuts"):
        assert len(pd.read_csv(folder / f"{name}.csv")) == 0
    assert report.metrics["duplicate_pairs"] == 0
    assert not mentions(report.suggestions, "outlier")
    assert not mentions(report.warnings, "may learn")
    assert not mentions(report.warnings, "carry over")


def test_without_pretrained_weights_it_says_what_is_left_out(uniform):
    report, folder = uniform
    assert mentions(report.summary, "the baseline was not measured", "--no_pretrained")
    assert "baseline_grouped_split" not in report.metrics
    assert not (folder / "baseline.json").exists()
    assert not (folder / "feature_outliers.png").exists()


def test_the_seed_picks_the_contact_sheet(uniform, tmp_path):
    used = load_index(RunDir(uniform[1].parent))
    pictures = []
    with ThreadPoolExecutor(2) as pool:
        for seed in (1, 1, 2):
            [first, _], _ = contact_sheets.draw_classes(used, 2, seed, loader(pool), tmp_path)
            pictures.append(first.read_bytes())
    assert pictures[0] == pictures[1] != pictures[2]


def test_many_classes_with_awkward_names(tmp_path, monkeypatch):
    monkeypatch.setattr(contact_sheets, "MAX_CONTACT_SHEETS", 4)
    names = ["cats/dogs", "größe ü", "日本語", "日本", "$x$ _", "..", *(f"class {i}" for i in range(14))]
    rows = [(f"{i}.jpg", names[i % len(names)], photo(i, (24, 24))) for i in range(4 * len(names))]
    report, folder = explored(tmp_path, rows, gallery_size=2)
    assert len(list(folder.glob("contact_*.png"))) == 4
    assert any("the 4 largest of 20 classes" in line for line in report.summary)
    assert mentions(report.warnings, "20 classes have fewer than 20 training images")
    assert set(pd.read_csv(folder / "class_distribution.csv")["class"]) == set(names)


def test_pairs_that_leak_come_first_and_say_how_they_were_found(tmp_path, monkeypatch):
    rows = [
        ("near", 3, np.nan, "train", "train", "a", "b"),
        ("exact", 0, np.nan, "train", "train", "a", "a"),
        ("mirrored", 2, np.nan, "train", "test", "a", "a"),
        ("similar", 9, 0.971, "val", "train", "a", "b"),
    ]
    table = pd.DataFrame(rows, columns=["kind", "distance", "similarity", "split_a", "split_b", "label_a", "label_b"])
    photo(0).save(tmp_path / "p.png")
    names = {f"{column}_{side}": value for side in "ab" for column, value in
             (("file", "p.png"), ("path", str(tmp_path / "p.png")))}  # fmt: skip
    table = table.assign(**names, conflict=table["label_a"] != table["label_b"])
    table = table.assign(crosses_split=table["split_a"] != table["split_b"])
    run = RunDir(tmp_path)
    DUPLICATE_PAIRS.write(run.duplicates, table)
    shown: list[str] = []
    monkeypatch.setattr(contact_sheets, "image_grid", lambda pictures, captions, path, **_: shown.extend(captions))
    with ThreadPoolExecutor(1) as pool:
        contact_sheets.draw_pairs(explore.load_pairs(run), 24, loader(pool), tmp_path / "duplicates.png")
    said = [caption.splitlines()[:2] for caption in shown[::2]]
    assert said == [
        ["1a similar (0.971)", "labels differ, across splits"],
        ["2a mirrored (2 bits)", "across splits"],
        ["3a near (3 bits)", "labels differ"],
        ["4a exact", "p.png"],
    ]


def test_gallery_size_is_checked(tmp_path):
    with pytest.raises(UserError, match="--gallery_size"):
        explore.run(ExploreConfig(gallery_size=0), RunDir(tmp_path))


def test_recall_and_precision_on_the_sample_data(tmp_path):
    images = 120
    sample = generate.draw(tmp_path / "sample", images=images, seed=3)
    run = RunDir(tmp_path)
    dataset.run(DatasetConfig(train_csv=sample / "train.csv", image_dir=sample / "dataset", **SCRATCH), run)
    index = INDEX.read(run.index)
    outliers = find_outliers(index[index["status"] != "rejected"])
    planted = pd.read_csv(sample / "planted.csv")
    for kind, what in (("dark", "dark"), ("blurred", "blurred"), ("odd_aspect", "odd aspect ratio")):
        expected = set(planted.loc[planted["kind"] == kind, "file"])
        found = set(outliers.loc[outliers["what"] == what, "file"])
        assert expected
        assert len(found & expected) >= 0.8 * len(expected)
        assert len(found - expected) <= 1
    assert outliers["file"].nunique() <= 0.08 * images


def index_of(**columns) -> pd.DataFrame:
    """A table like the dataset stage's, for checks that need no files."""
    size = len(next(iter(columns.values())))
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "label": np.tile(["a", "b"], size)[:size],
            "split": "train",
            "format": "JPEG",
            "width": 400,
            "height": 300,
            "bytes": rng.normal(20000, 2000, size).round(),
            "brightness": rng.normal(120, 20, size),
            "contrast": rng.normal(50, 8, size),
            "sharpness": rng.normal(500, 80, size),
        }
    )
    return frame.assign(**columns)


def test_shift_between_splits():
    split = np.repeat(["train", "val", "test"], [200, 100, 100])
    same = index_of(split=split)
    assert statistics.check_shift(same) == []
    darker = same.assign(brightness=same["brightness"] - 40 * (split == "test"))
    [warning] = statistics.check_shift(darker)
    assert warning.startswith("test images are darker than training images")
    assert "--color_jitter" in warning


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ({"a": 30, "b": 7}, ["class 'b' has only 7 training images"]),
        ({"a": 30, "b": 0}, ["class 'b' has only 0 training images"]),
        ({"a": 30, "b": 1}, ["class 'b' has only 1 training image"]),
        ({"a": 30, "b": 4, "c": 3}, ["2 classes have fewer than 20 training images, 'c' only 3"]),
    ],
)
def test_classes_with_few_images(train, words):
    enough = dict.fromkeys(train, 100)
    assert mentions(statistics.check_classes(data_of({"train": train, "val": enough, "test": enough})), *words)


def test_enough_images_need_no_warning():
    enough = {"a": 400, "b": 90}
    assert statistics.check_classes(data_of({"train": enough, "val": enough, "test": enough})) == []


def test_scoring_data_that_is_missing():
    counts = {"train": {"a": 100, "b": 100}, "val": {"a": 30, "b": 0}, "test": {"a": 0, "b": 0}}
    warnings = statistics.check_classes(data_of(counts))
    assert mentions(warnings, "no validation image of class 'b'", "--val_fraction")
    assert mentions(warnings, "only 30 validation images", "uncertain by 11 points")
    assert mentions(warnings, "no labelled test image", "--test_fraction")
    for already_wanted in (0.2, None):
        assert mentions(statistics.check_classes(data_of(counts), already_wanted), "no labelled test image")
        assert not mentions(statistics.check_classes(data_of(counts), already_wanted), "--test_fraction")


def test_a_wide_spread_makes_no_outlier():
    rng = np.random.default_rng(1)
    size = 2000
    index = index_of(
        width=rng.choice([3000, 4000, 1080, 640], size),
        height=rng.choice([3000, 4000, 1920, 480], size),
        brightness=rng.uniform(20, 235, size),
        contrast=rng.uniform(15, 90, size),
        sharpness=np.exp(rng.normal(6, 1, size)),
    ).assign(file="x.jpg", path="x.jpg")
    assert len(find_outliers(index)) < 0.01 * size


@pytest.fixture(scope="module")
def featured(tmp_path_factory):
    """30 JPEGs of class a, 30 PNGs of class b, brighter copies of those, 3 unlabelled; features of random filters."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("featured")
    save_file(backbones.build("simple_cnn", 3, 32).state_dict(), folder / "net.safetensors")
    rows = [*plain(30, "a"), *((f"{i}.png", "b", photo(100 + i)) for i in range(30))]
    rows += [(f"again{i}.png", "b", ImageEnhance.Brightness(photo(100 + i)).enhance(1.04)) for i in range(30)]
    rows += [(f"test{i}.jpg", "", photo(200 + i)) for i in range(3)]
    shared = {"backbone": "simple_cnn", "weights": folder / "net.safetensors", "image_size": 32, "device": "cpu"}
    return explored(folder, rows, shared, gallery_size=4), shared


def test_the_baseline_is_measured_on_training_and_validation_data(featured):
    (report, folder), _ = featured
    measured = json.loads((folder / "baseline.json").read_text())
    assert measured["images"] == sum(report_counts(folder, "train", "val"))
    assert measured["groups"] < measured["images"]
    low, high = measured["grouped_split"]["interval"]
    assert low <= measured["grouped_split"]["accuracy"] <= high
    assert set(measured["nearest_neighbour"]) == {"grouped_split", "random_split"}
    assert report.metrics["baseline_grouped_split"] == measured["grouped_split"]["accuracy"]
    assert mentions(report.summary, "baseline before fine-tuning")
    assert mentions(report.summary, "with a random split")
    assert "explore/baseline.json" in report.artifacts


def report_counts(folder: Path, *splits: str) -> list[int]:
    return [len(load_split(RunDir(folder.parent), split)) for split in splits]


def test_a_shortcut_is_warned_of_and_shown(featured):
    (report, folder), _ = featured
    assert mentions(report.warnings, "class", "may learn")
    assert len(pd.read_csv(folder / "shortcuts.csv")) == 1
    assert report.artifacts.count("explore/shortcuts.png") == 1
    assert report.metrics["shortcut_balanced_accuracy"] > 0.7


def test_without_galleries_no_photo_is_opened_or_shown(featured, tmp_path, monkeypatch):
    (_, folder), shared = featured
    assert [path.name for path in folder.glob("contact_*.png")]

    def opened(*_: object) -> None:
        raise AssertionError("a photo was opened")

    monkeypatch.setattr(thumbnails, "decode", opened)
    run = RunDir(folder.parent)
    report = explored_again(run, **shared, galleries=False)
    found = {path.name for path in folder.iterdir()}
    assert found == {*CHARTS, "baseline.json", "result.json"}
    assert not mentions([*report.warnings, *report.suggestions], ".png")
    assert {Path(name).name for name in report.artifacts} <= found
