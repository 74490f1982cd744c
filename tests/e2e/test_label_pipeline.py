"""The whole pipeline on photos that have any number of labels, from one command to the submission."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_line import SMALL, run_script
from PIL import Image

from spectacles.core.run_dir import STAGES, RunDir, find_run

COLOURS = {"red": (200, 0, 0), "green": (0, 200, 0)}
IMAGES, TEST = 48, 8


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise with stripes of up to two colours; the labels as tags, the test images without."""
    folder = tmp_path_factory.mktemp("stripes")
    rng, rows = np.random.default_rng(0), []
    for number in range(IMAGES + TEST):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        picture, has = coarse.resize((48, 48)), rng.random(2) < 0.5
        for place, colour in enumerate(COLOURS.values()):
            if has[place]:
                picture.paste(Image.new("RGB", (48, 16), colour), (0, 24 * place))
        picture.save(folder / f"{number}.png")
        tags = "|".join(name for name, own in zip(COLOURS, has, strict=True) if own) or "none"
        rows.append({"id": number, "file": f"{number}.png", "tags": tags})
    table = pd.DataFrame(rows)
    table[:IMAGES].to_csv(folder / "train.csv", index=False)
    table[IMAGES:].drop(columns="tags").to_csv(folder / "test.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    outputs = tmp_path_factory.mktemp("outputs")
    flags = ("--train_csv", data / "train.csv", "--test_csv", data / "test.csv", "--label_column", "tags",
             "--multi_label", "--test_fraction", 0.2, "--epochs", 2, "--fine_tuned_folds", 2)  # fmt: skip
    done = run_script("run_pipeline.py", *flags, *SMALL, "--output_dir", outputs)
    assert done.returncode == 0, done.stdout + done.stderr
    return find_run(outputs, "latest")


def test_every_stage_finishes(finished: RunDir) -> None:
    assert [stage for stage in STAGES if finished.done(stage)] == list(STAGES)
    assert finished.report.is_file() and finished.model_card.is_file()


def test_the_scores_are_of_labels(finished: RunDir) -> None:
    scores = json.loads((finished.path / "evaluate" / "metrics.json").read_text(encoding="utf-8"))["test"]
    assert {"micro_f1", "macro_f1", "mean_average_precision", "label_accuracy"} <= set(scores)
    table = pd.read_csv(finished.predictions, keep_default_na=False)
    test = table[table["split"] == "test"]
    assert scores["accuracy"] == pytest.approx((test["label"] == test["predicted"]).mean())


def test_the_submission_has_tags_as_they_were_given(finished: RunDir, data: Path) -> None:
    submission = pd.read_csv(finished.path / "predict" / "submission.csv", keep_default_na=False)
    assert submission.columns.tolist() == ["id", "tags"]
    assert submission["id"].tolist() == pd.read_csv(data / "test.csv")["id"].tolist()
    assert set(submission["tags"]) <= {"none", "red", "green", "green|red"}


def test_a_single_photo_is_answered_with_its_labels(finished: RunDir, data: Path) -> None:
    done = run_script("predict.py", data / "3.png", "--bundle", finished.bundle, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{data / '3.png'}: ")
