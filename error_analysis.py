"""What the model gets wrong, which labels look wrong, and where in a photo the model looks."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

import dataset
from spectacles import backbones, cli, embeddings, label_noise, predictions, runtime
from spectacles import classifier as classifiers
from spectacles.bundle import BundleInfo
from spectacles.classifier import Classifier
from spectacles.config import ErrorAnalysisConfig
from spectacles.decoding import decoded_batches
from spectacles.errors import UserError
from spectacles.galleries import image_grid, overlay_heatmap
from spectacles.gradcam import NoFeatureMap, grad_cam
from spectacles.images import ImageRefused, decode
from spectacles.pixels import Pixels
from spectacles.preprocess import to_picture
from spectacles.records import ErrorReport, EvaluateReport
from spectacles.run_dir import RunDir, write_csv

log = logging.getLogger("spectacles")

SPLITS = ("train", "val", "test")


def run(config: ErrorAnalysisConfig, run_dir: RunDir) -> ErrorReport:
    """Writes misclassified.csv, confused_pairs.csv and noisy_labels.csv, with galleries and Grad-CAM overlays."""
    scored_on = run_dir.load_result("evaluate", EvaluateReport).scored_on
    predicted = load_predictions(run_dir)
    scored = predicted[predicted["split"] == scored_on]
    classifier, info, _ = classifiers.load(run_dir.bundle)
    device = runtime.prepare(runtime.resolve_device(config.device))
    classifier.to(device, memory_format=torch.channels_last)
    folder = run_dir.folder("error_analysis")

    errors, pairs = find_errors(predicted), confused_pairs(scored)
    noisy, notes = check_labels(config, run_dir, classifier, info, device)
    write_csv(folder / "misclassified.csv", errors[["file", "split", "label", "predicted", "confidence"]])
    write_csv(folder / "confused_pairs.csv", pairs)
    write_csv(folder / "noisy_labels.csv", noisy.drop(columns="path"))

    shown = errors[errors["split"] == scored_on].head(config.gallery_size)
    galleries = [
        show_errors(shown, folder / "misclassified.png", scored_on),
        show_noisy_labels(noisy.head(config.gallery_size), folder / "noisy_labels.png"),
    ]
    hits = scored[scored["label"] == scored["predicted"]]
    hits = hits.sample(min(config.gallery_size, len(hits)), random_state=config.seed)
    try:
        for part, name in ((shown, "errors"), (hits, "hits")):
            path = folder / f"gradcam_{name}.png"
            galleries.append(show_gradcam(part, classifier, info, config, path, f"Grad-CAM of {name} ({scored_on})"))
    except NoFeatureMap as reason:
        notes.append(f"no Grad-CAM for {info.backbone}: {reason}")
    return _report(predicted, scored_on, errors, pairs, noisy, notes, galleries, run_dir)


def load_predictions(run_dir: RunDir) -> pd.DataFrame:
    """Evaluate's table without the files that it could not read."""
    if not run_dir.predictions.is_file():
        raise UserError(f"{run_dir.predictions} is missing: run `python evaluate.py --run_name {run_dir.name}` first.")
    table = predictions.load(run_dir.predictions)
    return table[(table["status"] == "predicted") & (table["label"] != "")]


def find_errors(predicted: pd.DataFrame) -> pd.DataFrame:
    """The misclassified rows, the most confident first: those tell most, or have a wrong label."""
    errors = predicted[predicted["label"] != predicted["predicted"]]
    return errors.sort_values("confidence", ascending=False, kind="stable")


def confused_pairs(scored: pd.DataFrame) -> pd.DataFrame:
    """label, predicted, count, and share of the label's images; the most frequent first."""
    errors = scored[scored["label"] != scored["predicted"]]
    pairs = errors.groupby(["label", "predicted"]).size().reset_index(name="count")
    pairs["share"] = pairs["count"] / scored["label"].value_counts().reindex(pairs["label"]).to_numpy()
    return pairs.sort_values(["count", "share"], ascending=False, kind="stable", ignore_index=True)


def check_labels(
    config: ErrorAnalysisConfig, run_dir: RunDir, classifier: Classifier, info: BundleInfo, device: torch.device
) -> tuple[pd.DataFrame, list[str]]:
    """Every labelled image whose out-of-fold prediction is another class, the least credible label first; and notes.

    Columns file, label, suggested_label, score, probability_given, probability_suggested, suspected, split, path.
    """
    rows = dataset.load_split(run_dir, *SPLITS)
    rows = rows[rows["label"] != ""].reset_index(drop=True)
    backbone, notes = frozen_backbone(run_dir, classifier, info)
    log.info("  checking %d labels with features of %s", len(rows), info.backbone)
    with Pixels(rows, info.preprocessing, run_dir.cache / "pixels", 0, config.num_workers) as pixels:
        features = embeddings.embed(
            backbone, info.backbone, pixels, run_dir.cache / "embeddings", device, config.batch_size, config.engine
        )
    labels = np.array(dataset.class_indices(rows["label"], list(info.classes)), dtype=np.int64)
    groups = rows["cluster"].to_numpy(dtype=np.int64)
    probabilities = label_noise.out_of_fold_probabilities(features, labels, config.folds, config.seed, groups)
    unjudged = int(np.isnan(probabilities).any(axis=1).sum())
    if unjudged:
        notes.append(f"{unjudged} labels could not be checked: too few independent images of their class")
    return _label_table(rows, label_noise.rank_label_issues(labels, probabilities), info.classes), notes


