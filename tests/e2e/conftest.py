"""One small pipeline run, shared by the tests that look at its outcome, and a browser."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import network_trace
import pytest
from command_line import SMALL, Finished, data_flags, run_command, run_script
from shared import once

from spectacles.core.run_dir import RunDir, find_run
from spectacles.sample_data import generate

IMAGES = 60
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "sample", lambda folder: generate.draw(folder / "faces", images=IMAGES)) / "faces"


@pytest.fixture(scope="session")
def finished(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The demo command on 60 images, as a person starts it; its connections are recorded where strace is installed."""

    def run(folder: Path) -> None:
        flags = ("--epochs", 2, "--output_dir", folder / "outputs")
        done = run_command(
            "run_pipeline.py", *data_flags(sample), *SMALL, *flags,
            environment=network_trace.new_home(folder), tracer=network_trace.tracer(folder),
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        (folder / "output.txt").write_text(done.stdout, encoding="utf-8")

    folder = once(tmp_path_factory, "finished", run)
    output = (folder / "output.txt").read_text(encoding="utf-8")
    return Finished(find_run(folder / "outputs", "latest"), sample, output)


@pytest.fixture(scope="session")
def indexed(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run that has finished its dataset stage only, to be copied with its output folder."""

    def run(folder: Path) -> None:
        done = run_script("dataset.py", *data_flags(sample), *SMALL[:6], "--output_dir", folder, "--run_name", "run")
        assert done.returncode == 0, done.stdout + done.stderr

    return find_run(once(tmp_path_factory, "indexed", run), "run")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real headless Chromium. Not for the whole session: Playwright's event loop is in the way of others."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    playwright.expect.set_options(timeout=20_000)
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()
