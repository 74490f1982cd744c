"""Counts and medians of the data, and warnings before training. Tables in, tables and sentences out."""

from collections.abc import Mapping

import pandas as pd

from spectacles.core.results import DatasetReport
from spectacles.core.wording import count_of, noun_of, percent, plural
from spectacles.data.label_text import NONE, escape
from spectacles.exploration import suggestions
from spectacles.exploration.outliers import LEAST_SPREAD, measure
from spectacles.exploration.suggestions import FEW_IMAGES

LESS_AND_MORE = {
    "brightness": ("darker", "brighter"),
    "contrast": ("lower in contrast", "higher in contrast"),
    "sharpness": ("more blurred", "sharper"),
    "image size": ("smaller", "larger"),
}
FEW_VALIDATION_IMAGES = 100


def counts_of(data: DatasetReport, used: pd.DataFrame) -> dict[str, dict[str, int]]:
    """split -> class -> images; with several labels per image, NONE counts those without any, and labels are written as
    label_sets.join does."""
    if not data.multi_label:
        return data.counts
    none = used.loc[used["label"] == NONE, "split"].value_counts()
    return {
        split: {escape(name): images for name, images in counts.items()} | {NONE: int(none.get(split, 0))}
        for split, counts in data.counts.items()
    }


def distribution(data: DatasetReport, counts: Mapping[str, Mapping[str, int]]) -> pd.DataFrame:
    """One row per class: images in each split and in all, and their share. Class '' stands for unlabelled test images;
    images with several labels count in several rows."""
    table = pd.DataFrame(counts).rename_axis("class").reset_index()
    if data.unlabelled:
        table.loc[len(table)] = {"class": "", **dict.fromkeys(counts, 0), "test": data.unlabelled}
    table["images"] = table[list(counts)].sum(axis=1)
    table["share"] = (table["images"] / max(1, sum(data.images.values()) + data.unlabelled)).round(4)
    return table


def describe(data: DatasetReport, used: pd.DataFrame, pairs: pd.DataFrame, outliers: pd.DataFrame) -> list[str]:
    """The data in a few sentences."""
    sizes = [f"{name!r} {count}" for name, count in sorted(data.counts["train"].items(), key=lambda item: -item[1])]
    shown = sizes if len(sizes) <= 5 else [*sizes[:2], "...", *sizes[-2:]]
    width, height, light = used["width"], used["height"], used["brightness"]
    classes, of_train = f"of {len(data.classes)} classes", ", ".join(shown)
    if data.multi_label:
        classes = f"with any of {len(data.classes)} labels"
        of_train = f"{data.images['train']}, of them with {of_train}"
    return [
        f"{len(used)} usable images ({data.row_accounting.rejected} rejected) {classes}; training images: {of_train}",
        f"{width.median():.0f} x {height.median():.0f} pixels in the median (widths {width.min()} to {width.max()}, "
        f"heights {height.min()} to {height.max()}); {_shares(used['format'])}; {_shares(used['mode'])}",
        f"medians: brightness {light.median():.0f} of 255, contrast {used['contrast'].median():.0f}, "
        f"sharpness {used['sharpness'].median():.0f}",
        f"outliers: {suggestions.kinds(outliers) or 'none'}",
        f"duplicate pairs: {len(pairs)}, {pairs['conflict'].sum()} of them with different labels",
    ]


def _shares(values: "pd.Series[str]") -> str:
    """'JPEG 98.0 %, PNG 2.0 %'."""
    return ", ".join(f"{name} {percent(share)}" for name, share in values.value_counts(normalize=True).items())


def check_classes(data: DatasetReport, test_fraction: float | None = 0) -> list[str]:
    """Small and missing classes, and splits too small to score on; `test_fraction` is the setting."""
    noun = noun_of(data.multi_label)
    few = [*_check_few(data.counts["train"], noun), *_check_nearly_constant(data)]
    # Without the setting, test images were wanted already unless some without labels were given.
    was_wanted = not data.unlabelled if test_fraction is None else test_fraction > 0
    return [*few, *_check_scoring(data, noun, "" if was_wanted else "; consider --test_fraction 0.15")]


