"""Splits of the dataset stage where there is little to split."""

from pathlib import Path

import numpy as np
import pytest
from dataset_runs import run, run_table
from pictures import write_noise
from PIL import Image

from spectacles.core.errors import UserError


def write_clips(folder: Path, clips: dict[str, int], frames: int) -> None:
    """folder/CLASS/CLIP-FRAME.png: `clips` different pictures of each class, `frames` noisy copies of each."""
    rng = np.random.default_rng(0)
    for name, count in clips.items():
        (folder / name).mkdir(parents=True)
        for clip in range(count):
            coarse = Image.fromarray(rng.integers(40, 216, (8, 8, 3), dtype=np.uint8))
            picture = np.asarray(coarse.resize((64, 64), Image.Resampling.BICUBIC)).astype(int)
            for frame in range(frames):
                noisy = (picture + rng.integers(-6, 7, picture.shape)).clip(0, 255).astype(np.uint8)
                Image.fromarray(noisy).save(folder / name / f"{clip}-{frame}.png")


def test_classes_of_one_clip_each_cannot_be_split_and_the_message_says_why(tmp_path: Path) -> None:
    write_clips(tmp_path / "photos", {"cats": 1, "dogs": 1}, 8)
    with pytest.raises(UserError) as raised:
        run(tmp_path, image_dir=tmp_path / "photos")
    message = str(raised.value)
    assert "no image is left for the val split" in message
    assert "each class is one cluster of near duplicates ('cats': 8 images, 'dogs': 8 images)" in message
    assert all(flag in message for flag in ("--split_column", "--duplicate_distance 0", "--duplicate_similarity 1"))


def test_an_empty_test_split_is_announced(tmp_path: Path) -> None:
    write_clips(tmp_path / "photos", {"cats": 2, "dogs": 1}, 8)
    report, _ = run(tmp_path, image_dir=tmp_path / "photos")
    assert report.images == {"train": 16, "val": 8, "test": 0}
    line = next(line for line in report.summary if line.startswith("no image is left for the test split"))
    assert "all images are in 3 clusters of near duplicates, the largest of 8" in line
    assert line.endswith("scores will be of validation images")


def test_groups_are_named_where_they_hold_the_images_together(tmp_path: Path) -> None:
    names = write_noise(tmp_path, [f"{number}.png" for number in range(8)])
    rows = [f"{name},{('no', 'yes')[number % 2]},{number % 2}" for number, name in enumerate(names)]
    with pytest.raises(UserError, match=r"near duplicates or of one group .*, or without --group_column"):
        run_table(tmp_path, *rows, header="file,label,person", group_column="person")


def test_few_images_of_many_classes_fill_every_split(tmp_path: Path) -> None:
    names = write_noise(tmp_path, [f"{number}.png" for number in range(80)])
    report, _ = run_table(tmp_path, *[f"{name},person {number // 4}" for number, name in enumerate(names)])
    assert report.images == {"train": 56, "val": 12, "test": 12}
    assert max(report.counts["val"].values()) == max(report.counts["test"].values()) == 1
    assert any(line.startswith("8 classes without a test image ('person") for line in report.summary)
