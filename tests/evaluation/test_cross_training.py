"""Fine-tuned folds, with a small script in train.py's place: what is held out, reused, and left by a failure."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pictures import write_rows

from spectacles.core.errors import UserError
from spectacles.core.results import DatasetReport, RowAccounting
from spectacles.core.run_dir import RunDir
from spectacles.data import label_sets
from spectacles.evaluation import cross_training

CPU = "cpu"
SCRIPT = """
import json, os, shutil, sys
from pathlib import Path
folder = Path(sys.argv[sys.argv.index("--output_dir") + 1]) / sys.argv[sys.argv.index("--run_name") + 1]
calls = Path({calls!r})
calls.write_text((calls.read_text() if calls.is_file() else "") + folder.name + "\\n")
{then}
shutil.copytree({bundle!r}, folder / "train" / "bundle")
(folder / "train" / "result.json").write_text("{{}}")
"""


class Trainer:
    """A script in train.py's place; `then` is the code that it runs first."""

    def __init__(self, folder: Path, bundle: Path, patch: pytest.MonkeyPatch) -> None:
        self.calls, self.bundle, self.script = folder / "calls.txt", bundle, folder / "stub.py"
        patch.setattr(cross_training, "TRAIN", self.script)
        self.then("")

    def then(self, code: str) -> None:
        self.script.write_text(SCRIPT.format(calls=str(self.calls), bundle=str(self.bundle), then=code))

    @property
    def called(self) -> list[str]:
        return self.calls.read_text().split() if self.calls.is_file() else []


@pytest.fixture
def trainer(tmp_path: Path, make_bundle, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    return Trainer(tmp_path, make_bundle("0", "1"), monkeypatch)


@pytest.fixture
def rows(tmp_path: Path) -> pd.DataFrame:
    """Twelve images, two a cluster."""
    table = write_rows(tmp_path / "photos", 12)
    names = [Path(path).name for path in table["path"]]
    clusters = np.arange(12) // 2
    return table.assign(file=names, label=[str(c % 2) for c in clusters], cluster=clusters, split="train")


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "outputs" / "run")
    accounting = RowAccounting(rows=12, used=12, converted=0, rejected=0, conversions={}, rejections={})
    counts = {"train": {"0": 6, "1": 6}, "val": {"0": 0, "1": 0}, "test": {"0": 0, "1": 0}}
    report = DatasetReport(summary=[], metrics={}, artifacts=[], classes=["0", "1"], multi_label=False,
                           row_accounting=accounting, counts=counts, images={"train": 12, "val": 0, "test": 0},
                           unlabelled=3, fingerprint="f", label_column="label", id_column="")  # fmt: skip
    run.save_result("dataset", report)
    run.save_config("train", {"epochs": 2, "device": "cpu", "run_name": "run", "output_dir": "elsewhere"})
    return run


def predict_held_out(rows: pd.DataFrame, run_dir: RunDir, folds: int = 3) -> np.ndarray:
    labels = rows["label"].astype(int).to_numpy()
    return cross_training.out_of_fold_probabilities(rows, labels, run_dir, folds, 0, CPU)


def folders(run_dir: RunDir) -> list[Path]:
    return sorted((run_dir.path / "error_analysis" / "folds").glob("fold-*"))


def test_every_image_is_validation_data_once_and_clusters_stay_whole(
    trainer: Trainer, rows: pd.DataFrame, run_dir: RunDir
) -> None:
    probabilities = predict_held_out(rows, run_dir)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    held_out = []
    for folder in folders(run_dir):
        splits = pd.read_csv(folder / "dataset" / "splits.csv", dtype=str)
        assert set(splits["split"]) == {"train", "val"}
        assert (splits.groupby("cluster")["split"].nunique() == 1).all()
        held_out += splits.loc[splits["split"] == "val", "file"].tolist()
        counts = json.loads((folder / "dataset" / "result.json").read_text())["counts"]
        assert sum(counts["val"].values()) == 4 and sum(counts["train"].values()) == 8
        settings = RunDir(folder).load_config()
        assert settings["epochs"] == 2 and not {"run_name", "output_dir"} & set(settings)
    assert sorted(held_out) == sorted(rows["file"])
    assert len(trainer.called) == 3


