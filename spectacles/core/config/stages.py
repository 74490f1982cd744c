"""Settings of the other stages and of whole commands: sums of their groups and what is theirs alone."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from spectacles.core.config.groups import (
    BundleConfig,
    ComputeConfig,
    CsvConfig,
    ExplainConfig,
    FeatureConfig,
    FileNameConfig,
    GalleryConfig,
    ImageDirConfig,
    ModelConfig,
    PrecisionConfig,
    RunConfig,
)
from spectacles.core.config.training import TrainConfig
from spectacles.core.config.values import parse_latency
from spectacles.core.errors import UserError


@dataclass(frozen=True)
class DatasetConfig(RunConfig, FeatureConfig, ModelConfig, ImageDirConfig, CsvConfig):
    train_csv: Path | None = None
    """Table of labelled images: CSV (any delimiter), JSON, JSONL or Parquet, one row per file."""
    test_csv: Path | None = None
    """Table of test images; with labels they are scored, without labels only predicted."""
    test_dir: Path | None = None
    """Folder of the test images (default: --image_dir); alone: its images, or one folder per class, are test data."""
    label_column: str | None = None
    """Column with the label. Default: found by name, then by content. Several labels per image: columns of 0 and 1,
    one per label, separated by commas."""
    multi_label: bool = False
    """The label column holds any number of labels, such as indoor|night, or none for no label."""
    positive_class: str | None = None
    """Of two classes the one that precision, recall, curves, costs and --threshold_for are about: what is looked for.
    Default: the last in natural order."""
    na_labels: str | None = None
    """Words, separated by commas, that mean a missing label; '' for none, so that NA or None is a class. Default: NA,
    N/A, NaN, None, null, missing, ?, - and the like. Case does not matter."""
    label_from: Literal["auto", "folder", "name"] = "auto"
    """Where --image_dir alone has its labels: folder, one per class, whatever it is called; name, what stands before
    the first dot or number of the file's name, such as cat.1.jpg. auto: folder, but train, val and test are splits."""
    group_column: str | None = None
    """Column (person, patient, scene) whose groups must stay within one split."""
    split_column: str | None = None
    """Column of --train_csv with train, val or test; empty cells count as train. A split that no row names is taken
    from the train rows by --val_fraction and --test_fraction."""
    val_fraction: float = 0.15
    """Share of the labelled images used for validation."""
    test_fraction: float | None = None
    """Share of the labelled images used for testing. Default: 0.15 without test data, else 0."""
    duplicate_distance: Annotated[int, Field(ge=0, le=7)] = 6
    """Images whose 64-bit perceptual hashes differ in at most this many bits count as near duplicates (0 to 7)."""
    duplicate_similarity: Annotated[float, Field(ge=0.2, le=1)] = 0.5
    """Images whose features (of the frozen backbone, whitened) have at least this cosine count as near duplicates too;
    1 switches this search off."""
    label_fixes: Path | None = None
    """label_fixes.csv as review.html saves it: changed and confirmed labels, removed images; splits stay the same."""
    slice_columns: str | None = None
    """Columns, separated by commas, such as sex,light: the model is also scored on each of their values."""
    data_licence: str | None = None
    """Licence of the photos, for the model card."""


@dataclass(frozen=True)
class ExploreConfig(RunConfig, FeatureConfig, ModelConfig, GalleryConfig, CsvConfig):
    pass


@dataclass(frozen=True)
class EvaluateConfig(RunConfig, FeatureConfig, PrecisionConfig, CsvConfig):
    bootstrap_resamples: Annotated[int, Field(ge=1)] = 1000
    """Resamples behind each 95 % interval."""
    compare: str | None = None
    """Another run to compare with, on the images that both have scored."""
    corruption_images: Annotated[int, Field(ge=0)] = 100
    """Images that are also scored blurred, noisy, badly compressed, dark, rotated and occluded; 0 leaves it out."""
    attacks: bool = False
    """Score them under attack too (FGSM and PGD)."""


@dataclass(frozen=True)
class EvaluateCommand(EvaluateConfig, BundleConfig):
    """evaluate.py alone can also score what was made of the run's bundle."""


