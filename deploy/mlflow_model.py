"""The model that the registry holds: MLflow runs this file in place of loading a pickle ("models from code").

Input: a table with a column `image`, the encoded photos. Output: the columns that predict.py writes, a row a photo.
"""

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd

from spectacles.core.device import resolve_device
from spectacles.inference import prediction_rows
from spectacles.inference.predictor import Predictor


class Model(mlflow.pyfunc.PythonModel):
    def load_context(self, context: Any) -> None:
        self.predictor = Predictor(Path(context.artifacts["bundle"]), resolve_device("cpu"))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        info = self.predictor.info
        outcomes = self.predictor.predict(model_input["image"])
        rows = [prediction_rows.row("", None, outcome, info, top_k=1) for outcome in outcomes]
        columns = prediction_rows.header(info, top_k=1, with_ids=False)
        return pd.DataFrame(rows, columns=list(columns)).astype(columns).drop(columns="file")


mlflow.models.set_model(Model())