def _label_table(rows: pd.DataFrame, ranked: dict[str, np.ndarray], classes: Sequence[str]) -> pd.DataFrame:
    listed = rows.loc[ranked["row"]].reset_index(drop=True)
    return listed[["file", "label"]].assign(
        suggested_label=[classes[index] for index in ranked["suggested"]],
        score=ranked["score"].round(6),
        probability_given=ranked["p_given"].round(6),
        probability_suggested=ranked["p_suggested"].round(6),
        suspected=ranked["suspected"],
        split=listed["split"],
        path=listed["path"],
    )


def frozen_backbone(run_dir: RunDir, classifier: Classifier, info: BundleInfo) -> tuple[torch.nn.Module, list[str]]:
    """The backbone as it was before training: it has seen no label, so it cannot have learnt the wrong ones by heart.

    Where there is none (random weights tell nothing), the trained one, and a note that says so.
    """
    saved, preprocessing = run_dir.load_config(), info.preprocessing
    reason = "it was trained from random weights"
    if not saved.get("no_pretrained"):
        weights = Path(saved["weights"]) if saved.get("weights") else None
        try:
            backbone = backbones.build_pretrained(
                info.backbone, preprocessing.in_chans, preprocessing.image_size, weights
            )
            return backbone, []
        except UserError as error:
            reason = str(error)
    note = "labels were checked with the trained network's features, which have seen them: expect fewer finds"
    return classifier.backbone, [f"{note} ({reason})"]


def show_errors(errors: pd.DataFrame, path: Path, split: str) -> Path:
    title = f"Misclassified ({split})" if len(errors) else f"No misclassified images ({split})"
    return image_grid([_photo(p) for p in errors["path"]], _captions(errors), path, title=title)


def show_noisy_labels(noisy: pd.DataFrame, path: Path) -> Path:
    title = "Labels to check, least credible first" if len(noisy) else "No label looks wrong"
    captions = [
        f"{row.file}\nlabel {row.label}, rather {row.suggested_label}\nscore {row.score:.3f} ({row.split})"
        for row in noisy.itertuples()
    ]
    return image_grid([_photo(p) for p in noisy["path"]], captions, path, title=title)


def show_gradcam(
    rows: pd.DataFrame, classifier: Classifier, info: BundleInfo, config: ErrorAnalysisConfig, path: Path, title: str
) -> Path:
    """Each image as the model sees it, and beside it what spoke for the predicted class. Raises NoFeatureMap."""
    device, preprocessing = next(classifier.parameters()).device, info.preprocessing
    targets = iter(dataset.class_indices(rows["predicted"], list(info.classes)))
    pictures: list[np.ndarray] = []
    sources = [Path(name) for name in rows["path"]]
    for batch in decoded_batches(sources, preprocessing, config.batch_size, config.num_workers):
        pixels = np.stack([_readable(item.pixels, item.name, item.reason) for item in batch])
        images = preprocessing.normalize(runtime.to_device(pixels, device))
        heat = grad_cam(classifier, images, torch.tensor([next(targets) for _ in batch], device=device))
        for picture, spots in zip(map(to_picture, pixels), heat, strict=True):
            pictures += [picture, overlay_heatmap(picture, spots)]
    captions = [text for caption, name in zip(_captions(rows), rows["predicted"], strict=True)
                for text in (caption, f"speaks for {name}")]  # fmt: skip
    return image_grid(pictures, captions, path, title=title if len(rows) else f"{title}: there are none")


def _captions(rows: pd.DataFrame) -> list[str]:
    return [f"{row.file}\n{row.label} -> {row.predicted}, {row.confidence:.3f}" for row in rows.itertuples()]


def _photo(path: str) -> Image.Image:
    try:
        return decode(Path(path)).image
    except ImageRefused as error:
        raise _unreadable(path, str(error)) from error


def _readable(pixels: np.ndarray | None, path: str, reason: str) -> np.ndarray:
    if pixels is None:
        raise _unreadable(path, reason)
    return pixels


def _unreadable(path: str, reason: str) -> UserError:
    return UserError(f"{path} was readable when it was evaluated and is not any more ({reason}): restore it.")


def _report(
    predicted: pd.DataFrame,
    scored_on: str,
    errors: pd.DataFrame,
    pairs: pd.DataFrame,
    noisy: pd.DataFrame,
    notes: Sequence[str],
    galleries: Sequence[Path],
    run_dir: RunDir,
) -> ErrorReport:
    folder = run_dir.folder("error_analysis")
    images, wrong = predicted["split"].value_counts(), errors["split"].value_counts()
    count, suspected = int(wrong.get(scored_on, 0)), int(noisy["suspected"].sum())
    summary = [
        f"{scored_on}: {count} of {int(images.get(scored_on, 0))} images misclassified: {folder / 'misclassified.csv'}"
    ]
    if len(pairs):
        worst = pairs.iloc[0]
        summary.append(
            f"most confused: {worst['label']} taken for {worst['predicted']}, {worst['count']} times "
            f"({100 * worst['share']:.1f} % of its images): {folder / 'confused_pairs.csv'}"
        )
    summary.append(
        f"{suspected} labels are suspected to be wrong, {len(noisy)} are worth a look: {folder / 'noisy_labels.csv'}"
    )
    metrics: dict[str, float | None] = {f"{split}_errors": float(wrong.get(split, 0)) for split in images.index}
    metrics |= {"suspected_labels": float(suspected), "labels_to_check": float(len(noisy))}
    tables = [folder / f"{name}.csv" for name in ("misclassified", "confused_pairs", "noisy_labels")]
    return ErrorReport(
        summary=[*summary, *notes],
        metrics=metrics,
        artifacts=run_dir.relative(*galleries, *tables),
        errors=count,
        suspected_labels=suspected,
    )


if __name__ == "__main__":
    cli.main("error_analysis", run, ErrorAnalysisConfig, "Show misclassified images, doubtful labels, and Grad-CAM.")
