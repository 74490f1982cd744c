"""How many wrong labels are at the top of the ranking: ours, and cleanlab's defaults on plain logistic regression.

`python -m benchmarks.noisy_labels --data FOLDER`; FOLDER holds train.csv and dataset/, or one folder per class.
The labels are taken as right, and 5 % of them are made wrong: at random, or to the class that the photo resembles, by
the out-of-fold probabilities of logistic regression. The drawn sample data have wrong labels of their own. With
`--label_column a,b,c`, columns of 0 and 1, one label of an image is flipped: any, or one that it has.

average precision: of the ranking of all labels. recall: share of the N wrong labels among the first 1.5 N.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from cleanlab import multilabel_classification
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

import dataset
from benchmarks import common
from spectacles.core.config import DatasetConfig
from spectacles.core.device import resolve_device
from spectacles.core.run_dir import RunDir, create_run
from spectacles.data import label_sets
from spectacles.data.schemas import load_split
from spectacles.data.splits import SPLITS
from spectacles.evaluation import label_quality
from spectacles.metrics.decisions import is_correct
from spectacles.models import pretrained
from spectacles.models.feature_blocks import FeatureBlocks
from spectacles.models.feature_cache import FeatureExtractor
from spectacles.models.torch_device import prepare_device
from spectacles.sample_data import generate

SEEDS = (0, 1, 2)
SHARE = 0.05
FOLDS = 5
DEPTH = 1.5
SAMPLE_IMAGES = 600

Labelled = tuple[pd.DataFrame, FeatureBlocks, np.ndarray]
"""Rows of splits.csv, features, class indices (N,) or labels (N, K) of 0 and 1."""


def run(args: argparse.Namespace) -> None:
    results = []
    for seed in SEEDS:
        rows, features, labels, wrong = drawn(seed, args.output_dir)
        results += compare("sample data, planted", seed, rows, features, labels, wrong)
    if args.data is not None:
        rows, features, labels = look_at(args.data, args.data.name, args.output_dir, args.label_column)
        several = labels.ndim == 2
        for kind, change in (
            ("at random", at_random),
            ("missed", missed) if several else ("by similarity", by_similarity),
        ):
            for seed in SEEDS:
                noisy = change(features.last, labels, seed)
                name = f"{args.data.name}, {SHARE:.0%} {kind}"
                results += compare(name, seed, rows, features, noisy, ~is_correct(noisy, labels))
    table = pd.DataFrame(results)
    means = table.groupby(["data", "ranking"], sort=False)[["average precision", "recall"]].agg(["mean", "std"])
    print(means.to_string(float_format="{:.3f}".format))


def look_at(data: Path, name: str, output_dir: Path, label_column: str | None = None) -> Labelled:
    """The dataset stage's look at all training data, so that near duplicates are known."""
    table = data / "train.csv"
    tables = {"train_csv": table, "image_dir": data / "dataset"} if table.is_file() else {"image_dir": data}
    config = DatasetConfig(**tables, label_column=label_column, output_dir=output_dir, device="cpu")
    folder = create_run(output_dir, name)
    report = dataset.run(config, folder)
    folder.save_result("dataset", report)
    rows = load_split(folder, *SPLITS)
    labels = label_sets.encode(rows["label"], report.classes, report.multi_label)
    return rows, embed(rows, config, folder), labels


def embed(rows: pd.DataFrame, config: DatasetConfig, folder: RunDir) -> FeatureBlocks:
    backbone, preprocessing = pretrained.frozen_backbone(config)
    device = prepare_device(resolve_device(config.device))
    extractor = FeatureExtractor(backbone, config.backbone, preprocessing, folder.cache, device, config)
    return extractor.embed_rows(rows, None)


def drawn(seed: int, output_dir: Path) -> tuple[pd.DataFrame, FeatureBlocks, np.ndarray, np.ndarray]:
    folder = generate.draw(output_dir / f"drawn-{seed}", SAMPLE_IMAGES, seed, show_progress=True)
    rows, features, labels = look_at(folder, f"sample-{seed}", output_dir)
    planted = pd.read_csv(folder / "planted.csv", keep_default_na=False)
    wrong = rows["file"].isin(planted.loc[planted["kind"] == "wrong_label", "file"]).to_numpy()
    return rows, features, labels, wrong


