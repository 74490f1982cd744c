"""Copies of every kind stay in one split; across given splits they are reported and not moved."""

import shutil
import sqlite3
from collections import Counter
from contextlib import closing
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
import torch
from dataset_runs import make_rows, run_table, split_of
from pictures import noise, write_csv, write_noise
from PIL import Image, ImageOps
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images

import train
from spectacles.core.config import TrainConfig
from spectacles.core.errors import UserError
from spectacles.data.schemas import load_index
from spectacles.models import backbones, feature_cache


def test_copies_and_near_copies_stay_in_one_split(tmp_path):
    rows = make_rows(tmp_path, 30)
    for number in range(30):
        shutil.copy(tmp_path / f"{number}.png", tmp_path / f"copy{number}.png")
        picture = noise(number).resize((80, 80))
        picture.save(tmp_path / f"small{number}.jpg", quality=90)
    rows += [f"{kind},{('no', 'yes')[n % 2]}" for n in range(30) for kind in (f"copy{n}.png", f"small{n}.jpg")]
    report, run_dir = run_table(tmp_path, *rows)
    split = split_of(run_dir)
    for number in range(30):
        assert len({split[f"{number}.png"], split[f"copy{number}.png"], split[f"small{number}.jpg"]}) == 1
    assert set(split.values()) == {"train", "val", "test"}
    duplicates = pd.read_csv(run_dir.duplicates)
    assert Counter(duplicates["kind"])["exact"] == 30
    assert not duplicates["crosses_split"].any()
    assert report.metrics["duplicate_pairs"] == len(duplicates)


def test_mirrored_copies_stay_in_one_split(tmp_path):
    rows = make_rows(tmp_path, 40)
    for number in range(40):
        ImageOps.mirror(noise(number)).save(tmp_path / f"mirrored{number}.png")
    report, run_dir = run_table(tmp_path, *rows, *(f"mirrored{n}.png,{('no', 'yes')[n % 2]}" for n in range(40)))
    split = split_of(run_dir)
    assert all(split[f"{number}.png"] == split[f"mirrored{number}.png"] for number in range(40))
    assert Counter(pd.read_csv(run_dir.duplicates)["kind"]) == {"mirrored": 40}
    assert "duplicate pairs: 40 (40 mirrored), 0 of them with different labels" in report.summary


def test_cropped_copies_are_found_by_features(tmp_path):
    rows = []
    for number, place in enumerate(product(range(2), range(0, 384, 128), range(0, 640, 128))):
        which, top, left = place
        tile = Image.fromarray(load_sample_images().images[which][top : top + 128, left : left + 128])
        tile.save(tmp_path / f"{number}.png")
        tile.crop((12, 12, 128, 128)).save(tmp_path / f"cropped{number}.png")
        rows += [f"{name}.png,{('no', 'yes')[number % 2]}" for name in (number, f"cropped{number}")]
    report, run_dir = run_table(
        tmp_path, *rows, no_pretrained=False, image_size=96, engine="torch", device="cpu", duplicate_similarity=0.5,
        duplicate_distance=0,
    )  # fmt: skip
    pairs = pd.read_csv(run_dir.duplicates)
    assert set(pairs["kind"]) == {"similar"} and pairs["similarity"].between(0.5, 1).all()
    own = [f"cropped{a}" == b for a, b in zip(pairs["file_a"], pairs["file_b"], strict=True)]
    assert sum(own) >= 20
    split = split_of(run_dir)
    assert all(split[a] == split[b] for a, b in zip(pairs["file_a"], pairs["file_b"], strict=True))
    assert not any("hash alone" in line for line in report.summary)


def test_duplicates_across_given_splits_are_reported_first_and_not_moved(tmp_path):
    rows = [f"{row},{'ada' if n == 7 else ''}" for n, row in enumerate(make_rows(tmp_path, 40))]
    exam = tmp_path / "exam"
    write_noise(exam, ["new.png", "ada.png"], 900)
    shutil.copy(tmp_path / "3.png", exam / "copy.png")
    noise(4).resize((80, 80)).save(exam / "small.png")
    ImageOps.mirror(noise(5)).save(exam / "turned.png")
    shutil.copy(tmp_path / "8.png", tmp_path / "twin.png")
    tests = ["new.png,", "ada.png,ada", "copy.png,", "small.png,", "turned.png,"]
    test_csv = write_csv(tmp_path / "test.csv", "file,who", *tests)
    report, run_dir = run_table(
        tmp_path, *rows, "twin.png,yes,", "gone.png,no,", header="file,label,who", group_column="who",
        test_csv=test_csv, test_dir=exam,
    )  # fmt: skip
    split = split_of(run_dir)
    assert {name.split(",")[0]: split[name.split(",")[0]] for name in tests} == dict.fromkeys(
        ["new.png", "ada.png", "copy.png", "small.png", "turned.png"], "test"
    )
    pairs = pd.read_csv(run_dir.duplicates, keep_default_na=False)
    assert pairs["crosses_split"].tolist() == [True, True, True, False]
    assert list(zip(pairs["kind"], pairs["file_a"], pairs["file_b"], strict=True))[:3] == [
        ("exact", "3.png", "copy.png"), ("near", "4.png", "small.png"), ("mirrored", "5.png", "turned.png"),
    ]  # fmt: skip
    issues = pd.read_csv(run_dir.issues)
    assert issues["kind"].tolist() == [
        *["duplicate across splits"] * 3, *["group across splits"] * 2, "rejected", "duplicate with another label",
    ]  # fmt: skip
    assert issues.iloc[0].tolist() == ["3.png", "duplicate across splits", "exact duplicate of copy.png (test)"]
    lines = [line for line in report.summary if "given splits" in line]
    assert "3 duplicate pairs across the given splits (1 exact, 1 near, 1 mirrored)" in lines[0]
    assert "take the 3 files" in lines[0] and "'duplicate across splits'" in lines[0]
    assert lines[1].startswith("2 images of 1 group") and report.metrics["crossing_pairs"] == 3


