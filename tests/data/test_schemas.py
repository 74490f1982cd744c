"""Tables keep their columns and dtypes from the stage that writes them to the one that reads them."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pictures import write_rows

from spectacles.data.file_index import FileFacts
from spectacles.data.schemas import FILE_FACTS, NOISY_LABELS, PREDICTIONS, SPLIT_ROWS


def predictions() -> pd.DataFrame:
    table = pd.DataFrame({name: [dtype()] * 2 for name, dtype in PREDICTIONS.columns.items()})
    table = table.assign(label=["NA", ""], status=["predicted", "rejected: empty file"], confidence=[0.5, np.nan])
    return table.assign(p_NA=[0.5, np.nan], p_x=[0.5, np.nan], z_NA=[0.0, np.nan], z_x=[0.0, np.nan])


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    PREDICTIONS.write(tmp_path / "predictions.csv", predictions())
    pd.testing.assert_frame_equal(PREDICTIONS.read(tmp_path / "predictions.csv"), predictions())
    text = PREDICTIONS.read_text(tmp_path / "predictions.csv", ["label", "p_NA"])
    assert text.to_dict("list") == {"label": ["NA", ""], "p_NA": ["0.5", ""]}


def test_columns_that_do_not_belong_to_the_table_are_left_out(tmp_path: Path) -> None:
    rows = write_rows(tmp_path, 2).assign(slice_sex=["f", ""], other=1)
    SPLIT_ROWS.write(tmp_path / "splits.csv", rows)
    read = SPLIT_ROWS.read(tmp_path / "splits.csv")
    assert list(read.columns) == [*SPLIT_ROWS.names, "slice_sex"] and read["slice_sex"].tolist() == ["f", ""]
    rows.to_csv(tmp_path / "splits.csv", index=False)
    pd.testing.assert_frame_equal(SPLIT_ROWS.read(tmp_path / "splits.csv"), read)
    assert list(SPLIT_ROWS.read(tmp_path / "splits.csv", ["sha256", "slice_age"]).columns) == ["sha256"]


def test_a_missing_column_is_an_error_unless_it_is_optional(tmp_path: Path) -> None:
    table = NOISY_LABELS.empty()
    assert "doubtful_label" not in NOISY_LABELS.select(table)
    assert list(NOISY_LABELS.select(table.assign(doubtful_label="")).columns) == list(NOISY_LABELS.columns)
    with pytest.raises(KeyError, match="score"):
        NOISY_LABELS.write(tmp_path / "noisy_labels.csv", table.drop(columns="score"))
    assert not (tmp_path / "noisy_labels.csv").exists()


def test_without_a_file_text_is_read_as_an_empty_table(tmp_path: Path) -> None:
    read = NOISY_LABELS.read_text(tmp_path / "none.csv")
    assert read.empty and list(read.columns) == NOISY_LABELS.names


def test_file_facts_are_columns_of_the_index() -> None:
    assert list(FILE_FACTS) == [field.name for field in fields(FileFacts)]
