"""The sample data set: deterministic, balanced, faulty exactly where its key says so, and not solved by raw pixels."""

import hashlib
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageOps
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from threadpoolctl import threadpool_limits

from spectacles.sample_data import generate
from spectacles.sample_data.faces import SIZE
from spectacles.sample_data.generate import FAULTS, SMALLEST, draw, plan, planted_counts

pytestmark = pytest.mark.slow

IMAGES = 60


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("sample") / "drawn", images=IMAGES, seed=3)


@pytest.fixture(scope="session")
def key(drawn: Path) -> pd.DataFrame:
    return pd.read_csv(drawn / "planted.csv", keep_default_na=False)


@pytest.fixture(scope="session")
def train(drawn: Path) -> pd.DataFrame:
    return pd.read_csv(drawn / "train.csv").set_index("file")


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("sample") / "many", images=200, seed=0)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def pixels(path: Path, side: int) -> np.ndarray:
    """Upright RGB, side x side, as a flat vector from 0 to 1."""
    with Image.open(path) as image:
        small = ImageOps.exif_transpose(image).convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(small, dtype=np.float64).ravel() / 255


def sharpness(path: Path) -> float:
    """Variance of the Laplacian."""
    with Image.open(path) as image:
        grey = np.asarray(image.convert("L"), dtype=np.float64)
    inner = grey[1:-1, 1:-1]
    return float((grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * inner).var())


def clean_files(folder: Path) -> pd.Series:
    """The true label of every picture without a fault, training and test, by file."""
    test = pd.read_csv(folder / "test.csv").merge(pd.read_csv(folder / "test_labels.csv"), on="id")
    labels = pd.concat([pd.read_csv(folder / "train.csv"), test]).set_index("file")["glasses"]
    return labels[~labels.index.isin(pd.read_csv(folder / "planted.csv")["file"])]


def test_same_seed_draws_the_same_bytes(drawn: Path, tmp_path: Path) -> None:
    assert contents(draw(tmp_path / "again", images=IMAGES, seed=3)) == contents(drawn)


def test_other_seed_draws_other_faces(drawn: Path, many: Path) -> None:
    one, other = ({sha256(path) for path in (folder / "dataset").glob("*.png")} for folder in (drawn, many))
    assert one
    assert not one & other


def test_every_file_is_listed_once_and_test_rows_carry_no_label(drawn: Path, train: pd.DataFrame) -> None:
    test = pd.read_csv(drawn / "test.csv")
    test_labels = pd.read_csv(drawn / "test_labels.csv")
    on_disk = sorted(path.name for path in (drawn / "dataset").iterdir())
    assert sorted([*train.index, *test["file"]]) == on_disk
    assert len(on_disk) == IMAGES
    assert list(test.columns) == ["id", "file"]
    assert list(train.columns) == ["id", "glasses"]
    assert list(test_labels["id"]) == list(test["id"])
    assert not set(train["id"]) & set(test["id"])
    assert not {path.name for path in drawn.glob("*.partial")}


def test_classes_are_balanced_as_planned(drawn: Path, train: pd.DataFrame) -> None:
    assert set(train["glasses"]) == {0, 1}
    assert 0.35 <= clean_files(drawn).mean() <= 0.45
    assert set(pd.read_csv(drawn / "test_labels.csv")["glasses"]) == {0, 1}


def test_planted_counts_match_the_key(key: pd.DataFrame) -> None:
    assert key["kind"].value_counts().to_dict() == planted_counts(IMAGES)
    assert key["file"].is_unique
    for kind, fault in FAULTS.items():
        assert set(key.loc[key["kind"] == kind, "detail"]) == set(fault.details)


@pytest.mark.parametrize("images", [SMALLEST, 60, 240, 600, 1000])
def test_plan_scales_with_the_number_of_images(images: int) -> None:
    pictures = plan(images, seed=0)
    kinds = pd.Series([p.kind for p in pictures]).value_counts().to_dict()
    clean = kinds.pop("clean")
    test = [p for p in pictures if p.test]
    assert kinds == planted_counts(images)
    assert kinds["wrong_label"] == round(0.04 * images)
    assert np.mean([p.true_label for p in pictures]) == pytest.approx(0.4, abs=0.5 / images)
    assert abs(len(test) - 0.15 * clean) <= 1
    assert {p.kind for p in test} == {"clean"}
    assert len({p.of for p in pictures if p.of}) == kinds["exact_duplicate"] + kinds["near_duplicate"]


def test_plan_holds_for_any_seed() -> None:
    for seed in range(200):
        assert {p.true_label for p in plan(SMALLEST, seed) if p.test} == {0, 1}


def test_labels_in_the_csv_are_wrong_exactly_where_the_key_says(key: pd.DataFrame, train: pd.DataFrame) -> None:
    wrong = train.loc[key["file"], "glasses"].to_numpy() != key["true_label"].to_numpy()
    said = (key["kind"] == "wrong_label") | (key["conflicting"] == 1)
    assert list(wrong) == list(said)


