"""Everything serving needs in one folder: bundle.json, model-<hash>.safetensors and network-<hash>.onnx. No pickle;
verified on loading, without torch."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from spectacles.core.environment import package_versions
from spectacles.core.errors import UserError
from spectacles.core.fileio import atomic_path, write_json
from spectacles.data import label_text
from spectacles.data.preprocessing import Preprocessing
from spectacles.metrics import abstention, decisions, prior_shift
from spectacles.metrics.calibration import Calibration
from spectacles.models.feature_blocks import Taps

FORMAT = 5
MANIFEST = "bundle.json"
FILES = {"weights": ("model", ".safetensors"), "network": ("network", ".onnx")}
"""Key in the manifest -> start and end of the file's name; its content's hash stands in between."""
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
    taps: Taps = field(default_factory=Taps)
    """Earlier layers that the head looks at besides the last one."""
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


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files were verified. Its tensors are read when they are asked for."""

    info: BundleInfo
    model_id: str
    weights: Path
    network: Path | None
    """ONNX file: pixels, uint8 (B, S, S, C) -> the outputs of `onnx_export.BundleNetwork`, by name."""
    without_network: str
    """Why there is no such file, so that only PyTorch can run the network; '' where there is one."""

    def tensors(self, *prefixes: str) -> dict[str, np.ndarray]:
        """Those whose names start with one of the prefixes; without any, all. UserError for what is not safetensors."""
        try:
            with safe_open(self.weights, framework="numpy") as file:
                return {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefixes or "")}  # noqa: SIM118
        except SafetensorError as error:
            raise UserError(f"{self.weights} is not a safetensors file ({error}).") from error
        except OSError as error:
            raise UserError(f"{self.weights} is no longer there: load the bundle again.") from error


def save_bundle(
    folder: Path,
    info: BundleInfo,
    tensors: Mapping[str, ArrayLike],
    network: bytes | None = None,
    without_network: str = "its training has not ended",
) -> str:
    """Returns the model id. `tensors` (arrays, or tensors on the CPU): the network's weights, those of its OODScorer if
    any, and what its ONNX file `network` must answer. Without such a file, `without_network` is the reason.

    Files are named by their content and the manifest, which names them, is written after them: a crash in between
    leaves the old bundle whole."""
    weights = to_bytes({name: np.asarray(value, order="C") for name, value in tensors.items()})
    manifest: dict[str, Any] = {"format": FORMAT, **info_to_json(info), **_write(folder, "weights", weights)}
    if network is None:
        manifest |= {"network": None, "without_network": without_network}
    else:
        manifest |= _write(folder, "network", network)
    manifest["versions"] = package_versions()
    manifest["model_id"] = _model_id(manifest)
    for name in (ENGINE_FILE, PRECISION_FILE, *INT8_FILES):  # measured for the model before
        (folder / name).unlink(missing_ok=True)
    write_json(folder / MANIFEST, manifest)
    for kind, (prefix, suffix) in FILES.items():
        for path in folder.glob(f"{prefix}-*{suffix}"):
            if path.name != manifest[kind]:
                path.unlink()
    return str(manifest["model_id"])


def _write(folder: Path, kind: str, content: bytes) -> dict[str, str]:
    """What the manifest says of the file."""
    digest = hashlib.sha256(content).hexdigest()
    prefix, suffix = FILES[kind]
    path = folder / f"{prefix}-{digest[:16]}{suffix}"
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return {kind: path.name, f"{kind}_sha256": digest}


def load_bundle(folder: Path) -> Bundle:
    """Raises UserError where the folder is not a bundle, or one that was changed."""
    manifest = _read_manifest(folder)
    network = None if manifest.get("network") is None else _verified(folder, manifest, "network")
    return Bundle(info_from_json(manifest), str(manifest["model_id"]), _verified(folder, manifest, "weights"), network,
                  str(manifest.get("without_network", "")))  # fmt: skip


def _verified(folder: Path, manifest: dict[str, Any], kind: str) -> Path:
    path = folder / Path(manifest[kind]).name
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"the bundle {folder} lacks its {kind} {path.name}: copy the whole folder.") from error
    if digest != manifest[f"{kind}_sha256"]:
        raise UserError(f"{path} was changed since it was saved (its sha256 differs): restore it or train again.")
    return path


def read_bundle_info(folder: Path) -> tuple[BundleInfo, str]:
    """(info, model id) without reading the other files."""
    manifest = _read_manifest(folder)
    return info_from_json(manifest), str(manifest["model_id"])


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


def info_to_json(info: BundleInfo) -> dict[str, Any]:
    return {**asdict(info), "classes": list(info.classes), "preprocessing": info.preprocessing.to_json()}


def info_from_json(manifest: dict[str, Any]) -> BundleInfo:
    """From what has at least these keys. Raises UserError where one is missing."""
    names = [each.name for each in fields(BundleInfo)]
    if missing := [name for name in names if name not in manifest]:
        raise UserError(
            f"the bundle lacks {missing[0]!r}: another version wrote it. Train the model again, or use that version."
        )
    values = {name: manifest[name] for name in names}
    for name in ("classes", "class_scales", "class_biases", "class_shares", "label_thresholds"):
        values[name] = tuple(values[name])
    values["preprocessing"] = Preprocessing.from_json(values["preprocessing"])
    values["taps"] = Taps(**values["taps"])
    return BundleInfo(**values)
