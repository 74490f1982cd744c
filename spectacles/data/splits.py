"""Stratified, seeded splits that keep clusters (a person, near duplicates) whole and respect splits that were given."""

from pathlib import Path

import numpy as np
import pandas as pd

from spectacles.core.config import DatasetConfig
from spectacles.core.errors import UserError
from spectacles.core.run_dir import find_run
from spectacles.core.wording import count_of
from spectacles.data import label_sets, schemas
from spectacles.data.stratification import stratified_split

SPLITS = ("train", "val", "test")
RANK = {split: rank for rank, split in enumerate(SPLITS)}


def check_fractions(config: DatasetConfig) -> None:
    """Raises UserError."""
    _check_shares(config.val_fraction, config.test_fraction or 0.0, config.val_fraction > 0)


def _check_shares(val_fraction: float, test_fraction: float, valid: bool = True) -> None:
    if not (valid and val_fraction < 1 and 0 <= test_fraction < 1 and val_fraction + test_fraction < 0.95):
        raise UserError(
            f"--val_fraction {val_fraction} and --test_fraction {test_fraction}: both must be shares of the images "
            "(0.15 is 15 %), validation above 0, together below 0.95."
        )


def assign_splits(
    used: pd.DataFrame, previous: "pd.Series[str]", classes: list[str], multi_label: bool, config: DatasetConfig
) -> "pd.Series[str]":
    """train, val or test for each row of the index in `used`, which has its `cluster`.

    Splits that were given stay, then those of `previous` ('' for none), and a cluster follows those of its members. The
    rest is divided by `stratified_split`. Raises UserError where train or val would be empty.
    """
    split, cluster = used["given_split"].copy(), used["cluster"]
    given = set(split)
    val_fraction = 0.0 if "val" in given else config.val_fraction
    test_fraction = config.test_fraction if config.test_fraction is not None else 0.0 if "test" in given else 0.15
    _check_shares(val_fraction, test_fraction)
    free = split.isin(["", "train"])
    split = split.mask(free, previous)
    decided = split[free & (split != "")].groupby(cluster).first()
    following = (split == "") & cluster.isin(decided.index)
    split[following] = decided.reindex(cluster[following]).to_numpy()
    undecided = (split == "").to_numpy()
    codes = label_sets.encode(used.loc[undecided, "label"], classes, multi_label)
    fractions = (1 - val_fraction - test_fraction, val_fraction, test_fraction)
    # By content, not by row: the same images are split the same way in whatever order they are listed.
    order = np.argsort(used.loc[undecided, "sha256"].to_numpy(dtype=str), kind="stable")
    ordered = pd.factorize(cluster.to_numpy()[undecided][order])[0]
    numbers = np.empty(len(order), dtype=np.int64)
    numbers[order] = stratified_split(codes[order], ordered, fractions, config.seed)
    split[undecided] = np.array(SPLITS)[numbers]
    for name in ("train", "val"):
        if not (split == name).any():
            raise UserError(f"{_why_empty(name, used, multi_label)}.")
    return split


def explain_empty_test(used: pd.DataFrame, multi_label: bool, config: DatasetConfig) -> list[str]:
    """A sentence if test images were to be taken from the training rows, and there are none; `used` has its `split`."""
    if (used["split"] == "test").any() or config.test_fraction == 0:
        return []
    return [f"{_why_empty('test', used, multi_label)}; scores will be of validation images"]


def _why_empty(name: str, used: pd.DataFrame, multi_label: bool) -> str:
    """A sentence without its full stop."""
    start = f"no image is left for the {name} split"
    clusters = used.groupby("cluster").size()
    if clusters.max() == 1:
        return f"{start}: give more images of each class"
    of_class = used[used["label"] != ""].groupby("label")["cluster"].nunique()
    grouped = bool((used["group"] != "").any())
    what = "near duplicates or of one group" if grouped else "near duplicates"
    if multi_label or of_class.max() > 1:
        count = f"all images are in {count_of(len(clusters), 'cluster')} of {what}, the largest of {clusters.max():,}"
    else:
        largest = used["label"].value_counts().head(5)
        sizes = ", ".join(f"{label!r}: {count_of(int(images), 'image')}" for label, images in largest.items())
        count = f"each class is one cluster of {what} ({sizes}{', ...' if len(of_class) > 5 else ''})"
    return (
        f"{start}: {count}, and a cluster stays in one split; give more different images of each class, or your own "
        "splits (--split_column, or folders train, val and test), or, if these images are independent, find fewer near "
        f"duplicates with --duplicate_distance 0 and --duplicate_similarity 1{', or without --group_column' * grouped}"
    )


def previous_splits(digests: "pd.Series[str]", name: str, output_dir: Path) -> tuple["pd.Series[str]", str]:
    """The split that each content had in the run of that name, '' for new ones, and a sentence about it."""
    try:
        path = find_run(output_dir, name).splits if name else None
    except UserError:
        path = None
    if path is None or not path.is_file():
        reason = f"there is no run {name!r} below {output_dir}" if name else "the label fixes name no run"
        sentence = f"images are split anew, because {reason}: scores before and after are of different images"
        return pd.Series("", index=digests.index), sentence
    table = schemas.SPLIT_ROWS.read(path, ["sha256", "split"])
    # A content in two given splits: the one that was ours to choose was not test.
    ranked = table.sort_values("split", key=lambda split: split.map(RANK), kind="stable")
    known = ranked.drop_duplicates("sha256").set_index("sha256")["split"]
    previous = known.reindex(digests, fill_value="").set_axis(digests.index)
    new = int((previous == "").sum())
    return previous, f"splits are those of the run {name}" + (f", except for {new} new images" if new else "")
