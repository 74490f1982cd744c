"""From an image file to the model's input: one Preprocessing, stored in the bundle, and the threads that apply it."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from spectacles.core.device import cpu_count
from spectacles.core.errors import UserError
from spectacles.core.value_ranges import PER_FILE, ValueRanges
from spectacles.data.images import MAX_PIXELS, ImageRejected, Source, decode
from spectacles.data.resizing import resize

RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

DRAFT_MARGIN = 2
"""A JPEG may be decoded at a reduced scale as long as its sides stay this many times the model's: the resize that
follows then loses no frequency that it would keep."""
LOOK_AHEAD = 4
"""Batches decoded before they are needed: enough to overlap with the network, few enough for constant memory."""


@dataclass(frozen=True)
class Preprocessing:
    """Deterministic, in two steps: `pixels` once per file (cached), `models.normalization` on whole batches."""

    image_size: int
    resize: str
    """squash (stretch to a square), crop (the centre square) or pad (black borders)."""
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    in_chans: int
    value_ranges: ValueRanges = PER_FILE
    """Of the training data: what becomes black and white in files with other values than 0..255."""

    @property
    def least_side(self) -> int:
        """Side in pixels below which a file must not be decoded at a reduced scale."""
        return DRAFT_MARGIN * self.image_size

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.image_size, self.image_size, self.in_chans

    def pixels(self, image: Image.Image) -> np.ndarray:
        """RGB image -> uint8 (S, S, C). Grey is ITU-R 601 luma."""
        fitted = self.fit(image)
        return np.array(fitted if self.in_chans == 3 else fitted.convert("L"), dtype=np.uint8).reshape(self.shape)

    def fit(self, image: Image.Image) -> Image.Image:
        size, resampling = (self.image_size, self.image_size), RESAMPLING[self.interpolation]
        if self.resize == "squash":
            return resize(image, size, resampling)
        if self.resize == "crop":
            side = min(image.size)
            left, top = (image.width - side) / 2, (image.height - side) / 2
            return resize(image, size, resampling, (left, top, left + side, top + side))
        scale = self.image_size / max(image.size)
        inner = resize(image, (max(1, round(image.width * scale)), max(1, round(image.height * scale))), resampling)
        canvas = Image.new("RGB", size)
        canvas.paste(inner, ((self.image_size - inner.width) // 2, (self.image_size - inner.height) // 2))
        return canvas

    def at(self, image_size: int) -> "Preprocessing":
        return replace(self, image_size=image_size)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Preprocessing":
        pairs = {kind: pair and tuple(map(float, pair)) for kind, pair in values["value_ranges"].items()}
        lists = {"mean": tuple(values["mean"]), "std": tuple(values["std"])}
        return cls(**{**values, **lists, "value_ranges": ValueRanges(**pairs)})


class WholePhoto(Preprocessing):
    """For a network that crops and resizes photos itself."""

    def pixels(self, image: Image.Image) -> np.ndarray:
        """RGB image -> uint8 (H, W, 3)."""
        return np.asarray(image)


def to_picture(pixels: np.ndarray) -> np.ndarray:
    """uint8 (S, S, 1 or 3) -> (S, S, 3), for display."""
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))


def resolve_preprocessing(
    pretrained_cfg: dict[str, Any], image_size: int | None, resize: str, in_chans: int
) -> Preprocessing:
    """The backbone's size, interpolation, mean and std where no flag overrides them. Raises UserError."""
    size = int(pretrained_cfg["input_size"][-1]) if image_size is None else image_size
    if not 16 <= size <= 2048:
        raise UserError(f"--image_size {size} is out of range: use 16 to 2048.")
    mean, std = tuple(pretrained_cfg["mean"]), tuple(pretrained_cfg["std"])
    if in_chans == 1:
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
    interpolation = pretrained_cfg.get("interpolation", "bicubic")
    return Preprocessing(size, resize, interpolation if interpolation in RESAMPLING else "bicubic", mean, std, in_chans)


@dataclass(frozen=True)
class Decoded:
    """A decoded file: the model's input, or the reason why it was rejected."""

    name: str
    pixels: np.ndarray | None
    """uint8 (S, S, C)."""
    conversions: tuple[str, ...]
    reason: str


def decode_one(source: Source, preprocessing: Preprocessing, max_pixels: int = MAX_PIXELS) -> Decoded:
    name = "" if isinstance(source, bytes) else str(source)
    try:
        decoded = decode(source, max_pixels, preprocessing.least_side, preprocessing.value_ranges)
    except ImageRejected as error:
        return Decoded(name, None, (), str(error))
    return Decoded(name, preprocessing.pixels(decoded.image), decoded.conversions, "")


def decoded_batches(
    sources: Iterable[Source],
    preprocessing: Preprocessing,
    batch_size: int,
    num_workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[list[Decoded]]:
    """Batches of decoded sources, in order, decoded in threads at most LOOK_AHEAD batches ahead of the consumer."""
    pending: deque[Future[Decoded]] = deque()
    remaining = iter(sources)
    with ThreadPoolExecutor(num_workers or cpu_count()) as pool:
        while True:
            while len(pending) < LOOK_AHEAD * batch_size and (source := next(remaining, None)) is not None:
                pending.append(pool.submit(decode_one, source, preprocessing, max_pixels))
            if not pending:
                return
            yield [pending.popleft().result() for _ in range(min(batch_size, len(pending)))]
