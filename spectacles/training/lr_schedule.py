"""Learning rates as a pure function of the progress of training, so that a resumed run needs no scheduler state."""

import math
from collections.abc import Sequence

PLATEAU_PATIENCE = 2
DECAY = 0.1


def factor(scheduler: str, step: int, total_steps: int, warmup_steps: int, improved: Sequence[bool] = ()) -> float:
    """Multiplier of the base rate at `step` (0-based) of a phase of `total_steps`.

    cosine: half a period to zero (Loshchilov & Hutter 2016). step: a tenth after each third. plateau: a tenth after
    each PLATEAU_PATIENCE epochs in a row without improvement; `improved` has an entry per finished epoch of the phase.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if scheduler == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, total_steps - warmup_steps)))
    if scheduler == "step":
        return math.pow(DECAY, 3 * step // max(1, total_steps))
    return math.pow(DECAY, _plateaus(improved))


def _plateaus(improved: Sequence[bool]) -> int:
    plateaus = 0
    waited = 0
    for improvement in improved:
        waited = 0 if improvement else waited + 1
        if waited == PLATEAU_PATIENCE:
            plateaus += 1
            waited = 0
    return plateaus
