"""How error analysis explains a model: saliency maps of its predictions, whether they are faithful, and what its first
layer groups respond to."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from spectacles.core.config import ErrorAnalysisConfig, explanation_methods
from spectacles.core.errors import UserError
from spectacles.core.fileio import write_json
from spectacles.data import label_sets, schemas
from spectacles.data.preprocessing import Preprocessing, decoded_batches, to_picture
from spectacles.evaluation import faithfulness
from spectacles.evaluation.attribution import REMEDY, explain
from spectacles.evaluation.feature_maps import draw_feature_maps
from spectacles.evaluation.saliency import CannotExplain
from spectacles.inference.predictor import Predictor
from spectacles.models.bundle import BundleInfo
from spectacles.models.classifier import Classifier
from spectacles.models.normalization import normalize
from spectacles.models.torch_device import to_device
from spectacles.report.image_grid import image_grid
from spectacles.report.saliency import overlay_saliency

log = logging.getLogger("spectacles")

COLUMNS = 6
"""At least so many pictures in a row of a gallery, and a photo's overlays never apart from it."""


def explain_decisions(
    scored: pd.DataFrame,
    errors: pd.DataFrame,
    predictor: Predictor,
    config: ErrorAnalysisConfig,
    folder: Path,
    split: str,
) -> tuple[list[Path], list[str], dict[str, float | None]]:
    """(files written, sentences, metrics) on `errors` and a sample of the correct predictions among `scored`.

    Both hold rows of predictions.csv, of one split. Writes faithfulness.json and, unless config.galleries is off,
    explained_errors.png, explained_correct.png and feature_maps.png. Raises UserError for a missing file.
    """
    correct = sample_correct(scored, max(faithfulness.IMAGES, config.gallery_size), config.seed)
    rows = pd.concat([errors, correct], ignore_index=True)
    info, classifier = predictor.info, predictor.classifier
    log.info("  explaining %d decisions with %s", len(rows), config.explain_with)
    pixels = _read(rows["path"].tolist(), info.preprocessing, config)
    rows = rows.assign(explained=explained_classes(rows, info))
    saliency, notes = _saliency_maps(rows["explained"], pixels, predictor, explanation_methods(config.explain_with))
    part = slice(len(errors), len(errors) + faithfulness.IMAGES)
    results = {
        method: check_faithfulness(rows["explained"][part], pixels[part], maps[part], classifier, info, config.seed)
        for method, maps in saliency.items()
    }
    files = [folder / "faithfulness.json"]
    write_json(files[0], {"highlighted": faithfulness.HIGHLIGHTED, "regions": faithfulness.REGIONS, "methods": results})
    if config.galleries:
        shown = {"errors": rows.index[: len(errors)], "correct": rows.index[len(errors) :][: config.gallery_size]}
        for name, places in shown.items() if saliency or not len(rows) else ():
            what = "one label of each photo" if info.multi_label else "the predicted class"
            title = f"Saliency for {what}: {name} ({split})"
            files.append(_draw(rows.loc[places], pixels, saliency, folder / f"explained_{name}.png", title))
        try:
            files += _draw_first_layer_groups(rows[part], pixels[part], classifier, info.preprocessing, folder)
        except CannotExplain as reason:
            notes.append(f"no picture of feature maps: {reason}")
    sentences = [faithfulness.sentence(method, result) for method, result in results.items()]
    metrics: dict[str, float | None] = {
        f"{method}_{key}": result[key] for method, result in results.items() for key in ("drop", "random_drop", "share")
    }
    return files, sentences + notes, metrics