def at_random(features: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    flipped = rng.choice(len(labels), round(SHARE * len(labels)), replace=False)
    classes = int(labels.max()) + 1
    noisy = labels.copy()
    if labels.ndim == 2:
        noisy[flipped, rng.integers(labels.shape[1], size=len(flipped))] ^= 1
        return noisy
    noisy[flipped] = (labels[flipped] + rng.integers(1, classes, len(flipped))) % classes
    return noisy


def missed(features: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    noisy = labels.copy()
    for row in rng.choice(np.flatnonzero(labels.any(axis=1)), round(SHARE * len(labels)), replace=False):
        noisy[row, rng.choice(np.flatnonzero(labels[row]))] = 0
    return noisy


def by_similarity(features: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    probabilities = plain(features, labels)
    probabilities[np.arange(len(labels)), labels] = 0
    weight = probabilities.sum(axis=1)
    rng = np.random.default_rng(seed)
    flipped = rng.choice(len(labels), round(SHARE * len(labels)), replace=False, p=weight / weight.sum())
    noisy = labels.copy()
    noisy[flipped] = probabilities[flipped].argmax(axis=1)
    return noisy


def plain(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """What anyone would write: scikit-learn's logistic regression as it comes, five shuffled folds; one a label."""
    if labels.ndim == 2:
        return np.column_stack([plain(features, has)[:, 1] for has in labels.T])
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    with threadpool_limits(1):
        return np.asarray(cross_val_predict(model, features, labels, cv=folds, method="predict_proba"))


def compare(
    data: str, seed: int, rows: pd.DataFrame, features: FeatureBlocks, labels: np.ndarray, wrong: np.ndarray
) -> Iterator[dict[str, object]]:
    """A row for each ranking; all see the same labels, and cleanlab's the features of the last layer."""
    groups = rows["cluster"].to_numpy(dtype=np.int64)
    ours, _ = label_quality.out_of_fold_probabilities(features, labels, FOLDS, 0, groups)
    probabilities = plain(features.last, labels)
    rankings: dict[str, Callable[[], np.ndarray]] = {
        "ours": lambda: label_quality.label_quality(labels, ours),
        "cleanlab, default ranking": lambda: get_label_quality_scores(labels, probabilities),
        "cleanlab, default filter": lambda: _filtered(labels, probabilities),
    }
    if labels.ndim == 2:
        lists = [np.flatnonzero(row).tolist() for row in labels]
        rankings = {
            "ours": lambda: _scores_of_sets(labels, ours),
            "cleanlab, multilabel": lambda: multilabel_classification.get_label_quality_scores(lists, probabilities),
        }
    for name, quality in rankings.items():
        scores = quality()
        first = np.argsort(scores, kind="stable")[: int(DEPTH * wrong.sum())]
        yield {
            "data": data,
            "seed": seed,
            "ranking": name,
            "average precision": average_precision_score(wrong, -scores),
            "recall": wrong[first].sum() / wrong.sum(),
        }


def _scores_of_sets(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """(N,): that of the least credible label, and 1 where none is doubtful."""
    scores, ranked = np.ones(len(labels)), label_quality.rank_label_issues(labels, probabilities)
    scores[ranked["row"]] = ranked["score"]
    return scores


def _filtered(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """The labels that the filter calls wrong in its order, then all others as ranked."""
    listed = find_label_issues(labels, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
    scores = get_label_quality_scores(labels, probabilities) + 1
    scores[listed] = np.arange(len(listed)) / max(1, len(listed))
    return np.asarray(scores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--data", type=Path, help="photos with correct labels: train.csv and dataset/, or one folder per class"
    )
    parser.add_argument("--label_column", help="columns of 0 and 1 in train.csv, one per label, separated by commas")
    parser.add_argument("--output_dir", type=Path, default=common.ROOT / "outputs" / "bench" / "noisy_labels")
    with common.exit_codes():
        run(parser.parse_args())


if __name__ == "__main__":
    main()
