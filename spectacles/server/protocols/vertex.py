"""Google Vertex AI: the routes and the port are those of its AIP_* variables; photos are base64 in `instances`.

docs.cloud.google.com/vertex-ai/docs/predictions/custom-container-requirements
"""

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from spectacles.server.protocols.protocol import Protocol, bad_request, body, photo, predict, read_json, ready
from spectacles.server.schemas import ImagePrediction, RejectedImage

USAGE = 'Send {"instances": [{"content": "BASE64 OF A PHOTO"}]}, or {"b64": ...} in the place of {"content": ...}.'
PARAMETERS = {"maxPredictions": 10, "confidenceThreshold": 0.0}
"""Those of AutoML's image models, and their values where a request has none."""


def protocol(environment: Mapping[str, str]) -> Protocol:
    return Protocol(
        photos={environment.get("AIP_PREDICT_ROUTE", "/vertex/predict"): respond},
        health={environment.get("AIP_HEALTH_ROUTE", "/vertex/health"): ready},
        port=environment.get("AIP_HTTP_PORT", ""),
    )


async def respond(request: Request) -> Response:
    """A prediction an instance, in order; a photo that is rejected does not affect the others."""
    asked = read_json(await body(request), USAGE)
    instances = asked.get("instances")
    if not isinstance(instances, list):
        raise bad_request(USAGE)
    parameters = _parameters(asked.get("parameters") or {})
    answered = await predict(request, [photo(_encoded(each), USAGE) for each in instances], USAGE)
    predictions = [_prediction(outcome, parameters) for outcome in answered.outcomes]
    return JSONResponse({"predictions": predictions, "deployedModelId": answered.envelope["model_id"]})


def _parameters(given: object) -> dict[str, Any]:
    """Raises Rejected."""
    if not isinstance(given, dict) or not all(isinstance(value, int | float) for value in given.values()):
        raise bad_request(f"parameters has to be an object of numbers. {USAGE}")
    if unknown := sorted(given.keys() - PARAMETERS):
        raise bad_request(f"The parameter {unknown[0][:40]!r} is not one of {', '.join(PARAMETERS)}.")
    return PARAMETERS | given


def _encoded(instance: object) -> object:
    """The base64 text: {"content": TEXT}, {"b64": TEXT}, or {NAME: {"b64": TEXT}}."""
    while isinstance(instance, dict) and len(instance) == 1:
        [instance] = instance.values()
    if isinstance(instance, dict):
        return instance.get("content", instance.get("b64"))  # beside it a mimeType, or a key
    return instance


def _prediction(outcome: ImagePrediction | RejectedImage, parameters: dict[str, Any]) -> dict[str, Any]:
    """As AutoML's image models answer, the most probable class first, and what else is known."""
    if isinstance(outcome, RejectedImage):
        return vars(outcome)
    ranked = sorted(outcome.probabilities.items(), key=lambda pair: -pair[1])
    shown = [pair for pair in ranked if pair[1] >= parameters["confidenceThreshold"]]
    shown = shown[: int(parameters["maxPredictions"])]
    listed = {"displayNames": [name for name, _ in shown], "confidences": [value for _, value in shown]}
    return listed | {name: value for name, value in vars(outcome).items() if name != "probabilities"}
