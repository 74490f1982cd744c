"""Which labels occur together where an image may have several: what implies or excludes what."""

import numpy as np
import pandas as pd

from spectacles.core.wording import count_of
from spectacles.data import label_sets

BY_CHANCE = 1e-4
"""That all images with a label have, or lack, another one is a finding where it would be less probable than this for
independent labels."""
FEWEST = 20
"""Images that a label must have for a finding about all of them."""
MAX_NAMED = 4
"""Findings of each kind that a sentence names."""
SAME, NEVER, ONLY_A, ONLY_B = "always together", "never together", "a only with b", "b only with a"


def count(texts: "pd.Series[str]", classes: list[str]) -> np.ndarray:
    """(K, K) images that have both labels; on the diagonal those with each. `texts` are labels of images, never ''."""
    sets = texts.value_counts()
    flags = label_sets.encode(sets.index, classes, multi_label=True)
    together: np.ndarray = flags.T @ (flags * sets.to_numpy(dtype=np.int64)[:, None])
    return together


def table(together: np.ndarray, classes: list[str], images: int) -> pd.DataFrame:
    """One row per pair, the most frequent first: label_a, label_b, images with both, the shares of a and of b that have
    the other label too, `by_chance` (images with both if the labels were independent), and a note."""
    first, second = np.triu_indices(len(classes), 1)
    each = together.diagonal()
    both, a, b = together[first, second], each[first], each[second]
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
    a_only, b_only = (both == one and (other / images) ** one < BY_CHANCE for one, other in ((a, b), (b, a)))
    if a_only and b_only:
        return SAME
    return ONLY_A if a_only else ONLY_B if b_only else ""


def sentences(pairs: pd.DataFrame) -> list[str]:
    """Labels that imply each other, and labels that exclude each other."""
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
    lines = []
    if only:
        lines.append(f"the {'; the '.join(only[:MAX_NAMED])}{_more(only)}")
    if apart:
        lines.append(f"never together: {', '.join(apart[:MAX_NAMED])}{_more(apart)}")
    return lines


def check(together: np.ndarray, pairs: pd.DataFrame) -> list[str]:
    """Warnings about labels that cannot be told apart, and about labels that look like classes."""
    if together.sum() == together.trace():
        return [
            "no image has more than one label: they could be classes, of which every image gets exactly one; for that, "
            "leave out --multi_label and give a column with the class"
        ]
    same = [f"{row['label_a']!r} and {row['label_b']!r}" for row in pairs[pairs["note"] == SAME].to_dict("records")]
    if not same:
        return []
    return [f"always on the same images, so nothing tells them apart: {', '.join(same[:MAX_NAMED])}{_more(same)}"]


def _more(found: list[str]) -> str:
    return f" and {len(found) - MAX_NAMED} more, see explore/label_pairs.csv" if len(found) > MAX_NAMED else ""
