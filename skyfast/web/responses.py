"""HTTP responses: common headers, bodies and content negotiation."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus

from aiohttp import hdrs, web

from skyfast import __version__
from skyfast.web import html

RETRY_AFTER_S = 1
"""The value of the header ``Retry-After`` in a `busy_response`."""

_NAME = r"[!#$%&'*+.^_`|~0-9a-z-]+"
_WEIGHT = r"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?"
_CODING = re.compile(rf"({_NAME})(?:[ \t]*;[ \t]*q=({_WEIGHT}))?", re.IGNORECASE)
_MEDIA_TYPE = re.compile(rf"{_NAME}/{_NAME}", re.IGNORECASE)
_PARAMETER = re.compile(rf'({_NAME})=(?:({_NAME})|"([^"\\]*)")', re.IGNORECASE)

_BY_NAME = 3
_BY_VERSION = 4


@dataclass(frozen=True, slots=True)
class MediaType:
    """A media type, such as ``text/plain``, with its version."""

    name: str
    version: str = ""
    """The value of the parameter ``version``, or "" without this parameter."""


@dataclass(frozen=True, slots=True)
class _MediaRange:
    """An element of the header ``Accept``. Only the parameters ``version`` and ``q`` are used."""

    type: MediaType
    weight: float
    """The value of the parameter ``q``, from 0 to 1."""


_OPENMETRICS = MediaType("application/openmetrics-text", "1.0.0")
_OPENMETRICS_2 = MediaType("application/openmetrics-text", "2.0.0")
_TEXT = MediaType("text/plain", "0.0.4")
_JSON = MediaType("application/json")
_HTML = MediaType("text/html")
_PLAIN = MediaType("text/plain")


def raw_response(status: HTTPStatus, reason: str = "") -> bytes:
    """Return a complete response as bytes, for clients that have not sent a valid request."""
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
    return {
        hdrs.SERVER: f"skyfast/{__version__}",
        hdrs.CACHE_CONTROL: "no-store",
        "X-Content-Type-Options": "nosniff",
        **more,
    }


def text_response(text: str, status: int = HTTPStatus.OK) -> web.Response:
    return web.Response(text=text + "\n", status=status, headers=response_headers({}))


def html_response(text: str, status: int = HTTPStatus.OK) -> web.Response:
    headers = response_headers({"Content-Security-Policy": html.POLICY})
    return web.Response(text=text, status=status, content_type="text/html", headers=headers)


def json_response(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/json", headers=response_headers({}))


def busy_response(reason: str) -> web.Response:
    response = text_response(f"Busy: {reason}. Try again.", HTTPStatus.SERVICE_UNAVAILABLE)
    response.headers[hdrs.RETRY_AFTER] = str(RETRY_AFTER_S)
    return response


def header_value(request: web.BaseRequest, name: str) -> str | None:
    """Return a header's value, or None without the header. Join repeated headers with commas."""
    lines = request.headers.getall(name, None)
    return None if lines is None else ",".join(lines)


def wants_json(request: web.BaseRequest) -> bool:
    if asked := request.query.get("format"):
        return asked == "json"
    return prefers(header_value(request, hdrs.ACCEPT), _JSON, default=_HTML)


def encoding(accept_encoding: str | None) -> str | None:
    """Choose the encoding of a response by RFC 9110, section 12.5.3.

    * ``"identity"`` if the header is missing, because the client may not support gzip
    * ``"gzip"`` if the client accepts gzip and does not prefer ``identity``
    * ``"identity"`` if the client accepts only ``identity``, or prefers ``identity``
    * None if the client accepts neither

    Invalid elements of the header are ignored.
    """
    if accept_encoding is None:
        return "identity"
    weights = dict(filter(None, map(_weight, accept_encoding.split(","))))
    others = weights.get("*")
    gzip_weight = weights.get("gzip", weights.get("x-gzip", others))
    identity_weight = weights.get("identity", others)
    if gzip_weight and gzip_weight >= (identity_weight or 0):
        return "gzip"
    return None if identity_weight == 0 else "identity"


def _weight(element: str) -> tuple[str, float] | None:
    match = _CODING.fullmatch(element.strip())
    return match and (match[1].lower(), float(match[2] or 1))


def openmetrics_version(accept: str | None, *, with_first: bool) -> int:
    """Return the major version of OpenMetrics for the response; 0 for the text format.

    The rules of `prefers` apply, with two restrictions:

    * OpenMetrics 2.0 is chosen only if the header ``Accept`` contains the version 2.0.0.
    * OpenMetrics 1.0 is chosen only if ``with_first`` is true.
    """
    ranges = _media_ranges(accept)
    precedence, weight = _preference(ranges, _OPENMETRICS_2)
    others = (_OPENMETRICS, _TEXT) if with_first else (_TEXT,)
    if precedence == _BY_VERSION and 0 < weight >= max(
        _preference(ranges, other)[1] for other in others
    ):
        return 2
    return int(with_first and prefers(accept, _OPENMETRICS, default=_TEXT))


def prefers_html(accept: str | None) -> bool:
    return prefers(accept, _HTML, default=_PLAIN)


def prefers(accept: str | None, named: MediaType, *, default: MediaType) -> bool:
    """Return whether to respond with ``named`` instead of ``default`` (RFC 9110, section 12.5.1).

    The result is true if the header contains ``named`` itself, and gives it at least the weight of
    ``default``. In all other cases, the result is false: for example, if only a wildcard matches
    ``named``, or if the client accepts neither. Invalid elements of the header are ignored.
    """
    ranges = _media_ranges(accept)
    precedence, weight = _preference(ranges, named)
    return precedence >= _BY_NAME and 0 < weight >= _preference(ranges, default)[1]


def _media_ranges(accept: str | None) -> list[_MediaRange]:
    return list(filter(None, map(_media_range, (accept or "").split(","))))


def _preference(ranges: Iterable[_MediaRange], wanted: MediaType) -> tuple[int, float]:
    """Return precedence and weight of the range that matches best; (0, 0.0) if no range matches."""
    return max(
        (
            (_precedence(media_range.type, wanted), media_range.weight)
            for media_range in ranges
            if _precedence(media_range.type, wanted)
        ),
        default=(0, 0.0),
    )


def _precedence(named: MediaType, wanted: MediaType) -> int:
    """Return how specifically a range matches ``wanted``; 0 if the range does not match."""
    if named.name == wanted.name:
        return {"": _BY_NAME, wanted.version: _BY_VERSION}.get(named.version, 0)
    return {f"{wanted.name.partition('/')[0]}/*": 2, "*/*": 1}.get(named.name, 0)


def _media_range(element: str) -> _MediaRange | None:
    name, *pieces = (piece.strip(" \t") for piece in element.split(";"))
    parameters = {"version": "", "q": "1"}
    for piece in filter(None, pieces):
        match = _PARAMETER.fullmatch(piece)
        if match is None:
            return None
        parameters[match[1].lower()] = match[2] or match[3]
    weight = parameters["q"]
    if not _MEDIA_TYPE.fullmatch(name) or not re.fullmatch(_WEIGHT, weight):
        return None
    return _MediaRange(MediaType(name.lower(), parameters["version"]), float(weight))
