"""From files to predictions: the one path that evaluate, predict, error analysis and the server share."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING

import numpy as np

from spectacles.core.errors import UserError
from spectacles.data import label_sets
from spectacles.data.images import MAX_PIXELS, Source
from spectacles.data.preprocessing import Decoded, WholePhoto, decoded_batches
from spectacles.inference.exported_file import is_exported, open_file
from spectacles.metrics import abstention
from spectacles.metrics.abstention import AbstainReason
from spectacles.models import bundle_network, engine_choice, engines, ood
from spectacles.models.bundle import ENGINE_FILE, BundleInfo, load_bundle
from spectacles.models.bundle_network import BundleNetwork
from spectacles.models.engines import Outputs
from spectacles.models.ood import OODScorer
from spectacles.models.precision import build, choose

if TYPE_CHECKING:
    from spectacles.models.classifier import Classifier


@dataclass(frozen=True)
class Prediction:
    """One file's outcome. A rejected file has a reason, and neither label nor numbers."""

    path: str
    label: str
    """The class, also where the model abstains; any number of labels as `label_sets.join` writes them."""
    confidence: float
    """Probability of `label`, 0..1 (calibrated), of several that of the least certain; 0 for a rejected file."""
    probabilities: tuple[float, ...]
    """In the order of the bundle's classes; empty for a rejected file."""
    conversions: tuple[str, ...]
    reason: str
    """Why the file was rejected; empty otherwise."""
    logits: tuple[float, ...] = ()
    """As the network gives them, in the order of the classes."""
    ood_score: float | None = None
    """Share of the validation photos that are more like the training photos, 0..1; None where the bundle has no
    scorer."""
    abstain_reason: AbstainReason | None = None
    """Why the model abstains: its confidence is too low for --target_accuracy, or the photo is out of distribution."""

    @property
    def abstained(self) -> bool:
        return self.abstain_reason is not None


