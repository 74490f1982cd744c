"""Settings of training: augmentation, both phases, and what is chosen on validation data."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from spectacles.core.config.base import Settings, Share
from spectacles.core.config.groups import FeatureConfig, ModelConfig, RunConfig
from spectacles.core.config.values import parse_duration, parse_goal
from spectacles.core.errors import UserError


@dataclass(frozen=True)
class AugmentConfig(Settings):
    flip: bool = True
    """Mirror half of the training images (switch off where left and right mean something)."""
    crop_scale: Annotated[float, Field(ge=0.01, le=1)] = 0.7
    """Random crops keep at least this share of the area; 1 switches cropping off."""
    zoom_out: Share = 0.2
    """Share of training images shrunk to as little as 40 % of the frame's side; 0 switches it off."""
    rotation: Annotated[float, Field(ge=0, le=180)] = 10.0
    """Largest random turn, in degrees to either side; 0 switches turning off."""
    color_jitter: Share = 0.3
    """Strength of random brightness, contrast and saturation changes; 0 switches them off."""
    grayscale: Share = 0.1
    """Share of training images turned grey."""
    blur: Share = 0.15
    """Share of training images blurred."""
    jpeg: Share = 0.15
    """Share of training images compressed as a bad JPEG."""
    random_erasing: Share = 0.15
    """Share of training images with a square blanked (Zhong et al. 2017)."""
    randaugment: Annotated[int, Field(ge=0, le=30)] = 0
    """RandAugment magnitude (0 to 30) of two operations per image (Cubuk et al. 2019); 0 switches it off."""
    mixup: Annotated[float, Field(ge=0)] = 0.0
    """Mixup alpha (Zhang et al. 2017); 0 switches it off."""
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    """CutMix alpha (Yun et al. 2019); 0 switches it off."""


