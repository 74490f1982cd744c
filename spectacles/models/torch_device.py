"""torch on a device: threads, precision, and arrays that go there."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch

from spectacles.core import distributed
from spectacles.core.device import cpu_count, keep_freed_memory


def prepare_device(device: str | torch.device) -> torch.device:
    """Budgets the threads, keeps freed memory, and computes float32 in full; call before the first tensor of a
    process. Returns `device`."""
    device = torch.device(device)
    torch.set_num_threads(max(1, cpu_count() // distributed.local_world_size()))
    _set_cuda_float32("ieee")
    if device.type == "cpu":
        keep_freed_memory()
        share_cores()
    return device


@contextmanager
def tf32_allowed() -> Iterator[None]:
    """Inside, a CUDA card that can do so rounds the operands of float32 convolutions and matrix products to 10 bits of
    mantissa (TensorFloat-32): precise enough for gradients and several times as fast.

    torch does so for convolutions unless it is switched off. Outputs then differ by 1e-3 and more, so features,
    validation, calibration and predictions, which other engines must reproduce, are computed outside.
    """
    _set_cuda_float32("tf32")
    try:
        yield
    finally:
        _set_cuda_float32("ieee")


def _set_cuda_float32(precision: str) -> None:
    torch.backends.cudnn.conv.fp32_precision = precision  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.fp32_precision = precision


@cache
def share_cores() -> None:
    """Makes torch's threads sleep at their barriers instead of spinning, as soon as they have waited a little.

    Threads that spin while another process holds the core that they wait for bring everything to a halt: beside one
    busy process, a fine-tuning step ran at 7 to 15 images/s, with this at 50; alone, at 97 and 84. libgomp has no call
    for it, only variables that are read before main(); but it gives up soon once it counts more threads
    than cores, so one idle thread with a pool of its own is enough. A no-op with another OpenMP library.
    """
    ready = threading.Event()

    def idle() -> None:
        torch.ones(2**17).sum()  # large enough to be shared among threads, which starts the pool
        ready.set()
        threading.Event().wait()

    threading.Thread(target=idle, name="second OpenMP pool", daemon=True).start()
    ready.wait()


def to_device(values: np.ndarray, device: str | torch.device) -> torch.Tensor:
    """To a GPU without waiting for what it is doing: pinned memory, and a copy that does not block."""
    tensor, device = torch.from_numpy(np.ascontiguousarray(values)), torch.device(device)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
