"""The same bundle as an MLflow model, for `mlflow models serve`; `save` writes it."""

import base64
from pathlib import Path
from typing import Any

import mlflow.pyfunc

from benchmarks import common
from spectacles.inference.predictor import Predictor


class Classify(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    def load_context(self, context: Any) -> None:
        self.predictor = Predictor(Path(context.artifacts["bundle"]), "cpu")

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def] # mlflow reads hints
        found = self.predictor.predict(base64.b64decode(text) for text in model_input["image"])
        return [{"label": each.label, "confidence": each.confidence} for each in found]


def save(bundle: Path, folder: Path) -> None:
    mlflow.pyfunc.save_model(
        folder, python_model=Classify(), artifacts={"bundle": str(bundle)}, pip_requirements=[],
        code_paths=[str(common.ROOT / name) for name in ("spectacles", "benchmarks")],
    )  # fmt: skip
