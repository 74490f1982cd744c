"""The same bundle behind LitServe, batched by it; `python -m benchmarks.litserve_peer BUNDLE PORT`."""

import base64
import sys
from pathlib import Path
from typing import Any

import litserve

from spectacles.inference.predictor import Predictor


class Classify(litserve.LitAPI):
    def __init__(self, bundle: str) -> None:
        super().__init__(max_batch_size=32, batch_timeout=0.005)
        self.bundle = bundle

    def setup(self, device: str) -> None:
        self.predictor = Predictor(Path(self.bundle), "cpu")

    def decode_request(self, request: dict[str, str]) -> bytes:
        return base64.b64decode(request["image"])

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        return list(inputs)

    def predict(self, contents: list[bytes]) -> list[Any]:
        return list(self.predictor.predict(contents))

    def unbatch(self, outputs: list[Any]) -> list[Any]:
        return outputs

    def encode_response(self, output: Any) -> dict[str, Any]:
        return {"label": output.label, "confidence": output.confidence, "probabilities": list(output.probabilities)}


if __name__ == "__main__":
    server = litserve.LitServer(Classify(sys.argv[1]), accelerator="cpu", timeout=60)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False)
