"""Outliers: images that differ from the rest in the measures of their files or in the frozen backbone's features."""

import numpy as np
import pandas as pd

from spectacles.data.schemas import OUTLIERS

MAX_Z = 3.5
"""Robust z-score beyond which a value is an outlier (Iglewicz and Hoaglin 1993)."""

LEAST_SPREAD = {
    "brightness": 0.25,
    "contrast": 0.2,
    "sharpness": 0.5,
    "aspect ratio": 0.2,
    "image size": 0.6,
    "bytes per pixel": 0.25,
}
"""Lower bound of the spread of each measure: without it, harmless values among near-identical images are outliers."""

UNLIKE_OTHERS = "unlike the others"
NEIGHBOURS = 20
"""Nearest images whose mean distance counts: more than usually share a fault, or they would hide each other."""
FEWEST = 40
"""Images below which none is called an outlier by its features."""
POOL, BLOCK = 10_000, 1024
"""Of a larger set each image is compared with so many, drawn with a seed; and how many are compared at once."""
COLUMNS = [*OUTLIERS.names, "path"]


def measure(index: pd.DataFrame) -> pd.DataFrame:
    """One row per image, on scales where ordinary photos spread about evenly to both sides (logarithms, a logit).

    Sharpness is the variance of the Laplacian divided by that of the picture, so that a dark or low-contrast picture is
    not taken for a blurred one. The aspect ratio is 0 for a square, and the same for portrait and landscape.
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
    centred_measures = measures - measures.median()
    spread = 1.4826 * centred_measures.abs().median()
    return centred_measures / spread.clip(lower=pd.Series(LEAST_SPREAD))


def find_outliers(used: pd.DataFrame) -> pd.DataFrame:
    """COLUMNS, a row for each finding, the most extreme of each kind first.

    Besides being far from the rest, an image must be what the word says (a grey value of 110 is not dark), so that
    uniform data sets have no findings.
    """
    z = robust_z(measure(used))
    low, high = z < -MAX_Z, z > MAX_Z
    shorter_side = used[["width", "height"]].min(axis=1)
    dark = low["brightness"] & (used["brightness"] < 64)
    bright = high["brightness"] & (used["brightness"] > 191)
    # Near black or white there is no room for contrast: one finding is enough.
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
    for what, chosen, value, score in findings:
        part = used.loc[chosen, ["file", "label", "split", "path"]]
        part = part.assign(what=what, value=value[chosen].round(2), z=score[chosen].round(1))
        parts.append(part.sort_values("z", key=abs, ascending=False, kind="stable"))
    return pd.concat(parts, ignore_index=True)[COLUMNS]


def rank_by_distance(used: pd.DataFrame, features: np.ndarray | None, seed: int) -> pd.DataFrame:
    """COLUMNS of every image, the least like the others first; `value` is the mean distance to its nearest neighbours
    in features (N, D), and a `z` above MAX_Z makes an outlier. Empty without features or in small sets."""
    if features is None or len(used) < FEWEST:
        return pd.DataFrame(columns=COLUMNS)
    distances = mean_distances(features, seed)
    centre = np.median(distances)
    z = (distances - centre) / max(1.4826 * float(np.median(np.abs(distances - centre))), 0.01 * float(centre), 1e-9)
    table = used[["file", "label", "split", "path"]].assign(what=UNLIKE_OTHERS, value=distances.round(2), z=z.round(1))
    return table.iloc[np.argsort(-z, kind="stable")].reset_index(drop=True)[COLUMNS]


def mean_distances(features: np.ndarray, seed: int) -> np.ndarray:
    """(N, D) -> (N,) float64: root mean square difference per feature to the NEIGHBOURS nearest other rows, averaged.

    Features are replaced by their signed square roots, which keeps a few large ones from dominating (Perronnin et al.
    2010), and standardised. Cosines missed the outliers: these have unusual amounts of many features rather than an
    unusual direction.
    """
    values = np.sign(features) * np.sqrt(np.abs(features))
    values = ((values - values.mean(axis=0)) / np.maximum(values.std(axis=0), 1e-3)).astype(np.float32)
    rows = np.arange(len(values))
    pool = rows if len(rows) <= POOL else np.sort(np.random.default_rng(seed).permutation(rows)[:POOL])
    squares, count = (values**2).sum(axis=1), min(NEIGHBOURS, len(pool) - 1)
    distances = np.empty(len(values))
    for start in range(0, len(values), BLOCK):
        block = rows[start : start + BLOCK]
        apart = squares[block, None] + squares[pool] - 2 * values[block] @ values[pool].T
        apart[block[:, None] == pool] = np.inf
        nearest = np.partition(apart, count - 1, axis=1)[:, :count]
        distances[block] = np.sqrt(np.maximum(nearest, 0) / values.shape[1]).mean(axis=1)
    return distances
