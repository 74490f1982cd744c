"""Azure Machine Learning: POST /score takes and gives what AutoML's image models do. Its probes may ask /health/live
and /health/ready.

learn.microsoft.com/azure/machine-learning/reference-automl-images-schema
"""

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from spectacles.server.protocols.protocol import Protocol, bad_request, body, photo, predict, read_json
from spectacles.server.schemas import RejectedImage

USAGE = 'Send {"input_data": {"columns": ["image"], "data": ["BASE64 OF A PHOTO"]}}.'


def protocol(environment: Mapping[str, str]) -> Protocol:
    return Protocol(photos={"/score": score})


async def score(request: Request) -> Response:
    """A list with an entry for each photo, in order; a photo that is rejected does not affect the others."""
    table = read_json(await body(request), USAGE).get("input_data")
    if not isinstance(table, dict) or table.get("columns") != ["image"] or not isinstance(table.get("data"), list):
        raise bad_request(USAGE)
    cells = [row[0] if isinstance(row, list) and len(row) == 1 else row for row in table["data"]]
    answered = await predict(request, [photo(cell, USAGE) for cell in cells], USAGE)
    rows = []
    for outcome in answered.outcomes:
        row = dict(vars(outcome))
        if not isinstance(outcome, RejectedImage):
            row["probs"], row["labels"] = list(outcome.probabilities.values()), list(outcome.probabilities)
            del row["probabilities"]
        rows.append(row)
    return JSONResponse(rows)
