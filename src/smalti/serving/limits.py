"""What a server does not do: answer other sites or strangers, read without end, or compute for a crowd."""

import asyncio
import hmac
import itertools
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from smalti.core.log import printable

T = TypeVar("T")

MAX_BODY = 16 << 20
_MAX_HELD = 32 << 20
"""Bytes of a body, and of the bodies of all requests at once."""
_SECONDS = 20.0
"""For a body to arrive."""
_WAITING = 8
"""Requests that wait while one is computed."""
_MAX_ERROR = 300
"""Characters of an error."""
LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class RefusedError(Exception):
    """A request that is not answered, with the status and the line that says why."""

    def __init__(self, status: int, message: str) -> None:
        self.status, self.message = status, message
        super().__init__(message)


def refusal(status: int, message: str) -> JSONResponse:
    """One line as JSON."""
    line = printable(" ".join(message.split()))
    line = line if len(line) <= _MAX_ERROR else f"{line[:_MAX_ERROR]} ..."
    return JSONResponse({"error": line}, status, {"WWW-Authenticate": "Bearer"} if status == 401 else None)


class Guard:
    """Answers requests to this machine from its own page, and where there is a token, with that token only.

    Args:
        token: needed for /api; empty: none.
        local: whether only names of this machine are answered (`Host`), so that no other site can be led here by DNS.
    """

    def __init__(self, app: ASGIApp, token: str, local: bool) -> None:
        self.app, self.token, self.local, self._numbers = app, token, local, itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        begun = False

        async def send_with_headers(message: Message) -> None:
            nonlocal begun
            begun = True
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        try:
            self._check(scope["method"], scope["path"], Headers(scope=scope))
            await self.app(scope, receive, send_with_headers)
        except RefusedError as error:
            await refusal(error.status, error.message)(scope, receive, send_with_headers)
        except ClientDisconnect:
            return
        except Exception:
            number = next(self._numbers)
            print(f"error {number} of smalti serve:", file=sys.stderr)
            print("\n".join(printable(line) for line in traceback.format_exc().splitlines()), file=sys.stderr)
            if not begun:
                await refusal(500, f"internal error {number}; see the terminal")(scope, receive, send_with_headers)

    def _check(self, method: str, path: str, headers: Headers) -> None:
        host = headers.get("host", "")
        if self.local and _name(host) not in LOOPBACK:
            raise RefusedError(403, "this server answers to 127.0.0.1 and localhost only")
        origin = headers.get("origin")
        site = headers.get("sec-fetch-site", "none")
        elsewhere = origin is not None and urlsplit(origin).netloc.lower() != host.lower()
        if elsewhere or (method not in ("GET", "HEAD") and site not in ("same-origin", "none")):
            raise RefusedError(403, "requests of other sites are not answered")
        if self.token and path.startswith("/api"):
            given = headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode("utf-8", "replace"), self.token.encode()):
                raise RefusedError(401, "no token, or a wrong one; open the page with #token=TOKEN")


def _name(host: str) -> str:
    """A Host header without its port, in lower case."""
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdigit() else host).lower()


class RequestQueue:
    """One computation after another, in the order in which they came; a few wait, more are sent away."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "model")
        self._waiting = 0

    async def run(self, function: Callable[[], T]) -> T:
        """The result of a function, on the thread of the model."""
        if self._waiting > _WAITING:
            raise RefusedError(503, f"{_WAITING} requests are waiting already; try again")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, function)
        finally:
            self._waiting -= 1


class BodyReader:
    """Bodies of requests: not larger, not slower, and not more at once than there is room for."""

    def __init__(self) -> None:
        self._held = 0

    async def read(self, request: Request) -> bytes:
        """The body of a request."""
        declared = request.headers.get("content-length", "0")
        if not declared.isdecimal():
            raise RefusedError(400, "Content-Length is no number")
        if len(declared) > 12 or int(declared) > MAX_BODY:
            raise _too_large()
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(_SECONDS):
                async for part in request.stream():
                    size += len(part)
                    self._held += len(part)
                    if size > MAX_BODY:
                        raise _too_large()
                    if self._held > _MAX_HELD:
                        raise RefusedError(503, "too many large requests at once; try again")
                    parts.append(part)
        except TimeoutError:
            raise RefusedError(408, f"the body did not arrive in {_SECONDS:.0f} seconds") from None
        finally:
            self._held -= size
        return b"".join(parts)


def _too_large() -> RefusedError:
    return RefusedError(413, f"more than {MAX_BODY >> 20} MiB")
