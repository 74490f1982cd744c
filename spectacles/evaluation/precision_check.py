"""A less exact precision compared with float32 on validation photos, with calibration and thresholds fitted to it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from spectacles.core.config import EvaluateConfig, TrainConfig
from spectacles.core.errors import UserError
from spectacles.core.progress import progress
from spectacles.core.run_dir import RunDir
from spectacles.data import label_sets, schemas, training_photos
from spectacles.data.preprocessing import decoded_batches
from spectacles.inference.predictor import Predictor
from spectacles.metrics.decisions import is_correct
from spectacles.metrics.paired import p_worse
from spectacles.models import engine_choice, engines, precision, quantization
from spectacles.models.bundle import INT8_FILES, BundleInfo
from spectacles.models.engines import Engine
from spectacles.models.ood import OODScorer
from spectacles.models.precision import Checked, Fitted
from spectacles.models.sample_pictures import sample_pictures
from spectacles.training import finalize

log = logging.getLogger("spectacles")

ENOUGH, MOST = 100, 2000
"""Validation photos needed at least, and compared at most."""
TIMED_IMAGES = 64


def bfloat16_if_possible(predictor: Predictor, run_dir: RunDir, config: EvaluateConfig) -> Checked | None:
    """`check` where this machine has bfloat16 and there are enough validation photos; None elsewhere."""
    if precision.obstacle("bf16", config.engine, predictor.device):
        return None
    if len(schemas.load_labelled(run_dir, "val", MOST)) < ENOUGH:
        return None
    try:
        return check("bf16", predictor, run_dir, config)
    except (UserError, OSError) as error:  # not what was asked for, so no reason to end
        log.info("  bf16 is not checked: %s", error)
        return None


def check(name: str, predictor: Predictor, run_dir: RunDir, config: EvaluateConfig) -> Checked:
    """What is recorded for this model and machine, or else found now, with `predictor`, which computes the run's bundle
    in float32, and recorded. int8 is quantised first. Raises UserError."""
    if why := precision.obstacle(name, config.engine, predictor.device):
        raise UserError(f"--precision {name}: {why}. Use --precision fp32, or auto.")
    rows = schemas.load_labelled(run_dir, "val", MOST)
    if len(rows) < ENOUGH:
        raise UserError(
            f"--precision {name} is compared with float32 on {ENOUGH} validation photos or more, and there are "
            f"{len(rows)}: use --precision fp32, or make splits with a larger --val_fraction."
        )
    bundle, files = predictor.path, dict[str, str]()
    if known := precision.recorded(name, bundle, predictor.model_id, predictor.device):
        return known
    if name == "int8":
        pixels = training_photos.pixels_of(
            run_dir, predictor.info.preprocessing, quantization.CALIBRATION_IMAGES, config.num_workers
        )
        quantization.quantize(predictor.network, pixels, bundle)
        files = {file: precision.sha256(bundle / file) for file in INT8_FILES}
    run = precision.build(name, predictor.network, bundle, files)
    outputs = _outputs(rows, predictor, run, config)
    info, scorer = _fit(outputs, predictor, finalize.settings_of(run_dir))
    rate, fp32_rate = _rates(predictor, run)
    found = Checked(
        precision=name,
        engine=precision.engine_for(predictor.device),
        machine=precision.machine(predictor.device),
        **_compare(outputs, predictor, info),
        images_per_second=rate,
        fp32_images_per_second=fp32_rate,
        fitted=Fitted.of(info, scorer),
        files=files,
    )
    precision.save(bundle, predictor.model_id, found)
    return found


class Outputs(NamedTuple):
    """Of the same network and photos; see `all_outputs.AllOutputs`."""

    labels: np.ndarray
    """(N,) class indices, or (N, K) of 0 and 1."""
    exact: engines.Outputs
    fast: engines.Outputs


def _outputs(rows: pd.DataFrame, predictor: Predictor, run: Engine, config: EvaluateConfig) -> Outputs:
    exact, fast, texts = [], [], []
    for pixels, labels in progress(_batches(rows, predictor, config), "comparing", unit="batch"):
        exact.append(predictor.outputs(pixels))
        fast.append(run(pixels))
        texts += labels
    encoded = label_sets.encode(pd.Series(texts), list(predictor.info.classes), predictor.info.multi_label)
    outputs = Outputs(encoded, *map(_joined, (exact, fast)))
    if not np.isfinite(outputs.fast["logits"]).all():
        raise UserError(f"--precision {config.precision} gives numbers that are not finite: use --precision fp32.")
    return outputs


def _joined(batches: list[engines.Outputs]) -> engines.Outputs:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in ("logits", "ood_features")}


def _fit(outputs: Outputs, predictor: Predictor, trained: TrainConfig) -> tuple[BundleInfo, OODScorer | None]:
    """Calibration, thresholds and out-of-distribution scores, as training fits them, for the fast outputs."""
    maps = outputs.fast["ood_features"]
    scorer = predictor.ood_scorer.ranked_among(maps) if predictor.ood_scorer else None
    ood_scores = scorer(maps) if scorer else None
    decided = finalize.decide(trained, predictor.info, outputs.fast["logits"], outputs.labels, ood_scores)
    return decided.info, scorer


def _compare(outputs: Outputs, predictor: Predictor, fitted: BundleInfo) -> dict[str, Any]:
    """Fields of `Checked` about the answers."""
    probabilities, decided = [], []
    for info, values in ((predictor.info, outputs.exact), (fitted, outputs.fast)):
        probabilities.append(info.calibration.probabilities(values["logits"]))
        decided.append(info.decide(probabilities[-1]))
    was_right, is_right = (is_correct(labels, outputs.labels) for labels in decided)
    return {
        "images": len(outputs.labels),
        "same_labels": float(is_correct(*decided).mean()),
        "difference": float(np.abs(probabilities[0] - probabilities[1]).max()),
        "accuracy": float(is_right.mean()),
        "fp32_accuracy": float(was_right.mean()),
        "p_worse": p_worse(was_right, is_right),
    }


def _rates(predictor: Predictor, run: Engine) -> tuple[float, float]:
    """Images per second of `run`, and of the fastest engine in float32."""
    runs = {predictor.engine: predictor.run}
    if precision.engine_for(predictor.device) == "openvino":  # for few images it is torch, which is not the fastest
        runs.setdefault("openvino", engines.build("openvino", predictor.network.onnx))
    timed = sample_pictures(predictor.info.preprocessing, TIMED_IMAGES)
    rates = engine_choice.measure(runs | {"": run}, timed)
    return rates.pop(""), max(rates.values())


def _batches(
    rows: pd.DataFrame, predictor: Predictor, config: EvaluateConfig
) -> Iterator[tuple[np.ndarray, list[str]]]:
    """Pixels (B, S, S, C) and labels of the photos that can be read."""
    texts = iter(rows["label"])
    paths = (Path(path) for path in rows["path"])
    for batch in decoded_batches(paths, predictor.info.preprocessing, config.batch_size, config.num_workers):
        readable = [(item.pixels, label) for item, label in zip(batch, texts, strict=False) if item.pixels is not None]
        if readable:
            yield np.stack([pixels for pixels, _ in readable]), [label for _, label in readable]
