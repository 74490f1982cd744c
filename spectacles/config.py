"""Every knob, once. The docstring under a field is its help text; a stage's config is the sum of its groups."""

import ast
import inspect
import math
import re
from dataclasses import asdict, dataclass, fields
from functools import cache
from itertools import pairwise
from pathlib import Path
from textwrap import dedent
from typing import Any, Literal

from spectacles.errors import UserError

LIMITS = {
    "seed": (0, 2**63 - 1),
    "num_workers": (0, 1024),
    "batch_size": (1, math.inf),
    "duplicate_distance": (0, 7),
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
    "cached_views": (0, 64),
    "lr": (1e-12, 1e30),
    "head_lr": (1e-12, 1e30),
    "layer_decay": (1e-3, 1),
    "pixel_cache_gb": (0, math.inf),
    "weight_decay": (0, 1e30),
    "warmup_epochs": (0, math.inf),
    "label_smoothing": (0, 1),
    "clip_grad_norm": (0, math.inf),
    "patience": (1, math.inf),
    "bootstrap_resamples": (1, math.inf),
    "folds": (2, math.inf),
    "top_k": (1, math.inf),
}
"""Setting -> smallest and largest value."""


class Checked:
    """Base of all groups of settings: one that cannot work is never built, so it is told before anything is touched."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            low, high = LIMITS.get(name, (None, None))
            if low is not None and high is not None and value is not None and not low <= value <= high:
                allowed = f"{low:g} or more" if high == math.inf else f"{low:g} to {high:g}"
                raise UserError(f"--{name} {value} is out of range: use {allowed}.")


@dataclass(frozen=True)
class RunConfig(Checked):
    output_dir: Path = Path("outputs")
    """Folder that holds every run, the cache and the MLflow database."""
    run_name: str | None = None
    """Name of the run folder. Default: a new name from time and backbone, or the latest run for a stage run alone."""
    seed: int = 0
    """Seed of splits, weights, data order and augmentation."""
    num_workers: int | None = None
    """Threads that decode images. Default: from the machine."""


@dataclass(frozen=True)
class ComputeConfig(Checked):
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps. auto takes cuda, then mps, then cpu."""
    batch_size: int = 32
    """Images a step, in training and in inference."""
    engine: Literal["auto", "torch", "onnxruntime", "openvino"] = "auto"
    """What runs a network that does not learn, on the CPU. auto: the fastest here that gives torch's answers."""


@dataclass(frozen=True)
class ImageDirConfig(Checked):
    image_dir: Path | None = None
    """Folder that the CSV's file names start from (default: the CSV's own); alone: a folder a class is the data set."""
    file_column: str | None = None
    """Column with the image file. Default: found by name, then by content."""
    filename_template: str | None = None
    """Builds the file name from columns when none holds it, for example 'face-{id}.png'."""


@dataclass(frozen=True)
class DatasetConfig(RunConfig, ImageDirConfig):
    train_csv: Path | None = None
    """Labelled images: CSV (any delimiter), JSON or JSONL, a row or entry per file."""
    test_csv: Path | None = None
    """Test images in the same form; with labels they are scored, without only predicted."""
    test_dir: Path | None = None
    """Folder of the test images (default: --image_dir); alone: every image in it, or a folder a class, is test data."""
    label_column: str | None = None
    """Column with the label. Default: found by name, then by content."""
    group_column: str | None = None
    """Column (person, patient, scene) whose groups must not be torn apart between splits."""
    split_column: str | None = None
    """Column of --train_csv with train, val or test in it; rows without count as train. A split that no row names is
    taken from the rows of train, as --val_fraction and --test_fraction say."""
    val_fraction: float = 0.15
    """Share of the labelled images kept for validation."""
    test_fraction: float | None = None
    """Share split off for testing. Default: 0.15 without test data, else 0."""
    duplicate_distance: int = 6
    """Images whose 64-bit perceptual hashes differ in at most this many bits count as near duplicates (0 to 7)."""


@dataclass(frozen=True)
class GalleryConfig(Checked):
    gallery_size: int = 24
    """Images shown in each contact sheet or gallery."""


@dataclass(frozen=True)
class ExploreConfig(RunConfig, GalleryConfig):
    pass


