"""One small pipeline run, shared by the tests that look at its outcome."""

from pathlib import Path

import pytest
from command_line import SMALL, Finished, data_flags, run_script

from spectacles import sample_data
from spectacles.run_dir import find

IMAGES = 60


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample_data.draw(tmp_path_factory.mktemp("sample") / "faces", images=IMAGES)


@pytest.fixture(scope="session")
def finished(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The demo command on 60 images."""
    outputs = tmp_path_factory.mktemp("outputs")
    done = run_script("run_pipeline.py", *data_flags(sample), *SMALL, "--epochs", 2, "--output_dir", outputs)
    assert done.returncode == 0, done.stdout + done.stderr
    return Finished(find(outputs, "latest"), sample, done.stdout)
