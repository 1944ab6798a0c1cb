"""The web page and the JSON API of one model: which path is answered by what."""

import json
from collections.abc import Callable
from importlib import resources
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from smalti.core.config import from_json, require
from smalti.core.errors import DataError, UsageError
from smalti.report.pictures import data_uri
from smalti.serving.limits import BodyReader, Guard, RefusedError, RequestQueue, refusal
from smalti.serving.nearest_images import NearestImages
from smalti.serving.openapi import document
from smalti.serving.predictions import Predictor
from smalti.serving.requests import MAX_NEAREST, Attend, Nearest, Predict

T = TypeVar("T")

_HTML, _CSS, _JS = "text/html", "text/css", "text/javascript"
_FILES = {
    "/": ("smalti.serving", "page.html", _HTML),
    "/page.css": ("smalti.serving", "page.css", _CSS),
    "/page.js": ("smalti.serving", "page.js", _JS),
    "/style.css": ("smalti.report", "page.css", _CSS),
}
"""All files that are served, read once at the start: no path of a request reaches the disk."""


def build(predictor: Predictor, nearest: NearestImages | None, token: str = "", local: bool = True) -> Starlette:
    """The application for one model.

    Args:
        predictor: the model.
        nearest: features to search in, if there are any.
        token: needed for the API; empty: none.
        local: whether it answers to names of this machine only.
    """
    api = _Api(predictor, nearest)
    routes = [Route(path, _file(*about)) for path, about in _FILES.items()]
    routes += [
        Route("/api/openapi.json", api.openapi),
        Route("/api/model", api.model),
        Route("/api/image", api.image, methods=["POST"]),
        Route("/api/predict", api.predict, methods=["POST"]),
        Route("/api/attention", api.attention, methods=["POST"]),
        Route("/api/codes/{code}", api.codes),
        Route("/api/nearest", api.nearest_images, methods=["POST"]),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, token=token, local=local)],
        exception_handlers={HTTPException: _no_such},
    )


def _file(package: str, name: str, kind: str) -> Callable[[Request], Any]:
    content = (resources.files(package) / name).read_bytes()

    async def answer(request: Request) -> Response:
        return Response(content, media_type=kind)

    return answer


async def _no_such(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = {404: "there is nothing here", 405: "another method is needed"}.get(error.status_code, error.detail)
    return refusal(error.status_code, f"{text}; see /api/openapi.json")


class _Api:
    def __init__(self, predictor: Predictor, nearest: NearestImages | None) -> None:
        self.predictor, self.nearest = predictor, nearest
        self.turns, self.bodies, self.document = RequestQueue(), BodyReader(), document()

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(self.document)

    async def model(self, request: Request) -> Response:
        return JSONResponse(await self._compute(self.predictor.facts) | {"features": self.nearest is not None})

    async def image(self, request: Request) -> Response:
        kind = request.headers.get("content-type", "")
        if not kind.startswith(("image/", "application/octet-stream")):
            raise RefusedError(415, "send the bytes of an image file, with Content-Type: application/octet-stream")
        data = await self.bodies.read(request)
        picture = await self._compute(lambda: self.predictor.decoded(data, self.predictor.window))
        return JSONResponse({"picture": data_uri(picture)})

    async def predict(self, request: Request) -> Response:
        asked = await self._asked(Predict, request)
        return JSONResponse(await self._compute(lambda: self.predictor.predict(asked)))

    async def attention(self, request: Request) -> Response:
        asked = await self._asked(Attend, request)
        return JSONResponse(await self._compute(lambda: self.predictor.attend(asked)))

    async def codes(self, request: Request) -> Response:
        code, count = _number(request.path_params["code"]), _number(request.query_params.get("count", "12"))
        if not 1 <= count <= MAX_NEAREST:
            raise RefusedError(422, f"{count} nearest codes; use 1 to {MAX_NEAREST}")
        return JSONResponse(await self._compute(lambda: self.predictor.nearest_codes(code, count)))

    async def nearest_images(self, request: Request) -> Response:
        asked, search = await self._asked(Nearest, request), self.nearest
        if search is None:
            raise RefusedError(404, "no features to search in; start with --features FILE of smalti embed")
        found = await self._compute(lambda: search(self.predictor.picture(asked.image), asked.count))
        return JSONResponse({"nearest": found})

    async def _asked(self, cls: type[T], request: Request) -> T:
        """The body of a request, checked."""
        if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            raise RefusedError(415, "send JSON, with Content-Type: application/json")
        try:
            body = json.loads(await self.bodies.read(request), parse_constant=_no_number)
        except (ValueError, RecursionError):
            raise RefusedError(400, "the body is no JSON") from None
        try:
            require(
                isinstance(body, dict) and "kind" not in body, "the body is no object of the fields of this request"
            )
            return from_json(cls, body, "body")
        except UsageError as error:
            raise RefusedError(422, str(error)) from None

    async def _compute(self, function: Callable[[], T]) -> T:
        """The result of a function of the model, in turn."""
        try:
            return await self.turns.run(function)
        except (UsageError, DataError) as error:
            raise RefusedError(422, str(error)) from None


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise RefusedError(422, "a number is needed")
    return int(text)


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")
