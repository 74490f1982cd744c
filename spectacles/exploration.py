"""What is unusual in the data, and what a person should hear about before training. Tables in, tables and words out."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

LIMIT = 3.5
"""Robust z-score beyond which a value is an outlier (Iglewicz and Hoaglin 1993)."""

LEAST_SPREAD = {"light": 0.25, "contrast": 0.2, "focus": 0.5, "shape": 0.2, "size": 0.6, "compression": 0.25}
"""Smallest spread assumed for each measure, or one odd file among identical ones would make every harmless value odd."""

FAR_FROM_REST = {
    "light": ("brightness", "darker", "brighter"),
    "contrast": ("contrast", "lower in contrast", "higher in contrast"),
    "focus": ("sharpness", "more blurred", "sharper"),
    "size": ("width", "smaller", "larger"),
}
"""measure -> the column people know it by, and what less and more of it are called."""

FEW_IMAGES = 20
IMBALANCE = 3.0
SMALL_PHOTO = 300
FEW_VALIDATION_IMAGES = 100
SHORTCUT_AUC = 0.8


def measure(index: pd.DataFrame) -> pd.DataFrame:
    """One row an image, on scales where ordinary photos spread about evenly to both sides (logarithms, a logit).

    focus is the variance of the Laplacian over the variance of the picture: unlike sharpness alone it does not take a
    dark or faint picture for a blurred one. shape is 0 for a square and does not tell upright from lying.
    """
    light = index["brightness"].clip(1, 254)
    contrast = index["contrast"].clip(lower=0.5)
    pixels = index["width"] * index["height"]
    return pd.DataFrame(
        {
            "light": np.log(light / (255 - light)),
            "contrast": np.log(contrast),
            "focus": np.log(index["sharpness"].clip(lower=0.01) / contrast**2),
            "shape": np.log(index["width"] / index["height"]).abs(),
            "size": np.log(pixels),
            "compression": np.log(index["bytes"] / pixels),
        }
    )


def robust_z(measures: pd.DataFrame) -> pd.DataFrame:
    """Distance from the median in units of 1.4826 * MAD, which is the standard deviation where data are normal."""
    centred = measures - measures.median()
    spread = 1.4826 * centred.abs().median()
    return centred / np.maximum(spread, pd.Series(LEAST_SPREAD)[measures.columns])


def find_outliers(used: pd.DataFrame) -> pd.DataFrame:
    """file, label, split, what, value, z and path, a row for each finding, the most extreme of each kind first.

    Besides being far from the rest a picture must be what the word says (nobody calls a grey value of 110 dark), so
    that uniform data sets stay quiet.
    """
    z = robust_z(measure(used))
    low, high = z < -LIMIT, z > LIMIT
    shorter_side = used[["width", "height"]].min(axis=1)
    dark = low["light"] & (used["brightness"] < 64)
    bright = high["light"] & (used["brightness"] > 191)
    # Next to black or white there is no room for contrast: one word is enough.
    faint = low["contrast"] & (used["contrast"] < 20) & ~dark & ~bright
    blurred = low["focus"]
    odd_shape = low["shape"] | high["shape"]
    tiny = low["size"] & (shorter_side < 128)
    findings = [
        ("dark", dark, used["brightness"], z["light"]),
        ("bright", bright, used["brightness"], z["light"]),
        ("low contrast", faint, used["contrast"], z["contrast"]),
        ("blurred", blurred, used["sharpness"], z["focus"]),
        ("odd aspect ratio", odd_shape, used["width"] / used["height"], z["shape"]),
        ("tiny", tiny, shorter_side, z["size"]),
    ]
    parts = []
    for what, found, value, score in findings:
        part = used.loc[found, ["file", "label", "split", "path"]]
        part = part.assign(what=what, value=value[found].round(2), z=score[found].round(1))
        parts.append(part.sort_values("z", key=abs, ascending=False, kind="stable"))
    return pd.concat(parts, ignore_index=True)[["file", "label", "split", "what", "value", "z", "path"]]


def distribution(counts: Mapping[str, Mapping[str, int]], unlabelled: int) -> pd.DataFrame:
    """A row a class: images in each split and in all, and the class's share of all; '' are the unlabelled test images."""
    table = pd.DataFrame(counts).rename_axis("class").reset_index()
    if unlabelled:
        table.loc[len(table)] = {"class": "", **dict.fromkeys(counts, 0), "test": unlabelled}
    table["images"] = table[list(counts)].sum(axis=1)
    table["share"] = (table["images"] / max(1, table["images"].sum())).round(4)
    return table


def imbalance(counts: Mapping[str, int]) -> float:
    """Images of the largest class over those of the smallest; a class without images counts as one."""
    return max(counts.values()) / max(1, min(counts.values()))


