"""Settings that several stages share, in groups. The docstring under a field is its help text."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from spectacles.core.config.base import Settings
from spectacles.core.config.values import explanation_methods


@dataclass(frozen=True)
class RunConfig(Settings):
    output_dir: Path = Path("outputs")
    """Folder that holds every run, the cache and the MLflow database."""
    run_name: str | None = None
    """Name of the run folder. Default: a new name from time and backbone, or the latest run for a stage run alone."""
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    """Seed of splits, weights, data order and augmentation."""
    num_workers: Annotated[int | None, Field(ge=0, le=1024)] = None
    """Threads that decode images. Default: from the machine."""
    galleries: bool = True
    """Off, no pixel of a photo is written anywhere: no gallery, no overlay, no decoded picture in the cache."""


@dataclass(frozen=True)
class ComputeConfig(Settings):
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps. auto takes cuda, then mps, then cpu."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Images a step, in training and in inference."""
    engine: Literal["auto", "torch", "onnxruntime", "openvino"] = "auto"
    """What runs a network that does not learn, on the CPU. auto: the fastest here that gives torch's answers."""


@dataclass(frozen=True)
class PrecisionConfig(Settings):
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    """In which numbers a trained network computes. auto: fp32 in evaluation; elsewhere what evaluate.py has found to be
    1.3 times as fast and as good on validation photos. evaluate.py checks bf16, and int8 by name."""


@dataclass(frozen=True)
class BundleConfig(Settings):
    bundle: Path | None = None
    """The model: a bundle folder, a file of export.py (.onnx, .xml), or models:/NAME@champion of a model registry.
    Default: the bundle of --run_name, else of the newest trained run."""


@dataclass(frozen=True)
class FeatureConfig(ComputeConfig):
    cache_gb: Annotated[float, Field(ge=0)] = 8.0
    """Disk space below --output_dir for features of frozen backbones, shared by all runs; the least recently used go
    first."""


@dataclass(frozen=True)
class FileNameConfig(Settings):
    file_column: str | None = None
    """Column with the image file. Default: found by name, then by content."""
    filename_template: str | None = None
    """Builds the file name from columns when none holds it, for example 'face-{id}.png'."""


@dataclass(frozen=True)
class ImageDirConfig(FileNameConfig):
    image_dir: Path | None = None
    """Folder that the table's file names are relative to (default: the table's own); alone: one folder per class."""


@dataclass(frozen=True)
class CsvConfig(Settings):
    spreadsheet_safe: bool = False
    """Put an apostrophe before text in CSV files that a spreadsheet would run as a formula (after =, +, - or @)."""


@dataclass(frozen=True)
class GalleryConfig(Settings):
    gallery_size: Annotated[int, Field(ge=1)] = 24
    """Images shown in each contact sheet or gallery."""


@dataclass(frozen=True)
class ModelConfig(Settings):
    backbone: str = "efficientnet_lite0"
    """resnet50, mobilenet_v3, efficientnet_b4, vit_base_patch16_224, simple_cnn, ... or any timm model name."""
    recipe: Literal["fast", "default", "thorough"] = "default"
    """How much is spent where --image_size, --epochs and --unfreeze leave it open: small pictures and 3 epochs, larger
    ones and 5, or the backbone's own size, all layers and 10 epochs."""
    no_pretrained: bool = False
    """Start from random weights instead of pretrained ones."""
    weights: Path | None = None
    """Local file of pretrained backbone weights (.safetensors, or .pth read without executing code)."""
    image_size: Annotated[int | None, Field(ge=16, le=2048)] = None
    """Height and width of the model's input in pixels. Default: by --recipe, from what the backbone was made for."""
    resize: Literal["squash", "crop", "pad"] = "crop"
    """How a photo becomes square: cut the centre out, squash all of it (where things stand at the border), or pad."""
    in_chans: Literal[1, 3] = 3
    """3: colour. 1: grey."""
    dropout: Annotated[float | None, Field(ge=0, le=1)] = None
    """Dropout before the last layer. Default: 0.2, and 0.5 for simple_cnn."""


@dataclass(frozen=True)
class ExplainConfig(Settings):
    explain_with: str = "gradcam"
    """How decisions on photos are explained: gradcam, cam, occlusion, integrated_gradients; several with commas."""

    @model_validator(mode="after")
    def _check_explanations(self) -> Self:
        explanation_methods(self.explain_with)
        return self
