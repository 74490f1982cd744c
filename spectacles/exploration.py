"""What is counted in the data, and what to warn of before training. Tables in, tables and words out."""

from collections.abc import Mapping

import pandas as pd

from spectacles.suggestions import FEW_IMAGES
from spectacles.unusual import LEAST_SPREAD, measure
from spectacles.wording import count_of

LESS_AND_MORE = {
    "brightness": ("darker", "brighter"),
    "contrast": ("lower in contrast", "higher in contrast"),
    "sharpness": ("more blurred", "sharper"),
    "image size": ("smaller", "larger"),
}
FEW_VALIDATION_IMAGES = 100


def distribution(counts: Mapping[str, Mapping[str, int]], unlabelled: int) -> pd.DataFrame:
    """A row a class: images in each split and in all, and the share of all. Class '' are the unlabelled test images."""
    table = pd.DataFrame(counts).rename_axis("class").reset_index()
    if unlabelled:
        table.loc[len(table)] = {"class": "", **dict.fromkeys(counts, 0), "test": unlabelled}
    table["images"] = table[list(counts)].sum(axis=1)
    table["share"] = (table["images"] / max(1, table["images"].sum())).round(4)
    return table


def check_classes(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Small and missing classes, and splits too small to score on; `counts` is split -> class -> images."""
    return [*_check_few(counts["train"]), *_check_scoring(counts["val"], counts["test"])]


def _check_few(train: Mapping[str, int]) -> list[str]:
    few = [name for name, count in train.items() if count < FEW_IMAGES]
    if not few:
        return []
    smallest = min(few, key=train.__getitem__)
    if len(few) == 1:
        return [f"class {smallest!r} has only {count_of(train[smallest], 'training image')}"]
    return [
        f"{len(few)} classes have fewer than {FEW_IMAGES} training images, {smallest!r} only {train[smallest]}: "
        "collect more, or merge classes"
    ]


def _check_scoring(val: Mapping[str, int], test: Mapping[str, int]) -> list[str]:
    warnings = []
    unseen = [name for name, count in val.items() if not count]
    if unseen:
        names = ", ".join(map(repr, unseen[:5])) + (" ..." if len(unseen) > 5 else "")
        warnings.append(f"no validation image of class {names}: collect more, or consider a larger --val_fraction")
    images = sum(val.values())
    if images < FEW_VALIDATION_IMAGES:
        margin = 100 * 1.96 * (0.9 * 0.1 / max(1, images)) ** 0.5  # half the 95 % interval of a proportion of 0.9
        warnings.append(
            f"only {count_of(images, 'validation image')}: an accuracy of 90 % is uncertain by {margin:.0f} points; "
            "consider a larger --val_fraction"
        )
    if not sum(test.values()):
        warnings.append(
            "no labelled test image: evaluate can only score on the validation data that training selects by, which is "
            "optimistic; consider --test_fraction 0.15"
        )
    return warnings


def check_files(index: pd.DataFrame, pairs: pd.DataFrame) -> list[str]:
    """Refused rows and duplicates."""
    warnings = []
    refused = int((index["status"] == "refused").sum())
    if refused:
        warnings.append(f"{refused} of {count_of(len(index), 'row')} cannot be used: see dataset/issues.csv")
    conflicts, crossing = int(pairs["conflict"].sum()), int(pairs["crosses_border"].sum())
    if conflicts:
        carry = "pair of duplicates carries" if conflicts == 1 else "pairs of duplicates carry"
        warnings.append(f"{conflicts} {carry} different labels: see explore/conflicting_duplicates.csv")
    if crossing:
        warnings.append(
            f"{count_of(crossing, 'pair')} of duplicates in two different splits: scores there are optimistic; "
            "see crosses_border in dataset/duplicates.csv"
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
            if abs(difference) > _surely(0.4, 4, len(other)):
                advice = "; consider a larger --color_jitter" if name in ("brightness", "contrast") else ""
                warnings.append(
                    f"{split} images are {less if difference < 0 else more} than training images (by "
                    f"{abs(difference):.1f} standard deviations): scores may not carry over{advice}"
                )
    return warnings


def _surely(limit: float, errors: float, n: int) -> float:
    """`limit`, raised where n images are too few to be sure of it: `errors` is in units of 1 / sqrt(n)."""
    return float(max(limit, errors / max(1, n) ** 0.5))
