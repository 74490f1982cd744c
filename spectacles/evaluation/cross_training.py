"""Probabilities from fine-tuned networks that have not seen the image: one training per fold, each a separate run."""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from spectacles.core.config import TrainConfig
from spectacles.core.errors import UserError
from spectacles.core.fileio import atomic_path
from spectacles.core.progress import progress
from spectacles.core.results import DatasetReport, TrainReport
from spectacles.core.run_dir import RunDir
from spectacles.core.wording import duration
from spectacles.data import label_sets, schemas
from spectacles.data.splits import SPLITS
from spectacles.data.stratification import stratified_folds
from spectacles.inference.predictor import Predictor

log = logging.getLogger("spectacles")

TRAIN = Path(__file__).resolve().parents[2] / "train.py"
ELSEWHERE = ("output_dir", "run_name", "num_workers", "resume", "teacher", "unlabelled")
"""Settings that the weights do not depend on, and a teacher, which has seen the labels of the photos that a fold holds
out."""


def out_of_fold_probabilities(
    rows: pd.DataFrame, labels: np.ndarray, run_dir: RunDir, folds: int, seed: int, device: str
) -> np.ndarray:
    """Labelled rows as in splits.csv (N) and their class indices (N,), or labels (N, K) -> (N, K) float64.

    For every fold train.py trains on the others, with the fold as validation split and the run's settings,
    in error_analysis/folds; clusters stay whole. A finished fold is not trained again, and an interrupted training is
    resumed. Raises UserError where a training fails.
    """
    data, settings = run_dir.load_result("dataset", DatasetReport), _settings(run_dir)
    fold = stratified_folds(labels, rows["cluster"].to_numpy(dtype=np.int64), folds, seed)
    _announce(run_dir, folds, len(rows))
    home = run_dir.folder("error_analysis") / "folds"
    names = [f"fold-{number + 1}-of-{folds}-{_key(rows, fold == number, settings)}" for number in range(folds)]
    _prepare(home, names, run_dir.cache)
    probabilities = np.full((len(rows), len(data.classes)), np.nan)
    for number, name in enumerate(names):
        held_out = np.flatnonzero(fold == number)
        if len(held_out):
            part = RunDir(home / name)
            table = rows.assign(split=np.where(fold == number, "val", "train"))
            probabilities[held_out] = _fold(part, table, data, settings, device)
    return probabilities


def _fold(part: RunDir, table: pd.DataFrame, data: DatasetReport, settings: dict[str, Any], device: str) -> np.ndarray:
    """(M, K) of the fold's rows, in their order; read where they are already known."""
    kept = part.path / "probabilities.npy"
    if kept.is_file():
        return _read(kept)
    started = time.monotonic()
    if not part.done("train"):
        _begin(part, table, data, settings)
        _train(part)
    held_out = table[table["split"] == "val"]
    predictor = Predictor(part.bundle, device, int(settings.get("batch_size", 32)), images=len(held_out))
    outcomes = progress(predictor.predict(map(Path, held_out["path"])), "predicting the fold", len(held_out))
    missing = (np.nan,) * len(data.classes)
    probabilities = np.array([outcome.probabilities or missing for outcome in outcomes], dtype=np.float64)
    with atomic_path(kept) as temporary:
        np.save(temporary, probabilities)
    for weights in (part.bundle, part.output_dir / "mlartifacts"):  # only the probabilities are needed
        shutil.rmtree(weights, ignore_errors=True)
    log.info("  %s: %s", part.name, duration(time.monotonic() - started))
    return probabilities


def _read(kept: Path) -> np.ndarray:
    try:
        return np.asarray(np.load(kept, allow_pickle=False))
    except (ValueError, EOFError) as error:
        raise UserError(
            f"{kept} cannot be read ({error}): remove the folder {kept.parent}, and the fold is trained again."
        ) from error


def _begin(part: RunDir, table: pd.DataFrame, data: DatasetReport, settings: dict[str, Any]) -> None:
    """A run folder whose dataset stage is done: the fold is its validation split, and there is no test split."""
    counts, images = label_sets.count_splits(table, SPLITS, data.classes, data.multi_label)
    fingerprint = hashlib.sha256(f"{data.fingerprint} {part.name}".encode()).hexdigest()
    schemas.SPLIT_ROWS.write(part.splits, table)
    part.write_config(settings)
    part.save_result(
        "dataset", replace(data, counts=counts, images=images, unlabelled=0, artifacts=[], fingerprint=fingerprint)
    )


def _train(part: RunDir) -> None:
    """train.py in a separate process; its output and its MLflow runs are kept in the fold's folder."""
    command = [sys.executable, str(TRAIN), "--output_dir", str(part.output_dir), "--run_name", part.name, "--resume"]
    printed = part.path / "output.txt"
    with printed.open("w", encoding="utf-8") as file:
        done = subprocess.run(command, env=_environment(), stdout=file, stderr=subprocess.STDOUT, check=False)
    if done.returncode in (130, 143):
        raise KeyboardInterrupt
    if done.returncode != 0:
        last = (printed.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no output"])[-1]
        raise UserError(f"--fine_tuned_folds: the training of {part.name} failed ({last}); its output: {printed}.")


def _environment() -> dict[str, str]:
    """Without what would send these runs to the person's MLflow server, or give them other settings."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "SPECTACLES_"))}


def _settings(run_dir: RunDir) -> dict[str, Any]:
    """What the run's model was trained with; the device is the one in use now."""
    kept = run_dir.path / "train" / "config.yaml"
    saved = run_dir.load_config()
    trained = (yaml.safe_load(kept.read_text(encoding="utf-8")) or {}) if kept.is_file() else {}
    known = {field.name for field in fields(TrainConfig)} - set(ELSEWHERE)
    merged = {**saved, **trained, "device": saved.get("device", "auto")}
    return {name: value for name, value in merged.items() if name in known}


def _key(rows: pd.DataFrame, held_out: np.ndarray, settings: dict[str, Any]) -> str:
    """8 hex digits that change with the fold's images, the others', any label and any setting but the device."""
    digest = hashlib.sha256(json.dumps(settings | {"device": ""}, sort_keys=True, default=str).encode())
    for content, label, is_held_out in zip(rows["sha256"], rows["label"], held_out, strict=True):
        digest.update(json.dumps([content, label, bool(is_held_out)]).encode())
    return digest.hexdigest()[:8]


def _prepare(home: Path, names: list[str], cache: Path) -> None:
    """The folds' folder without those of other data or settings; features and pictures come from the run's cache."""
    home.mkdir(parents=True, exist_ok=True)
    for leftover in home.glob("fold-*"):
        if leftover.name not in names:
            shutil.rmtree(leftover)
    if not (home / "cache").exists():
        cache.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):  # where links are not allowed, the folds compute once more
            (home / "cache").symlink_to(cache, target_is_directory=True)


def _announce(run_dir: RunDir, folds: int, images: int) -> None:
    cost = ""
    if run_dir.done("train"):
        trained = run_dir.load_result("train", TrainReport)
        data = run_dir.load_result("dataset", DatasetReport)
        seconds = trained.train_seconds * (folds - 1) * images / max(1, data.images["train"])
        cost = f": about {duration(seconds)} judging by the time that the run's training took"
    log.info("  %d folds are fine-tuned to check labels, one training each%s", folds, cost)
