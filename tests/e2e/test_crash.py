"""The short form of `make crash`: kills at random moments change nothing of what a run ends with."""

from pathlib import Path
from typing import IO

import warm
from command_line import ROOT, clean_environment

from benchmarks import crash
from spectacles.tracking import delivery

KILLS = 3


class Process(warm.Process):
    """Nothing is delivered to MLflow while warm processes run: it is when a run has ended."""

    output_dir: Path

    def wait(self, timeout: float | None = None) -> int:
        status = super().wait(timeout)
        if status == 0:
            assert delivery.sync(self.output_dir)
        return status


def launch(command: list[str], output: IO[bytes]) -> Process:
    process = Process(warm.request(command, ROOT, clean_environment(), output, output))
    process.output_dir = Path(command[command.index("--output_dir") + 1])
    return process


def test_a_run_that_is_killed_again_and_again_is_the_run_that_it_would_have_been(tmp_path: Path) -> None:
    outcome = crash.run(tmp_path, kills=KILLS, seed=1, launch=launch)
    assert outcome.kills == KILLS
    assert outcome.faults() == 0, outcome
