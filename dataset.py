"""Index -> check every file once -> ledger and splits."""

import hashlib
from collections import Counter

import numpy as np
import pandas as pd

from spectacles import cli, tracking
from spectacles.config import DatasetConfig
from spectacles.duplicates import clusters, equal_groups, near_pairs, pairs_within
from spectacles.errors import UserError
from spectacles.index import look_at_all
from spectacles.records import DatasetReport, Ledger
from spectacles.run_dir import RunDir, write_csv
from spectacles.runtime import cpu_count
from spectacles.sources import Rows, natural_sort, read_rows
from spectacles.splits import stratified_split

SPLITS = ("train", "val", "test")
SPLIT_COLUMNS = [
    "file",
    "path",
    "label",
    "split",
    "group",
    "cluster",
    "id",
    "sha256",
    "brightness",
    "contrast",
    "sharpness",
]
TEXT = {"file": str, "path": str, "label": str, "group": str, "id": str, "reason": str, "phash": str, "sha256": str,
        "source": str, "given_split": str, "split": str, "status": str, "format": str, "mode": str}  # fmt: skip


def run(config: DatasetConfig, run_dir: RunDir) -> DatasetReport:
    """Writes index.csv (every row given, with its fate), splits.csv, duplicates.csv and issues.csv."""
    _check_fractions(config)
    rows = read_rows(config)
    index = check_files(rows, config)
    refuse_contradictions(index)
    classes = _classes(index)
    used = index[index["status"] != "refused"]
    pairs, groups = find_duplicates(used, config.duplicate_distance)
    cluster = clusters(len(used), [*groups, *_named_groups(used["group"])])
    index.loc[used.index, "cluster"] = cluster
    index.loc[used.index, "split"] = assign_splits(used, cluster, classes, config)
    pairs = _describe_pairs(pairs, index)
    issues = _list_issues(index, pairs)
    _save(index, pairs, issues, run_dir)
    for split, part in index[index["split"] != ""].groupby("split"):
        source = str(config.train_csv or config.image_dir)
        tracking.log_dataset(part[["file", "label", "split"]], source, f"{run_dir.name}-{split}", str(split))
    return _report(index, pairs, issues, classes, rows, run_dir)


def check_files(rows: Rows, config: DatasetConfig) -> pd.DataFrame:
    """The rows with each file's facts; a file that several rows name is looked at once."""
    frame = rows.frame
    paths = frame["path"].unique()
    facts = look_at_all(paths, config.num_workers or cpu_count())
    facts.insert(0, "path", paths)
    index = frame.merge(facts, on="path", how="left", validate="many_to_one")
    index.loc[index["file"] == "", ["status", "reason"]] = ["refused", "no file name"]
    unlabelled = (index["source"] == "train") & (index["label"] == "") & (index["given_split"] != "test")
    _refuse(index, unlabelled, "no label")
    return index.assign(split="", cluster=-1)


def refuse_contradictions(index: pd.DataFrame) -> None:
    """A file listed again is counted once; listed under two labels it cannot be used at all. In place."""
    labelled = index[(index["source"] == "train") & (index["status"] != "refused")]
    labels = labelled.groupby("path")["label"].nunique()
    contradictory = index["path"].isin(labels.index[labels > 1]) & (index["source"] == "train")
    _refuse(index, contradictory, "listed with different labels")
    alive = index["status"] != "refused"
    # Test rows may repeat a file: each row of a submission wants its answer.
    training = alive & (index["source"] == "train")
    repeated = training & index[training].duplicated("path").reindex(index.index, fill_value=False)
    _refuse(index, repeated, "listed more than once")


def _refuse(index: pd.DataFrame, rows: "pd.Series[bool]", reason: str) -> None:
    fresh = rows & (index["status"] != "refused")
    index.loc[fresh, ["status", "reason"]] = ["refused", reason]


def _classes(index: pd.DataFrame) -> list[str]:
    """Class names in natural order; test rows with another label are refused, in place."""
    usable = index[(index["status"] != "refused") & (index["given_split"] != "test")]
    classes = natural_sort([label for label in usable["label"].unique() if label])
    if len(classes) < 2:
        found = f"only the class {classes[0]!r}" if classes else "no usable labelled image"
        raise UserError(f"the training data hold {found}: at least two classes with readable images are needed.")
    _refuse(index, ~index["label"].isin(["", *classes]), "its label does not occur in the training data")
    return classes