@dataclass(frozen=True)
class ModelConfig(Checked):
    backbone: str = "efficientnet_lite0"
    """resnet50, mobilenet_v3, efficientnet_b4, vit_base_patch16_224, simple_cnn, ... or any timm model name."""
    no_pretrained: bool = False
    """Start from random weights instead of pretrained ones."""
    weights: Path | None = None
    """Local file of pretrained backbone weights (.safetensors, or .pth read without executing code)."""
    image_size: int | None = None
    """Height and width of the model's input in pixels. Default: by --recipe, from what the backbone was made for."""
    resize: Literal["squash", "crop", "pad"] = "crop"
    """How a photo becomes square: cut the centre out, squash all of it (where things stand at the border), or pad."""
    in_chans: Literal[1, 3] = 3
    """3: colour. 1: grey."""
    dropout: float | None = None
    """Dropout before the last layer. Default: 0.2, and 0.5 for simple_cnn."""


@dataclass(frozen=True)
class AugmentConfig(Checked):
    flip: bool = True
    """Mirror half of the training images (switch off where left and right mean something)."""
    crop_scale: float = 0.7
    """Random crops keep at least this share of the area; 1 switches cropping off."""
    zoom_out: float = 0.2
    """Share of training images shrunk to as little as 40 % of the frame's side; 0 switches it off."""
    rotation: float = 10.0
    """Largest random turn, in degrees to either side; 0 switches turning off."""
    color_jitter: float = 0.3
    """Strength of random brightness, contrast and saturation changes; 0 switches them off."""
    grayscale: float = 0.1
    """Share of training images turned grey."""
    blur: float = 0.15
    """Share of training images blurred."""
    jpeg: float = 0.15
    """Share of training images compressed as a bad JPEG."""
    random_erasing: float = 0.15
    """Share of training images with a square blanked (Zhong et al. 2017)."""
    randaugment: int = 0
    """RandAugment magnitude (0 to 30) of two operations an image (Cubuk et al. 2019); 0 switches it off."""
    mixup: float = 0.0
    """Mixup alpha (Zhang et al. 2017); 0 switches it off."""
    cutmix: float = 0.0
    """CutMix alpha (Yun et al. 2019); 0 switches it off."""


