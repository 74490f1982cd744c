"""What to try, each with its reason. (What is wrong are warnings: see statistics.)"""

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import pandas as pd

from spectacles.core.results import DatasetReport
from spectacles.core.wording import count_of, noun_of, percent

IMBALANCE = 3.0
RARE = 0.1
"""Share of the training images below which a label is rare."""
FEW_IMAGES = 20
RECALL_MARGIN = 0.1
"""Half the width of the 95 % interval that a class's recall should be known to."""
CUT, CUT_OFTEN = 0.4, 0.1
"""Share of the median photo that a centre crop may cut away, and share of the photos that may lose over half."""
ALIKE_SHAPES = 0.6
"""Range of log(width / height), without a tenth at either end, within which shapes are about the same."""
SIZE_MIX = 4.0
"""Ratio of the 95 % to the 5 % quantile of the shorter sides from which sizes are mixed."""
DETAIL = {"blur": 0.15, "zoom_out": 0.2}
"""Settings that show the model photos with less detail, and their defaults."""
LEAST_SIDE, STEP = 96, 32
"""Pixels: the smallest --image_size suggested, and what sides are multiples of."""
FEWEST_GROUPS, GROUPED_SHARE, LARGEST_SHARE = 10, 0.3, 0.2
"""Names suggest groups where there are at least so many, with at least that share of the images, none of them larger
than the last."""


def unless_set(lines: list[str], settings: Mapping[str, Any]) -> list[str]:
    """Without those that advise what the run's `settings` have already, such as '--resize pad' or '--group_column'."""

    def is_set(name: str, value: str) -> bool:
        return str(settings.get(name)) == value if value else settings.get(name) is not None

    named = [re.findall(r"(?<!larger )--(\w+)(?: (\w+))?", line) for line in lines]
    return [line for line, flags in zip(lines, named, strict=True) if not any(is_set(*flag) for flag in flags)]


def imbalance(counts: Mapping[str, int]) -> float:
    """Images of the largest class over those of the smallest; a class without images counts as one."""
    return max(counts.values()) / max(1, min(counts.values()))


def balance(train: Mapping[str, int]) -> list[str]:
    smallest, largest = min(train, key=train.__getitem__), max(train, key=train.__getitem__)
    total = max(1, sum(train.values()))
    if imbalance(train) < IMBALANCE:
        return []
    return [
        f"try --class_weights balanced if all classes matter equally: {smallest!r} is "
        f"{percent(train[smallest] / total)} of the training images, {largest!r} {percent(train[largest] / total)}"
    ]


def rare_label(train: Mapping[str, int], images: int) -> list[str]:
    """Where an image may have several labels: `train` counts the images with each label, `images` all of them."""
    rarest = min(train, key=train.__getitem__)
    share = train[rarest] / max(1, images)
    if share >= RARE:
        return []
    return [
        f"try --class_weights balanced if missing a label is worse than adding a wrong one: only {percent(share)} of "
        f"the training images have label {rarest!r}"
    ]


def more_images(data: DatasetReport) -> list[str]:
    """For the smallest class: how many images it takes to measure its recall, assumed to be 0.9 (normal
    approximation)."""
    train, val, images = data.counts["train"], data.counts["val"], data.images
    smallest = min(train, key=lambda name: train[name] + val[name])
    if train[smallest] >= FEW_IMAGES:
        return []
    scored = 1.96**2 * 0.9 * 0.1 / RECALL_MARGIN**2
    share = images["val"] / max(1, images["val"] + images["train"])
    missing = int(np.ceil(scored / max(share, 0.01))) - train[smallest] - val[smallest]
    return [
        f"collect images {'with' if data.multi_label else 'of'} {noun_of(data.multi_label)} {smallest!r}: there are "
        f"{train[smallest]} to learn from and {val[smallest]} to validate on; with about {missing} more, split in the "
        f"same way, its recall would be known to within {100 * RECALL_MARGIN:.0f} points"
    ]


def learning_curve(measured: Mapping[str, Any] | None, multi_label: bool = False) -> list[str]:
    """More images of the same kind should help where learning from half of them costs accuracy."""
    if measured is None:
        return []
    low, high = measured["differences"]["half"]["interval"]
    loss = -100 * measured["differences"]["half"]["accuracy"]
    if high < 0:
        what = "images with all labels correct" if multi_label else "accuracy"
        return [
            f"collect more images: learning from half of them instead of four fifths costs {loss:.1f} points of "
            f"{what} ({-100 * high:.1f} to {-100 * low:.1f}; frozen features), so more of them should still help"
        ]
    return []


