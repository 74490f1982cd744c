"""Properties of a file besides what it shows: size, light, colours, format and name, with words for each."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import pandas as pd

RARE, MOST = 0.01, 12
"""A format or a prefix of file names is a property where at least this share of the images has it; at most so many."""
VISIBLE = 0.05
"""Share of the median that the values must span to be a property."""

RESIZE = "shrink the photos of all classes to one size, in a copy, and train on that"
ENCODE = "save the photos of all classes in one size, format and quality, in a copy, and train on that"
SHAPE = "try --resize squash, which makes all photos square, or cut all to one shape in a copy"
LIGHT = "add photos of each class in other light, or try a larger --color_jitter"
COLOUR = "add photos of each class in other light; or, if colour does not matter, remove it with --in_chans 1"
BORDER = "cut the border off the photos of all classes, in a copy, and train on that"
FOCUS = "add sharp and blurred photos of each class, or try a larger --blur"
SOURCE = (
    "a model does not see file names, but these say that the classes have different sources: see what else differs "
    "between them, and add photos of each class from each source"
)

NUMBERS = {
    "width": ("wider than {} px", "at most {} px wide", RESIZE),
    "height": ("taller than {} px", "at most {} px tall", RESIZE),
    "size": ("larger than {} megapixels", "of at most {} megapixels", RESIZE),
    "aspect ratio": ("more than {} times as wide as tall", "at most {} times as wide as tall", SHAPE),
    "brightness": ("brighter than {} of 255", "darker than {} of 255", LIGHT),
    "border brightness": ("with a border brighter than {} of 255", "with a border darker than {} of 255", BORDER),
    "saturation": ("with more colour than {} of 255", "with less colour than {} of 255", COLOUR),
    "contrast": ("with a contrast above {} of 128", "with a contrast below {} of 128", LIGHT),
    "sharpness": ("sharper than {}", "more blurred than {}", FOCUS),
    "red": ("with over {} % red in their colour", "with under {} % red in their colour", COLOUR),
    "green": ("with over {} % green in their colour", "with under {} % green in their colour", COLOUR),
    "blue": ("with over {} % blue in their colour", "with under {} % blue in their colour", COLOUR),
    "border red": ("with over {} % red in their border", "with under {} % red in their border", BORDER),
    "border green": ("with over {} % green in their border", "with under {} % green in their border", BORDER),
    "border blue": ("with over {} % blue in their border", "with under {} % blue in their border", BORDER),
    "compression": ("compressed harder than quantisation {}", "compressed less than quantisation {}", ENCODE),
    "bytes per pixel": ("of over {} bytes per pixel", "of under {} bytes per pixel", ENCODE),
}
"""Words for images above and below a value, and what keeps a model from learning it; the plainest first."""

LEAST = dict.fromkeys(("brightness", "border brightness", "saturation", "contrast"), 5.0) | dict.fromkeys(
    ("red", "green", "blue", "border red", "border green", "border blue"), 2.0
)
"""The smallest visible difference, where it does not depend on the median."""


@dataclass(frozen=True)
class Property:
    name: str
    values: np.ndarray
    """(N,) float64; of a format or a prefix of the name 1 or 0."""
    more: str
    less: str
    """End of a sentence about 'images' whose value is above, or not above, a threshold that replaces {}."""
    remedy: str


def properties(rows: pd.DataFrame) -> list[Property]:
    """Of the rows of an index, the plainest first, without those that hardly differ between images."""
    return [*_formats(rows), *_names(rows), *_numbers(rows)]


def _formats(rows: pd.DataFrame) -> Iterator[Property]:
    yield from _having("format", rows["format"], lambda name: f"stored as {name}", ENCODE)


def _names(rows: pd.DataFrame) -> Iterator[Property]:
    """Prefixes of names up to the first digit; none where they contain the class itself, as in cat.1.jpg."""
    prefixes = rows["file"].map(lambda file: _prefix(PurePosixPath(file.replace("\\", "/")).stem))
    labels = rows["label"].unique()
    if not any(_names_class(prefix, label) for prefix in _frequent(prefixes) for label in labels):
        yield from _having("name", prefixes, lambda text: f"named '{text}*'" if text else "named by a number", SOURCE)


def _prefix(stem: str) -> str:
    match = re.match(r"\D*", stem)
    assert match is not None
    return match.group()


def _names_class(prefix: str, label: str) -> bool:
    word, name = (re.sub(r"[\W\d_]", "", text).casefold() for text in (prefix, label))
    return bool(word and name) and (word == name or (min(len(word), len(name)) >= 3 and (word in name or name in word)))


def _having(kind: str, values: "pd.Series[str]", describe: Callable[[str], str], remedy: str) -> Iterator[Property]:
    """A property of 0 and 1 for each frequent value; of two values, not having one means having the other."""
    distinct = values.unique()
    for value in _frequent(values):
        others = [describe(other) for other in distinct if other != value]
        words = describe(value)
        less = others[0] if len(others) == 1 else f"not {words}"
        yield Property(f"{kind} {value}", (values == value).to_numpy(dtype=np.float64), words, less, remedy)


def _frequent(values: "pd.Series[str]") -> list[str]:
    """Values that neither all rows nor hardly any have, the most frequent first."""
    shares = values.value_counts(normalize=True)
    return [str(value) for value in shares.index[(shares >= RARE) & (shares < 1)][:MOST]]


def _numbers(rows: pd.DataFrame) -> Iterator[Property]:
    for name, values in _measured(rows).items():
        if np.ptp(values) > max(LEAST.get(name, 0.0), VISIBLE * abs(float(np.median(values)))):
            yield Property(name, values, *NUMBERS[name])


def _measured(rows: pd.DataFrame) -> dict[str, np.ndarray]:
    """Name -> (N,) float64, in the order of NUMBERS."""
    pixels = rows["width"] * rows["height"]
    measured: dict[str, pd.Series[float]] = {
        "width": rows["width"],
        "height": rows["height"],
        "size": pixels / 1e6,
        "aspect ratio": rows["width"] / rows["height"],
        "brightness": rows["brightness"],
        "contrast": rows["contrast"],
        "sharpness": rows["sharpness"] / rows["contrast"].clip(lower=0.5) ** 2,
        "bytes per pixel": rows["bytes"] / pixels,
        "saturation": rows["saturation"],
        "compression": rows["quantisation"],
        **_colour(rows, ""),
        **_colour(rows, "border_"),
    }
    return {name: measured[name].to_numpy(dtype=np.float64) for name in NUMBERS}


def _colour(rows: pd.DataFrame, prefix: str) -> dict[str, "pd.Series[float]"]:
    """Shares of the three channels in percent; of the border its brightness too."""
    names = [f"{prefix}{channel}" for channel in ("red", "green", "blue")]
    channels = rows[names].clip(lower=1.0)  # black has no colour
    shares = {name.replace("_", " "): 100 * channels[name] / channels.sum(axis=1) for name in names}
    return {"border brightness": rows[names].mean(axis=1), **shares} if prefix else shares