@dataclass(frozen=True)
class TrainConfig(RunConfig, ComputeConfig, ModelConfig, AugmentConfig):
    recipe: Literal["fast", "default", "thorough"] = "default"
    """How much is spent where --image_size, --epochs and --unfreeze leave it open: small pictures and 3 epochs, larger
    ones and 5, or the backbone's own size, all layers and 10 epochs."""
    time_budget: str | None = None
    """Training time, such as 90s, 10m or 1h: measures this machine and chooses image size, depth and epochs to fit."""
    epochs: int | None = None
    """Epochs of fine-tuning; with --head sgd, of both phases together. Default: by --recipe."""
    head: Literal["probe", "sgd"] = "probe"
    """How the head is trained first: fitted to features computed once, or by epochs of augmented images."""
    head_epochs: int | None = None
    """Epochs of --head sgd. Default: a fifth of --epochs, at least one; --no_pretrained: none."""
    views: int = 1
    """Views of each training image that the probe learns from: 1 the image, 2 its mirror image too, more: augmented."""
    fine_tune: Literal["auto", "always", "never"] = "auto"
    """auto: not where the head alone makes so few errors on validation data that nothing better could be told."""
    unfreeze: str | None = None
    """What learns in fine-tuning: all, last:N stages, or progressive (more each epoch). Default: by --recipe."""
    batch_norm: Literal["auto", "fold", "eval", "train"] = "auto"
    """BatchNorm in fine-tuning: folded into the convolutions, kept as it is, or learning. auto: fold, or train from
    random weights."""
    cached_views: int = 0
    """Fine-tune on this many fixed augmented views of each image, which lets what the frozen stages make of them be
    computed once; 0: new ones each epoch."""
    progressive_size: bool = False
    """Fine-tune on smaller pictures first: from 70 % of --image_size up."""
    lr: float | None = None
    """Learning rate of fine-tuning. Default: 3e-4, and 3e-3 from random weights."""
    head_lr: float = 3e-3
    """Learning rate of --head sgd."""
    layer_decay: float = 1.0
    """In fine-tuning each stage learns at this times the rate of the stage above it."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """sgd uses Nesterov momentum 0.9."""
    weight_decay: float = 0.01
    """Weight decay of matrices and filters; biases and normalisation layers have none."""
    scheduler: Literal["cosine", "step", "plateau"] = "cosine"
    """Learning rate over a phase: cosine to zero, a tenth after each third, or a tenth after 2 epochs without gain."""
    warmup_epochs: float = 0.3
    """Epochs (may be a fraction) in which each phase's learning rate rises from zero."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes (Szegedy et al. 2015)."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: weight classes inversely to their frequency."""
    clip_grad_norm: float = 1.0
    """Largest gradient norm; 0 switches clipping off."""
    mixed_precision: Literal["auto", "off", "bf16", "fp16"] = "auto"
    """auto: bf16 (or fp16 on older cards) on CUDA, off elsewhere."""
    metric: Literal["accuracy", "balanced_accuracy", "macro_f1", "roc_auc", "log_loss"] = "log_loss"
    """Validation metric, after calibration, that picks the best epoch and stops early. log_loss hears every image,
    where those that count errors hear a few."""
    patience: int = 5
    """Epochs without improvement after which a phase ends."""
    pixel_cache_gb: float = 8.0
    """Disk space for decoded training images; those beyond it are decoded in each epoch."""
    resume: bool = False
    """Continue a run: finished stages are kept, training goes on after its last finished epoch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights is not None and self.no_pretrained:
            raise UserError("--weights and --no_pretrained contradict each other: leave one of them out.")
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            raise UserError(f"--mixup and --cutmix pair images: --batch_size {self.batch_size} must be even.")
        if self.unfreeze is not None and not re.fullmatch(r"all|progressive|last:[1-9]\d*", self.unfreeze):
            raise UserError(f"--unfreeze {self.unfreeze!r} is unknown: use all, progressive or last:N, such as last:3.")
        if self.time_budget is not None:
            seconds(self.time_budget)
        if self.cached_views and (self.mixup or self.cutmix or self.progressive_size or self.unfreeze == "progressive"):
            raise UserError(
                "--cached_views needs the same pictures and the same frozen stages in every epoch: leave out --mixup, "
                "--cutmix, --progressive_size and --unfreeze progressive."
            )
        if self.backbone == "simple_cnn" and self.batch_size == 1:
            raise UserError("--batch_size 1 does not work with simple_cnn: its BatchNorm needs at least two images.")


@dataclass(frozen=True)
class EvaluateConfig(RunConfig, ComputeConfig):
    bootstrap_resamples: int = 1000
    """Resamples behind the 95 % interval of the accuracy."""


@dataclass(frozen=True)
class ErrorAnalysisConfig(RunConfig, ComputeConfig, GalleryConfig):
    folds: int = 5
    """Folds of the logistic regression that looks for wrong labels."""


@dataclass(frozen=True)
class PredictConfig(RunConfig, ComputeConfig):
    top_k: int = 1
    """Labels listed for each image, most probable first."""
    format: Literal["csv", "jsonl", "txt"] = "csv"
    """txt: one label a line, in input order; refused files give an empty line."""


@dataclass(frozen=True)
class PredictCommand(PredictConfig, ImageDirConfig):
    """predict.py alone can also be pointed at files and at a bundle."""

    bundle: Path | None = None
    """Bundle folder to predict with. Default: that of --run_name, else of the newest trained run."""
    output: Path | None = None
    """File to write. Default: a new folder below --output_dir."""


@dataclass(frozen=True)
class PipelineConfig(DatasetConfig, ExploreConfig, TrainConfig, EvaluateConfig, ErrorAnalysisConfig, PredictConfig):
    stages: str = "all"
    """Stages to run, separated by commas, for example dataset,explore; always in the pipeline's order."""


@dataclass(frozen=True)
class BenchmarkConfig(DatasetConfig, TrainConfig, EvaluateConfig):
    backbones: str | None = None
    """Backbones to compare, separated by commas; each takes --backbone's place in turn. Default: that one alone."""


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
