"""Responses: the headers that all of them have, their bodies, and what a request asks for."""

from http import HTTPStatus

from aiohttp import hdrs, web

from skyfast import __version__
from skyfast.web import exposition
from skyfast.web import html as markup

RETRY_AFTER_S = 1
"""What a client is told that found too many pages being served."""


def raw_response(status: HTTPStatus, reason: str = "") -> bytes:
    """Return a complete answer without aiohttp, which needs a request that it could parse."""
    body = f"{status.phrase}{f': {reason}' if reason else ''}.\n".encode()
    headers = {
        hdrs.CONTENT_TYPE: "text/plain; charset=utf-8",
        **response_headers({}),
        hdrs.CONTENT_LENGTH: str(len(body)),
        hdrs.CONNECTION: "close",
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status.value} {status.phrase}\r\n{lines}\r\n".encode() + body


def response_headers(more: dict[str, str]) -> dict[str, str]:
    """Return the headers of every answer, and ``more``. No answer may be cached."""
    return {
        hdrs.SERVER: f"skyfast/{__version__}",
        hdrs.CACHE_CONTROL: "no-store",
        "X-Content-Type-Options": "nosniff",
        **more,
    }


def text_response(text: str, status: int = HTTPStatus.OK) -> web.Response:
    return web.Response(text=text + "\n", status=status, headers=response_headers({}))


def html_response(text: str) -> web.Response:
    headers = response_headers({"Content-Security-Policy": markup.POLICY})
    return web.Response(text=text, content_type="text/html", headers=headers)


def json_response(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/json", headers=response_headers({}))


def try_again(reason: str) -> web.Response:
    response = text_response(f"Try again: {reason}.", HTTPStatus.SERVICE_UNAVAILABLE)
    response.headers[hdrs.RETRY_AFTER] = str(RETRY_AFTER_S)
    return response


def header_value(request: web.BaseRequest, name: str) -> str | None:
    """Return the value of a header that may have several lines, or None where it is missing."""
    lines = request.headers.getall(name, None)
    return None if lines is None else ",".join(lines)


def wants_json(request: web.BaseRequest) -> bool:
    """Return whether a page that is for browsers is asked for in JSON."""
    if asked := request.query.get("format"):
        return asked == "json"
    return exposition.prefers(
        header_value(request, hdrs.ACCEPT), ("application/json", ""), default=("text/html", "")
    )
