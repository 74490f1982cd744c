"""Every knob, once. The docstring under a field is its help text; a stage's config is the sum of its groups."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from spectacles.core.config_base import Checked, explanation_methods, parse_goal, seconds
from spectacles.core.errors import UserError


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
    galleries: bool = True
    """Off, no pixel of a photo is written anywhere: no gallery, no overlay, no decoded picture in the cache."""


@dataclass(frozen=True)
class ComputeConfig(Checked):
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps. auto takes cuda, then mps, then cpu."""
    batch_size: int = 32
    """Images a step, in training and in inference."""
    engine: Literal["auto", "torch", "onnxruntime", "openvino"] = "auto"
    """What runs a network that does not learn, on the CPU. auto: the fastest here that gives torch's answers."""


@dataclass(frozen=True)
class FileNameConfig(Checked):
    file_column: str | None = None
    """Column with the image file. Default: found by name, then by content."""
    filename_template: str | None = None
    """Builds the file name from columns when none holds it, for example 'face-{id}.png'."""


@dataclass(frozen=True)
class ImageDirConfig(FileNameConfig):
    image_dir: Path | None = None
    """Folder that the CSV's file names start from (default: the CSV's own); alone: a folder a class is the data set."""


@dataclass(frozen=True)
class GalleryConfig(Checked):
    gallery_size: int = 24
    """Images shown in each contact sheet or gallery."""


@dataclass(frozen=True)
class ModelConfig(Checked):
    backbone: str = "efficientnet_lite0"
    """resnet50, mobilenet_v3, efficientnet_b4, vit_base_patch16_224, simple_cnn, ... or any timm model name."""
    recipe: Literal["fast", "default", "thorough"] = "default"
    """How much is spent where --image_size, --epochs and --unfreeze leave it open: small pictures and 3 epochs, larger
    ones and 5, or the backbone's own size, all layers and 10 epochs."""
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
class DatasetConfig(RunConfig, ComputeConfig, ModelConfig, ImageDirConfig):
    train_csv: Path | None = None
    """Labelled images: CSV (any delimiter), JSON, JSONL or Parquet, a row or entry per file."""
    test_csv: Path | None = None
    """Test images in the same form; with labels they are scored, without only predicted."""
    test_dir: Path | None = None
    """Folder of the test images (default: --image_dir); alone: every image in it, or a folder a class, is test data."""
    label_column: str | None = None
    """Column with the label. Default: found by name, then by content. Several labels an image: columns of 0 and 1, a
    label each, separated by commas."""
    multi_label: bool = False
    """The label column holds any number of labels, such as indoor|night, or none for no label."""
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
    duplicate_similarity: float = 0.5
    """Images whose features (of the frozen backbone, whitened) have at least this cosine count as near duplicates too;
    1 switches this search off."""
    label_fixes: Path | None = None
    """label_fixes.csv as review.html saves it: labels changed, confirmed or taken out; splits stay as they were."""
    slice_columns: str | None = None
    """Columns, separated by commas, such as sex,light: the model is scored on each of their values."""
    data_licence: str | None = None
    """Under which terms the photos may be used; for the model card."""