@dataclass(frozen=True)
class ErrorAnalysisConfig(RunConfig, FeatureConfig, GalleryConfig, ExplainConfig, CsvConfig):
    fine_tuned_folds: Annotated[int, Field(ge=0)] = 0
    """Folds of fine-tuned networks that look for wrong labels as well; each costs a training. 0 leaves them out."""


@dataclass(frozen=True)
class PredictConfig(RunConfig, ComputeConfig, PrecisionConfig, ExplainConfig, CsvConfig):
    explain: bool = False
    """Write an overlay beside the predictions for each image: where in it the model looks."""
    top_k: Annotated[int, Field(ge=1)] = 1
    """Labels listed for each image, most probable first."""
    prior: str | None = None
    """The share of each class among the photos to predict where it is another than in training, for example 1=0.5 or
    cat=0.2,dog=0.3 (Saerens et al. 2002); classes that are not named share the rest as they did."""
    format: Literal["csv", "jsonl", "txt"] = "csv"
    """txt: one label a line, in input order; rejected files give an empty line."""

    @model_validator(mode="after")
    def _check_pictures_allowed(self) -> Self:
        if self.explain and not self.galleries:
            raise UserError("--explain writes pictures, which --no_galleries forbids: leave one of them out.")
        return self


@dataclass(frozen=True)
class PredictCommand(PredictConfig, FileNameConfig, BundleConfig):
    """predict.py alone can also be pointed at files and at a bundle."""

    engine: Literal["auto", "torch", "onnxruntime", "openvino", "ray"] = "auto"  # type: ignore[assignment]
    """What runs the network on the CPU; auto: the fastest here that gives torch's answers. ray: a Ray cluster, or a
    worker per core of this machine, each with auto; it writes a folder of Parquet files."""
    image_dir: str | None = None
    """Folder or address that the table's file names start from. Default: the table's own."""

    output: str | None = None
    """File to write; with --engine ray the folder, or its address (s3://...). Default: a new folder below
    --output_dir."""
    shard: str | None = None
    """Predict one part of the inputs only: 1/8 to 8/8, each perhaps on another machine, are all of them."""
    worker_cpus: Annotated[int, Field(ge=1)] = 1
    """Cores of each worker of --engine ray."""


@dataclass(frozen=True)
class ExportConfig(RunConfig):
    formats: str = "onnx,onnx_photo,openvino"
    """What to write, separated by commas: onnx (pixels in batches), onnx_photo (a photo of any size), openvino,
    torch_export, torchscript, tflite, coreml, web (a folder that is an offline page), web_file (the same in one file),
    space (a folder for a Gradio space)."""
    precision: str = "auto"
    """How the weights are stored: fp32, fp16 (half the size; not torch_export, torchscript and tflite), int8 (a
    quarter; openvino), or several with commas. auto: fp32."""
    prune: Annotated[float | None, Field(ge=0.05, le=0.9)] = None
    """Share of the channels of each layer to remove before, such as 0.3. The network is fine-tuned then, and exported
    only if it is not less accurate on validation photos."""
    latency: str | None = None
    """Name the file that is best for a target, such as 5ms for one photo on this machine: the most exact one that is
    fast enough."""
    ort_web: Path | None = None
    """For web and web_file: the folder dist/ of onnxruntime-web. Without it npm fetches the package."""

    @model_validator(mode="after")
    def _check_latency(self) -> Self:
        if self.latency is not None:
            parse_latency(self.latency)
        return self


@dataclass(frozen=True)
class PipelineConfig(DatasetConfig, ExploreConfig, TrainConfig, EvaluateConfig, ErrorAnalysisConfig, PredictConfig):
    stages: str = "all"
    """Stages to run, separated by commas, for example dataset,explore; always in the pipeline's order."""
    rerun: bool = False
    """With --resume: run stages again that have finished with other settings, and those built on them."""


@dataclass(frozen=True)
class BenchmarkConfig(DatasetConfig, TrainConfig, EvaluateConfig):
    backbones: str | None = None
    """Backbones to compare, separated by commas; each takes --backbone's place in turn. Default: that one alone."""