def find_duplicates(used: pd.DataFrame, distance: int) -> tuple[pd.DataFrame, list[list[int]]]:
    """Duplicate pairs for people (a, b, kind, distance; positions in `used`), and the groups behind them."""
    exact = equal_groups(used["sha256"].to_numpy(dtype=str))
    hashes = np.array([int(text, 16) for text in used["phash"]], dtype=np.uint64)
    alike = equal_groups(hashes)
    near = list(near_pairs(hashes, distance))
    rows = [(a, b, "exact", 0) for a, b in pairs_within(exact)]
    rows += [(a, b, "near", 0) for a, b in pairs_within(alike)]
    rows += [(a, b, "near", int(np.bitwise_count(hashes[a] ^ hashes[b]))) for a, b in near]
    pairs = pd.DataFrame(rows, columns=["a", "b", "kind", "distance"]).drop_duplicates(["a", "b"], ignore_index=True)
    pairs[["a", "b"]] = used.index.to_numpy()[pairs[["a", "b"]].to_numpy(dtype=np.int64)]
    return pairs, [*exact, *alike, *map(list, near)]


def _named_groups(names: "pd.Series[str]") -> list[list[int]]:
    """Positions of the rows that share a group; rows without one stand alone."""
    values = names.to_numpy(dtype=str)
    return [group for group in equal_groups(values) if values[group[0]]]


def assign_splits(
    used: pd.DataFrame, cluster: np.ndarray, classes: list[str], config: DatasetConfig
) -> "pd.Series[str]":
    """Given splits stay; what is missing is divided off so that clusters stay whole and classes keep their shares."""
    split = used["given_split"].copy()
    given = set(split)
    val_fraction = 0.0 if "val" in given else config.val_fraction
    test_fraction = config.test_fraction if config.test_fraction is not None else 0.0 if "test" in given else 0.15
    open_rows = split.isin(["", "train"]).to_numpy()
    codes = pd.Categorical(used.loc[open_rows, "label"], categories=classes).codes.astype(np.int64)
    fractions = (1 - val_fraction - test_fraction, val_fraction, test_fraction)
    # By content, not by row: the same images are split the same way in whatever order they are listed.
    order = np.argsort(used.loc[open_rows, "sha256"].to_numpy(dtype=str), kind="stable")
    ordered = pd.factorize(cluster[open_rows][order])[0]
    numbers = np.empty(len(order), dtype=np.int64)
    numbers[order] = stratified_split(codes[order], ordered, fractions, config.seed)
    split[open_rows] = np.array(SPLITS)[numbers]
    for name in ("train", "val"):
        if not (split == name).any():
            raise UserError(f"no image is left for the {name} split: give more images, or change --val_fraction.")
    return split


def _describe_pairs(pairs: pd.DataFrame, index: pd.DataFrame) -> pd.DataFrame:
    """Row numbers become files, labels and splits; `conflict` marks pairs whose labels differ."""
    described = pairs[["kind", "distance"]].copy()
    for side in ("a", "b"):
        for column in ("file", "label", "split", "path"):
            described[f"{column}_{side}"] = index.loc[pairs[side], column].to_numpy()
    labelled = (described["label_a"] != "") & (described["label_b"] != "")
    described["conflict"] = labelled & (described["label_a"] != described["label_b"])
    described["crosses_border"] = described["split_a"] != described["split_b"]
    return described


