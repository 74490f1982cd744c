"""Every setting, once: groups that several stages share, and each stage's config as the sum of its groups.

The docstring under a field is its help text, its annotation holds the limits.
"""

from spectacles.core.config.base import help_texts, select, to_plain
from spectacles.core.config.groups import (
    BundleConfig,
    ComputeConfig,
    ExplainConfig,
    FeatureConfig,
    FileNameConfig,
    GalleryConfig,
    ImageDirConfig,
    ModelConfig,
    RunConfig,
)
from spectacles.core.config.stages import (
    BenchmarkConfig,
    DatasetConfig,
    ErrorAnalysisConfig,
    EvaluateCommand,
    EvaluateConfig,
    ExploreConfig,
    ExportConfig,
    PipelineConfig,
    PredictCommand,
    PredictConfig,
)
from spectacles.core.config.training import AugmentConfig, TrainConfig
from spectacles.core.config.values import (
    EXPLANATIONS,
    Goal,
    explanation_methods,
    parse_duration,
    parse_goal,
    parse_latency,
)

__all__ = [
    "EXPLANATIONS",
    "AugmentConfig",
    "BenchmarkConfig",
    "BundleConfig",
    "ComputeConfig",
    "DatasetConfig",
    "ErrorAnalysisConfig",
    "EvaluateCommand",
    "EvaluateConfig",
    "ExplainConfig",
    "ExploreConfig",
    "ExportConfig",
    "FeatureConfig",
    "FileNameConfig",
    "GalleryConfig",
    "Goal",
    "ImageDirConfig",
    "ModelConfig",
    "PipelineConfig",
    "PredictCommand",
    "PredictConfig",
    "RunConfig",
    "TrainConfig",
    "explanation_methods",
    "help_texts",
    "parse_duration",
    "parse_goal",
    "parse_latency",
    "select",
    "to_plain",
]
