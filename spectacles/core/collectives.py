"""How the processes of one training communicate: gradients, predictions and decisions.

Each computes its share of every batch; the sums of their gradients are those of one process with the whole batch.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from spectacles.core.distributed import is_main_process, rank, world_size
from spectacles.core.errors import UserError

TIMEOUT = timedelta(hours=12)
"""The others wait while the main process fits the head alone. A process that dies is noticed at once, by its
connection."""
OTHER_PROCESS_ENDED = (
    "another process of this training has ended, and its output says why. Start all of them again with --resume."
)


def process_device(device: torch.device) -> torch.device:
    """The GPU of this process: each process of a machine has another one."""
    if world_size() > 1 and device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    return device


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Raises UserError where one of the others ends before its time."""
    if world_size() == 1:
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise UserError(OTHER_PROCESS_ENDED) from error
    finally:
        dist.destroy_process_group()


def shard_batch(indices: np.ndarray) -> np.ndarray:
    """This process's part of a batch: pictures in pairs from both ends, so that mixing a part with its own reverse
    mixes the same pictures as in the whole batch."""
    if world_size() == 1:
        return indices
    pairs, odd = divmod(len(indices), 2)
    own = np.arange(pairs)[rank() :: world_size()]
    middle = [pairs] if odd and is_main_process() else []
    return indices[np.concatenate([own, middle, len(indices) - 1 - own[::-1]]).astype(np.int64)]


def all_reduce_sum(gradients: Sequence[torch.Tensor], numbers: Sequence[float]) -> list[float]:
    """Adds up over all processes, the gradients in place."""
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
    """The main process's `value`, which must be JSON-ready; those of the others are ignored."""
    if world_size() == 1:
        return value
    content = json.dumps(value if is_main_process() else None).encode()
    size = torch.tensor([len(content)], device=device)
    dist.broadcast(size, 0)
    received = torch.zeros(int(size), dtype=torch.uint8, device=device)
    if is_main_process():
        received.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    dist.broadcast(received, 0)
    return json.loads(bytes(received.cpu().numpy()))


def broadcast_tensors(tensors: Sequence[torch.Tensor]) -> None:
    """Those of the main process take the place of the others', in place."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)
