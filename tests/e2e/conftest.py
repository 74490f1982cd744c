"""One small pipeline run, shared by the tests that look at its outcome."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import SMALL, Finished, data_flags, run_command, run_script

from spectacles.core.run_dir import RunDir, find_run
from spectacles.sample_data import generate

IMAGES = 60
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate.draw(tmp_path_factory.mktemp("sample") / "faces", images=IMAGES)


@pytest.fixture(scope="session")
def finished(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The demo command on 60 images."""
    outputs = tmp_path_factory.mktemp("outputs")
    done = run_command("run_pipeline.py", *data_flags(sample), *SMALL, "--epochs", 2, "--output_dir", outputs)
    assert done.returncode == 0, done.stdout + done.stderr
    return Finished(find_run(outputs, "latest"), sample, done.stdout)


@pytest.fixture(scope="session")
def indexed(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run of which the dataset stage is done, to be copied."""
    outputs = tmp_path_factory.mktemp("indexed")
    flags = (*data_flags(sample), *SMALL[:6], "--output_dir", outputs, "--run_name", "run")
    done = run_script("dataset.py", *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    return find_run(outputs, "run")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    playwright.expect.set_options(timeout=20_000)
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()
