"""Slices of the images, from columns or found automatically, and whether the model is worse on one than on all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.cluster import KMeans
from sklearn.preprocessing import normalize
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from spectacles.core.wording import percent
from spectacles.data.schemas import SLICE_PREFIX
from spectacles.metrics import bootstrap
from spectacles.metrics.basics import Float64s
from spectacles.metrics.decisions import Scored

ENOUGH_IMAGES, ENOUGH_CLUSTERS = 30, 5
"""With fewer images or clusters a slice is not compared."""
LOOKS = 6
"""Clusters of similar images, where there are at least ENOUGH_IMAGES for each."""
MOST_VALUES = 50
"""Values of a column that are slices of their own, the most frequent ones."""
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Slice:
    column: str
    value: str
    source: str
    """`column` of the person's table, or `automatic`."""
    images: np.ndarray
    """(N,) bool."""


def find(rows: pd.DataFrame, features: np.ndarray | None, seed: int) -> list[Slice]:
    """Slices of `rows` of splits.csv: by each column slice_<name>, by thirds of brightness, image size and sharpness
    (where measured), and by looks: k-means of frozen features (N, D), where there are any."""
    found = [each for column in rows.columns if column.startswith(SLICE_PREFIX) for each in _by_value(rows[column])]
    if "brightness" in rows:
        found += _thirds("brightness", rows["brightness"], ("dark", "medium", "bright"), " of 255")
    if {"width", "height"} <= set(rows.columns):
        megapixels = rows["width"] * rows["height"] / 1e6
        found += _thirds("image size", megapixels, ("small", "medium", "large"), " megapixels")
    if "sharpness" in rows:
        found += _thirds("sharpness", rows["sharpness"], ("blurred", "medium", "sharp"), "")
    if features is not None:
        found += _looks(rows["file"], features, seed)
    return found


def _by_value(values: pd.Series[str]) -> Iterator[Slice]:
    name = str(values.name).removeprefix(SLICE_PREFIX)
    values = values.where(values != "", UNKNOWN)
    counts = values.value_counts()
    for value in counts.index[:MOST_VALUES]:
        yield Slice(name, str(value), "column", (values == value).to_numpy())
    if len(counts) > MOST_VALUES:
        rest = values.isin(counts.index[MOST_VALUES:]).to_numpy()
        yield Slice(name, f"one of {len(counts) - MOST_VALUES} rarer values", "column", rest)


