"""Several processes that learn together, as torchrun starts them: who is who, and what they tell each other.

Each computes its share of every batch; the sums of their gradients are those of one process with the whole batch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from spectacles.core.errors import UserError

if TYPE_CHECKING:
    import torch

PATIENCE = timedelta(hours=12)
"""For each other: the first fits the head alone. A process that dies is noticed by its connection, at once."""
FAREWELL = "another process of this training has ended: its own words say why. Start all of them again with --resume."


def rank() -> int:
    return int(os.environ["RANK"]) if world_size() > 1 else 0


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1")) if "MASTER_ADDR" in os.environ else 1


def is_main_process() -> bool:
    """The one that writes and speaks."""
    return rank() == 0


def local_world_size() -> int:
    """How many of them share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if world_size() > 1 else 1


def reject(what: str) -> None:
    """Raises UserError where several processes run `what`, which is for one."""
    if world_size() > 1:
        raise UserError(
            f"{what} runs in one process, only train.py in several: run_pipeline.py --stages dataset,explore, then "
            "torchrun ... train.py, then run_pipeline.py --resume."
        )


def own_device(device: torch.device) -> torch.device:
    """Each process of a machine has a GPU of its own."""
    import torch

    if world_size() > 1 and device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    return device


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Raises UserError where one of the others ends before its time."""
    if world_size() == 1:
        yield
        return
    import torch.distributed as dist

    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise UserError(FAREWELL) from error
    finally:
        dist.destroy_process_group()


def shard_batch(indices: np.ndarray) -> np.ndarray:
    """This process's part of a batch: pictures in pairs from both ends, so that mixing a part with its own reverse
    mixes the same pictures as in the whole batch."""
    if world_size() == 1:
        return indices
    pairs, odd = divmod(len(indices), 2)
    own = np.arange(pairs)[rank() :: world_size()]
    middle = [pairs] * (odd and is_main_process())
    return indices[np.concatenate([own, middle, len(indices) - 1 - own[::-1]]).astype(np.int64)]


def all_reduce_sum(gradients: Sequence[torch.Tensor], numbers: Sequence[float]) -> list[float]:
    """Adds up over all processes, the gradients in place."""
    import torch
    import torch.distributed as dist

    extra = torch.tensor(numbers, dtype=torch.float32, device=gradients[0].device)
    flat = torch.cat([each.flatten() for each in gradients] + [extra])
    dist.all_reduce(flat)
    start = 0
    for gradient in gradients:
        gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
        start += gradient.numel()
    return [float(value) for value in flat[start:]]


def gather(rows: np.ndarray, total: int, device: torch.device) -> np.ndarray:
    """(n, K) float32 of each process, which has every `world_size()`-th of `total` rows -> (total, K), in order."""
    if world_size() == 1:
        return rows
    import torch
    import torch.distributed as dist

    longest = -(-total // world_size())
    own = torch.zeros((longest, rows.shape[1]), dtype=torch.float32, device=device)
    own[: len(rows)] = torch.from_numpy(rows)
    parts = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(parts, own)
    whole = np.empty((total, rows.shape[1]), dtype=np.float32)
    for number, part in enumerate(parts):
        whole[number :: world_size()] = part.cpu().numpy()[: len(whole[number :: world_size()])]
    return whole


def broadcast_object(value: Any, device: torch.device) -> Any:
    """What the first process says, JSON-ready; the others' `value` does not matter."""
    if world_size() == 1:
        return value
    import torch
    import torch.distributed as dist

    content = json.dumps(value if is_main_process() else None).encode()
    size = torch.tensor([len(content)], device=device)
    dist.broadcast(size, 0)
    told = torch.zeros(int(size), dtype=torch.uint8, device=device)
    if is_main_process():
        told.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    dist.broadcast(told, 0)
    return json.loads(bytes(told.cpu().numpy()))


def copy_from_first(tensors: Sequence[torch.Tensor]) -> None:
    """In place."""
    if world_size() > 1:
        import torch.distributed as dist

        for tensor in tensors:
            dist.broadcast(tensor, 0)