def test_exact_duplicates_share_their_bytes_and_near_duplicates_their_looks(
    drawn: Path, key: pd.DataFrame, train: pd.DataFrame
) -> None:
    for row in key[key["of"] != ""].itertuples():
        copy, original = drawn / "dataset" / row.file, drawn / "dataset" / row.of
        assert (sha256(copy) == sha256(original)) == (row.kind == "exact_duplicate")
        assert np.abs(pixels(copy, 16) - pixels(original, 16)).mean() < 0.1
        assert (train.loc[row.file, "glasses"] != train.loc[row.of, "glasses"]) == bool(row.conflicting)
        assert row.of not in set(key["file"])
    for kind in ("exact_duplicate", "near_duplicate"):
        assert set(key.loc[key["kind"] == kind, "conflicting"]) == {0, 1}


def test_only_the_corrupt_files_do_not_load(drawn: Path, key: pd.DataFrame) -> None:
    rejected = set()
    for path in (drawn / "dataset").iterdir():
        try:
            with Image.open(path) as image:
                image.load()
        except OSError:  # PIL.UnidentifiedImageError is one
            rejected.add(path.name)
    assert rejected == set(key.loc[key["kind"] == "corrupt", "file"])


def test_odd_modes_are_what_they_are_called(drawn: Path, key: pd.DataFrame) -> None:
    found = {}
    for row in key[key["kind"] == "odd_mode"].itertuples():
        with Image.open(drawn / "dataset" / row.file) as image:
            orientation, frames = image.getexif().get(0x0112, 1), getattr(image, "n_frames", 1)
            found[row.detail] = (image.format, image.mode, orientation, frames)
    assert found == {
        "cmyk": ("JPEG", "CMYK", 1, 1),
        "grey": ("JPEG", "L", 1, 1),
        "palette": ("PNG", "P", 1, 1),
        "alpha": ("PNG", "RGBA", 1, 1),
        "grey16": ("PNG", "I;16", 1, 1),
        "exif_rotated": ("JPEG", "RGB", 6, 1),
        "animated": ("GIF", "P", 1, 2),
    }


def test_odd_shapes_stand_out_from_square_pictures(drawn: Path, key: pd.DataFrame) -> None:
    for row in key[key["kind"] == "odd_aspect"].itertuples():
        with Image.open(drawn / "dataset" / row.file) as image:
            ratio = image.width / image.height
        assert ratio > 3 if row.detail == "wide" else ratio < 1 / 3
    with Image.open(drawn / "dataset" / clean_files(drawn).index[0]) as image:
        assert image.size == (SIZE, SIZE)


def test_dark_and_blurred_pictures_stand_out_from_clean_ones(many: Path) -> None:
    key = pd.read_csv(many / "planted.csv")
    clean = [many / "dataset" / file for file in clean_files(many).index]
    dark = [many / "dataset" / file for file in key.loc[key["kind"] == "dark", "file"]]
    blurred = [many / "dataset" / file for file in key.loc[key["kind"] == "blurred", "file"]]
    assert max(pixels(path, 8).mean() for path in dark) < 0.8 * min(pixels(path, 8).mean() for path in clean)
    assert max(map(sharpness, blurred)) < 0.5 * min(map(sharpness, [*clean, *dark]))


def test_too_few_images_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 40"):
        draw(tmp_path / "few", images=SMALLEST - 1)
    assert not list(tmp_path.iterdir())


def test_second_call_does_not_draw_again(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "draw_face", lambda *_, **__: pytest.fail("drew again"))
    before = {path: path.stat().st_mtime_ns for path in drawn.rglob("*")}
    assert draw(drawn, images=IMAGES, seed=3) == drawn
    assert {path: path.stat().st_mtime_ns for path in drawn.rglob("*")} == before


def test_a_folder_that_holds_something_else_is_left_alone(drawn: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="remove it or name another"):
        draw(tmp_path, images=IMAGES)
    with pytest.raises(FileExistsError, match="seed=4"):
        draw(drawn, images=IMAGES, seed=4)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_failed_drawing_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_ink(*_: object, **__: object) -> None:
        raise RuntimeError("out of ink")

    monkeypatch.setattr(generate, "draw_face", out_of_ink)
    with pytest.raises(RuntimeError, match="out of ink"):
        draw(tmp_path / "failed", images=SMALLEST)
    assert not list(tmp_path.iterdir())


def test_command_line_says_where_the_data_is_and_what_was_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sample"
    monkeypatch.setattr(sys, "argv", ["sample_data", "--output_dir", str(folder), "--images", "40"])
    generate.main()
    assert str(folder) in capsys.readouterr().out
    assert (folder / "train.csv").exists()
    monkeypatch.setattr(sys, "argv", ["sample_data", "--output_dir", str(folder), "--images", "41"])
    with pytest.raises(SystemExit) as stop:
        generate.main()
    assert stop.value.code == 2
    assert "remove it or name another" in capsys.readouterr().err


def test_raw_pixels_do_not_tell_the_classes_apart(many: Path) -> None:
    labels = clean_files(many)
    x = np.array([pixels(many / "dataset" / file, 32) for file in labels.index])
    with threadpool_limits(1):  # on matrices this small, BLAS threads wait for each other longer than they compute
        # L2 regression does not change under rotation: principal axes give the same answer as the pixels, but faster.
        axes = PCA().fit_transform(x)
        folds = StratifiedKFold(5, shuffle=True, random_state=0)
        accuracies = [
            cross_val_score(LogisticRegression(C=c, max_iter=1000, tol=1e-3), axes, labels.to_numpy(), cv=folds).mean()
            for c in (0.001, 0.01, 0.1)
        ]
    assert max(accuracies) < 0.8
