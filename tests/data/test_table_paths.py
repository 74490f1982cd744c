"""File names of tables that were written elsewhere lead to the files that are here."""

from pathlib import Path

import pandas as pd
import pytest

from spectacles.data.table_paths import Located, locate_files


def locate(folder: Path, files: list[str], names: list[str]) -> Located:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    return locate_files(pd.Series(names), folder)


def inside(located: Located, folder: Path) -> list[str]:
    return [path.removeprefix(f"{folder}/") for path in located.paths]


FILES = ["cats/1.jpg", "cats/2.jpg", "dogs/1.jpg"]


@pytest.mark.parametrize(
    "start", ["/data/upload/", "C:\\Users\\me\\", "upload/", "..\\other\\", "/cats/", "file://server/share/"]
)
def test_names_of_another_machine_are_found_and_said_once(start: str, tmp_path: Path) -> None:
    names = [start + (file.replace("/", "\\") if "\\" in start else file) for file in FILES]
    located = locate(tmp_path, FILES, names)
    assert inside(located, tmp_path) == FILES
    [note] = located.notes
    assert note.startswith(f"3 files of another machine (in {start.replace(chr(92), '/')}) are found in {tmp_path}")


def test_backslashes_separate_folders_where_there_is_no_such_file(tmp_path: Path) -> None:
    located = locate(tmp_path, [*FILES, "cats\\1.jpg"], ["cats\\1.jpg", "cats\\2.jpg"])
    assert (inside(located, tmp_path), located.notes) == (["cats\\1.jpg", "cats/2.jpg"], [])


def test_a_missing_file_is_not_taken_for_another_of_the_same_name(tmp_path: Path) -> None:
    names = ["/data/x/gone/1.jpg", "/data/x/cats/1.jpg", "/data/x/gone/2.jpg", "/data/x/dogs/1.jpg"]
    located = locate(tmp_path, [*FILES, "1.jpg"], names)
    assert inside(located, tmp_path) == ["gone/1.jpg", "cats/1.jpg", "gone/2.jpg", "dogs/1.jpg"]
    names = ["gone/1.jpg", "cats/1.jpg"]
    assert inside(locate(tmp_path, [], names), tmp_path) == names


def test_files_that_exist_are_taken_as_they_stand(tmp_path: Path) -> None:
    names = [f"{tmp_path}/elsewhere/cats/1.jpg", "cats/1.jpg", "/data/cats/2.jpg"]
    located = locate(tmp_path, [*FILES, "elsewhere/cats/1.jpg"], names)
    assert inside(located, tmp_path) == ["elsewhere/cats/1.jpg", "cats/1.jpg", "cats/2.jpg"]
    assert located.notes[0].startswith("1 files of another machine")


def test_nothing_outside_the_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").touch()
    located = locate(tmp_path / "photos", ["a.jpg"], ["/data/x/../secret.jpg", "/data/gone.jpg", ""])
    assert located.notes == []
