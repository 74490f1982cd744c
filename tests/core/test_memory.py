"""Freed memory goes back to the system when it is asked for."""

import platform
from pathlib import Path

import pytest

from spectacles.core.device import release_freed_memory


def resident_mb() -> float:
    return int(Path("/proc/self/status").read_text(encoding="utf-8").partition("VmRSS:")[2].split()[0]) / 1024


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps less")
def test_freed_memory_is_given_back() -> None:
    blocks = [b"x" * 100_000 + bytes([number % 256]) for number in range(1000)]
    last = blocks.pop()  # above the others: without being asked, the C library frees only what nothing lies above
    blocks.clear()
    before = resident_mb()
    release_freed_memory()
    assert before - resident_mb() > 70
    assert len(last) == 100_001
