"""Typed results that stages hand to each other: strict JSON both ways (no missing, no unknown key, no NaN)."""

from dataclasses import field
from typing import TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from spectacles.core.errors import UserError
from spectacles.core.value_ranges import PER_FILE, ValueRanges

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
RecordT = TypeVar("RecordT")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Report:
    """What every stage returns."""

    summary: list[str]
    """Plain-language sentences, most important first."""
    metrics: dict[str, float | None]
    """Numbers to compare runs by; None where a metric is undefined (AUC with one class)."""
    artifacts: list[str]
    """The files worth showing, relative to the run folder; at most about fifteen."""
    seconds: float = 0.0
    """Wall time of the stage's last run, known once it has ended."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RowAccounting:
    """rows = used + converted + rejected, always."""

    rows: int
    used: int
    converted: int
    rejected: int
    conversions: dict[str, int]
    rejections: dict[str, int]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DatasetReport(Report):
    classes: list[str]
    """In natural order, but of two classes the positive one is the second; position = class index everywhere."""
    multi_label: bool
    """Whether an image has any number of labels: classes are labels then, and counts add up to more or less than the
    images."""
    row_accounting: RowAccounting
    counts: dict[str, dict[str, int]]
    """split -> class -> images."""
    images: dict[str, int]
    """split -> labelled images."""
    unlabelled: int
    """Test images without a label: predicted, not scored."""
    fingerprint: str
    """sha256 over every used file's content hash, label and split."""
    label_column: str
    id_column: str
    value_ranges: ValueRanges = PER_FILE


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExploreReport(Report):
    warnings: list[str]
    """What is wrong."""
    suggestions: list[str]
    """What to try, with the reason."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainReport(Report):
    backbone: str
    model_id: str
    metric: str
    best_value: float
    best_epoch: int
    best_phase: str
    epochs_run: int
    train_seconds: float
    """Since training was started, or last resumed."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvaluateReport(Report):
    scored_on: str
    """`test`, or `val` where no labelled test data exist (then the numbers are optimistic)."""
    model_id: str
    accuracy_interval: tuple[float, float]
    """Bootstrap 95 %."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ErrorReport(Report):
    errors: int
    suspected_labels: int


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PredictReport(Report):
    rows: int
    predicted: int
    rejected: int
    output: str


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExportedFile:
    """One file and what its own runtime answered, compared with torch."""

    format: str
    precision: str
    file: str
    megabytes: float
    images: int
    """Compared: validation photos and odd ones."""
    difference: float
    """Largest difference of a probability."""
    same_labels: float
    """Share of the validation photos, 0..1."""
    accuracy: float
    """On the validation photos, as the next."""
    accuracy_interval: tuple[float, float]
    model_accuracy: float
    """Of torch."""
    p_worse: float
    """Exact McNemar test: that chance alone makes the file so much less accurate."""
    images_per_second: float
    milliseconds: float
    """Of a single image."""
    objection: str
    """Why the file was not kept; '' where it was."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ConvertedFile:
    """One whose runtime does not exist for this machine: looked at, not run."""

    format: str
    precision: str
    file: str
    megabytes: float
    objection: str
    """As in ExportedFile."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExportReport(Report):
    model_id: str
    files: list[ExportedFile]
    converted: list[ConvertedFile] = field(default_factory=list)


def to_json(record: object) -> str:
    return TypeAdapter(type(record)).dump_json(record, indent=2).decode() + "\n"


def from_json(record_type: type[RecordT], text: str) -> RecordT:
    """Raises UserError when the text is not exactly such a record (another version wrote it, or it was edited)."""
    try:
        return TypeAdapter(record_type).validate_json(text)
    except ValidationError as error:
        raise UserError(
            f"a stored {record_type.__name__} cannot be read ({error.error_count()} problems, the first: "
            f"{error.errors()[0]['msg']}); run its stage again."
        ) from error
