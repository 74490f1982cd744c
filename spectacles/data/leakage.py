"""What is wrong with the rows and their splits, as lists and sentences: rejected, converted, doubled, torn apart."""

import numpy as np
import pandas as pd

from spectacles.data.duplicates import KINDS
from spectacles.data.splits import RANK

ACROSS = "duplicate across splits"
GROUP_ACROSS = "group across splits"


def describe_pairs(pairs: pd.DataFrame, index: pd.DataFrame) -> pd.DataFrame:
    """Row numbers `a` and `b` of `index` become files, labels, splits and paths; those that cross the border between
    two splits first, the side that training sees as `a`, then those whose labels differ (`conflict`)."""
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
    """One line a problem: file, kind, detail, most serious kind first."""
    named = index[(index["split"] != "") & (index["group"] != "")]
    torn = named[named.groupby("group")["split"].transform("nunique") > 1]
    torn = torn.assign(kind=GROUP_ACROSS, detail="group " + torn["group"] + " is also in another split")
    doubles = pairs.rename(columns={"file_a": "file"})
    kind = np.where(doubles["conflict"], "duplicate with another label", "duplicate")
    kind = np.where(doubles["crosses_split"], ACROSS, kind)
    detail = doubles["kind"] + " duplicate of " + doubles["file_b"]
    detail = detail.where(~doubles["crosses_split"], detail + " (" + doubles["split_b"] + ")")
    doubles = doubles.assign(kind=kind, detail=detail)
    crosses = doubles["crosses_split"]
    rejected, converted = (
        index[index["status"] == status].assign(kind=status).rename(columns={"reason": "detail"})
        for status in ("rejected", "converted")
    )
    parts = (doubles[crosses], torn, rejected, doubles[~crosses], converted)
    return pd.concat([part[["file", "kind", "detail"]] for part in parts], ignore_index=True)


def by_kind(pairs: pd.DataFrame) -> str:
    """'3 exact, 1 mirrored'."""
    counts = pairs["kind"].value_counts()
    return ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if kind in counts) or "none"


def summarise(pairs: pd.DataFrame, issues: pd.DataFrame) -> list[str]:
    """Sentences, what crosses a border first, with what to do about it."""
    crossing, lines = pairs[pairs["crosses_split"]], []
    if len(crossing):
        files = crossing["file_a"].nunique()
        lines.append(
            f"{len(crossing)} duplicate pairs across the given splits ({by_kind(crossing)}): scores there are too "
            f"good; take the {files} files that issues.csv lists under {ACROSS!r} out of the training data"
        )
    torn = issues.loc[issues["kind"] == GROUP_ACROSS, "detail"]
    if len(torn):
        lines.append(
            f"{len(torn)} images of {torn.nunique()} groups stand on both sides of the given splits: scores there are "
            f"too good; take those of train that issues.csv lists under {GROUP_ACROSS!r} out of the training data"
        )
    conflicts = int(pairs["conflict"].sum())
    lines.append(f"duplicate pairs: {len(pairs)} ({by_kind(pairs)}), {conflicts} of them with different labels")
    return lines
