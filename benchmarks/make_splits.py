"""Writes the split table that all competitors read: file (absolute path), label, split (train, val or test).

`python -m benchmarks.make_splits --data FOLDER --output splits.csv`
FOLDER holds train.csv, test.csv, test_labels.csv, persons.csv and dataset/ (the test split is kept, and no person is in
two splits), or one folder per class.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks import common
from spectacles.core.errors import UserError
from spectacles.data.stratification import stratified_split

SUFFIXES = (".jpg", ".jpeg", ".png")
TEST_SHARE = 0.20
FOLDER_VAL_SHARE = 0.15
"""Of the images that are not for testing, as in PERSON_VAL_SHARE."""
PERSON_VAL_SHARE = 0.20


def make(data: Path, seed: int, limit: int | None) -> pd.DataFrame:
    """The split table of either form of data; with `limit`, at most so many images of each split."""
    if not data.is_dir():
        raise UserError(f"the folder {data} does not exist.")
    table = from_tables(data, seed) if (data / "train.csv").is_file() else from_folders(data, seed)
    if limit is not None:
        table = pd.concat(
            part.sample(min(limit, len(part)), random_state=seed).sort_index() for _, part in table.groupby("split")
        )
    return table[common.COLUMNS].reset_index(drop=True)


def from_tables(data: Path, seed: int) -> pd.DataFrame:
    train, test = (_read(data / name) for name in ("train.csv", "test.csv"))
    persons = _read(data / "persons.csv").set_index("file")["person"]
    label = next((column for column in train.columns if column not in ("id", "file")), None)
    if label is None:
        raise UserError(f"{data / 'train.csv'} has no column of labels beside id and file.")
    test = test.merge(_read(data / "test_labels.csv"), on="id", validate="one_to_one")
    for table in (train, test):
        unknown = table.loc[~table["file"].isin(persons.index), "file"]
        if len(unknown):
            raise UserError(f"{data / 'persons.csv'} does not say who is in {unknown.iloc[0]}.")
    both = set(train["file"].map(persons)) & set(test["file"].map(persons))
    if both:
        raise UserError(f"the person {min(both)} is both in {data / 'train.csv'} and in {data / 'test.csv'}.")
    train["split"] = _split(train[label], train["file"].map(persons), ("train", "val"), PERSON_VAL_SHARE, seed)
    table = pd.concat([train, test.assign(split="test")])
    table["file"] = [str((data / "dataset" / name).resolve()) for name in table["file"]]
    return table.rename(columns={label: "label"})


def from_folders(data: Path, seed: int) -> pd.DataFrame:
    files = sorted(path for path in data.glob("*/*") if path.suffix.lower() in SUFFIXES)
    if len({path.parent for path in files}) < 2:
        raise UserError(f"{data} holds neither train.csv nor two folders of photos, one a class.")
    table = pd.DataFrame(
        {"file": [str(path.resolve()) for path in files], "label": [path.parent.name for path in files]}
    )
    table["split"] = _split(table["label"], table["file"], ("rest", "test"), TEST_SHARE, seed)
    rest = table["split"] == "rest"
    table.loc[rest, "split"] = _split(
        table.loc[rest, "label"], table.loc[rest, "file"], ("train", "val"), FOLDER_VAL_SHARE, seed
    )
    return table


def _split(labels: pd.Series, groups: pd.Series, names: tuple[str, str], second: float, seed: int) -> np.ndarray:
    """(N,) names: `second` of the images get the second one, stratified by label, whole groups only."""
    codes, numbers = pd.factorize(labels)[0], pd.factorize(groups)[0]
    return np.array(names)[stratified_split(codes, numbers, (1 - second, second), seed)]


def _read(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise UserError(f"{path} does not exist.")
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--data", type=Path, required=True, help="folder with tables, or with one folder a class")
    parser.add_argument("--output", type=Path, required=True, help="CSV file to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="images of each split at most, for a quick try")
    args = parser.parse_args()
    with common.exit_codes():
        table = make(args.data, args.seed, args.limit)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(args.output, index=False)
        print(table.groupby(["split", "label"]).size().to_string())


if __name__ == "__main__":
    main()
