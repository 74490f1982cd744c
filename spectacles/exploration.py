"""What is unusual in the data, and what a person should hear about before training. Tables in, tables and words out."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

LIMIT = 3.5
"""Robust z-score beyond which a value is an outlier (Iglewicz and Hoaglin 1993)."""

LEAST_SPREAD = {
    "brightness": 0.25,
    "contrast": 0.2,
    "sharpness": 0.5,
    "aspect ratio": 0.2,
    "image size": 0.6,
    "bytes per pixel": 0.25,
}
"""The smallest spread assumed for each measure: among identical images any harmless value would be odd otherwise."""

LESS_AND_MORE = {
    "brightness": ("darker", "brighter"),
    "contrast": ("lower in contrast", "higher in contrast"),
    "sharpness": ("more blurred", "sharper"),
    "image size": ("smaller", "larger"),
}

FEW_IMAGES = 20
FEW_VALIDATION_IMAGES = 100
IMBALANCE = 3.0
SMALL_IMAGE = 300
"""Pixels. The models' own input sizes are 224 to 384."""
SHORTCUT_AUC = 0.8
SHORTCUT = "the model may learn that instead of what the photos show"


def measure(index: pd.DataFrame) -> pd.DataFrame:
    """One row an image, on scales where ordinary photos spread about evenly to both sides (logarithms, a logit).

    Here sharpness is the variance of the Laplacian over that of the picture: so divided it does not take a dark or
    faint picture for a blurred one. The aspect ratio is 0 for a square and does not tell upright from lying.
    """
    light = index["brightness"].clip(1, 254)
    contrast = index["contrast"].clip(lower=0.5)
    pixels = index["width"] * index["height"]
    return pd.DataFrame(
        {
            "brightness": np.log(light / (255 - light)),
            "contrast": np.log(contrast),
            "sharpness": np.log(index["sharpness"].clip(lower=0.01) / contrast**2),
            "aspect ratio": (np.log(index["width"]) - np.log(index["height"])).abs(),
            "image size": np.log(pixels),
            "bytes per pixel": np.log(index["bytes"] / pixels),
        }
    )


def robust_z(measures: pd.DataFrame) -> pd.DataFrame:
    """Distance from the median in units of 1.4826 * MAD, which is the standard deviation where data are normal."""
    centred = measures - measures.median()
    spread = 1.4826 * centred.abs().median()
    return centred / spread.clip(lower=pd.Series(LEAST_SPREAD))


def find_outliers(used: pd.DataFrame) -> pd.DataFrame:
    """file, label, split, what, value, z and path, a row for each finding, the most extreme of each kind first.

    Besides being far from the rest a picture must be what the word says (nobody calls a grey value of 110 dark), so
    that uniform data sets stay quiet.
    """
    z = robust_z(measure(used))
    low, high = z < -LIMIT, z > LIMIT
    shorter_side = used[["width", "height"]].min(axis=1)
    dark = low["brightness"] & (used["brightness"] < 64)
    bright = high["brightness"] & (used["brightness"] > 191)
    # Next to black or white there is no room for contrast: one word is enough.
    faint = low["contrast"] & (used["contrast"] < 20) & ~dark & ~bright
    blurred = low["sharpness"]
    odd_shape = low["aspect ratio"] | high["aspect ratio"]
    tiny = low["image size"] & (shorter_side < 100)
    findings = [
        ("dark", dark, used["brightness"], z["brightness"]),
        ("bright", bright, used["brightness"], z["brightness"]),
        ("low contrast", faint, used["contrast"], z["contrast"]),
        ("blurred", blurred, used["sharpness"], z["sharpness"]),
        ("odd aspect ratio", odd_shape, used["width"] / used["height"], z["aspect ratio"]),
        ("tiny", tiny, shorter_side, z["image size"]),
    ]
    parts = []
    for what, found, value, score in findings:
        part = used.loc[found, ["file", "label", "split", "path"]]
        part = part.assign(what=what, value=value[found].round(2), z=score[found].round(1))
        parts.append(part.sort_values("z", key=abs, ascending=False, kind="stable"))
    return pd.concat(parts, ignore_index=True)[["file", "label", "split", "what", "value", "z", "path"]]


