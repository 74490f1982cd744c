"""Which labels go together, where an image has any number of them: what implies or excludes what."""

import numpy as np
import pandas as pd

from spectacles.core.wording import count_of
from spectacles.data import label_sets

BY_CHANCE = 1e-4
"""That all of a label's images have, or lack, another label is said where it was less probable than this, had the two
nothing to do with each other."""
FEWEST = 20
"""Images of a label of which 'all' or 'none' is said."""
MAX_TOLD = 4
"""Findings of each kind that a sentence names."""
SAME, NEVER, ONLY_A, ONLY_B = "always together", "never together", "a only with b", "b only with a"


def count(texts: "pd.Series[str]", classes: list[str]) -> np.ndarray:
    """(K, K) images that have both labels; on the diagonal those of each. `texts` are labels of images, none ''."""
    sets = texts.value_counts()
    flags = label_sets.encode(sets.index, classes, multi_label=True)
    together: np.ndarray = flags.T @ (flags * sets.to_numpy(dtype=np.int64)[:, None])
    return together


def table(together: np.ndarray, classes: list[str], images: int) -> pd.DataFrame:
    """A row a pair, the most frequent first: label_a, label_b, images with both, share_of_a and share_of_b that have
    the other label too, `by_chance` (images with both, had the two nothing to do with each other), and a note."""
    first, second = np.triu_indices(len(classes), 1)
    own = together.diagonal()
    both, a, b = together[first, second], own[first], own[second]
    pairs = pd.DataFrame(
        {
            "label_a": np.array(classes, dtype=object)[first],
            "label_b": np.array(classes, dtype=object)[second],
            "images": both,
            "share_of_a": (both / np.maximum(a, 1)).round(4),
            "share_of_b": (both / np.maximum(b, 1)).round(4),
            "by_chance": (a * b / max(1, images)).round(1),
            "note": [_note(*pair, images) for pair in zip(both.tolist(), a.tolist(), b.tolist(), strict=True)],
        }
    )
    return pairs.sort_values("images", ascending=False, kind="stable", ignore_index=True)


def _note(both: int, a: int, b: int, images: int) -> str:
    if min(a, b) < FEWEST:
        return ""
    if both == 0:
        return NEVER if (1 - max(a, b) / images) ** min(a, b) < BY_CHANCE else ""
    a_only, b_only = (both == own and (other / images) ** own < BY_CHANCE for own, other in ((a, b), (b, a)))
    if a_only and b_only:
        return SAME
    return ONLY_A if a_only else ONLY_B if b_only else ""


def sentences(pairs: pd.DataFrame) -> list[str]:
    """What implies and what excludes what."""
    only = [
        f"{count_of(row['images'], 'image')} with {row[f'label_{one}']!r} all have {row[f'label_{other}']!r} too"
        for row in pairs.to_dict("records")
        for note, one, other in ((ONLY_A, "a", "b"), (ONLY_B, "b", "a"))
        if row["note"] == note
    ]
    never = pairs[pairs["note"] == NEVER].sort_values("by_chance", ascending=False, kind="stable")
    apart = [
        f"{row['label_a']!r} and {row['label_b']!r} (by chance about {row['by_chance']:.0f} images)"
        for row in never.to_dict("records")
    ]
    told = []
    if only:
        told.append(f"the {'; the '.join(only[:MAX_TOLD])}{_more(only)}")
    if apart:
        told.append(f"never together: {', '.join(apart[:MAX_TOLD])}{_more(apart)}")
    return told


def check(together: np.ndarray, pairs: pd.DataFrame) -> list[str]:
    """Labels that cannot be told apart, and labels that look like classes."""
    if together.sum() == together.trace():
        return [
            "no image has more than one label, so they could be classes, which always give one answer: without "
            "--multi_label, from a column that names the class"
        ]
    same = [f"{row['label_a']!r} and {row['label_b']!r}" for row in pairs[pairs["note"] == SAME].to_dict("records")]
    if not same:
        return []
    return [f"always on the same images, so nothing tells them apart: {', '.join(same[:MAX_TOLD])}{_more(same)}"]


def _more(found: list[str]) -> str:
    return f" and {len(found) - MAX_TOLD} more, see explore/label_pairs.csv" if len(found) > MAX_TOLD else ""
