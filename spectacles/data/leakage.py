"""Leakage between splits and other problems of the rows, as lists and sentences: duplicates, groups, rejections."""

import numpy as np
import pandas as pd

from spectacles.data.duplicates import KINDS
from spectacles.data.splits import RANK

ACROSS = "duplicate across splits"
GROUP_ACROSS = "group across splits"


def describe_pairs(pairs: pd.DataFrame, index: pd.DataFrame) -> pd.DataFrame:
    """schemas.DUPLICATE_PAIRS of pairs of index labels `a` and `b`: pairs in two different splits first, with the image
    that training sees as `a`, then those whose labels differ (`conflict`)."""
    split_a, split_b = (index.loc[pairs[side], "split"].to_numpy() for side in ("a", "b"))
    swap = pd.Series(split_a).map(RANK).to_numpy() > pd.Series(split_b).map(RANK).to_numpy()
    sides = {"a": np.where(swap, pairs["b"], pairs["a"]), "b": np.where(swap, pairs["a"], pairs["b"])}
    described = pairs[["kind", "distance", "similarity"]].copy()
    for side, rows in sides.items():
        for column in ("file", "label", "split", "path"):
            described[f"{column}_{side}"] = index.loc[rows, column].to_numpy()
    labelled = (described["label_a"] != "") & (described["label_b"] != "")
    described["conflict"] = labelled & (described["label_a"] != described["label_b"])
    described["crosses_split"] = described["split_a"] != described["split_b"]
    described["kind"] = pd.Categorical(described["kind"], KINDS)
    order = described.sort_values(
        ["crosses_split", "conflict", "kind", "distance"], ascending=[False, False, True, True], kind="stable"
    )
    return order.astype({"kind": str}).reset_index(drop=True)


def list_issues(index: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """schemas.ISSUES: one row per problem, the most serious kind first."""
    named = index[(index["split"] != "") & (index["group"] != "")]
    split_groups = named[named.groupby("group")["split"].transform("nunique") > 1]
    split_groups = split_groups.assign(
        kind=GROUP_ACROSS, detail="group " + split_groups["group"] + " is also in another split"
    )
    crosses = pairs["crosses_split"]
    kind = np.where(pairs["conflict"], "duplicate with another label", "duplicate")
    kind = np.where(crosses, ACROSS, kind)
    detail = pairs["kind"] + " duplicate of " + pairs["file_b"]
    detail = detail.where(~crosses, detail + " (" + pairs["split_b"] + ")")
    pairs = pairs.rename(columns={"file_a": "file"}).assign(kind=kind, detail=detail)
    rejected, converted = (
        index[index["status"] == status].assign(kind=status).rename(columns={"reason": "detail"})
        for status in ("rejected", "converted")
    )
    parts = (pairs[crosses], split_groups, rejected, pairs[~crosses], converted)
    return pd.concat([part[["file", "kind", "detail"]] for part in parts], ignore_index=True)


def by_kind(pairs: pd.DataFrame) -> str:
    """'3 exact, 1 mirrored'."""
    counts = pairs["kind"].value_counts()
    return ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if kind in counts) or "none"


def summarise(pairs: pd.DataFrame, issues: pd.DataFrame) -> list[str]:
    """Sentences, leakage between splits first, with what to do about it."""
    lines = []
    crossing = pairs[pairs["crosses_split"]]
    if len(crossing):
        files = crossing["file_a"].nunique()
        lines.append(
            f"{len(crossing)} duplicate pairs across the given splits ({by_kind(crossing)}): scores are too optimistic "
            f"there; take the {files} files that issues.csv lists under {ACROSS!r} out of the training data"
        )
    split_groups = issues.loc[issues["kind"] == GROUP_ACROSS, "detail"]
    if len(split_groups):
        lines.append(
            f"{len(split_groups)} images of {split_groups.nunique()} groups are in more than one of the given splits: "
            "scores are too optimistic there; take the training images that issues.csv lists under "
            f"{GROUP_ACROSS!r} out of the data"
        )
    conflicts = int(pairs["conflict"].sum())
    lines.append(f"duplicate pairs: {len(pairs)} ({by_kind(pairs)}), {conflicts} of them with different labels")
    return lines
