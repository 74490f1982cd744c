"""The precision in which a bundle is computed here: float32, or one that was checked on validation photos and is worth
it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic.dataclasses import dataclass

from spectacles.core.errors import UserError
from spectacles.core.fileio import atomic_write
from spectacles.core.results import STRICT, from_json, to_json
from spectacles.core.wording import percent
from spectacles.models import engine_choice, engines
from spectacles.models.bundle import INT8_FILES, PRECISION_FILE, BundleInfo
from spectacles.models.engine_choice import Runnable
from spectacles.models.engines import Engine
from spectacles.models.ood import OODScorer

MIN_SPEEDUP = 1.3
"""Less, and a less exact precision is not worth it."""
MIN_AGREEMENT = 0.998
"""Share of the validation photos that must get the same labels as with float32."""
SIGNIFICANT = 0.05
BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Fitted:
    """Calibration and thresholds fitted to a precision's outputs for the validation photos: see `BundleInfo` and
    `OODScorer`."""

    temperature: float
    class_scales: tuple[float, ...]
    class_biases: tuple[float, ...]
    class_shares: tuple[float, ...]
    threshold: float | None
    label_thresholds: tuple[float, ...]
    confidence_threshold: float | None
    ood_distances: tuple[float, ...] = ()
    ood_tail: tuple[float, ...] = ()

    @classmethod
    def of(cls, info: BundleInfo, scorer: OODScorer | None) -> Fitted:
        shared = {name: getattr(info, name) for name in cls.__dataclass_fields__ if hasattr(info, name)}
        if scorer is None:
            return cls(**shared)
        return cls(**shared, ood_distances=tuple(scorer.distances.tolist()), ood_tail=tuple(scorer.tail.tolist()))

    def info(self, info: BundleInfo) -> BundleInfo:
        return replace(info, **{name: value for name, value in vars(self).items() if not name.startswith("ood_")})

    def scorer(self, scorer: OODScorer | None) -> OODScorer | None:
        if scorer is None:
            return None
        distances, tail = (np.array(values, dtype=np.float32) for values in (self.ood_distances, self.ood_tail))
        return replace(scorer, distances=distances, tail=tail)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Checked:
    """A precision of one model, compared with float32 on one machine."""

    precision: str
    engine: str
    machine: dict[str, str]
    images: int
    """Validation photos."""
    same_labels: float
    """Share of them, 0..1."""
    difference: float
    """Largest difference of a calibrated probability."""
    accuracy: float
    fp32_accuracy: float
    p_worse: float
    """Exact McNemar test: that chance alone makes it so much less accurate than float32."""
    images_per_second: float
    fp32_images_per_second: float
    fitted: Fitted
    files: dict[str, str]
    """sha256 of its files beside the bundle."""

    @property
    def speedup(self) -> float:
        return self.images_per_second / self.fp32_images_per_second

    @property
    def objection(self) -> str:
        """Why `auto` does not take it; '' where it does."""
        if self.same_labels < MIN_AGREEMENT:
            return f"only {percent(self.same_labels)} of the labels are float32's"
        if self.p_worse < SIGNIFICANT:
            return f"it is less accurate (p = {self.p_worse:.2g})"
        return f"it is only {self.speedup:.2f} times as fast" if self.speedup < MIN_SPEEDUP else ""

    def sentence(self) -> str:
        verdict = f"auto does not take it: {self.objection}" if self.objection else "predict and the server take it"
        return (
            f"{self.precision} on {self.engine}: {self.speedup:.1f} times as fast as float32, "
            f"{percent(self.same_labels)} of {self.images} validation labels the same, accuracy "
            f"{percent(self.accuracy)} (float32 {percent(self.fp32_accuracy)}), probabilities within "
            f"{self.difference:.2g}; {verdict}"
        )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Record:
    """precision.json."""

    model_id: str
    checked: list[Checked]


class Choice(NamedTuple):
    precision: str
    checked: Checked | None
    """None for fp32."""
    reason: str
    """Of `auto`, in a sentence; '' where the precision was named."""


def choose(wanted: str, bundle: Path, model_id: str, engine: str, device: str) -> Choice:
    """auto: the fastest that was checked on this machine and has no objection; one that is less exact must be
    MIN_SPEEDUP times as fast as one that is more. Raises UserError for one that is named and cannot be used."""
    if wanted == "fp32":
        return Choice("fp32", None, "")
    if wanted != "auto" and (why := obstacle(wanted, engine, device)):
        raise UserError(f"--precision {wanted}: {why}. Use --precision fp32, or auto.")
    known = {each.precision: each for each in _read(bundle, model_id)}
    if wanted != "auto":
        if wanted not in known:
            raise UserError(
                f"--precision {wanted} has not been checked for the model {model_id}: run `python evaluate.py "
                f"--precision {wanted}` on its run first, which also fits temperature and thresholds to it."
            )
        return Choice(wanted, known[wanted], "")
    taken, reasons = None, []
    for precision in engines.PRECISIONS[1:]:
        checked = known.get(precision)
        why = obstacle(precision, engine, device) or _objection(precision, checked, engine, device)
        if checked is None or why:
            reasons.append(f"{precision}: {why}")
        elif taken is None or checked.images_per_second >= MIN_SPEEDUP * taken.images_per_second:
            taken = checked
    if taken is None:
        return Choice("fp32", None, f"precision: fp32 ({'; '.join(reasons)})")
    return Choice(taken.precision, taken, f"precision: {taken.precision} ({taken.speedup:.1f} times as fast as fp32)")


def obstacle(precision: str, engine: str, device: str) -> str:
    """Why a precision cannot be used here; '' where it can."""
    runner = engine_for(device)
    if engine not in ("auto", runner):
        return f"it runs on {runner}, not on {engine}"
    if device.startswith("cuda"):
        if precision == "int8":
            return "it runs on the CPU only"
        import torch  # takes seconds, so only here

        return "" if torch.cuda.is_bf16_supported(including_emulation=False) else "this GPU has no bfloat16"
    if device != "cpu":
        return f"it is not available on {device}"
    if not engines.is_installed("openvino"):
        return "it takes openvino, which is not installed"
    if precision == "bf16" and not set(BFLOAT16_INSTRUCTIONS) & set(engine_choice.processor().split()):
        return "this processor has no bfloat16"
    return ""


def _objection(precision: str, checked: Checked | None, engine: str, device: str) -> str:
    if checked is None:
        return f"not checked, which evaluate.py --precision {precision} does"
    if checked.machine != machine(device):
        return f"checked on another machine: run evaluate.py --precision {precision} on this one"
    return checked.objection


def engine_for(device: str) -> str:
    """The engine that computes less exact precisions. torch gains less by bfloat16 on the CPU than it lags behind."""
    return "openvino" if device == "cpu" else "torch"


def machine(device: str) -> dict[str, str]:
    """What speed and answers of a precision depend on; a ratio of speeds depends little on the number of cores."""
    here = {name: str(value) for name, value in engine_choice.machine().items() if name != "cores"}
    if not device.startswith("cuda"):
        return here | {"device": device}
    import torch

    return here | {"device": torch.cuda.get_device_name(device)}


def build(precision: str, model: Runnable, bundle: Path, files: dict[str, str]) -> Engine:
    """`model` computed in a precision that has no `obstacle`; `files`: sha256 of INT8_FILES. Raises UserError."""
    if precision == "int8":
        for name, digest in files.items():
            if sha256(bundle / name) != digest:
                raise UserError(f"{bundle / name} was changed: run `python evaluate.py --precision int8` again.")
        with engines.explained("--precision int8", "--precision fp32"):
            network, weights = ((bundle / name).read_bytes() for name in INT8_FILES)
            return engines.openvino_engine(network, precision, weights)
    if not model.on_cpu:
        return model.torch_engine(precision)
    return engines.build("openvino", model.onnx, precision)


def sha256(path: Path) -> str:
    """'' for a file that cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def recorded(precision: str, bundle: Path, model_id: str, device: str) -> Checked | None:
    """What was found on this machine, if its files are still there."""
    for each in _read(bundle, model_id):
        intact = all(sha256(bundle / name) == digest for name, digest in each.files.items())
        if each.precision == precision and each.machine == machine(device) and intact:
            return each
    return None


def save(bundle: Path, model_id: str, checked: Checked) -> None:
    others = [each for each in _read(bundle, model_id) if each.precision != checked.precision]
    atomic_write(bundle / PRECISION_FILE, to_json(Record(model_id=model_id, checked=[*others, checked])))


def _read(bundle: Path, model_id: str) -> Sequence[Checked]:
    """Nothing where there is no record, or one of another model or version."""
    try:
        record = from_json(Record, (bundle / PRECISION_FILE).read_text(encoding="utf-8"))
    except (OSError, UserError, UnicodeDecodeError):
        return []
    return record.checked if record.model_id == model_id else []
