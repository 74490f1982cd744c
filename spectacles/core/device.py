"""Device, threads, memory and seeds of this process."""

import ctypes
import hashlib
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import torch

from spectacles.core import distributed
from spectacles.core.errors import UserError

log = logging.getLogger("spectacles")

CORE_LIMIT = "SPECTACLES_CORES"
"""Variable that limits the cores of a process and of those that it starts."""

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc malloc.h


def resolve_device(name: str) -> torch.device:
    """auto | cpu | cuda | cuda:N | mps. Never falls back: UserError for a device that is not here."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name!r} is unknown: use auto, cpu, cuda, cuda:N or mps.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: torch {torch.__version__} finds no CUDA GPU here. Use --device cpu or auto.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA GPUs, counted from 0.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: torch finds no Apple GPU here. Use --device cpu or auto.")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"--device {name!r} is not supported: use auto, cpu, cuda, cuda:N or mps.")
    return device


def prepare_device(device: torch.device) -> torch.device:
    """Budgets the threads, keeps freed memory, and computes float32 in full; call once before the first tensor of a
    process. Returns `device`."""
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


def limit_cores(most: int) -> None:
    """For a process that shares its machine with others of its kind; before `prepare_device`."""
    os.environ[CORE_LIMIT] = str(most)


def cpu_count() -> int:
    """Cores that this process may use: by affinity, the cgroup's quota and `limit_cores`, not what the machine has."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file():
        limit, period = quota.read_text().split()[:2]
        if limit != "max":
            cores = min(cores, max(1, round(int(limit) / int(period))))
    return min(cores, int(os.environ.get(CORE_LIMIT, cores)))


def to_device(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """To a GPU without waiting for what it is doing: pinned memory, and a copy that does not block."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def keep_freed_memory() -> None:
    """Tells glibc to keep large freed blocks instead of giving them back to the kernel.

    Every activation is large enough for mmap, so without this each step page-faults all of them again: it is worth a
    factor of 1.3 to 2.5 on the CPU. A no-op where the C library is another one.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on all parts and on nothing else (not on workers, order or hash randomisation)."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
