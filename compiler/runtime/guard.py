"""Which HTTP requests are served at all: by the host they are meant for, the page they come from
and their framing.

A web page that a user of this machine looks at can send requests to 127.0.0.1. With a name of its
own that it points there afterwards (DNS rebinding), its browser even takes the answers for the
page's own. What gives both away are the headers Host and Origin, which a page cannot set.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
_WILDCARDS = {"", "0.0.0.0", "::"}
_HOST = re.compile(r"(?:\[(?P<ipv6>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+))(?::[0-9]{1,5})?")
_ORIGIN = re.compile(r"https?://(?P<host>[^/?#@\s]+)")


@dataclass(frozen=True)
class Access:
    """Names that the server answers to, and pages (origins) that may use it.

    With `any_address`, for servers that listen everywhere, every IP address is an answerable name:
    no page can have one of those without having come from there.
    """

    hosts: frozenset[str] = LOCAL
    origins: frozenset[str] = frozenset()
    any_address: bool = False

    @classmethod
    def of(cls, address: str, hosts: Iterable[str] = (), origins: Iterable[str] = ()) -> Access:
        """For a server that listens on `address`. Raises ValueError for what is no name of a host
        or no origin."""
        known = set(LOCAL)
        for name in [*hosts, *([] if address in _WILDCARDS else [address])]:
            known.add(_plain(name.lower().strip("[]")))
            if host_name(f"[{name.strip('[]')}]" if ":" in name else name) is None:
                raise ValueError(f"'{name}' is no name of a host")
        pages = frozenset(origin.lower().rstrip("/") for origin in origins)
        for page in pages:
            if not _ORIGIN.fullmatch(page):
                raise ValueError(f"'{page}' is no origin such as https://example.org")
        return cls(frozenset(known), pages, address in _WILDCARDS)

    def knows(self, host: str | None) -> bool:
        """Whether a Host header names this server; any port will do."""
        name = None if host is None else host_name(host)
        return name is not None and (name in self.hosts or (self.any_address and _is_address(name)))

    def takes(self, origin: str, host: str) -> bool:
        """Whether a page may ask: one of this server's own, or one that is allowed."""
        origin = origin.lower()
        own = _ORIGIN.fullmatch(origin)
        return origin in self.origins or (own is not None and own["host"] == host.lower())


def host_name(host: str) -> str | None:
    """The name in a Host header, in lower case and without the port; None where it is malformed."""
    found = _HOST.fullmatch(host.lower())
    return None if found is None else _plain(found["ipv6"] or found["name"])


def _plain(name: str) -> str:
    try:
        return ipaddress.ip_address(name).compressed
    except ValueError:
        return name.removesuffix(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Guard:
    """Refuses requests in front of an application."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = self._refusal(scope) if scope["type"] == "http" else None
        if refused is None:
            await self._app(scope, receive, send)
            return
        status, message = refused
        # What is behind a head that is not trusted is no further request.
        response = JSONResponse(error_body(status, message), status, {"connection": "close"})
        await response(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and message, or None for a request that may go on."""
        found: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        if "transfer-encoding" in found and (
            "content-length" in found or scope["http_version"] == "1.0"
        ):
            return 400, "Content-Length beside Transfer-Encoding, or Transfer-Encoding in HTTP/1.0"
        hosts, origins = found.get("host", []), found.get("origin", [])
        if len(hosts) != 1 or not self._access.knows(hosts[0]):
            return (
                421,
                "the Host header does not name this server: `serve --allow-host NAME` allows more names",
            )
        if len(origins) > 1 or (origins and not self._access.takes(origins[0], hosts[0])):
            return (
                403,
                "pages of another origin may not ask: `serve --allow-origin ORIGIN` allows one",
            )
        kinds = [kind.partition(";")[0].strip().lower() for kind in found.get("content-type", [])]
        if scope["method"] == "POST" and kinds != ["application/json"]:
            return 415, "the Content-Type must be application/json"
        return None


def error_body(status: int, message: str) -> dict[str, object]:
    """An error as OpenAI's clients read it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}
