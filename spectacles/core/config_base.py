"""What all groups of settings share: their limits, help texts and plain values."""

import ast
import inspect
import math
import re
from dataclasses import asdict, dataclass, fields
from functools import cache
from itertools import pairwise
from pathlib import Path
from textwrap import dedent
from typing import Any

from spectacles.core.errors import UserError

LIMITS = {
    "seed": (0, 2**63 - 1),
    "num_workers": (0, 1024),
    "batch_size": (1, math.inf),
    "duplicate_distance": (0, 7),
    "duplicate_similarity": (0.2, 1),
    "target_accuracy": (0.5, 1),
    "ood_quantile": (0.5, 1),
    "robustness_images": (0, math.inf),
    "fine_tuned_folds": (0, math.inf),
    "gallery_size": (1, math.inf),
    "image_size": (16, 2048),
    "dropout": (0, 1),
    "crop_scale": (0.01, 1),
    "color_jitter": (0, 1),
    "zoom_out": (0, 1),
    "rotation": (0, 180),
    "grayscale": (0, 1),
    "blur": (0, 1),
    "jpeg": (0, 1),
    "randaugment": (0, 30),
    "random_erasing": (0, 1),
    "mixup": (0, math.inf),
    "cutmix": (0, math.inf),
    "epochs": (1, math.inf),
    "head_epochs": (0, math.inf),
    "views": (1, 64),
    "lr": (1e-12, 1e30),
    "head_lr": (1e-12, 1e30),
    "layer_decay": (1e-3, 1),
    "pixel_cache_gb": (0, math.inf),
    "weight_decay": (0, 1e30),
    "warmup_epochs": (0, math.inf),
    "label_smoothing": (0, 1),
    "clip_grad_norm": (0, math.inf),
    "grad_accum_steps": (1, math.inf),
    "ema": (0, 0.999999),
    "checkpoint_every": (0, math.inf),
    "patience": (1, math.inf),
    "bootstrap_resamples": (1, math.inf),
    "folds": (2, math.inf),
    "top_k": (1, math.inf),
    "worker_cpus": (1, math.inf),
}
"""Setting -> smallest and largest value."""

EXPLANATIONS = ("gradcam", "occlusion", "integrated_gradients")


class Checked:
    """Base of all groups of settings: one that cannot work is never built, so it is told before anything is touched."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            low, high = LIMITS.get(name, (None, None))
            if low is not None and high is not None and value is not None and not low <= value <= high:
                allowed = f"{low:g} or more" if high == math.inf else f"{low:g} to {high:g}"
                raise UserError(f"--{name} {value} is out of range: use {allowed}.")


def explanation_methods(text: str) -> list[str]:
    """'gradcam,occlusion' -> those names, each once, in the order given. Raises UserError."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in EXPLANATIONS]
    if unknown or not names:
        raise UserError(f"--explain_with {text!r} is unknown: use {', '.join(EXPLANATIONS)}, or several with commas.")
    return names


def seconds(text: str) -> float:
    """'90s', '10m', '1h' or a plain number of seconds. Raises UserError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h)?", text.strip())
    if not match or float(match[1]) <= 0:
        raise UserError(f"--time_budget {text!r} is no time: write 90s, 10m or 1h.")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, None: 1}[match[2]]


@cache
def help_texts(config_class: type) -> dict[str, str]:
    """field -> the docstring under it, own and inherited. Needs the source, like every traceback does."""
    texts: dict[str, str] = {}
    for base in reversed([c for c in config_class.__mro__ if c is not object]):
        tree = ast.parse(dedent(inspect.getsource(base))).body[0]
        assert isinstance(tree, ast.ClassDef)
        for statement, following in pairwise(tree.body):
            match statement, following:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    texts[name] = text
    return texts


def to_plain(config: Any) -> dict[str, Any]:
    """The config as YAML- and JSON-ready values, in the order of its fields."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items()}


def select(config: Any, config_class: type) -> Any:
    """The part of a larger config that `config_class` knows."""
    return config_class(**{f.name: getattr(config, f.name) for f in fields(config_class)})


NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"


@dataclass(frozen=True)
class Goal:
    """What a threshold is chosen for. Class 1 is the positive one."""

    name: str
    """f1, hter, balanced_accuracy, precision, recall or cost."""
    least: float = 0.0
    """Of precision and recall: what must be reached."""
    costs: tuple[float, float] = (1.0, 1.0)
    """Of cost: that of a false positive and that of a false negative."""

    def __str__(self) -> str:
        if self.name == "cost":
            return f"cost:FP={self.costs[0]:g},FN={self.costs[1]:g}"
        return f"{self.name}:{self.least:g}" if self.name in ("precision", "recall") else self.name


def parse_goal(text: str) -> Goal:
    """Raises UserError for what is no goal."""
    if text in ("f1", "hter", "balanced_accuracy"):
        return Goal(text)
    if (match := re.fullmatch(rf"(precision|recall):{NUMBER}", text)) and 0 < float(match[2]) <= 1:
        return Goal(match[1], least=float(match[2]))
    if match := re.fullmatch(rf"cost:FP={NUMBER},FN={NUMBER}", text):
        costs = float(match[1]), float(match[2])
        if all(costs):
            return Goal("cost", costs=costs)
    raise UserError(
        f"--threshold_for {text!r} is unknown: use f1, hter, balanced_accuracy, precision:0.95, recall:0.99 (a share "
        "up to 1) or cost:FP=1,FN=5 (both above 0)."
    )