def _thirds(name: str, values: pd.Series[float], words: tuple[str, str, str], unit: str) -> Iterator[Slice]:
    """Equal thirds as far as equal values allow; nothing where all are equal."""
    low, high = np.quantile(values, [1 / 3, 2 / 3])
    which = np.where(values <= low, 0, np.where(values <= high, 1, 2))
    if len(np.unique(which)) < 2:
        return
    for index, word in enumerate(words):
        chosen = which == index
        if chosen.any():
            ends = (_number(value) for value in (values[chosen].min(), values[chosen].max()))
            yield Slice(name, f"{word} ({' to '.join(dict.fromkeys(ends))}{unit})", "automatic", chosen)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _looks(files: pd.Series[str], features: np.ndarray, seed: int) -> Iterator[Slice]:
    """Each named by the image in its middle, the largest first."""
    count = min(LOOKS, len(features) // ENOUGH_IMAGES)
    if count < 2:
        return
    units = normalize(features - features.mean(axis=0))
    with threadpool_limits(1):  # waiting for each other costs threads more than so little work
        means = KMeans(count, n_init=4, random_state=seed % 2**32).fit(units)
    for index in np.argsort(-np.bincount(means.labels_, minlength=count), kind="stable"):
        chosen = means.labels_ == index
        distances = np.where(chosen, ((units - means.cluster_centers_[index]) ** 2).sum(axis=1), np.inf)
        middle = PurePosixPath(files.iloc[int(distances.argmin())].replace("\\", "/")).name
        yield Slice("looks", f"like {middle}", "automatic", chosen)


def score(slices: list[Slice], scored: Scored, seed: int, resamples: int) -> dict[str, Any]:
    """What slices.json holds: of each slice its images, accuracy and (of two classes) error rates with 95 % intervals,
    and the `worst_gap` between all images and a slice. One without enough images (`sufficient` false) is not compared.
    """
    if not slices:
        return {"slices": [], "worst_gap": None}
    wrong = ~scored.correct
    kinds = [np.ones(len(wrong), dtype=bool)]
    kinds += [scored.labels == 0, scored.labels == 1] if scored.num_classes == 2 and not scored.multi_label else []
    members = np.stack([each.images & kind for kind in kinds for each in slices])
    columns = sparse.csr_matrix(np.concatenate([members, members & wrong])).astype(np.float64)
    sums = bootstrap.resampled_sums(columns, scored.clusters, seed, resamples)
    rates = bootstrap.divide(sums[len(members) :], sums[: len(members)]).reshape(len(kinds), -1, resamples)
    entries = []
    for place, each in enumerate(slices):
        entry: dict[str, Any] = {
            "column": each.column,
            "value": each.value,
            "source": each.source,
            "images": int(each.images.sum()),
        }
        error, interval = _rate(rates[0, place], wrong, each.images, scored)
        entry |= {"accuracy": _rest(error), "interval": [1 - end for end in reversed(interval)] if interval else None}
        for number, name in enumerate(("false_positive_rate", "false_negative_rate"), 1):
            two = len(kinds) > 1
            values = _rate(rates[number, place], wrong, each.images & kinds[number], scored) if two else (None, None)
            entry |= dict(zip((name, f"{name}_interval"), values, strict=True))
        independent = len(np.unique(scored.clusters[each.images]))
        entry["sufficient"] = bool(entry["images"] >= ENOUGH_IMAGES and independent >= ENOUGH_CLUSTERS)
        entries.append(entry)
    return {"slices": entries, "worst_gap": _worst_gap(slices, entries, scored, seed, resamples)}


def _rate(
    resampled: Float64s, wrong: np.ndarray, chosen: np.ndarray, scored: Scored
) -> tuple[float | None, list[float] | None]:
    if not chosen.any():
        return None, None
    interval = bootstrap.exact_if_unanimous(
        bootstrap.percentile_interval(resampled), wrong[chosen], scored.clusters[chosen]
    )
    return float(wrong[chosen].mean()), interval


def _rest(error: float | None) -> float | None:
    return None if error is None else 1 - error


def _worst_gap(
    slices: list[Slice], entries: list[dict[str, Any]], scored: Scored, seed: int, rounds: int
) -> dict[str, Any] | None:
    """The slice that is most surely worse than all images together, with an interval that allows for its choice.

    Random slices show how far the most extreme of so many strays by chance (permutation test of the largest of the
    standardised gaps, Westfall & Young 1993): `p` is how often that is as far as the worst that was measured, and its
    95th percentile is half the width of the interval, so that this holds for every slice at once.
    """
    places = [place for place, entry in enumerate(entries) if entry["sufficient"]]
    if len(places) < 2:
        return None
    wrong = (~scored.correct).astype(np.float64)
    members = sparse.csr_matrix(np.stack([slices[place].images for place in places])).astype(np.float64)
    sizes = np.array([entries[place]["images"] for place in places])
    gaps = members @ wrong / sizes - wrong.mean()
    blocks = [members @ block / sizes[:, None] for block in _shuffled(wrong, scored.clusters, seed, rounds)]
    strayed = np.concatenate(blocks, axis=1) - wrong.mean()
    spread = strayed.std(axis=1)
    if not spread.all():
        return None  # no error, or nothing to shuffle
    largest = np.abs(strayed / spread[:, None]).max(axis=0)
    worst = int((gaps / spread).argmax())
    gap, reach, entry = float(gaps[worst]), float(np.quantile(largest, 0.95) * spread[worst]), entries[places[worst]]
    as_far = int((largest >= gap / spread[worst] - 1e-9).sum())
    return {
        "column": entry["column"], "value": entry["value"], "images": entry["images"], "accuracy": entry["accuracy"],
        "overall": 1 - float(wrong.mean()), "gap": gap, "interval": [gap - reach, gap + reach],
        "p": (as_far + 1) / (rounds + 1), "among": len(places),
    }  # fmt: skip


def _shuffled(values: Float64s, clusters: np.ndarray, seed: int, rounds: int) -> Iterator[Float64s]:
    """Blocks (N, R) of `values` (N,) in random order: whole clusters change places with others of the same size."""
    rng = np.random.default_rng(seed)
    _, cluster, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    order = rng.permutation(len(values))
    order = order[np.argsort(cluster[order], kind="stable")]
    starts = np.cumsum(sizes) - sizes
    alike = [starts[sizes == size][:, None] + np.arange(size) for size in np.unique(sizes)]
    block = max(1, bootstrap.BLOCK // len(values))
    for start in range(0, rounds, block):
        count = min(block, rounds - start)
        shuffled = np.empty((len(values), count))
        for places in alike:
            images = order[places]  # (clusters of this size, size)
            turn = rng.random((len(images), count)).argsort(axis=0)
            shuffled[images] = values[images][turn].transpose(0, 2, 1)
        yield shuffled


def to_table(found: dict[str, Any]) -> pd.DataFrame:
    """What slices.csv holds: a row for each slice, each interval as two columns <name>_low and <name>_high."""
    table = pd.DataFrame(found["slices"])
    for name in [column for column in table.columns if column.endswith("interval")]:
        prefix = "accuracy" if name == "interval" else name.removesuffix("_interval")
        for place, end in enumerate(("low", "high")):
            table[f"{prefix}_{end}"] = [None if pair is None else pair[place] for pair in table[name]]
    return table.drop(columns=[column for column in table.columns if column.endswith("interval")])


def sentence(found: dict[str, Any]) -> str:
    """What a person should know of it; '' where no two slices have enough images."""
    worst = found["worst_gap"]
    if worst is None:
        few = len(found["slices"])
        return f"slices: insufficient: none of the {few} groups could be compared with the whole" if few else ""
    low, high = (100 * end for end in worst["interval"])
    what = f"{worst['column']} {worst['value']}: {percent(worst['accuracy'])} of {worst['images']} images right"
    points = f"{100 * worst['gap']:.1f} points below all images ({low:.1f} to {high:.1f}"
    if low > 0:
        return f"weakest slice: {what}, {points}, 95 %, its choice among {worst['among']} allowed for)"
    return f"slices: none of {worst['among']} is surely worse than the whole; the weakest: {what}, {points}, 95 %)"