@dataclass(frozen=True)
class ExploreConfig(RunConfig, ComputeConfig, ModelConfig, GalleryConfig):
    pass


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
    time_budget: str | None = None
    """Training time, such as 90s, 10m or 1h: measures this machine and chooses image size, depth and epochs to fit."""
    epochs: int | None = None
    """Epochs of fine-tuning; with --head sgd, of both phases together. Default: by --recipe."""
    head: Literal["linear_probe", "sgd"] = "linear_probe"
    """How the head is trained first: fitted to features computed once, or by epochs of augmented images."""
    head_epochs: int | None = None
    """Epochs of --head sgd. Default: a fifth of --epochs, at least one; --no_pretrained: none."""
    views: int = 1
    """Views of each training image to fit the linear probe to: 1 the image, 2 its mirror image too, more: augmented."""
    fine_tune: Literal["auto", "always", "never"] = "auto"
    """auto: not where the head alone makes so few errors on validation data that nothing better could be told."""
    unfreeze: str | None = None
    """Layer groups that fine-tuning trains: all, last:N, or progressive (more each epoch). Default: by --recipe."""
    batch_norm: Literal["auto", "fold", "eval", "train"] = "auto"
    """BatchNorm in fine-tuning: folded into the convolutions, kept as it is, or learning. auto: fold, or train from
    random weights."""
    progressive_size: bool = False
    """Fine-tune on smaller pictures first: from 70 % of --image_size up."""
    lr: float | None = None
    """Learning rate of fine-tuning. Default: 3e-4, and 3e-3 from random weights."""
    head_lr: float = 3e-3
    """Learning rate of --head sgd."""
    layer_decay: float = 1.0
    """In fine-tuning, each layer group learns at this times the rate of the one above it."""
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
    """balanced: weight classes inversely to their frequency; having one of several labels, by how rare it is."""
    clip_grad_norm: float = 1.0
    """Largest gradient norm; 0 switches clipping off."""
    grad_accum_steps: int = 1
    """Pieces that each batch is computed in, for a small memory; the network learns from the whole batch at once. More
    are taken by themselves where the first batch does not fit."""
    ema: float = 0.0
    """Validate and keep a moving average of the weights: the most that one step leaves of it, such as 0.99; 0: none."""
    mixed_precision: Literal["auto", "off", "bf16", "fp16"] = "auto"
    """auto: bf16 (or fp16 on older cards) on CUDA, off elsewhere."""
    threshold_for: str | None = None
    """What the decision threshold is chosen for on validation data: f1, hter, balanced_accuracy, precision:0.95,
    recall:0.99 or cost:FP=1,FN=5. Of two classes (default: the most probable), or of each of several labels (f1)."""
    target_accuracy: float | None = None
    """Accuracy that predictions must have, such as 0.99: the model abstains where its confidence is lower than that
    takes on validation data. Default: it does not abstain for low confidence."""
    ood_quantile: float = 0.995
    """Photos less like the training photos than this share of the validation photos are out of distribution: the model
    abstains. 1 switches this off."""
    metric: Literal["accuracy", "balanced_accuracy", "macro_f1", "roc_auc", "log_loss"] = "log_loss"
    """Validation metric, after calibration, that picks the best epoch and stops early. log_loss hears every image,
    where those that count errors hear a few."""
    patience: int = 5
    """Epochs without improvement after which a phase ends."""
    pixel_cache_gb: float = 8.0
    """Disk space for decoded training images; those beyond it are decoded in each epoch."""
    checkpoint_every: float = 60.0
    """Seconds between two checkpoints inside an epoch; 0: after each step."""
    resume: bool = False
    """Continue a run: finished stages are kept, training goes on after its last checkpoint as if nothing had been."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights is not None and self.no_pretrained:
            raise UserError("--weights and --no_pretrained contradict each other: leave one of them out.")
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            raise UserError(f"--mixup and --cutmix pair images: --batch_size {self.batch_size} must be even.")
        if self.unfreeze is not None and not re.fullmatch(r"all|progressive|last:[1-9]\d*", self.unfreeze):
            raise UserError(f"--unfreeze {self.unfreeze!r} is unknown: use all, progressive or last:N, such as last:3.")
        if self.batch_norm == "train" and 2 * self.grad_accum_steps > self.batch_size:
            raise UserError(
                f"--grad_accum_steps {self.grad_accum_steps} leaves BatchNorm less than two images of --batch_size "
                f"{self.batch_size}: use fewer pieces."
            )
        if self.time_budget is not None:
            seconds(self.time_budget)
        if self.threshold_for is not None:
            parse_goal(self.threshold_for)
        if self.backbone == "simple_cnn" and self.batch_size == 1:
            raise UserError("--batch_size 1 does not work with simple_cnn: its BatchNorm needs at least two images.")


@dataclass(frozen=True)
class EvaluateConfig(RunConfig, ComputeConfig):
    bootstrap_resamples: int = 1000
    """Resamples behind each 95 % interval."""
    compare: str | None = None
    """Another run to compare with, on the images that both have scored."""
    robustness_images: int = 100
    """Images that are also scored blurred, noisy, badly compressed, darker, turned and covered; 0 leaves it out."""
    attacks: bool = False
    """Score them under attack too (FGSM and PGD)."""


@dataclass(frozen=True)
class ExplainConfig(Checked):
    explain_with: str = "gradcam"
    """How decisions on photos are explained: gradcam, occlusion, integrated_gradients; several with commas."""

    def __post_init__(self) -> None:
        super().__post_init__()
        explanation_methods(self.explain_with)


@dataclass(frozen=True)
class ErrorAnalysisConfig(RunConfig, ComputeConfig, GalleryConfig, ExplainConfig):
    folds: int = 5
    """Folds of the logistic regression that looks for wrong labels."""
    fine_tuned_folds: int = 0
    """Folds of fine-tuned networks that look for wrong labels as well; each costs a training. 0 leaves them out."""


@dataclass(frozen=True)
class PredictConfig(RunConfig, ComputeConfig, ExplainConfig):
    explain: bool = False
    """Write an overlay beside the predictions for each image: where in it the model looks."""
    top_k: int = 1
    """Labels listed for each image, most probable first."""
    format: Literal["csv", "jsonl", "txt"] = "csv"
    """txt: one label a line, in input order; rejected files give an empty line."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.explain and not self.galleries:
            raise UserError("--explain writes pictures, which --no_galleries forbids: leave one of them out.")


@dataclass(frozen=True)
class PredictCommand(PredictConfig, FileNameConfig):
    """predict.py alone can also be pointed at files and at a bundle."""

    engine: Literal["auto", "torch", "onnxruntime", "openvino", "ray"] = "auto"  # type: ignore[assignment]
    """What runs the network on the CPU; auto: the fastest here that gives torch's answers. ray: a Ray cluster, or a
    worker a core of this machine, each with auto; it writes a folder of Parquet files."""
    image_dir: str | None = None
    """Folder or address that the table's file names start from. Default: the table's own."""

    bundle: Path | None = None
    """Bundle folder to predict with. Default: that of --run_name, else of the newest trained run."""
    output: str | None = None
    """File to write; with --engine ray the folder, or its address (s3://...). Default: a new folder below
    --output_dir."""
    shard: str | None = None
    """Predict one part of the inputs only: 1/8 to 8/8, each perhaps on another machine, are all of them."""
    worker_cpus: int = 1
    """Cores of each worker of --engine ray."""


@dataclass(frozen=True)
class PipelineConfig(DatasetConfig, ExploreConfig, TrainConfig, EvaluateConfig, ErrorAnalysisConfig, PredictConfig):
    stages: str = "all"
    """Stages to run, separated by commas, for example dataset,explore; always in the pipeline's order."""


@dataclass(frozen=True)
class BenchmarkConfig(DatasetConfig, TrainConfig, EvaluateConfig):
    backbones: str | None = None
    """Backbones to compare, separated by commas; each takes --backbone's place in turn. Default: that one alone."""
