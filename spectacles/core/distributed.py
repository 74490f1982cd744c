"""Several processes that learn together, as torchrun starts them: who is who. How they communicate: `collectives`."""

import os

from spectacles.core.errors import UserError


def rank() -> int:
    return int(os.environ["RANK"]) if world_size() > 1 else 0


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1")) if "MASTER_ADDR" in os.environ else 1


def is_main_process() -> bool:
    """The one that writes files and messages."""
    return rank() == 0


def local_world_size() -> int:
    """How many of the processes run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if world_size() > 1 else 1


def require_single_process(what: str) -> None:
    """Raises UserError where torchrun started several processes of `what`."""
    if world_size() > 1:
        raise UserError(
            f"{what} runs in one process, only train.py in several: run_pipeline.py --stages dataset,explore, then "
            "torchrun ... train.py, then run_pipeline.py --resume."
        )
