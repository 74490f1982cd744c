"""From files to probabilities: the one path that evaluate, predict, error analysis and the server take."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from spectacles import classifier as classifiers
from spectacles import engines
from spectacles.bundle import ENGINE_FILE
from spectacles.calibration import softmax
from spectacles.decoding import Decoded, decoded_batches
from spectacles.images import MAX_PIXELS
from spectacles.metrics import decide


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
    """A bundle on a device, run by the fastest engine. Use one per process and one thread at a time."""

    def __init__(
        self,
        bundle: Path,
        device: torch.device,
        batch_size: int = 32,
        engine: str = "auto",
        images: float = math.inf,
    ) -> None:
        """`images`: how many are to be expected; for few of them no engine is measured."""
        self.classifier, self.info, self.model_id = classifiers.load(bundle)
        self.device, self.batch_size = device, batch_size
        difference = partial(engines.probability_difference, temperature=self.info.temperature)
        self.engine, self._run = engines.choose(
            self.classifier, self.info.preprocessing, device, bundle / ENGINE_FILE, engine, difference, images=images
        )

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (B, S, S, C), as `info.preprocessing` gives them -> calibrated probabilities (B, K), float64."""
        return softmax(self._run(pixels), self.info.temperature)

    def predict(
        self, sources: Iterable[Path | bytes], num_workers: int | None = None, max_pixels: int = MAX_PIXELS
    ) -> Iterator[Prediction]:
        """One prediction a source, in order, in constant memory; decoding in threads overlaps with the network."""
        batches = decoded_batches(sources, self.info.preprocessing, self.batch_size, num_workers, max_pixels)
        for batch in batches:
            yield from self._predict_batch(batch)

    def _predict_batch(self, batch: Sequence[Decoded]) -> Iterator[Prediction]:
        pixels = [item.pixels for item in batch if item.pixels is not None]
        rows = iter(self.probabilities(np.stack(pixels)) if pixels else [])
        for item in batch:
            if item.pixels is None:
                yield Prediction(item.name, "", 0.0, (), (), item.reason)
            else:
                yield self._to_prediction(item, next(rows))

    def _to_prediction(self, item: Decoded, probabilities: np.ndarray) -> Prediction:
        index = int(decide(probabilities[None], self.info.threshold)[0])
        confidence = float(probabilities[index])
        return Prediction(
            item.name, self.info.classes[index], confidence, tuple(probabilities.tolist()), item.repairs, ""
        )
