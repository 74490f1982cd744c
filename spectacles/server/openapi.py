"""The OpenAPI page: responses of the routes, and what depends on the settings."""

from copy import deepcopy
from typing import Any

from spectacles.server import middleware
from spectacles.server.schemas import Explanation, Problem
from spectacles.server.settings import Settings

Responses = dict[int | str, dict[str, Any]]
"""HTTP status -> FastAPI's description of the response."""


def _header(description: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}}


def _problem(description: str, **headers: dict[str, Any]) -> dict[str, Any]:
    return {"model": Problem, "description": description} | ({"headers": headers} if headers else {})


AGAIN = {"Retry-After": {"description": "Seconds after which to come back.", "schema": {"type": "integer"}}}
NOT_READY: Responses = {503: _problem("No bundle is loaded; with Retry-After while it is being loaded", **AGAIN)}
DENIED: Responses = {
    400: _problem("Wrong host name, or a form that cannot be read"),
    401: _problem("The server has keys, and none was sent", **{"WWW-Authenticate": _header("Bearer")}),
    403: _problem("The server has no keys and answers requests from its own machine only"),
}
REJECTIONS: Responses = DENIED | {
    408: _problem("The body did not arrive in time"),
    413: _problem("More than 32 MiB, or more files than may be sent at once"),
    415: _problem("The file is not a JPEG, PNG, WebP, BMP, GIF or TIFF"),
    422: _problem("No file, or an empty, damaged or too large image (over 25 million pixels)"),
    429: _problem("More images a second than a client may send", **AGAIN),
    503: _problem("No bundle is loaded, or the server is overloaded", **AGAIN),
}
EXPLAINED: Responses = {
    200: {
        "description": "The overlay; with format=json the numbers.",
        "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
        "model": Explanation,
        "headers": {
            "X-Model-ID": _header("The model that is explained."),
            "X-Explanation-Method": _header("How the saliency was computed."),
            "X-Explained-Label": _header("The class that is explained, percent-encoded where necessary."),
        },
    }
}
METRICS: Responses = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}

KEYS = {"bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"}}  # fmt: skip


def page_for(page: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """The page of a server with these settings."""
    page = deepcopy(page)
    if settings.api_keys:
        page["components"]["securitySchemes"] = KEYS
        for path in page["paths"].keys() - set(middleware.OPEN_PATHS):
            for operation in page["paths"][path].values():
                operation["security"] = [{name: []} for name in KEYS]
    [form] = page["paths"]["/predict"]["post"]["requestBody"]["content"].values()
    if settings.allow_urls:
        form["schema"]["oneOf"] = [{"required": form["schema"].pop("required")}, {"required": ["url"]}]
    else:
        del form["schema"]["properties"]["url"]
    return page