def distribution(counts: Mapping[str, Mapping[str, int]], unlabelled: int) -> pd.DataFrame:
    """A row a class: images in each split and in all, and the share of all. Class '' are the unlabelled test images."""
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
    """Imbalanced, small and missing classes, and splits too small to score on; `counts` is split -> class -> images."""
    return [*_check_balance(counts["train"]), *_check_scoring(counts["val"], counts["test"])]


def _check_balance(train: Mapping[str, int]) -> list[str]:
    smallest, largest = min(train, key=train.__getitem__), max(train, key=train.__getitem__)
    total, warnings = max(1, sum(train.values())), []
    if imbalance(train) >= IMBALANCE:
        warnings.append(
            f"class {smallest!r} is {percent(train[smallest] / total)} of the training images, {largest!r} "
            f"{percent(train[largest] / total)}: consider --class_weights balanced"
        )
    few = [name for name, count in train.items() if count < FEW_IMAGES]
    if len(few) == 1:
        warnings.append(f"class {smallest!r} has only {count_of(train[smallest], 'training image')}: collect more")
    elif few:
        warnings.append(
            f"{len(few)} classes have fewer than {FEW_IMAGES} training images, {smallest!r} only {train[smallest]}: "
            "collect more, or merge classes"
        )
    return warnings


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
    if max(width, height) >= SMALL_IMAGE:
        return []
    return [
        f"images are {width:.0f} x {height:.0f} pixels in the median: "
        f"--image_size above {max(width, height):.0f} adds no detail"
    ]


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


def check_shortcuts(labelled: pd.DataFrame, grey_shares: Mapping[str, tuple[float, int]]) -> list[str]:
    """Properties of the files that give a class away, which a model would learn instead of what the photos show.

    `grey_shares` maps class -> (share of pictures without colour, pictures looked at).
    """
    warnings = []
    for name, auc in class_auc(labelled).items():
        strongest = str((auc - 0.5).abs().idxmax())
        value = max(auc[strongest], 1 - auc[strongest])
        if value > SHORTCUT_AUC:
            warnings.append(f"{name} alone tells class {strongest!r} from the rest (AUC {value:.2f}): {SHORTCUT}")
    sizes = labelled["label"].value_counts()
    formats = pd.crosstab(labelled["label"], labelled["format"], normalize="index")
    for image_format, column in formats.items():
        shares = {str(label): (float(share), int(sizes[str(label)])) for label, share in column.items()}
        warnings += _compare_shares(shares, 0.5, f"{image_format} files", "store all classes in the same format")
    return warnings + _compare_shares(grey_shares, 0.25, "grey", "consider --in_chans 1")


def _compare_shares(shares: Mapping[str, tuple[float, int]], limit: float, what: str, advice: str) -> list[str]:
    """Warns where the shares of two classes, each given with its number of images, differ by more than `limit`."""
    if len(shares) < 2:
        return []
    low, high = min(shares, key=lambda name: shares[name][0]), max(shares, key=lambda name: shares[name][0])
    (least, n), (most, m) = shares[low], shares[high]
    if most - least <= _surely(limit, 2, min(n, m)):
        return []
    return [f"class {high!r} is {percent(most)} {what}, class {low!r} {percent(least)}: {SHORTCUT}; {advice}"]


def class_auc(labelled: pd.DataFrame) -> dict[str, "pd.Series[float]"]:
    """measure -> class -> AUC of that one number for the class against the rest (Mann and Whitney 1947).

    0.5 for classes of few images. Differences far below a measure's least spread count as ties: nobody sees them.
    """
    measures = measure(labelled)
    n = labelled["label"].value_counts()
    rest = len(labelled) - n
    aucs = {}
    for name, spread in LEAST_SPREAD.items():
        ranks = (4 * measures[name] / spread).round().rank().groupby(labelled["label"]).sum()
        auc = (ranks - n * (n + 1) / 2) / (n * rest).clip(lower=1)
        aucs[name] = auc.where((n >= FEW_IMAGES) & (rest >= FEW_IMAGES), 0.5)
    return aucs


def _surely(limit: float, errors: float, n: int) -> float:
    """`limit`, raised where n images are too few to be sure of it: `errors` is in units of 1 / sqrt(n)."""
    return float(max(limit, errors / max(1, n) ** 0.5))


def kinds(outliers: pd.DataFrame) -> str:
    """'9 dark, 6 blurred'."""
    return ", ".join(f"{count} {what}" for what, count in outliers["what"].value_counts(sort=False).items())


def count_of(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def percent(share: float) -> str:
    return f"{100 * share:.3g} %"