def check_classes(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Imbalance, small classes, and what is missing from validation and test; `counts` is split -> class -> images."""
    train, val, test = counts["train"], counts["val"], counts["test"]
    smallest, largest = min(train, key=train.__getitem__), max(train, key=train.__getitem__)
    warnings = []
    if imbalance(train) >= IMBALANCE:
        share = train[smallest] / max(1, sum(train.values()))
        warnings.append(
            f"class {smallest!r} is {share:.{0 if share >= 0.095 else 1}%} of the training images, {largest!r} "
            f"{train[largest] / train_total(train):.0%}: consider --class_weights balanced"
        )
    few = [name for name, count in train.items() if count < FEW_IMAGES]
    if len(few) == 1:
        warnings.append(f"class {few[0]!r} has only {count_of(train[few[0]], 'training image')}: collect more")
    elif few:
        warnings.append(
            f"{len(few)} classes have fewer than {FEW_IMAGES} training images, {smallest!r} only {train[smallest]}: "
            "collect more, or merge classes"
        )
    unseen = [name for name, count in val.items() if not count]
    if unseen:
        names = ", ".join(map(repr, unseen[:5])) + (" ..." if len(unseen) > 5 else "")
        warnings.append(f"no validation image of class {names}: give more images or a larger --val_fraction")
    checked = sum(val.values())
    if checked < FEW_VALIDATION_IMAGES:
        # Half the 95 % interval of a proportion of 0.9.
        margin = 100 * 1.96 * (0.9 * 0.1 / max(1, checked)) ** 0.5
        warnings.append(
            f"only {count_of(checked, 'validation image')}: an accuracy of 90 % is uncertain by {margin:.0f} points; "
            "consider a larger --val_fraction"
        )
    if not sum(test.values()):
        warnings.append(
            "no labelled test image: evaluate can only score on the validation data that training selects by, which is "
            "optimistic; consider --test_fraction 0.15"
        )
    return warnings


def train_total(train: Mapping[str, int]) -> int:
    return max(1, sum(train.values()))


def check_files(index: pd.DataFrame, pairs: pd.DataFrame, outliers: pd.DataFrame) -> list[str]:
    """Refused rows, duplicates and unusual images."""
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
    if len(outliers):
        files = outliers["file"].nunique()
        warnings.append(f"{count_of(files, 'unusual image')} ({kinds(outliers)}): look at explore/outliers.png")
    return warnings


def check_sizes(used: pd.DataFrame) -> list[str]:
    width, height = used["width"].median(), used["height"].median()
    if max(width, height) >= SMALL_PHOTO:
        return []
    return [
        f"images are {width:.0f} x {height:.0f} pixels in the median: "
        f"--image_size above {max(width, height):.0f} adds no detail"
    ]


def check_shift(used: pd.DataFrame) -> list[str]:
    """Validation or test images that do not look like the training images."""
    measures = measure(used)
    train = used["split"] == "train"
    warnings = []
    for split in ("val", "test"):
        part = used["split"] == split
        for name, (column, less, more) in FAR_FROM_REST.items():
            spread = max(measures.loc[train, name].std(ddof=0), LEAST_SPREAD[name])
            difference = (measures.loc[part, name].mean() - measures.loc[train, name].mean()) / spread
            if abs(difference) > at_least(0.4, 4, int(part.sum())):
                there, here = used.loc[part, column].median(), used.loc[train, column].median()
                warnings.append(
                    f"{split} images are {less if difference < 0 else more} than training images (median {column} "
                    f"{there:.0f} against {here:.0f}): scores may not carry over"
                    + ("; consider a larger --color_jitter" if name in ("light", "contrast") else "")
                )
    return warnings


def check_shortcuts(labelled: pd.DataFrame, grey_shares: Mapping[str, tuple[float, int]]) -> list[str]:
    """Properties of the files that give a class away, which a model would learn instead of what the photos show.

    `grey_shares` maps class -> (share of pictures without colour, pictures looked at).
    """
    warnings = []
    for name, auc in class_auc(labelled, measure(labelled)).items():
        strongest = (auc - 0.5).abs().idxmax()
        if abs(auc[strongest] - 0.5) > SHORTCUT_AUC - 0.5:
            value = max(auc[strongest], 1 - auc[strongest])
            warnings.append(
                f"{name} alone tells class {strongest!r} from the rest (AUC {value:.2f}): "
                "the model may learn that instead of what the photos show"
            )
    sizes = labelled["label"].value_counts()
    formats = pd.crosstab(labelled["label"], labelled["format"], normalize="index")
    for name in formats:
        shares = {label: (float(share), int(sizes[label])) for label, share in formats[name].items()}
        warnings += _compare_shares(shares, 0.5, f"{name} files", "store all classes in the same format")
    return warnings + _compare_shares(grey_shares, 0.25, "grey", "consider --in_chans 1")


def _compare_shares(shares: Mapping[str, tuple[float, int]], limit: float, what: str, advice: str) -> list[str]:
    """Warns where the shares of two classes, each given with its number of images, differ by more than `limit`."""
    if len(shares) < 2:
        return []
    low, high = min(shares, key=lambda name: shares[name][0]), max(shares, key=lambda name: shares[name][0])
    (least, n), (most, m) = shares[low], shares[high]
    if most - least <= at_least(limit, 2, min(n, m)):
        return []
    return [
        f"class {high!r} is {most:.0%} {what}, class {low!r} {least:.0%}: the model may learn that instead of what "
        f"the photos show; {advice}"
    ]


def class_auc(labelled: pd.DataFrame, measures: pd.DataFrame) -> dict[str, "pd.Series[float]"]:
    """measure -> class -> AUC of that one number for the class against the rest (Mann-Whitney), 0.5 for small classes."""
    n = labelled["label"].value_counts()
    rest = len(labelled) - n
    curves = {}
    for name in measures:
        # A measure that does not vary beyond its least spread is noise, however well it orders the classes.
        ranks = (measures[name] / (LEAST_SPREAD[name] / 4)).round().rank().groupby(labelled["label"]).sum()
        auc = (ranks - n * (n + 1) / 2) / (n * rest).clip(lower=1)
        curves[str(name)] = auc.where((n >= FEW_IMAGES) & (rest >= FEW_IMAGES), 0.5)
    return curves


def at_least(limit: float, errors: float, n: int) -> float:
    """`limit`, raised where n images are too few to be sure of it: `errors` is in units of 1 / sqrt(n)."""
    return max(limit, errors / max(1, n) ** 0.5)


def kinds(outliers: pd.DataFrame) -> str:
    """'9 dark, 6 blurred'."""
    return ", ".join(f"{count} {what}" for what, count in outliers["what"].value_counts(sort=False).items())


def count_of(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
