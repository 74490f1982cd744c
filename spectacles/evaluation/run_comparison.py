"""Whether this run is better than another one, on the same images, which neither was trained on."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from spectacles.core.config import EvaluateConfig
from spectacles.core.errors import UserError
from spectacles.core.run_dir import RunDir, find_run
from spectacles.core.wording import count_of, percent
from spectacles.data import label_sets, schemas
from spectacles.metrics import bootstrap, scoring
from spectacles.metrics.decisions import Scored
from spectacles.metrics.paired import mcnemar

SIGNIFICANT = 0.05
OTHERS = {"log_loss": "log loss", "hter": "HTER", "micro_f1": "micro F1", "macro_f1": "macro F1"}
"""Reported beside the accuracy where their intervals exclude 0."""


@dataclass(frozen=True)
class OtherRun:
    """The other run's predictions, a row for each content that it could score."""

    name: str
    table: pd.DataFrame
    """Indexed by sha256: split, predicted and p_<class>."""
    classes: list[str]
    """In the order of this run."""
    trained_on: frozenset[str]
    """sha256 of both runs' training images."""


@dataclass(frozen=True)
class Comparison:
    """This run minus the other: what comparison.json holds, and the sentence about it."""

    other: str
    split: str
    images: int
    left_out: dict[str, int]
    validation_of_other: int
    """Of the images, those that helped to choose the other run's weights."""
    differences: dict[str, dict[str, Any]]
    """Metric -> its value in this run and in the other, their difference and its interval."""
    only_this_right: int
    only_other_right: int
    mcnemar_p: float

    @property
    def verdict(self) -> str:
        """`better` or `worse` only where interval and test agree, else `inconclusive`."""
        low, high = self.differences["accuracy"]["interval"]
        if self.mcnemar_p < SIGNIFICANT and (low > 0 or high < 0):
            return "better" if low > 0 else "worse"
        return "inconclusive"

    def sentence(self) -> str:
        images, accuracy = count_of(self.images, f"{self.split} image"), self.differences["accuracy"]
        result = (
            f"not significantly different from {self.other} on {images}"
            if self.verdict == "inconclusive"
            else f"{self.verdict} than {self.other} on {images}"
        )
        low, high = (100 * end for end in accuracy["interval"])
        text = (
            f"{result}: accuracy {percent(accuracy['this'])} against {percent(accuracy['other'])}, "
            f"{100 * accuracy['difference']:+.2f} points ({low:+.2f} to {high:+.2f}, 95 %; "
            f"McNemar p = {self.mcnemar_p:.2g})"
        )
        others = [
            f"{OTHERS[key]} {row['difference']:+.4f} ({row['interval'][0]:+.4f} to {row['interval'][1]:+.4f})"
            for key, row in self.differences.items()
            if key in OTHERS and (row["interval"][0] > 0 or row["interval"][1] < 0)
        ]
        text += f"; other significant differences: {', '.join(others)}" if others else ""
        notes = {
            "that one of the two was trained on": self.left_out["trained_on"],
            f"that {self.other} has not scored": self.left_out["not_scored"],
        }
        text += "".join(f"; {count_of(count, 'image')} left out {why}" for why, count in notes.items() if count)
        if self.validation_of_other:
            chose = count_of(self.validation_of_other, "image")
            text += f"; {chose} of them helped to choose {self.other}'s weights"
        return text

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"verdict": self.verdict, "sentence": self.sentence()}