class Predictor:
    """A bundle on a device, run by the fastest engine, or a file of export.py, run by its own on the CPU. Use one per
    process, and num_streams threads at a time."""

    head_weight: np.ndarray | None
    """(K, D) float32: logits are features times its transpose, plus a bias. None where the features are not known."""
    ood_scorer: OODScorer | None
    _network: BundleNetwork | None

    def __init__(
        self,
        bundle: Path,
        device: str,
        batch_size: int = 32,
        engine: str = "auto",
        images: float = math.inf,
        prior: str | None = None,
        precision: str = "fp32",
    ) -> None:
        """`images`: how many are to be expected; for few of them no engine is measured. `prior`: the photos' class mix,
        where it is another than the bundle's. `device`: as `resolve_device` gives it. `precision`: see
        `precision.choose`; a file has its own. Raises UserError."""
        self.device, self.batch_size, self.path = device, batch_size, bundle
        self._torch_lock = RLock()
        if is_exported(bundle):
            info = self._open(bundle, engine, precision)
        else:
            info = self._load(bundle, engine, images, precision)
        self.info = info if prior is None else info.with_prior(prior)
        preprocessing = self.info.preprocessing
        self._reader = WholePhoto(**vars(preprocessing)) if self.takes_photos else preprocessing

    def _open(self, path: Path, engine: str, precision: str) -> BundleInfo:
        (info, self.model_id, self.precision), self.engine, self.run, self.takes_photos = open_file(
            path, engine, precision
        )
        self.device, self.why_precision = "cpu", ""
        self.head_weight = self.ood_scorer = self._network = None
        return info

    def _load(self, bundle: Path, engine: str, images: float, precision: str) -> BundleInfo:
        loaded = load_bundle(bundle)
        info, self.model_id, self.takes_photos = loaded.info, loaded.model_id, False
        self.precision, checked, self.why_precision = choose(precision, bundle, self.model_id, engine, self.device)
        info = checked.fitted.info(info) if checked else info
        tensors = loaded.tensors(ood.PREFIX, "head.weight")
        self.head_weight = tensors["head.weight"]
        scorer = ood.from_tensors(tensors)
        self.ood_scorer = checked.fitted.scorer(scorer) if checked else scorer
        self._network = BundleNetwork(loaded, self.device)
        if checked:
            self.engine, self.run = checked.engine, build(self.precision, self.network, bundle, checked.files)
        else:
            agree = bundle_network.difference(info, self.ood_scorer)
            self.engine, self.run = engine_choice.choose(self.network, bundle / ENGINE_FILE, engine, agree, images)
        return info

    @property
    def network(self) -> BundleNetwork:
        """Raises UserError for an exported file, which holds no more than its runtime needs."""
        if self._network is None:
            raise UserError(f"{self.path.name} is an exported file, which PyTorch cannot load: use its bundle.")
        return self._network

    @property
    def classifier(self) -> "Classifier":
        """The network in torch, on the device. Raises UserError where torch is not installed, or for a file."""
        from spectacles.models.torch_device import prepare_device  # takes seconds, and predictions do without

        return self.network.classifier.to(prepare_device(self.device))

    @contextmanager
    def torch_network(self) -> "Iterator[Classifier]":
        """The network for one thread alone, for explanations; predictions that run on it too wait meanwhile."""
        with self._torch_lock:
            yield self.classifier

    @property
    def num_streams(self) -> int:
        """Threads that should predict at once to use the device best."""
        return engines.num_streams(self.engine)

    @property
    def stream_batch_size(self) -> int:
        """Images that each of these threads should take at a time."""
        return engines.CHUNK if self.num_streams > 1 else self.batch_size

    def outputs(self, pixels: np.ndarray) -> Outputs:
        """uint8 (B, S, S, C), as `info.preprocessing` gives them -> those of `all_outputs.AllOutputs`."""
        with self._torch_lock if self.engine == "torch" else nullcontext():
            return self.run(pixels)

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (B, S, S, C) -> calibrated probabilities (B, K), float64."""
        return self.info.calibration.probabilities(self.outputs(pixels)["logits"])

    def predict(
        self, sources: Iterable[Source], num_workers: int | None = None, max_pixels: int = MAX_PIXELS
    ) -> Iterator[Prediction]:
        """One prediction a source, in order, in constant memory; decoding in threads overlaps with the network."""
        batches = decoded_batches(sources, self._reader, self.batch_size, num_workers, max_pixels)
        for batch in batches:
            yield from self.predict_batch(batch)

    def predict_batch(self, batch: Sequence[Decoded]) -> list[Prediction]:
        """One prediction an item; those without pixels are rejected."""
        readable = [item for item in batch if item.pixels is not None]
        decided = iter(self._decide(readable) if readable else [])
        return [
            Prediction(item.name, "", 0.0, (), (), item.reason) if item.pixels is None else next(decided)
            for item in batch
        ]

    def _outputs_of(self, pictures: Sequence[np.ndarray]) -> Outputs:
        """Of pixels, or of photos of any sizes where they are taken."""
        if not self.takes_photos:
            return self.outputs(np.stack(pictures))
        answers = [self.outputs(photo[None]) for photo in pictures]
        return {name: np.concatenate([each[name] for each in answers]) for name in answers[0]}

    def _decide(self, items: Sequence[Decoded]) -> list[Prediction]:
        outputs = self._outputs_of([item.pixels for item in items if item.pixels is not None])
        logits = outputs["logits"]
        probabilities = self.info.calibration.probabilities(logits)
        labels = label_sets.decode(self.info.decide(probabilities), self.info.classes)
        confidence = self.info.certainty(probabilities).tolist()
        ood_scores = (
            [None] * len(items) if self.ood_scorer is None else self.ood_scorer(outputs["ood_features"]).tolist()
        )
        return [
            Prediction(
                path=item.name,
                label=labels[row],
                confidence=confidence[row],
                probabilities=tuple(probabilities[row].tolist()),
                conversions=item.conversions,
                reason="",
                logits=tuple(logits[row].tolist()),
                ood_score=ood_scores[row],
                abstain_reason=abstention.abstain_reason(
                    confidence[row], self.info.confidence_threshold, ood_scores[row], self.info.ood_threshold
                ),
            )
            for row, item in enumerate(items)
        ]
