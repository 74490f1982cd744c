"""What a command and all that it starts connect to, by strace, and what they leave in a home folder of their own."""

import ipaddress
import re
import shutil
from pathlib import Path

import matplotlib

CONNECT = re.compile(r'connect\(.*?inet_(?:addr|pton)\((?:AF_INET6, )?"([^"]+)"')
REPORTS = (".cache/Microsoft", "intel", ".intel")
"""Where ONNX Runtime and OpenVINO keep the number by which they report a machine."""


def tracer(folder: Path) -> list[str]:
    """What stands before a command; nothing where strace is not installed."""
    if shutil.which("strace") is None:
        return []
    return ["strace", "-f", "--seccomp-bpf", "-qq", "-e", "trace=connect", "-o", str(folder / "connections.txt")]


def new_home(folder: Path) -> dict[str, str]:
    """Variables of an empty home folder; the list of fonts, which takes seconds to make, is the old one's."""
    home = folder / "home"
    home.mkdir()
    return {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), "MPLCONFIGDIR": matplotlib.get_cachedir()}


def addresses(folder: Path) -> set[str]:
    """IP addresses beyond this machine that were connected to."""
    found = CONNECT.findall((folder / "connections.txt").read_text(encoding="utf-8", errors="replace"))
    return {address for address in found if not ipaddress.ip_address(address).is_loopback}


def reports(folder: Path) -> list[str]:
    return [name for name in REPORTS if (folder / "home" / name).exists()]