def load(name: str, run_dir: RunDir, classes: list[str]) -> OtherRun:
    """Raises UserError for a run that is unknown, is this one, has not been evaluated, or has other classes."""
    try:
        other = find_run(run_dir.output_dir, name)
    except UserError as error:
        raise UserError(str(error).replace("--run_name", "--compare")) from None
    if other.path.resolve() == run_dir.path.resolve():
        raise UserError(f"--compare {name} is this run itself: name another one.")
    if not other.done("evaluate") or not other.predictions.is_file():
        raise UserError(f"--compare {name}: it has no scores yet: run `python evaluate.py --run_name {name}` first.")
    table = schemas.PREDICTIONS.read(other.predictions)
    prefix = schemas.PROBABILITY_PREFIX
    known = [str(column).removeprefix(prefix) for column in table.columns if str(column).startswith(prefix)]
    if set(known) != set(classes):
        raise UserError(
            f"--compare {name} has the classes {_listed(known)}, this run {_listed(classes)}: only runs with the "
            "same classes can be compared."
        )
    contents = _contents(other.splits)
    of_path = contents.drop_duplicates("path").set_index("path")["sha256"]
    table = table.assign(sha256=table["path"].map(of_path))
    table = table[(table["status"] == "predicted") & table["sha256"].notna()].drop_duplicates("sha256")
    trained_on = frozenset(_training_contents(contents) | _training_contents(_contents(run_dir.splits)))
    return OtherRun(other.name, table.set_index("sha256"), classes, trained_on)


def compare(
    scored: Scored, contents: pd.Series[str], other: OtherRun, split: str, config: EvaluateConfig
) -> dict[str, Any]:
    """The contents of comparison.json: this run minus the other, on the `scored` images of a split with these sha256
    (N,).

    This run's labels are used for both: they may have been corrected since. A difference is significant only where the
    95 % interval of the difference in accuracy (whole clusters resampled, the same for both) and McNemar's exact test
    (1947, which takes images for independent) agree. Raises UserError where no image is left.
    """
    both = contents.isin(other.table.index).to_numpy()
    fresh = ~contents.isin(other.trained_on).to_numpy()
    chosen = both & fresh
    if not chosen.any():
        seen = " that it was not trained on" if both.any() else ""
        raise UserError(
            f"--compare {other.name}: it has scored none of this run's {len(contents)} {split} images{seen}: compare "
            "runs on the same test images (--split_column, or --test_csv)."
        )
    this = scored.subset(chosen)
    theirs = other.table.loc[contents[chosen].to_list()]
    that = replace(
        this,
        probabilities=schemas.probabilities(theirs, other.classes),
        predicted=label_sets.encode(theirs["predicted"], other.classes, scored.multi_label),
    )
    p_value, only_this, only_that = mcnemar(this.correct, that.correct)
    return Comparison(
        other=other.name,
        split=split,
        images=int(chosen.sum()),
        left_out={"trained_on": int((~fresh).sum()), "not_scored": int((fresh & ~both).sum())},
        validation_of_other=int((theirs["split"] == "val").sum()) if split == "test" else 0,
        differences=_differences(this, that, config),
        only_this_right=only_this,
        only_other_right=only_that,
        mcnemar_p=p_value,
    ).to_json()


def _contents(splits: Path) -> pd.DataFrame:
    return pd.read_csv(splits, dtype=str, usecols=["path", "split", "sha256"], keep_default_na=False)


def _training_contents(contents: pd.DataFrame) -> set[str]:
    return set(contents.loc[contents["split"] == "train", "sha256"])


def _differences(this: Scored, that: Scored, config: EvaluateConfig) -> dict[str, dict[str, Any]]:
    names = ["accuracy", "balanced_accuracy", "log_loss"]
    if this.multi_label:
        names += ["micro_f1", "macro_f1"]
    elif this.num_classes == 2:
        names.append("hter")
    values = [scoring.metrics_of(each) for each in (this, that)]
    drawn = [scoring.resampled(each, config.seed, config.bootstrap_resamples) for each in (this, that)]
    differences = {}
    for name in names:
        one, two = (each[name] for each in values)
        if one is not None and two is not None:
            interval = bootstrap.percentile_interval(drawn[0][name] - drawn[1][name])
            differences[name] = {"this": one, "other": two, "difference": one - two, "interval": interval}
    return differences


def _listed(classes: list[str]) -> str:
    return ", ".join(map(repr, classes[:10])) + (f" and {len(classes) - 10} more" if len(classes) > 10 else "")