def _check_few(train: Mapping[str, int], noun: str) -> list[str]:
    few = [name for name, count in train.items() if count < FEW_IMAGES]
    if not few:
        return []
    smallest = min(few, key=train.__getitem__)
    if len(few) == 1:
        return [f"{noun} {smallest!r} has only {count_of(train[smallest], 'training image')}"]
    return [
        f"{len(few)} {plural(noun)} have fewer than {FEW_IMAGES} training images, {smallest!r} only {train[smallest]}: "
        f"collect more, or merge {plural(noun)}"
    ]


def _check_nearly_constant(data: DatasetReport) -> list[str]:
    """Labels that nearly every training image has: they are as hard to learn as rare ones."""
    if not data.multi_label:
        return []
    without = {name: data.images["train"] - count for name, count in data.counts["train"].items()}
    few = [name for name, count in without.items() if count < FEW_IMAGES]
    return [f"only {count_of(without[name], 'training image')} without label {name!r}" for name in few[:5]]


def _check_scoring(data: DatasetReport, noun: str, advice: str) -> list[str]:
    warnings = []
    unseen = [name for name, count in data.counts["val"].items() if not count]
    if unseen:
        names = ", ".join(map(repr, unseen[:5])) + (" ..." if len(unseen) > 5 else "")
        of = "with" if data.multi_label else "of"
        warnings.append(f"no validation image {of} {noun} {names}: collect more, or consider a larger --val_fraction")
    images = data.images["val"]
    if images < FEW_VALIDATION_IMAGES:
        margin = 100 * 1.96 * (0.9 * 0.1 / max(1, images)) ** 0.5  # half the 95 % interval of a proportion of 0.9
        warnings.append(
            f"only {count_of(images, 'validation image')}: an accuracy of 90 % is uncertain by {margin:.0f} points; "
            "consider a larger --val_fraction"
        )
    if not data.images["test"]:
        warnings.append(
            "no labelled test image: evaluate can only score on the validation data that training selects by, and such "
            f"scores are optimistic{advice}"
        )
    return warnings


def check_files(index: pd.DataFrame, pairs: pd.DataFrame) -> list[str]:
    """Warnings about rejected rows and duplicates."""
    warnings = []
    rejected = int((index["status"] == "rejected").sum())
    if rejected:
        warnings.append(f"{rejected} of {count_of(len(index), 'row')} cannot be used: see dataset/issues.csv")
    conflicts, crossing = int(pairs["conflict"].sum()), int(pairs["crosses_split"].sum())
    if conflicts:
        carry = "pair of duplicates carries" if conflicts == 1 else "pairs of duplicates carry"
        warnings.append(f"{conflicts} {carry} different labels: see explore/conflicting_duplicates.csv")
    if crossing:
        warnings.append(
            f"{count_of(crossing, 'pair')} of duplicates in two different splits: scores there are optimistic; "
            "see crosses_split in dataset/duplicates.csv"
        )
    return warnings


def check_shift(used: pd.DataFrame) -> list[str]:
    """Validation or test images that do not look like the training images."""
    measures = measure(used)
    train = measures[used["split"] == "train"]
    warnings = []
    for split in ("val", "test"):
        other = measures[used["split"] == split]
        for name, (less, more) in LESS_AND_MORE.items():
            spread = max(train[name].std(ddof=0), LEAST_SPREAD[name])
            difference = (other[name].mean() - train[name].mean()) / spread
            if abs(difference) > _significant(0.4, 4, len(other)):
                advice = "; consider a larger --color_jitter" if name in ("brightness", "contrast") else ""
                warnings.append(
                    f"{split} images are {less if difference < 0 else more} than training images (by "
                    f"{abs(difference):.1f} standard deviations): scores may not carry over{advice}"
                )
    return warnings


def _significant(limit: float, errors: float, n: int) -> float:
    """`limit`, or more where n images are too few for it: `errors` standard errors, in units of 1 / sqrt(n)."""
    return float(max(limit, errors / max(1, n) ** 0.5))
