"""The server's settings, from environment variables; checked before it listens."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from spectacles.core.errors import UserError
from spectacles.core.run_dir import newest_bundle
from spectacles.inference.registered_bundle import folder_of
from spectacles.models import engines

T = TypeVar("T")
PREFIX = "SPECTACLES_"
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class Settings:
    bundle: Path | None = None
    """A folder, a file of export.py, or models:/NAME@champion of a registry. None: the latest run's in `output_dir`."""
    output_dir: Path = Path("outputs")
    device: str = "auto"
    engine: str = "auto"
    precision: str = "auto"
    """As `predict.py --precision`."""
    prior: str | None = None
    """The class mix of the photos, where it is another than the bundle's: as `predict.py --prior`."""
    queue: int = 128
    """Most images waiting or being computed."""
    deadline: float = 5.0
    """Seconds from an image's arrival to its answer; what cannot be done by then is rejected."""
    api_keys: Mapping[str, str] = field(default_factory=dict)
    """sha256 of a key in hex -> its holder's name. Without any, only requests from this machine are answered."""
    allowed_hosts: tuple[str, ...] = LOOPBACK
    """Names by which clients may call this server; `*` for any."""
    cors_origins: tuple[str, ...] = ()
    """Other sites whose pages may use this server."""
    rate: float = 0.0
    """Images per second for each key, or for each address where there are no keys; 0: unlimited."""
    allow_urls: bool = False
    """Whether clients may send a photo's URL, which the server then fetches."""
    trust_network: bool = False
    """Whether everyone who reaches the server may use it without a key: a platform or a gateway checks who asks."""
    protocols: tuple[str, ...] = ()
    """Other ways of asking that are answered too (`protocols.dispatch.PROTOCOLS`)."""
    model_name: str = "spectacles"
    """Of the model in the Open Inference Protocol."""
    drain: float = 1.0
    """Seconds between becoming not ready and closing, so that a load balancer can notice."""

    def bundle_folder(self) -> Path:
        """Raises UserError where no run has a bundle, or a registry does not give the one that is asked for."""
        return folder_of(self.bundle, self.output_dir) if self.bundle else newest_bundle(self.output_dir)


def read(environment: Mapping[str, str] = os.environ) -> Settings:
    """Raises UserError, naming the variable."""

    def value(name: str, read_as: Callable[[str], T], default: T) -> T:
        text = environment.get(PREFIX + name, "").strip()
        try:
            return read_as(text) if text else default
        except ValueError as error:
            raise UserError(f"{PREFIX}{name}={text[:60]} cannot be used: {error}.") from None

    return Settings(
        bundle=value("BUNDLE", Path, None),  # type: ignore[arg-type]
        output_dir=value("OUTPUT_DIR", Path, Settings.output_dir),
        device=value("DEVICE", str, Settings.device),
        engine=value("ENGINE", lambda text: _one_of(text, engines.ENGINES), Settings.engine),
        precision=value("PRECISION", lambda text: _one_of(text, engines.PRECISIONS), Settings.precision),
        prior=value("PRIOR", str, None),  # type: ignore[arg-type]
        queue=value("QUEUE", lambda text: _whole(text, 1), Settings.queue),
        deadline=value("DEADLINE", lambda text: _number(text, 0.1), Settings.deadline),
        api_keys=value("API_KEYS", _keys, {}),
        allowed_hosts=value("ALLOWED_HOSTS", _list, Settings.allowed_hosts),
        cors_origins=value("CORS_ORIGINS", _origins, Settings.cors_origins),
        rate=value("RATE", lambda text: _number(text, 0.0), Settings.rate),
        allow_urls=value("ALLOW_URLS", _switch, default=False),
        trust_network=value("TRUST_NETWORK", _switch, default=False),
        protocols=value("PROTOCOLS", _list, ()),
        model_name=value("MODEL_NAME", str, Settings.model_name),
        drain=value("DRAIN", lambda text: _number(text, 0.0), Settings.drain),
    )


def _one_of(text: str, names: tuple[str, ...]) -> str:
    if text not in ("auto", *names):
        raise ValueError(f"use auto, {', '.join(names)}")
    return text


def _whole(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise ValueError(f"use a whole number of at least {least}")
    return int(text)


def _number(text: str, least: float) -> float:
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text) or float(text) < least:
        raise ValueError(f"use a number of at least {least:g}")
    return float(text)


def _switch(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError("use 1 for on, 0 for off")
    return text == "1"


def _list(text: str) -> tuple[str, ...]:
    return tuple(part for part in (part.strip() for part in text.split(",")) if part)


def _origins(text: str) -> tuple[str, ...]:
    for origin in _list(text):
        if not re.fullmatch(r"https?://[^/\s*]+", origin):
            raise ValueError(f"{origin!r} is not an origin such as https://example.org")
    return _list(text)


def _keys(text: str) -> dict[str, str]:
    """'name:sha256,...': never the keys themselves, which would show in the process table and in crash reports."""
    keys = {}
    for entry in _list(text):
        match = re.fullmatch(r"([A-Za-z0-9._-]{1,40}):([0-9a-f]{64})", entry)
        if not match:
            raise ValueError("use name:sha256 pairs with commas between; `python api.py --make_key NAME` prints one")
        keys[match[2]] = match[1]
    if not keys:
        raise ValueError("it holds no key")
    return keys
