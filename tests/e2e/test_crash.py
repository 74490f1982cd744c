"""The short form of `make crash`: kills at random moments change nothing of what a run ends with."""

from pathlib import Path

from benchmarks import crash

KILLS = 3


def test_a_run_that_is_killed_again_and_again_is_the_run_that_it_would_have_been(tmp_path: Path) -> None:
    outcome = crash.run(tmp_path, kills=KILLS, seed=1)
    assert outcome.kills == KILLS
    assert outcome.faults() == 0, outcome
