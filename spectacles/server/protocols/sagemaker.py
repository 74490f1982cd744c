"""Amazon SageMaker: a photo is the body of POST /invocations, and GET /ping asks whether the model is ready.

docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html
"""

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from spectacles.server.auth import Rejected
from spectacles.server.protocols.protocol import Protocol, body, predict, ready
from spectacles.server.schemas import RejectedImage

USAGE = "Send a photo as the body, with the Content-Type image/jpeg or application/x-image."
TYPES = ("image/", "application/x-image", "application/octet-stream")


def protocol(environment: Mapping[str, str]) -> Protocol:
    return Protocol(
        photos={"/invocations": invocations},
        health={"/ping": ready},
        port=environment.get("SAGEMAKER_BIND_TO_PORT", "8080"),
    )


async def invocations(request: Request) -> Response:
    """As POST /predict of one file."""
    kind = request.headers.get("content-type", "")
    if not kind.startswith(TYPES):
        raise Rejected(415, "bad_request", f"Content-Type {kind[:60]!r} is not a photo's. {USAGE}")
    content = await body(request)
    answered = await predict(request, [content] if content else [], USAGE)
    [outcome] = answered.outcomes
    if isinstance(outcome, RejectedImage):
        return JSONResponse({"detail": outcome.error}, outcome.status)
    return JSONResponse(vars(outcome) | answered.envelope)