def test_finished_folds_are_not_trained_again_and_a_failed_one_is(
    trainer: Trainer, rows: pd.DataFrame, run_dir: RunDir
) -> None:
    trainer.then("if folder.name.startswith('fold-2'): sys.exit('it broke')")
    with pytest.raises(UserError, match=r"fold-2-of-3-\w+ failed \(it broke\)"):
        predict_held_out(rows, run_dir)
    assert [name[:6] for name in trainer.called] == ["fold-1", "fold-2"]
    trainer.then("")
    predict_held_out(rows, run_dir)
    assert [name[:6] for name in trainer.called] == ["fold-1", "fold-2", "fold-2", "fold-3"]
    first = predict_held_out(rows, run_dir)
    assert len(trainer.called) == 4
    np.testing.assert_array_equal(first, predict_held_out(rows, run_dir))


def test_ctrl_c_in_a_training_stops_and_leaves_no_half_result(
    trainer: Trainer, rows: pd.DataFrame, run_dir: RunDir
) -> None:
    trainer.then("sys.exit(130)")
    with pytest.raises(KeyboardInterrupt):
        predict_held_out(rows, run_dir)
    assert not [path for folder in folders(run_dir) for path in folder.rglob("probabilities*")]


def test_other_labels_settings_or_folds_are_other_trainings(
    trainer: Trainer, rows: pd.DataFrame, run_dir: RunDir
) -> None:
    predict_held_out(rows, run_dir)
    old = folders(run_dir)
    changed = rows.assign(label=rows["label"].where(rows["file"] != "0.png", "1"))
    predict_held_out(changed, run_dir)
    assert len(trainer.called) == 6
    assert len(folders(run_dir)) == 3 and not set(folders(run_dir)) & set(old)
    run_dir.save_config("train", {"epochs": 3, "device": "cpu"})
    predict_held_out(changed, run_dir)
    assert len(trainer.called) == 9


def test_nothing_is_sent_to_the_tracking_server(
    trainer: Trainer, rows: pd.DataFrame, run_dir: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://example.invalid")
    monkeypatch.setenv("SPECTACLES_EPOCHS", "99")
    trainer.then("assert not [key for key in os.environ if key.startswith(('MLFLOW', 'SPECTACLES'))]")
    predict_held_out(rows, run_dir, folds=2)


def test_features_are_shared_with_the_run(trainer: Trainer, rows: pd.DataFrame, run_dir: RunDir) -> None:
    run_dir.cache.mkdir()
    (run_dir.cache / "known").write_text("")
    predict_held_out(rows, run_dir, folds=2)
    assert (run_dir.path / "error_analysis" / "folds" / "cache" / "known").is_file()
    shutil.rmtree(run_dir.path)
    assert (run_dir.cache / "known").is_file()


def test_an_image_that_has_become_unreadable_has_no_probabilities(
    trainer: Trainer, rows: pd.DataFrame, run_dir: RunDir
) -> None:
    Path(rows["path"][5]).write_bytes(b"")
    probabilities = predict_held_out(rows, run_dir, folds=2)
    assert np.isnan(probabilities[5]).all()
    assert np.isfinite(np.delete(probabilities, 5, axis=0)).all()


def test_images_with_several_labels(
    rows: pd.DataFrame, run_dir: RunDir, tmp_path: Path, make_bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    Trainer(tmp_path, make_bundle("0", "1", multi_label=True, label_thresholds=(0.5, 0.5)), monkeypatch)
    data = run_dir.load_result("dataset", DatasetReport)
    run_dir.save_result("dataset", replace(data, multi_label=True))
    rows = rows.assign(label=["0|1", "none", "0"] * 4)
    labels = label_sets.encode(rows["label"], data.classes, True)
    probabilities = cross_training.out_of_fold_probabilities(rows, labels, run_dir, 3, 0, CPU)
    assert probabilities.shape == (12, 2) and np.isfinite(probabilities).all()
    assert not np.allclose(probabilities.sum(axis=1), 1)
    for folder in folders(run_dir):
        report = RunDir(folder).load_result("dataset", DatasetReport)
        assert report.multi_label
        assert report.images["train"] == 8 and report.images["val"] == 4
        assert report.counts["train"]["0"] + report.counts["val"]["0"] == 8
        assert report.counts["train"]["1"] + report.counts["val"]["1"] == 4
