"""How the processes of one training communicate: gradients by DistributedDataParallel, predictions and decisions here.

Each computes its share of every batch; the mean of their weighed gradients is that of one process with the whole batch.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from spectacles.core import signals
from spectacles.core.distributed import is_main_process, local_rank, local_world_size, rank, world_size
from spectacles.core.errors import UserError

TIMEOUT = timedelta(minutes=10)
"""For the others to arrive, after which a process gives up. One that dies is noticed at once, by its connection."""
LONG_TIMEOUT = timedelta(hours=12)
"""While the main process does alone what takes as long as there are photos."""
OTHER_PROCESS_ENDED = (
    "another process of this training has ended, or has not answered for ten minutes; its output says why. Start all "
    "of them again with --resume."
)


def process_device(device: torch.device) -> torch.device:
    """The GPU of this process: each process of a machine has another one. Raises UserError where there are too few."""
    if world_size() == 1 or device.type != "cuda":
        return device
    if device.index is not None:
        raise UserError(f"--device {device} is one GPU, and torchrun started several processes: use --device cuda.")
    if local_rank() >= torch.cuda.device_count():
        raise UserError(
            f"torchrun started {local_world_size()} processes on this machine, which has {torch.cuda.device_count()} "
            f"CUDA GPUs: use --nproc_per_node {torch.cuda.device_count()}, or --device cpu."
        )
    device = torch.device("cuda", local_rank())
    torch.cuda.set_device(device)
    return device


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Raises UserError where one of the others does not come, or ends before its time."""
    if world_size() == 1:
        yield
        return
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
        yield
    except RuntimeError as error:
        if not other_process_ended(error):
            raise
        raise UserError(OTHER_PROCESS_ENDED) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def other_process_ended(error: RuntimeError) -> bool:
    """Whether an exchange failed for another process."""
    return world_size() > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error))


@contextmanager
def long_wait() -> Iterator[dist.ProcessGroup | None]:
    """A group in which the others wait for what the main process does inside, however long it takes."""
    if world_size() == 1:
        yield None
        return
    group = dist.new_group(backend="gloo", timeout=LONG_TIMEOUT)
    assert isinstance(group, dist.ProcessGroup)
    yield group
    dist.destroy_process_group(group)


def data_parallel(network: nn.Module, example: torch.Tensor) -> nn.Module:
    """The network, in training mode, whose gradients are averaged over all processes while they are computed.

    It holds for the parameters that require a gradient now: where these change, the network is wrapped anew. `example`
    is an input: torch has to know whether there are parameters that no gradient reaches, as in some of timm's networks.
    """
    if world_size() == 1:
        return network
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(network(example).sum(), parameters, allow_unused=True)
    return DistributedDataParallel(
        network,
        device_ids=[example.device] if example.device.type == "cuda" else None,
        forward_sync_buffers=False,
        find_unused_parameters=any(gradient is None for gradient in gradients),
    )


@contextmanager
def without_exchange(network: nn.Module) -> Iterator[None]:
    """Inside, gradients of what `data_parallel` returned are only accumulated."""
    if isinstance(network, DistributedDataParallel):
        with network.no_sync():
            yield
    else:
        yield


def shard_batch(indices: np.ndarray) -> np.ndarray:
    """This process's part of a batch: pictures in pairs from both ends, so that mixing a part with its own reverse
    mixes the same pictures as in the whole batch."""
    if world_size() == 1:
        return indices
    pairs, odd = divmod(len(indices), 2)
    own = np.arange(pairs)[rank() :: world_size()]
    middle = [pairs] if odd and is_main_process() else []
    return indices[np.concatenate([own, middle, len(indices) - 1 - own[::-1]]).astype(np.int64)]


def any_process(*flags: bool) -> list[bool]:
    """For each flag, whether it is set in any process. All get the same answer at the same place: what comes to one of
    them a moment later is in the next answer."""
    if world_size() == 1:
        return list(flags)
    anywhere = torch.tensor([int(flag) for flag in flags])
    dist.all_reduce(anywhere, dist.ReduceOp.MAX)
    return [bool(flag) for flag in anywhere]


def check_stop() -> None:
    """Raises Stopped, in all processes at the same place, where a signal has come to any of them."""
    [stop] = any_process(signals.stop_requested())
    if stop:
        signals.request_stop()
        signals.check()


def mean(values: Sequence[float]) -> list[float]:
    """Of each value, over all processes."""
    if world_size() == 1:
        return list(values)
    summed = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(summed)
    averages: list[float] = (summed / world_size()).tolist()
    return averages


def gather(rows: np.ndarray, total: int) -> np.ndarray:
    """(n, K) float32 of each process, which has every `world_size()`-th of `total` rows -> (total, K), in order."""
    if world_size() == 1:
        return rows
    longest = -(-total // world_size())
    own = torch.zeros((longest, rows.shape[1]), dtype=torch.float32)
    own[: len(rows)] = torch.from_numpy(rows)
    parts = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(parts, own)
    whole = np.empty((total, rows.shape[1]), dtype=np.float32)
    for number, part in enumerate(parts):
        whole[number :: world_size()] = part.numpy()[: len(whole[number :: world_size()])]
    return whole


def broadcast_object(value: Any, group: dist.ProcessGroup | None = None) -> Any:
    """The main process's `value`, which must be JSON-ready; those of the others are ignored."""
    if world_size() == 1:
        return value
    content = json.dumps(value if is_main_process() else None).encode()
    size = torch.tensor([len(content)])
    dist.broadcast(size, 0, group=group)
    received = torch.zeros(int(size), dtype=torch.uint8)
    if is_main_process():
        received.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    dist.broadcast(received, 0, group=group)
    return json.loads(bytes(received.numpy()))


def broadcast_tensors(tensors: Sequence[torch.Tensor]) -> None:
    """Those of the main process take the place of the others', in place."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)
