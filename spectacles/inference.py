"""From files to probabilities: the one path that evaluate, predict, error analysis and the server take."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from spectacles import classifier as classifiers
from spectacles.calibration import softmax
from spectacles.images import MAX_PIXELS, DecodedImage, ImageRefused, decode
from spectacles.metrics import decide
from spectacles.runtime import cpu_count

Prepare = Callable[[DecodedImage], torch.Tensor]

LOOK_AHEAD = 4
"""Batches decoded before they are needed: enough to overlap with the arithmetic, few enough for constant memory."""


@dataclass(frozen=True)
class Prediction:
    """One file's outcome. A refused file has a reason and no probabilities."""

    path: str
    label: str
    confidence: float
    """Probability of `label`, 0..1 (calibrated); 0 for a refused file."""
    probabilities: tuple[float, ...]
    """In the order of the bundle's classes; empty for a refused file."""
    repairs: tuple[str, ...]
    reason: str
    """Why the file was refused; empty otherwise."""


class Predictor:
    """A bundle on a device. Use one per process and one thread at a time."""

    def __init__(self, bundle: Path, device: torch.device, batch_size: int = 32) -> None:
        self.classifier, self.info, self.model_id = classifiers.load(bundle)
        self.classifier.to(device).to(memory_format=torch.channels_last)
        self.device, self.batch_size = device, batch_size

    def prepare(self, decoded: DecodedImage) -> torch.Tensor:
        """The model's input (C, S, S): the very same for evaluation, prediction and the server."""
        return self.info.preprocessing(decoded.image)

    @torch.inference_mode()
    def probabilities(self, inputs: torch.Tensor) -> np.ndarray:
        """(B, C, S, S) -> calibrated probabilities (B, K), float64."""
        images = inputs.to(self.device, memory_format=torch.channels_last, non_blocking=True)
        logits = self.classifier(images).float().cpu().numpy()
        return softmax(logits, self.info.temperature)

    def predict(
        self, sources: Iterable[Path | bytes], num_workers: int | None = None, max_pixels: int = MAX_PIXELS
    ) -> Iterator[Prediction]:
        """One prediction a source, in order, in constant memory; decoding in threads overlaps with the network."""
        for batch in decoded_batches(sources, self.prepare, self.batch_size, num_workers, max_pixels):
            yield from self._predict_batch(batch)

    def _predict_batch(self, batch: Sequence["Decoded"]) -> Iterator[Prediction]:
        tensors = [item.tensor for item in batch if item.tensor is not None]
        rows = iter(self.probabilities(torch.stack(tensors)) if tensors else [])
        for item in batch:
            if item.tensor is None:
                yield Prediction(item.name, "", 0.0, (), (), item.reason)
            else:
                yield self._to_prediction(item, next(rows))

    def _to_prediction(self, item: "Decoded", probabilities: np.ndarray) -> Prediction:
        index = int(decide(probabilities[None], self.info.threshold)[0])
        confidence = float(probabilities[index])
        return Prediction(
            item.name, self.info.classes[index], confidence, tuple(probabilities.tolist()), item.repairs, ""
        )


@dataclass(frozen=True)
class Decoded:
    """A source after decoding: the model's input, or the reason why there is none."""

    name: str
    tensor: torch.Tensor | None
    repairs: tuple[str, ...]
    reason: str


def decoded_batches(
    sources: Iterable[Path | bytes],
    prepare: Prepare,
    batch_size: int,
    num_workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[list[Decoded]]:
    """Batches of decoded sources, in order, at most LOOK_AHEAD batches ahead of the consumer."""

    def decode_one(source: Path | bytes) -> Decoded:
        name = "" if isinstance(source, bytes) else str(source)
        try:
            decoded = decode(source, max_pixels)
        except ImageRefused as error:
            return Decoded(name, None, (), str(error))
        return Decoded(name, prepare(decoded), decoded.repairs, "")

    pending: deque[Future[Decoded]] = deque()
    remaining = iter(sources)
    with ThreadPoolExecutor(num_workers or cpu_count()) as pool:
        while True:
            while len(pending) < LOOK_AHEAD * batch_size and (source := next(remaining, None)) is not None:
                pending.append(pool.submit(decode_one, source))
            if not pending:
                return
            yield [pending.popleft().result() for _ in range(min(batch_size, len(pending)))]
