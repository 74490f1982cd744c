"""What a stage costs: wall time, and energy where the machine counts it."""

import time
from dataclasses import dataclass
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
LARGEST_POWER = 500
"""Watts that no processor package exceeds: says how soon its counter may have gone round more than once."""


@dataclass(frozen=True)
class Meter:
    started: float
    counters: dict[Path, int]


def start(powercap: Path = POWERCAP) -> Meter:
    return Meter(time.monotonic(), _read_counters(powercap))


def since(meter: Meter) -> dict[str, float | None]:
    """`seconds` of wall time, and `joules` of all processor packages (Linux powercap, RAPL), whatever ran on them.

    Joules are None where the counters cannot be read or have gone round an unknown number of times. Graphics cards
    are not in them.
    """
    seconds = time.monotonic() - meter.started
    used = [_used(path, before, seconds) for path, before in meter.counters.items()]
    known = [microjoules for microjoules in used if microjoules is not None]
    whole = bool(used) and len(known) == len(used)
    return {"seconds": round(seconds, 2), "joules": round(sum(known) / 1e6, 1) if whole else None}


def _read_counters(powercap: Path) -> dict[Path, int]:
    """Zone -> microjoules; the zones below a package (cores, memory) are part of it or not everywhere there."""
    try:
        zones = [zone for zone in sorted(powercap.glob("intel-rapl:*")) if _text(zone / "name").startswith("package")]
        return {zone: int(_text(zone / "energy_uj")) for zone in zones}
    except (OSError, ValueError):  # since 2020 only root may read them on most systems
        return {}


def _used(zone: Path, before: int, seconds: float) -> int | None:
    try:
        now, largest = int(_text(zone / "energy_uj")), int(_text(zone / "max_energy_range_uj"))
    except (OSError, ValueError):
        return None
    if seconds * LARGEST_POWER * 1e6 >= largest:
        return None
    return now - before if now >= before else now - before + largest


def _text(path: Path) -> str:
    return path.read_text(encoding="ascii").strip()
