"""Is this run better than another one? Both are judged on the same images, which neither was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import binomtest

from spectacles.core.errors import UserError
from spectacles.core.run_dir import RunDir, find_run
from spectacles.core.wording import count_of, percent
from spectacles.data import label_sets, schemas
from spectacles.metrics import basics, bootstrap, scoring
from spectacles.metrics.decisions import Scored

SIGNIFICANT = 0.05
OTHERS = {"log_loss": "log loss", "hter": "HTER", "micro_f1": "micro F1", "macro_f1": "macro F1"}
"""Told beside the accuracy where their intervals exclude 0."""


@dataclass(frozen=True)
class Other:
    """What the other run said, a row for each content that it could score."""

    name: str
    table: pd.DataFrame
    """Indexed by sha256: split, predicted and p_<class>."""
    trained_on: frozenset[str]
    """sha256 of its training images."""


def load(name: str, run_dir: RunDir, classes: list[str]) -> Other:
    """Raises UserError for a run that is unknown, is this one, has not been evaluated, or has other classes."""
    try:
        other = find_run(run_dir.output_dir, name)
    except UserError as error:
        raise UserError(str(error).replace("--run_name", "--compare")) from None
    if other.path.resolve() == run_dir.path.resolve():
        raise UserError(f"--compare {name} is this very run: name another one.")
    if not other.done("evaluate") or not other.predictions.is_file():
        raise UserError(f"--compare {name}: it has no scores yet: run `python evaluate.py --run_name {name}` first.")
    table = schemas.PREDICTIONS.read(other.predictions)
    prefix = schemas.PROBABILITY_PREFIX
    known = [str(column).removeprefix(prefix) for column in table.columns if str(column).startswith(prefix)]
    if set(known) != set(classes):
        raise UserError(
            f"--compare {name} knows the classes {_named(known)}, this run {_named(classes)}: only runs that tell the "
            "same classes apart can be compared."
        )
    contents = _contents(other.splits)
    of_path = contents.drop_duplicates("path").set_index("path")["sha256"]
    table = table.assign(sha256=table["path"].map(of_path))
    table = table[(table["status"] == "predicted") & table["sha256"].notna()].drop_duplicates("sha256")
    trained_on = frozenset(contents.loc[contents["split"] == "train", "sha256"])
    return Other(other.name, table.set_index("sha256"), trained_on)


def compare(
    scored: Scored, contents: pd.Series[str], other: Other, run_dir: RunDir, classes: list[str], seed: int,
    resamples: int, split: str,
) -> dict[str, Any]:  # fmt: skip
    """What comparison.json holds: this run minus the other, on the images of `scored` with these sha256 (N,).

    This run's labels count for both: they may have been mended since. `better` and `worse` are said only where the
    95 % interval of the difference in accuracy (whole clusters resampled, the same for both) and McNemar's exact test
    (1947, which takes images for independent) agree; otherwise `cannot tell`. Raises UserError where no image is left.
    """
    own = _contents(run_dir.splits)
    trained_on = other.trained_on | set(own.loc[own["split"] == "train", "sha256"])
    both = contents.isin(other.table.index).to_numpy()
    fresh = ~contents.isin(trained_on).to_numpy()
    chosen = both & fresh
    if not chosen.any():
        seen = " that it was not trained on" if both.any() else ""
        raise UserError(
            f"--compare {other.name}: it has scored none of this run's {len(contents)} {split} images{seen}: compare "
            "runs on the same test images (--split_column, or --test_csv)."
        )
    theirs = other.table.loc[contents[chosen].to_list()]
    this = Scored(
        scored.labels[chosen], scored.probabilities[chosen], scored.predicted[chosen], scored.clusters[chosen]
    )
    that = Scored(
        this.labels,
        schemas.probabilities(theirs, classes),
        label_sets.encode(theirs["predicted"], classes, scored.multi_label),
        this.clusters,
    )
    differences = _differences(this, that, seed, resamples)
    p_value, only_this, only_that = mcnemar(this.correct, that.correct)
    verdict = _verdict(differences["accuracy"], p_value)
    left_out = {
        "trained_on": int((~fresh).sum()),
        "not_scored": int((fresh & ~both).sum()),
    }
    chose = int((theirs["split"] == "val").sum()) if split == "test" else 0
    return {
        "other": other.name,
        "split": split,
        "images": int(chosen.sum()),
        "left_out": left_out,
        "validation_of_other": chose,
        "differences": differences,
        "only_this_right": only_this,
        "only_other_right": only_that,
        "mcnemar_p": p_value,
        "verdict": verdict,
        "sentence": _sentence(other.name, split, this, differences, p_value, verdict, left_out, chose),
    }


def mcnemar(this: basics.Bools, that: basics.Bools) -> tuple[float, int, int]:
    """(two-sided exact p, images only this is right on, images only that is right on) of correctness (N,) each."""
    only_this, only_that = int((this & ~that).sum()), int((that & ~this).sum())
    discordant = only_this + only_that
    p_value = float(binomtest(only_this, discordant).pvalue) if discordant else 1.0
    return p_value, only_this, only_that


def _contents(splits: Path) -> pd.DataFrame:
    return schemas.SPLIT_ROWS.read(splits, ["path", "split", "sha256"])


def _differences(this: Scored, that: Scored, seed: int, resamples: int) -> dict[str, dict[str, Any]]:
    names = ["accuracy", "balanced_accuracy", "log_loss"]
    names += ["micro_f1", "macro_f1"] if this.multi_label else ["hter"] * (this.num_classes == 2)
    values, drawn = [], []
    for each in (this, that):
        values.append(scoring.metrics_of(each))
        drawn.append(scoring.resampled(each, seed, resamples))
    found = {}
    for name in names:
        one, two = (each[name] for each in values)
        if one is not None and two is not None:
            interval = bootstrap.percentile_interval(drawn[0][name] - drawn[1][name])
            found[name] = {"this": one, "other": two, "difference": one - two, "interval": interval}
    return found


def _verdict(accuracy: dict[str, Any], p_value: float) -> str:
    low, high = accuracy["interval"]
    if p_value < SIGNIFICANT and (low > 0 or high < 0):
        return "better" if low > 0 else "worse"
    return "cannot tell"


def _sentence(
    name: str, split: str, this: Scored, differences: dict[str, dict[str, Any]], p_value: float, verdict: str,
    left_out: dict[str, int], chose: int,
) -> str:  # fmt: skip
    images, accuracy = count_of(len(this.labels), f"{split} image"), differences["accuracy"]
    told = {"cannot tell": f"cannot tell from {name} with {images}"}.get(verdict, f"{verdict} than {name}, on {images}")
    low, high = (100 * end for end in accuracy["interval"])
    points = f"{100 * accuracy['difference']:+.2f} points ({low:+.2f} to {high:+.2f}, 95 %; McNemar p = {p_value:.2g})"
    told += f": accuracy {percent(accuracy['this'])} against {percent(accuracy['other'])}, {points}"
    sure = [
        f"{OTHERS[key]} {row['difference']:+.4f} ({row['interval'][0]:+.4f} to {row['interval'][1]:+.4f})"
        for key, row in differences.items()
        if key in OTHERS and (row["interval"][0] > 0 or row["interval"][1] < 0)
    ]
    told += f"; other differences beyond chance: {', '.join(sure)}" if sure else ""
    notes = [
        f"{count_of(left_out['trained_on'], 'image')} left out that one of the two was trained on",
        f"{count_of(left_out['not_scored'], 'image')} left out that {name} has not scored",
    ]
    notes = [note for note, count in zip(notes, left_out.values(), strict=True) if count]
    notes += [f"{count_of(chose, 'image')} of them helped to choose {name}'s weights"] if chose else []
    return "; ".join([told, *notes])


def _named(classes: list[str]) -> str:
    return ", ".join(map(repr, classes[:10])) + (f" and {len(classes) - 10} more" if len(classes) > 10 else "")
