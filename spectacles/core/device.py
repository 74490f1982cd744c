"""Device, cores, memory and seeds of this process. What torch needs beyond that: `models.torch_device`."""

import ctypes
import gc
import hashlib
import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path

from spectacles.core.errors import UserError

CORE_LIMIT = "SPECTACLES_CORES"
"""Variable that limits the cores of a process and of those that it starts."""

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc malloc.h

GPU_DRIVERS = ("/dev/nvidiactl", "/dev/nvmap", "/dev/kfd", "/dev/dxg")
"""What Linux has where a driver of a graphics card runs: NVIDIA's, that of its small boards, AMD's, and Windows's."""


def resolve_device(name: str) -> str:
    """auto | cpu | cuda | cuda:N | mps -> the same without auto. Never falls back: UserError for a device that is not
    here. Imports torch only where there may be a graphics card."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", name):
        raise UserError(f"--device {name!r} is unknown: use auto, cpu, cuda, cuda:N or mps.")
    if name == "cpu" or (name == "auto" and not (find_spec("torch") and may_have_gpu())):
        return "cpu"
    if not find_spec("torch"):
        raise UserError(f"--device {name} needs torch, which is not installed: install it, or use --device cpu.")
    import torch  # takes seconds, so only here

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "mps":
        if not torch.backends.mps.is_available():
            raise UserError("--device mps: torch finds no Apple GPU here. Use --device cpu or auto.")
        return name
    if not torch.cuda.is_available():
        raise UserError(f"--device {name}: torch {torch.__version__} finds no CUDA GPU here. Use --device cpu or auto.")
    if int(name.partition(":")[2] or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA GPUs, counted from 0.")
    return name


def may_have_gpu() -> bool:
    """False where torch would find no graphics card either."""
    return not sys.platform.startswith("linux") or any(Path(driver).exists() for driver in GPU_DRIVERS)


def limit_cores(most: int) -> None:
    """For a process that shares its machine with others of its kind; before torch starts threads."""
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


def release_freed_memory() -> None:
    """Gives back what `keep_freed_memory` keeps, between two parts of a command whose blocks differ in size: one cannot
    use what the other has left, so the process would hold both."""
    if not sys.platform.startswith("linux"):
        return
    gc.collect()  # networks and optimisers are parts of cycles
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on all parts and on nothing else (not on workers, order or hash randomisation)."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