def sample_correct(scored: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """At most `count` rows whose prediction is right, at random, of all classes in turn: explaining why something is
    there and why it is not are different tasks, and the rarer class is mostly the one that matters."""
    correct = scored[scored["label"] == scored["predicted"]].sample(frac=1, random_state=seed)
    turns = correct.groupby("predicted").cumcount()
    return correct.loc[turns.sort_values(kind="stable").index].head(count)


def explained_classes(rows: pd.DataFrame, info: BundleInfo) -> list[str]:
    """The predicted class; of any number of labels the most probable one that was wrongly given, else of those given,
    or where none was, the most probable one."""
    if not info.multi_label:
        return rows["predicted"].tolist()
    probabilities = schemas.probabilities(rows, list(info.classes)).tolist()
    places = [
        label_sets.most_probable(label_sets.added(text, given) or text, own, info.classes, info.multi_label)
        for text, given, own in zip(rows["predicted"], rows["label"], probabilities, strict=True)
    ]
    return [info.classes[place] for place in places]


def _read(paths: Sequence[str], preprocessing: Preprocessing, config: ErrorAnalysisConfig) -> np.ndarray:
    """uint8 (N, S, S, C)."""
    pixels = np.empty((len(paths), *preprocessing.shape), dtype=np.uint8)
    batches = decoded_batches(map(Path, paths), preprocessing, config.batch_size, config.num_workers)
    for place, item in enumerate(item for batch in batches for item in batch):
        if item.pixels is None:
            raise UserError(f"{item.name} could be read before and cannot be now ({item.reason}): restore the file.")
        pixels[place] = item.pixels
    return pixels


def _saliency_maps(
    explained: pd.Series, pixels: np.ndarray, predictor: Predictor, methods: Sequence[str]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Method -> saliency (N, h, w) for the `explained` classes; and a note for each method that does not work with
    this backbone."""
    saliency, notes = {}, []
    targets = [predictor.info.classes.index(name) for name in explained]
    for method in methods if targets else ():
        try:
            saliency[method] = explain(method, predictor, pixels, targets)
        except CannotExplain as reason:
            notes.append(f"no {method} for {predictor.info.backbone}: {reason}; {REMEDY} (--explain_with)")
    return saliency, notes


def check_faithfulness(
    explained: pd.Series, pixels: np.ndarray, saliency: np.ndarray, classifier: Classifier, info: BundleInfo, seed: int
) -> dict[str, Any]:
    """`faithfulness.judge` of the saliency (N, h, w) for the `explained` classes of uint8 pixels (N, S, S, C)."""
    device = next(classifier.parameters()).device
    targets = torch.tensor([info.classes.index(name) for name in explained], device=device)
    images = normalize(info.preprocessing, to_device(pixels, device))
    drops = faithfulness.probability_drops(classifier, images, targets, saliency, info.calibration, seed)
    return faithfulness.judge(*drops, explained.tolist(), seed)


def _draw(rows: pd.DataFrame, pixels: np.ndarray, saliency: dict[str, np.ndarray], path: Path, title: str) -> Path:
    """Each photo as the model sees it, and beside it the saliency for the explained class by each method. The index of
    `rows` says which of the `pixels` and of the maps are theirs."""
    pictures, captions = [], []
    for place, row in zip(rows.index, rows.itertuples(), strict=True):
        picture = to_picture(pixels[place])
        pictures += [picture, *(overlay_saliency(picture, maps[place]) for maps in saliency.values())]
        captions.append(f"{row.file}\n{row.label} -> {row.predicted}, {row.confidence:.3f}")
        captions += [f"{method.replace('_', ' ')}: saliency for {row.explained}" for method in saliency]
    group = 1 + len(saliency)
    columns = group * -(-COLUMNS // group)
    return image_grid(pictures, captions, path, columns, title if pictures else f"{title}: none")


def _draw_first_layer_groups(
    correct: pd.DataFrame, pixels: np.ndarray, classifier: Classifier, preprocessing: Preprocessing, folder: Path
) -> list[Path]:
    """Of two correctly predicted images, of two classes where possible: the sample takes the classes in turn."""
    if not len(correct):
        return []
    names = correct["file"].head(2).tolist()
    return [draw_feature_maps(classifier, pixels[:2], names, preprocessing, folder / "feature_maps.png")]