def test_duplicates_in_one_split_are_not_reported_as_crossing(tmp_path):
    rows = make_rows(tmp_path)
    shutil.copy(tmp_path / "0.png", tmp_path / "copy.png")
    report, _ = run_table(tmp_path, *rows, "copy.png,no")
    assert report.metrics["crossing_pairs"] == 0
    assert not any("given splits" in line for line in report.summary)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"no_pretrained": True}, "with --no_pretrained there are no features"),
        ({"no_pretrained": False, "duplicate_similarity": 1.0}, "--duplicate_similarity 1"),
        ({"no_pretrained": False, "backbone": "simple_cnn"}, "simple_cnn has no pretrained weights"),
    ],
)
def test_where_only_hashes_are_compared_one_line_says_so(tmp_path, flags, reason):
    report, _ = run_table(tmp_path, *make_rows(tmp_path), **flags)
    (line,) = [line for line in report.summary if "perceptual hash alone" in line]
    assert reason in line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"backbone": "no_such_net"}, "no_such_net is not a model"),
        ({"weights": Path("gone.safetensors")}, "--weights gone.safetensors does not exist"),
    ],
)
def test_an_impossible_backbone_is_rejected_before_files_are_read(tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        run_table(tmp_path, "gone.png,no", no_pretrained=False, **flags)


def test_a_backbone_that_does_not_take_the_size_is_rejected(tmp_path):
    torch.manual_seed(0)
    save_file(backbones.build("test_vit", 3, None).state_dict(), tmp_path / "w.safetensors")
    flags = {"backbone": "test_vit", "weights": tmp_path / "w.safetensors", "image_size": 100}
    with pytest.raises(UserError, match=r"test_vit .* leave --image_size 100 out"):
        run_table(tmp_path, *make_rows(tmp_path), no_pretrained=False, **flags)


def test_training_finds_the_features_in_the_cache(tmp_path):
    torch.manual_seed(0)
    save_file(backbones.build("simple_cnn", 3, 32).state_dict(), tmp_path / "w.safetensors")
    shared = {
        "backbone": "simple_cnn", "weights": tmp_path / "w.safetensors", "image_size": 32, "device": "cpu",
        "engine": "torch", "output_dir": tmp_path / "outputs",
    }  # fmt: skip
    _, run_dir = run_table(tmp_path, *make_rows(tmp_path, 60), no_pretrained=False, **shared)
    with closing(sqlite3.connect(run_dir.cache / feature_cache.FILE)) as database:
        before = database.execute("SELECT * FROM features").fetchall()
    assert len(before) == 60 * 3  # three blocks each
    train.run(TrainConfig(fine_tune="always", epochs=2, batch_size=8, **shared), run_dir.for_stage("train"))
    with closing(sqlite3.connect(run_dir.cache / feature_cache.FILE)) as database:
        assert database.execute("SELECT * FROM features").fetchall() == before


def test_a_photo_of_megapixels_and_its_small_copy_are_near_duplicates(tmp_path):
    rows = make_rows(tmp_path)
    noise(77, 2400, 1600).save(tmp_path / "large.jpg", quality=90)
    noise(77, 300, 200).save(tmp_path / "small.png")
    _, run_dir = run_table(tmp_path, *rows, "large.jpg,no", "small.png,no")
    index = load_index(run_dir).set_index("file")
    assert index.loc["large.jpg", ["width", "height"]].tolist() == [2400, 1600]
    assert index.loc["large.jpg", "brightness"] == pytest.approx(index.loc["small.png", "brightness"], abs=2)
    pair = pd.read_csv(run_dir.duplicates).iloc[0]
    assert {pair["file_a"], pair["file_b"]} == {"large.jpg", "small.png"} and pair["kind"] == "near"


def test_duplicates_with_different_labels_are_reported(tmp_path):
    rows = make_rows(tmp_path)
    shutil.copy(tmp_path / "0.png", tmp_path / "copy.png")
    _, run_dir = run_table(tmp_path, *rows, "copy.png,yes")
    pair = pd.read_csv(run_dir.duplicates).iloc[0]
    assert (pair["file_a"], pair["file_b"], pair["kind"], pair["conflict"]) == ("0.png", "copy.png", "exact", True)