def _list_issues(index: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """One line a problem: file, kind, detail, most serious kind first."""
    refused = index[index["status"] == "refused"].assign(kind="refused")
    repaired = index[index["status"] == "repaired"].assign(kind="repaired")
    files = pd.concat([refused, repaired]).rename(columns={"reason": "detail"})[["file", "kind", "detail"]]
    named = index[(index["split"] != "") & (index["group"] != "")]
    torn = named[named.groupby("group")["split"].transform("nunique") > 1]
    torn = torn.assign(kind="group across splits", detail="group " + torn["group"] + " is also in another split")
    doubles = pairs.rename(columns={"file_a": "file"})
    kind = np.where(doubles["conflict"], "duplicate with another label", "duplicate")
    kind = np.where(doubles["crosses_border"], "duplicate across splits", kind)
    doubles = doubles.assign(kind=kind, detail=doubles["kind"] + " duplicate of " + doubles["file_b"])
    parts = [files, *(part[["file", "kind", "detail"]] for part in (doubles, torn))]
    return pd.concat(parts, ignore_index=True)


def _save(index: pd.DataFrame, pairs: pd.DataFrame, issues: pd.DataFrame, run_dir: RunDir) -> None:
    splits = index.loc[index["split"] != "", SPLIT_COLUMNS]
    tables = {run_dir.index: index, run_dir.splits: splits, run_dir.duplicates: pairs, run_dir.issues: issues}
    for path, table in tables.items():
        write_csv(path, table)


def _report(
    index: pd.DataFrame, pairs: pd.DataFrame, issues: pd.DataFrame, classes: list[str], rows: Rows, run_dir: RunDir
) -> DatasetReport:
    ledger = _ledger(index)
    labelled = index[(index["split"] != "") & (index["label"] != "")]
    counts = {
        split: {name: int(((labelled["split"] == split) & (labelled["label"] == name)).sum()) for name in classes}
        for split in SPLITS
    }
    unlabelled = int(((index["split"] == "test") & (index["label"] == "")).sum())
    sizes = ", ".join(f"{split} {sum(counts[split].values())}" for split in SPLITS)
    summary = [
        f"{ledger.rows} rows = {ledger.used} used + {ledger.repaired} repaired + {ledger.refused} refused",
        f"classes: {', '.join(classes[:20])}{' ...' if len(classes) > 20 else ''} (column {rows.label_column!r})",
        f"images: {sizes}" + (f", unlabelled test {unlabelled}" if unlabelled else ""),
    ]
    summary += [f"refused {count}: {reason}" for reason, count in ledger.refusals.items()]
    conflicts, crossing = int(pairs["conflict"].sum()), int(pairs["crosses_border"].sum())
    summary.append(
        f"duplicate pairs: {len(pairs)}, {conflicts} of them with different labels, {crossing} across splits"
    )
    torn = int((issues["kind"] == "group across splits").sum())
    if torn:
        summary.append(
            f"{torn} images belong to a group that is on both sides of the given test border: see issues.csv"
        )
    metrics = {f"images_{split}": float(sum(counts[split].values())) for split in SPLITS}
    metrics |= {"rows": float(ledger.rows), "refused": float(ledger.refused), "duplicate_pairs": float(len(pairs))}
    return DatasetReport(
        summary=summary,
        metrics=metrics,
        artifacts=run_dir.relative(run_dir.splits, run_dir.issues, run_dir.duplicates, run_dir.index),
        classes=classes,
        ledger=ledger,
        counts=counts,
        unlabelled=unlabelled,
        fingerprint=_fingerprint(index),
        label_column=rows.label_column,
        id_column=rows.id_column,
    )


def _ledger(index: pd.DataFrame) -> Ledger:
    reasons = {status: Counter(index.loc[index["status"] == status, "reason"]) for status in ("repaired", "refused")}
    status = index["status"].value_counts()
    return Ledger(
        rows=len(index),
        used=int(status.get("used", 0)),
        repaired=int(status.get("repaired", 0)),
        refused=int(status.get("refused", 0)),
        repairs=dict(reasons["repaired"].most_common()),
        refusals=dict(reasons["refused"].most_common()),
    )


def _fingerprint(index: pd.DataFrame) -> str:
    """Changes with any used file's content, label or split; not with paths or the order of rows."""
    used = index[index["split"] != ""]
    lines = sorted(used["sha256"] + " " + used["label"] + " " + used["split"])
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _check_fractions(config: DatasetConfig) -> None:
    test_fraction = config.test_fraction or 0.0
    if not (0 < config.val_fraction < 1 and 0 <= test_fraction < 1 and config.val_fraction + test_fraction < 0.95):
        raise UserError(
            f"--val_fraction {config.val_fraction} and --test_fraction {test_fraction}: both must be shares of the "
            "images (0.15 is 15 %), validation above 0, together below 0.95."
        )


def load_index(run_dir: RunDir) -> pd.DataFrame:
    """Every row given, refused ones too. Text columns hold '' where nothing is known."""
    run_dir.load_result("dataset", DatasetReport)
    return pd.read_csv(run_dir.index, dtype=TEXT, keep_default_na=False)


def load_split(run_dir: RunDir, *splits: str) -> pd.DataFrame:
    """Used rows of the splits with SPLIT_COLUMNS.

    The test split is closed to the train stage: asking for it there is a programming error (PermissionError).
    """
    if run_dir.stage == "train" and "test" in splits:
        raise PermissionError("training must not see the test split")
    run_dir.load_result("dataset", DatasetReport)
    frame = pd.read_csv(run_dir.splits, dtype=TEXT, keep_default_na=False)
    return frame[frame["split"].isin(splits)].reset_index(drop=True)


def class_indices(labels: "pd.Series[str]", classes: list[str]) -> list[int]:
    numbers = {name: number for number, name in enumerate(classes)}
    return [numbers[label] for label in labels]


if __name__ == "__main__":
    cli.main("dataset", run, DatasetConfig, "Index the images, check every file once, and split without leaks.")
