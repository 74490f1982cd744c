"""Everything serving needs in one folder: bundle.json and model-<hash>.safetensors. No pickle; verified on loading."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes

from spectacles.core.environment import package_versions
from spectacles.core.errors import UserError
from spectacles.core.fileio import atomic_path, write_json
from spectacles.data import label_text
from spectacles.data.preprocessing import Preprocessing
from spectacles.metrics import abstention, decisions, prior_shift
from spectacles.metrics.calibration import Calibration

FORMAT = 4
MANIFEST = "bundle.json"
ENGINE_FILE = "engine.json"
"""Which engine was the fastest for this model on this machine; not part of the bundle, may be deleted at any time."""
PRECISION_FILE = "precision.json"
"""Which precisions were checked for this model on this machine; beside the bundle too."""
INT8_FILES = ("network-int8.xml", "network-int8.bin")
"""The quantised network, as OpenVINO writes it; beside the bundle too."""


@dataclass(frozen=True)
class BundleInfo:
    """What is known about a model besides its weights."""

    backbone: str
    classes: tuple[str, ...]
    label_column: str
    """Name of the label column in the training table, which submissions use too; several are separated by commas."""
    preprocessing: Preprocessing
    feature_dim: int
    dropout: float
    threshold: float | None
    """Two classes: probability from which an image is called the positive class. None: the most probable class wins."""
    temperature: float
    """Logits are divided by it before softmax or sigmoid (Guo et al. 2017); fitted on validation data, as are
    the following."""
    data_fingerprint: str
    training_profile: dict[str, Any]
    """Of the training data: images per class, mean and standard deviation of brightness, contrast and sharpness."""
    class_shares: tuple[float, ...]
    """The share of each class, or of images with each label, 0..1, that the probabilities assume."""
    metric: str
    metric_value: float
    """On the validation data, in the best epoch."""
    epoch: int
    phase: str
    multi_label: bool = False
    """Whether an image may have several labels: then `classes` are labels, each with its own probability."""
    label_thresholds: tuple[float, ...] = ()
    """With several labels per image: for each label, the probability from which an image has it."""
    class_scales: tuple[float, ...] = ()
    """More than two classes: factors of the logits, after the temperature; empty where they do not help."""
    class_biases: tuple[float, ...] = ()
    """Added to the scaled logits."""
    confidence_threshold: float | None = None
    """Confidence, the probability of the label, below which the model abstains. None: it does not for that."""
    ood_threshold: float = 1.0
    """ood_score (`ood.OODScorer`) above which the model abstains. 1: it does not for that."""

    @property
    def positive_class(self) -> str | None:
        """Of two classes the second; None with more classes or several labels per image."""
        return None if self.multi_label or len(self.classes) != 2 else self.classes[1]

    @property
    def calibration(self) -> Calibration:
        return Calibration(self.temperature, self.class_scales, self.class_biases, self.multi_label)

    def labels_of(self, text: str) -> list[str]:
        """The text of a decision as a list: one class, or any number of labels."""
        return label_text.parts(text) if self.multi_label else [text]

    def with_prior(self, text: str) -> "BundleInfo":
        """The same model for photos of another class mix, as `prior_shift.parse` reads it. Raises UserError."""
        shares = prior_shift.parse(text, self.classes, self.class_shares, self.multi_label)
        moved = prior_shift.biases(self.class_shares, shares, self.multi_label)
        ones, zeros = (1.0,) * len(self.classes), (0.0,) * len(self.classes)
        return replace(self, class_shares=tuple(shares), class_scales=self.class_scales or ones,
                       class_biases=tuple((np.array(self.class_biases or zeros) + moved).tolist()))  # fmt: skip

    def decide(self, probabilities: np.ndarray) -> np.ndarray:
        """(N, K) -> class indices (N,), or labels (N, K) of 0 and 1."""
        if self.multi_label:
            return decisions.decide_labels(probabilities, self.label_thresholds)
        return decisions.decide(probabilities, self.threshold)

    def certainty(self, probabilities: np.ndarray) -> np.ndarray:
        """(N, K) -> (N,): the probability that the decision is right; of several labels, of the least certain one."""
        return abstention.certainty(probabilities, self.decide(probabilities))


def save_bundle(folder: Path, info: BundleInfo, state: dict[str, torch.Tensor]) -> str:
    """Returns the model id. `state` holds the network's weights and, if any, those of its OODScorer.

    The file of weights is named by its content and the manifest, which names it, is written after it: a crash in
    between leaves the old bundle whole."""
    content = to_bytes({key: value.detach().cpu().contiguous() for key, value in state.items()})
    digest = hashlib.sha256(content).hexdigest()
    weights = folder / f"model-{digest[:16]}.safetensors"
    with atomic_path(weights) as temporary:
        temporary.write_bytes(content)
    manifest = {"format": FORMAT, **_to_json(info), "weights": weights.name, "weights_sha256": digest}
    manifest["versions"] = package_versions()
    manifest["model_id"] = _model_id(manifest)
    for name in (ENGINE_FILE, PRECISION_FILE, *INT8_FILES):  # measured for the model before
        (folder / name).unlink(missing_ok=True)
    write_json(folder / MANIFEST, manifest)
    for other in folder.glob("model-*.safetensors"):
        if other != weights:
            other.unlink()
    return str(manifest["model_id"])


def load_bundle(folder: Path) -> tuple[BundleInfo, dict[str, torch.Tensor], str]:
    """(info, weights, model id). Raises UserError where the folder is not a bundle, or one that was changed."""
    manifest = _read_manifest(folder)
    path = folder / Path(manifest["weights"]).name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"the bundle {folder} lacks its weights {path.name}: copy the whole folder.") from error
    if hashlib.sha256(content).hexdigest() != manifest["weights_sha256"]:
        raise UserError(f"{path} was changed since it was saved (its sha256 differs): restore it or train again.")
    try:
        state = from_bytes(content)
    except SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file ({error}).") from error
    return _from_json(manifest), state, str(manifest["model_id"])


def read_bundle_info(folder: Path) -> tuple[BundleInfo, str]:
    """(info, model id) without reading the weights."""
    manifest = _read_manifest(folder)
    return _from_json(manifest), str(manifest["model_id"])


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(
            f"{folder} is not a bundle (it holds no {MANIFEST}): train first, or point --bundle at a bundle folder."
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise UserError(
                f"{path} has format {manifest['format']}; this version reads format {FORMAT}: train the model again, "
                "or use the version that wrote it."
            )
        unchanged = _model_id(manifest) == manifest["model_id"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}): it was changed since it was saved."
        ) from error
    if not unchanged:
        raise UserError(f"{path} was changed since it was saved (its sha256 differs): restore it or train again.")
    return dict(manifest)


def _model_id(manifest: dict[str, Any]) -> str:
    """The first 16 hex digits of the sha256 over everything else in the manifest, the weights' hash included."""
    rest = {key: value for key, value in manifest.items() if key != "model_id"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:16]


def _to_json(info: BundleInfo) -> dict[str, Any]:
    return {**asdict(info), "classes": list(info.classes), "preprocessing": info.preprocessing.to_json()}


def _from_json(manifest: dict[str, Any]) -> BundleInfo:
    names = [field.name for field in fields(BundleInfo)]
    if missing := [name for name in names if name not in manifest]:
        raise UserError(
            f"the bundle lacks {missing[0]!r}: another version wrote it. Train the model again, or use that version."
        )
    values = {name: manifest[name] for name in names}
    for name in ("classes", "class_scales", "class_biases", "class_shares", "label_thresholds"):
        values[name] = tuple(values[name])
    values["preprocessing"] = Preprocessing.from_json(values["preprocessing"])
    return BundleInfo(**values)
