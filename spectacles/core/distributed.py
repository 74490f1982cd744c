"""Several processes that learn together, as torchrun starts them: who is who. How they communicate: `collectives`."""

import os

from spectacles.core.errors import UserError


def rank() -> int:
    """Raises UserError where the environment names several processes but not which one this is."""
    return _number("RANK") if world_size() > 1 else 0


def world_size() -> int:
    return _number("WORLD_SIZE", 1) if "MASTER_ADDR" in os.environ else 1


def local_rank() -> int:
    """Which of the processes on this machine this one is."""
    return _number("LOCAL_RANK") if world_size() > 1 else 0


def local_world_size() -> int:
    """How many of the processes run on this machine."""
    return _number("LOCAL_WORLD_SIZE", 1) if world_size() > 1 else 1


def is_main_process() -> bool:
    """The one that writes files and messages."""
    return rank() == 0


def require_single_process(what: str) -> None:
    """Raises UserError where torchrun started several processes of `what`."""
    if world_size() > 1:
        raise UserError(
            f"{what} runs in one process, only train.py in several: run_pipeline.py --stages dataset,explore, then "
            "torchrun ... train.py, then run_pipeline.py --resume."
        )


def _number(variable: str, default: int | None = None) -> int:
    value = os.environ.get(variable, "" if default is None else str(default))
    if value.isdecimal():
        return int(value)
    problem = f"is {value!r}" if value else "is not set"
    raise UserError(
        f"MASTER_ADDR is set, as torchrun does for each of several processes, but {variable} {problem}: start them "
        "with torchrun, or unset MASTER_ADDR to use a single process."
    )
