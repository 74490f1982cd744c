"""What becomes of every row that was given: used, used after a conversion, or rejected, each with its reason."""

import hashlib
import shlex
from collections import Counter

import pandas as pd

from spectacles.core.errors import UserError
from spectacles.core.results import RowAccounting
from spectacles.core.value_ranges import ValueRanges
from spectacles.core.wording import count_of
from spectacles.data import label_corrections, label_sets, label_text
from spectacles.data.file_index import inspect_files
from spectacles.data.names import natural_sort
from spectacles.data.sources import Rows


def check_files(frame: pd.DataFrame, num_workers: int) -> tuple[pd.DataFrame, ValueRanges, list[str]]:
    """The index: `frame` (schemas.GIVEN and `review`, as apply_fixes returns it) with facts and status of each file;
    the value ranges of the training files; and sentences about them."""
    paths = list(frame["path"].unique())
    training = set(frame.loc[(frame["source"] == "train") & (frame["given_split"] != "test"), "path"])
    facts, ranges, notes = inspect_files(paths, num_workers, training)
    facts.insert(0, "path", paths)
    index = frame.merge(facts, on="path", how="left", validate="many_to_one")
    index.loc[index["path"] == "", ["status", "reason"]] = ["rejected", "its path is not UTF-8 text: rename it"]
    index.loc[index["file"] == "", ["status", "reason"]] = ["rejected", "no file name"]
    unlabelled = (index["source"] == "train") & (index["label"] == "") & (index["given_split"] != "test")
    _reject(index, unlabelled, "no label")
    _reject(index, index["review"] == label_corrections.REMOVED, label_corrections.REMOVED)
    changed = (index["review"] != "") & (index["status"] != "rejected")
    reasons = index.loc[changed, "reason"]
    index.loc[changed, "reason"] = reasons.where(reasons == "", reasons + "; ") + index.loc[changed, "review"]
    index.loc[changed, "status"] = "converted"
    return index.drop(columns="review").assign(split="", cluster=-1), ranges, notes


def reject_contradictions(index: pd.DataFrame) -> None:
    """A training file listed again is used once; listed with two labels it is not used at all. In place."""
    training = (index["source"] == "train") & (index["status"] != "rejected")
    labels = index[training].groupby("path")["label"].nunique()
    contradictory = index["path"].isin(labels.index[labels > 1]) & (index["source"] == "train")
    _reject(index, contradictory, "listed with different labels")
    # Test rows may repeat a file: each row of a submission needs a prediction.
    training &= index["status"] != "rejected"
    repeated = training & index[training].duplicated("path").reindex(index.index, fill_value=False)
    _reject(index, repeated, "listed more than once")


def find_classes(index: pd.DataFrame, rows: Rows) -> list[str]:
    """Class names in natural order; test rows with another label are rejected, in place. Raises UserError for fewer
    than two classes, or for a label column that no usable training image has."""
    texts = index.loc[(index["status"] != "rejected") & (index["given_split"] != "test"), "label"].unique()
    classes = label_sets.names(texts) if rows.multi_label else natural_sort([label for label in texts if label])
    if len(classes) < 2:
        present = f"only the class {classes[0]!r}" if classes else "no usable labelled image"
        reasons = "".join(f"; {sentence}" for sentence in [*lost_classes(index, rows.multi_label), *rows.notes])
        raise UserError(
            f"the training data hold {present}: at least two classes with readable images are needed{reasons}."
        )
    if rows.multi_label:
        columns = rows.label_column.split(",")
        if len(columns) > 1 and (missing := [name for name in columns if name not in classes]):
            raise UserError(f"no usable training image has the label {missing[0]!r}: leave it out of --label_column.")
        known = {text for text in index["label"].unique() if set(label_text.parts(text)) <= set(classes)}
    else:
        known = {"", *classes}
    _reject(index, ~index["label"].isin(known), "its label does not occur in the training data")
    return classes


def lost_classes(index: pd.DataFrame, multi_label: bool) -> list[str]:
    """A sentence for each class all of whose training rows were rejected: how many, for what, and an example."""
    training = index[(index["source"] == "train") & (index["label"] != "")]
    rejected = training["status"] == "rejected"
    given, usable = (
        set(label_sets.names(texts) if multi_label else texts.unique())
        for texts in (training["label"], training.loc[~rejected, "label"])
    )
    sentences = []
    for name in natural_sort(list(given - usable)):
        rows = training[label_sets.has(training["label"], name, multi_label)]
        reason, count = Counter(rows["reason"]).most_common(1)[0]
        example = rows.loc[rows["reason"] == reason, "file"].iloc[0]
        sentences.append(
            f"no image of the class {name!r} can be used: {count} of its {count_of(len(rows), 'row')} rejected "
            f"({reason}), such as {example}"
        )
    return sentences


def _reject(index: pd.DataFrame, rows: "pd.Series[bool]", reason: str) -> None:
    """Rows that have been rejected before keep their reason."""
    index.loc[rows & (index["status"] != "rejected"), ["status", "reason"]] = ["rejected", reason]


def constant_labels(index: pd.DataFrame, classes: list[str]) -> list[str]:
    """A sentence for each label that every training image has: nothing can be learnt about it."""
    texts = index.loc[(index["status"] != "rejected") & (index["source"] == "train"), "label"]
    counts = label_sets.count(texts, classes, multi_label=True)
    return [f"every training image has the label {name!r}" for name in classes if counts[name] == len(texts)]


def account_for_rows(index: pd.DataFrame) -> RowAccounting:
    status = index["status"].value_counts()
    reasons = {name: Counter(index.loc[index["status"] == name, "reason"]) for name in ("converted", "rejected")}
    return RowAccounting(
        rows=len(index),
        used=int(status.get("used", 0)),
        converted=int(status.get("converted", 0)),
        rejected=int(status.get("rejected", 0)),
        conversions=dict(reasons["converted"].most_common()),
        rejections=dict(reasons["rejected"].most_common()),
    )


def order_classes(classes: list[str], multi_label: bool, positive: str | None) -> tuple[list[str], list[str]]:
    """(the classes with the positive one of two as the second, sentences about it). Raises UserError for a `positive`
    class that is none of two."""
    if len(classes) != 2 or multi_label:
        if positive is not None:
            what = "labels, any number per image" if multi_label else "classes"
            raise UserError(f"--positive_class {positive} is for two classes, and the data have {len(classes)} {what}: "
                            "leave it out.")  # fmt: skip
        return classes, []
    if positive is None:
        other = shlex.quote(classes[0])
        default = f"positive class: {classes[1]!r}, the last in natural order; the other one: --positive_class {other}"
        return classes, [default]
    if positive not in classes:
        raise UserError(f"--positive_class {positive} is not one of the classes: use {classes[0]!r} or {classes[1]!r}.")
    return [*(name for name in classes if name != positive), positive], [f"positive class: {positive!r}"]


def fingerprint(index: pd.DataFrame, classes: list[str]) -> str:
    """Changes with any used file's content, label or split, and the order of the classes; not with paths or the order
    of rows."""
    used = index[index["split"] != ""]
    lines = [*sorted(used["sha256"] + " " + used["label"] + " " + used["split"]), *classes]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
