"""Images that are unlike the rest: in what was measured of each file, and in the frozen backbone's features."""

import numpy as np
import pandas as pd

UNLIKE_Z = 3.5
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

UNLIKE = "unlike the others"
NEIGHBOURS, FEWEST = 20, 40
"""Images that a distance is the mean of (more than have the same fault, or they would vouch for each other); and the
fewest among which any can be unlike the rest."""
POOL, BLOCK = 10_000, 1024
"""Images, drawn with a seed, that each is compared with where there are more; and images compared at once."""
COLUMNS = ["file", "label", "split", "what", "value", "z", "path"]


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
    centred_measures = measures - measures.median()
    spread = 1.4826 * centred_measures.abs().median()
    return centred_measures / spread.clip(lower=pd.Series(LEAST_SPREAD))


def find_outliers(used: pd.DataFrame) -> pd.DataFrame:
    """file, label, split, what, value, z and path, a row for each finding, the most extreme of each kind first.

    Besides being far from the rest a picture must be what the word says (nobody calls a grey value of 110 dark), so
    that uniform data sets stay quiet.
    """
    z = robust_z(measure(used))
    low, high = z < -UNLIKE_Z, z > UNLIKE_Z
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
    return pd.concat(parts, ignore_index=True)[COLUMNS]


def unlike_others(used: pd.DataFrame, features: np.ndarray | None, seed: int) -> pd.DataFrame:
    """Every image with the columns of find_outliers, the least like any other first; `value` is the distance to its
    nearest others in features (N, D), and `z` above LIMIT means an outlier. Empty without features or in small sets."""
    if features is None or len(used) < FEWEST:
        return pd.DataFrame(columns=COLUMNS)
    distances = mean_distances(features, seed)
    centre = np.median(distances)
    z = (distances - centre) / max(1.4826 * float(np.median(np.abs(distances - centre))), 0.01 * float(centre), 1e-9)
    table = used[["file", "label", "split", "path"]].assign(what=UNLIKE, value=distances.round(2), z=z.round(1))
    return table.iloc[np.argsort(-z, kind="stable")].reset_index(drop=True)[COLUMNS]


def mean_distances(features: np.ndarray, seed: int) -> np.ndarray:
    """(N, D) -> (N,) float64: root mean square difference per feature to the NEIGHBOURS nearest other rows, averaged.

    Features are taken as their signed square roots, which keeps a few large ones from deciding (Perronnin et al. 2010),
    and standardised. Cosines, which look for what is alike, missed the odd images: these have unusual amounts of many
    features rather than an unusual direction.
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