@dataclass(frozen=True)
class TrainConfig(RunConfig, FeatureConfig, ModelConfig, AugmentConfig):
    time_budget: str | None = None
    """Training time, such as 90s, 10m or 1h: measures this machine and chooses image size, depth and epochs to fit."""
    epochs: Annotated[int | None, Field(ge=1)] = None
    """Epochs of fine-tuning; with --head sgd, of both phases together. Default: by --recipe."""
    head: Literal["linear_probe", "sgd"] = "linear_probe"
    """How the head is trained first: fitted to features computed once, or by epochs of augmented images."""
    head_epochs: Annotated[int | None, Field(ge=0)] = None
    """Epochs of --head sgd. Default: a fifth of --epochs, at least one; --no_pretrained: none."""
    views: Annotated[int, Field(ge=1, le=64)] = 1
    """Views of each training image to fit the linear probe to: 1 the image, 2 its mirror image too, more: augmented."""
    fine_tune: Literal["auto", "always", "never"] = "auto"
    """auto: skipped where the head alone makes too few validation errors to tell an improvement from chance."""
    unfreeze: str | None = None
    """Layer groups that fine-tuning trains: all, last:N, or progressive (more each epoch). Default: by --recipe."""
    batch_norm: Literal["auto", "fold", "eval", "train"] = "auto"
    """BatchNorm in fine-tuning: folded into the convolutions, kept as it is, or trained. auto: fold, but train when
    starting from random weights."""
    epoch_share: Annotated[float | None, Field(gt=0, le=1)] = None
    """Share of the training images that an epoch of fine-tuning takes: drawn anew each time, mostly those that the
    linear probe has a loss on, and weighted to stand for all; at least 800.
    Default: by --recipe."""
    progressive_size: bool | None = None
    """Fine-tune on smaller pictures first: from 70 % of --image_size up. Default: by --recipe."""
    lr: Annotated[float | None, Field(ge=1e-12, le=1e30)] = None
    """Learning rate of fine-tuning. Default: 3e-4, and 3e-3 from random weights."""
    head_lr: Annotated[float, Field(ge=1e-12, le=1e30)] = 3e-3
    """Learning rate of --head sgd."""
    layer_decay: Annotated[float, Field(ge=0.001, le=1)] = 1.0
    """In fine-tuning, the learning rate of each layer group is this times the rate of the one above it."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """sgd uses Nesterov momentum 0.9."""
    weight_decay: Annotated[float, Field(ge=0, le=1e30)] = 0.01
    """Weight decay of matrices and filters; biases and normalisation layers have none."""
    scheduler: Literal["cosine", "step", "plateau"] = "cosine"
    """Learning rate over a phase: cosine to zero, a tenth after each third, or a tenth after 2 epochs without gain."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.3
    """Epochs (may be a fraction) in which each phase's learning rate rises from zero."""
    label_smoothing: Share = 0.0
    """Share of the target spread over all classes (Szegedy et al. 2015)."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: classes weigh inversely to their frequency, and with --multi_label rare labels weigh more."""
    clip_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Largest gradient norm; 0 switches clipping off."""
    grad_accum_steps: Annotated[int, Field(ge=1)] = 1
    """Micro-batches that each batch is split into, for a small memory; their gradients are accumulated into one step.
    The number grows automatically where the first batch does not fit."""
    ema: Annotated[float, Field(ge=0, le=0.999999)] = 0.0
    """Decay, such as 0.99, of a moving average of the weights, which is then what is validated and saved; 0: none."""
    mixed_precision: Literal["auto", "off", "bf16", "fp16"] = "auto"
    """auto: bf16 (or fp16 on cards older than Ampere) on CUDA, off elsewhere. off: float32, as TensorFloat-32 where the
    card has it. Validation and everything after training always use full float32."""
    threshold_for: str | None = None
    """What the decision threshold is optimised for on validation data: f1, hter, balanced_accuracy, precision:0.95,
    recall:0.99 or cost:FP=1,FN=5, all of --positive_class. Default: the most probable of two classes; with
    --multi_label, f1 of each label."""
    target_accuracy: Annotated[float | None, Field(ge=0.5, le=1)] = None
    """Accuracy that predictions must have, such as 0.99: the model abstains where its confidence is lower than that
    takes on validation data. Default: it does not abstain for low confidence."""
    ood_quantile: Annotated[float, Field(ge=0.5, le=1)] = 0.995
    """Photos less like the training photos than this share of the validation photos are out of distribution: the model
    abstains. 1 switches this off."""
    teacher: Path | None = None
    """Bundle, folder of a run, or models:/NAME@champion whose answers are imitated besides the labels: for a model that
    is to be smaller."""
    unlabelled: Path | None = None
    """Folder of photos without labels on which --teacher is imitated too."""
    teacher_temperature: Annotated[float, Field(ge=1, le=20)] = 3.0
    """What the logits of --teacher and of the model are divided by before they are compared."""
    metric: Literal["accuracy", "balanced_accuracy", "macro_f1", "roc_auc", "log_loss"] = "log_loss"
    """Validation metric, after calibration, that picks the best epoch and stops early. log_loss depends on every
    image, those that count errors on a few."""
    patience: Annotated[int, Field(ge=1)] = 5
    """Epochs without improvement after which a phase ends."""
    pixel_cache_gb: Annotated[float, Field(ge=0)] = 8.0
    """Disk space for decoded training images; those beyond it are decoded again in each epoch."""
    checkpoint_every: Annotated[float, Field(ge=0)] = 60.0
    """Seconds between two checkpoints inside an epoch; 0: after each step."""
    resume: bool = False
    """Continue a run: finished stages are kept, training resumes from its last checkpoint as if never interrupted."""

    @property
    def images_can_be_weighed(self) -> bool:
        """For --epoch_share."""
        return not (self.mixup or self.cutmix or self.head == "sgd" or self.no_pretrained or self.teacher)

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.weights is not None and self.no_pretrained:
            raise UserError("--weights and --no_pretrained contradict each other: leave one of them out.")
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            raise UserError(f"--mixup and --cutmix pair images: --batch_size {self.batch_size} must be even.")
        if (self.epoch_share or 1) < 1 and not self.images_can_be_weighed:
            raise UserError(
                "--epoch_share weighs each image by the loss of a linear probe, which does not go with --mixup, "
                "--cutmix, --head sgd, --teacher or --no_pretrained: leave --epoch_share out."
            )
        self._check_teacher()
        if self.unfreeze is not None and not re.fullmatch(r"all|progressive|last:[1-9]\d*", self.unfreeze):
            raise UserError(f"--unfreeze {self.unfreeze!r} is unknown: use all, progressive or last:N, such as last:3.")
        if self.batch_norm == "train" and 2 * self.grad_accum_steps > self.batch_size:
            raise UserError(
                f"--grad_accum_steps {self.grad_accum_steps} leaves BatchNorm fewer than two images of --batch_size "
                f"{self.batch_size}: lower it."
            )
        if self.time_budget is not None:
            parse_duration(self.time_budget)
        if self.threshold_for is not None:
            parse_goal(self.threshold_for)
        if self.backbone == "simple_cnn" and self.batch_size == 1:
            raise UserError("--batch_size 1 does not work with simple_cnn: its BatchNorm needs at least two images.")
        return self

    def _check_teacher(self) -> None:
        if self.teacher is None:
            if self.unlabelled is not None:
                raise UserError("--unlabelled photos are learned from a teacher: add --teacher, or leave it out.")
            return
        unfit = {
            "mixup": "whose answers are computed before photos are mixed",
            "cutmix": "whose answers are computed before photos are mixed",
            "class_weights": "whose answers hold the weights that it was trained with",
            "time_budget": "whose time is not measured beforehand",
        }
        for name, reason in unfit.items():
            if getattr(self, name) not in (0, None, "none"):
                raise UserError(f"--{name} does not go with --teacher, {reason}: leave it out.")
