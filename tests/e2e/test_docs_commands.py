"""Blocks of the pages that are marked `sh run`, run as they stand there."""

import csv
import re
import shutil
from pathlib import Path

import pages
import pytest
import warm
from command_line import PATIENCE, ROOT, Finished, clean_environment

BLOCKS = [block for block in pages.blocks() if block.runs]


@pytest.fixture(scope="module")
def folder(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a person would stand: outputs/ with a trained run, a photo, a folder of photos, and a list of them."""
    folder = tmp_path_factory.mktemp("desk")
    shutil.copytree(finished.run_dir.output_dir, folder / "outputs")
    photos = sorted((finished.sample / "dataset").glob("*.jpg"))[:3]
    (folder / "photos").mkdir()
    for photo in photos:
        shutil.copy(photo, folder / "photos")
    shutil.copy(photos[0], folder / "photo.jpg")
    with (folder / "list.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["id", "file"], *([number, photo.name] for number, photo in enumerate(photos))])
    (folder / "settings.yaml").write_text("epochs: 3\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block.page}-{block.content[:30]!r}")
def test_a_block_runs(block: pages.Block, folder: Path) -> None:
    clean = clean_environment()
    for environment, (python, *words) in block.commands():
        assert python == "python"
        done = warm.run([str(ROOT / words[0]), *words[1:]], folder, clean | environment, timeout=PATIENCE)
        assert done.returncode == 0, (words, done.stdout, done.stderr)


def test_the_run_folder_holds_what_the_page_shows(finished: Finished) -> None:
    [tree] = [block.content for block in pages.blocks() if block.info == "text" and "mlflow.db" in block.content]
    names = set(re.findall(r"[\w.]+\.(?:csv|json|jsonl|html|md|yaml|log|txt|png|db)\b", tree, re.IGNORECASE))
    there = {path.name for path in finished.run_dir.output_dir.rglob("*")}
    assert len(names) > 20
    assert names - there <= {"comparison.json", "mlflow.db"}  # one needs another run, one is still on its way