def review_outliers(outliers: pd.DataFrame, listed_in: str) -> list[str]:
    if not len(outliers):
        return []
    files = outliers["file"].nunique()
    return [
        f"look at {count_of(files, 'outlier')} ({kinds(outliers)}) in {listed_in}, and take out what does not belong"
    ]


def kinds(outliers: pd.DataFrame) -> str:
    """'9 dark, 6 blurred'."""
    return ", ".join(f"{count} {what}" for what, count in outliers["what"].value_counts(sort=False).items())


def image_size(used: pd.DataFrame, size: int, native: int) -> list[str]:
    """`size` is the current --image_size, `native` the side that the backbone was trained with."""
    width, height = float(used["width"].median()), float(used["height"].median())
    shorter, longer = min(width, height), max(width, height)
    photos = f"photos are {width:.0f} x {height:.0f} pixels in the median"
    smaller = max(LEAST_SIDE, int(shorter) // STEP * STEP)
    if shorter >= native > size:
        return [
            f"try --image_size {native} if small details matter: {photos}, and the backbone was trained at {native}, "
            f"not {size}; it takes {(native / size) ** 2:.1f} times as long"
        ]
    if longer < size and smaller < size:
        return [
            f"try --image_size {smaller}: {photos}, so {size} (now) adds no detail and takes "
            f"{(size / smaller) ** 2:.1f} times as long"
        ]
    return []


def size_mix(used: pd.DataFrame, settings: Mapping[str, Any]) -> list[str]:
    """`settings` of the run; those that are not known have their defaults, which are on."""
    low, high = np.quantile(used[["width", "height"]].min(axis=1), [0.05, 0.95])
    off = [f"--{name} {value}" for name, value in DETAIL.items() if not settings.get(name, value)]
    if high < SIZE_MIX * low or not off:
        return []
    return [
        f"try {' '.join(off)}: shorter sides go from {low:.0f} to {high:.0f} pixels (without the extreme 5 % at either "
        "end), and small photos lack the detail of large ones"
    ]


def resize(used: pd.DataFrame, current: str) -> list[str]:
    """An alternative to the centre crop where that cuts away much."""
    shape = np.log(used["width"].to_numpy() / used["height"].to_numpy())
    cut = 1 - np.exp(-np.abs(shape))
    if current != "crop" or (np.median(cut) < CUT and (cut > 0.5).mean() < CUT_OFTEN):
        return []
    spread = float(np.subtract(*np.quantile(shape, [0.9, 0.1])))
    median, often = percent(float(np.median(cut))), percent(float((cut > 0.5).mean()))
    lost = f"a centre crop loses {median} of the median photo, and of {often} of the photos over half"
    if spread > ALIKE_SHAPES:
        return [f"try --resize pad: {lost}; shapes differ, and pad shows all of each photo undistorted, but smaller"]
    return [f"try --resize squash: {lost}; shapes are about the same, so squash distorts all photos in the same way"]


def group_column(used: pd.DataFrame) -> list[str]:
    """Where no groups are known, but file names look like several photos of one subject: p12_1.jpg, p12_2.jpg."""
    if (used["group"] != "").any():
        return []
    keys = pd.Series([_subject(file, label) for file, label in zip(used["file"], used["label"], strict=True)])
    sizes = keys[keys != ""].value_counts()
    several = sizes[sizes > 1]
    enough = len(several) >= FEWEST_GROUPS and several.sum() >= GROUPED_SHARE * len(used)
    if not enough or several.max() > LARGEST_SHARE * len(used):
        return []
    example = used["file"][(keys == several.index[0]).to_numpy()].iloc[:2].tolist()
    return [
        f"if files such as {example[0]!r} and {example[1]!r} show the same subject, name it in a column and pass that "
        f"as --group_column: {several.sum()} images would belong to {len(several)} groups, and photos of one subject "
        "on both sides of a split make scores optimistic"
    ]


def _subject(file: str, label: str) -> str:
    """The part of the name before a final short number, letter or side ('p12' in p12_1.jpg), else the folder's name
    where that is not the class; '' where there is neither."""
    path = PurePath(file.replace("\\", "/"))
    match = re.match(r"(.*[A-Za-z0-9])[ _.()-]+(\d{1,4}|[A-Za-z]|left|right|front|back|side|top)\)?$", path.stem)
    if match:
        return f"{path.parent}/{match.group(1)}"
    return str(path.parent) if path.parent.name not in ("", label) else ""
