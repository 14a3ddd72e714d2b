"""Which HTTP requests are served at all: by the host they are meant for, the page they come from
and their framing.

A web page that a user of this machine looks at can send requests to 127.0.0.1. With a name of its
own that it points there afterwards (DNS rebinding), its browser even takes the answers for the
page's own. What gives both away are the headers Host and Origin, which a page cannot set.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from compiler.runtime.server.errors import error_body

LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
# Addresses that stand for all addresses of the machine.
_WILDCARDS = frozenset({"", "0.0.0.0", "::"})
_HOST = re.compile(r"(?:\[(?P<ipv6>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+))(?::[0-9]{1,5})?")
_ORIGIN = re.compile(r"https?://(?P<host>[^/?#@\s]+)")

Headers = dict[str, list[str]]
# The types of bodies that a POST may have, by path.
Types = Mapping[str, frozenset[str]]
JSON = frozenset({"application/json"})


@dataclass(frozen=True)
class Refusal:
    """Why a request is not served."""

    status: int
    message: str


@dataclass(frozen=True)
class Access:
    """Names that the server answers to, and web pages that may use it.

    hosts:       names of hosts, in lower case and without ports
    origins:     origins of pages, as https://example.org
    any_address: whether every IP address is such a name too, for servers that listen everywhere.
                 A page cannot have one of them as its own without having come from there
    """

    hosts: frozenset[str] = LOCAL_HOSTS
    origins: frozenset[str] = frozenset()
    any_address: bool = False

    @classmethod
    def of(cls, address: str, hosts: Iterable[str] = (), origins: Iterable[str] = ()) -> Access:
        """For a server that listens on `address`. Raises ValueError for what is no name of a host
        or no origin."""
        listens_everywhere = address in _WILDCARDS
        names = [*hosts] if listens_everywhere else [*hosts, address]
        known = LOCAL_HOSTS.union(_checked_host(name) for name in names)
        pages = frozenset(_checked_origin(origin) for origin in origins)
        return cls(known, pages, listens_everywhere)

    def answers_to(self, host: str | None) -> bool:
        """Whether a Host header names this server; any port will do."""
        name = None if host is None else host_name(host)
        if name is None:
            return False
        return name in self.hosts or (self.any_address and _is_address(name))

    def admits(self, origin: str, host: str) -> bool:
        """Whether a page may ask: one of this server's own, or one that is allowed."""
        origin = origin.lower()
        if origin in self.origins:
            return True
        found = _ORIGIN.fullmatch(origin)
        return found is not None and found["host"] == host.lower()


def host_name(host: str) -> str | None:
    """The name in a Host header, in lower case and without the port; None where it is malformed."""
    found = _HOST.fullmatch(host.lower())
    if found is None:
        return None
    return _normal_name(found["ipv6"] or found["name"])


def _checked_host(name: str) -> str:
    bare = name.strip("[]")
    # In a Host header, an IPv6 address stands in brackets.
    header = f"[{bare}]" if ":" in name else name
    if host_name(header) is None:
        raise ValueError(f"'{name}' is no name of a host")
    return _normal_name(bare.lower())


def _checked_origin(origin: str) -> str:
    page = origin.lower().rstrip("/")
    if not _ORIGIN.fullmatch(page):
        raise ValueError(f"'{page}' is no origin such as https://example.org")
    return page


def _normal_name(name: str) -> str:
    """One spelling of a name or address that has several."""
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
    """Refuses requests by their head, in front of an ASGI application. `types` are those of the
    bodies of POST requests, by path."""

    def __init__(self, app: ASGIApp, access: Access, types: Types) -> None:
        self._app = app
        self._access = access
        self._types = types

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal is None:
            await self._app(scope, receive, send)
            return
        body = error_body(refusal.status, refusal.message, scope["path"])
        # Where a head is not trusted, what follows it on the connection is no further request.
        response = JSONResponse(body, refusal.status, {"connection": "close"})
        await response(scope, receive, send)

    def _refusal(self, scope: Scope) -> Refusal | None:
        """Why a request is not served; None for one that is."""
        headers = _headers(scope)
        return (
            _framing_refusal(scope, headers)
            or self._host_refusal(headers)
            or self._origin_refusal(headers)
            or self._content_refusal(scope, headers)
        )

    def _host_refusal(self, headers: Headers) -> Refusal | None:
        hosts = headers.get("host", [])
        if len(hosts) == 1 and self._access.answers_to(hosts[0]):
            return None
        message = "the Host header does not name this server; who runs it can allow more names"
        return Refusal(421, message)

    def _origin_refusal(self, headers: Headers) -> Refusal | None:
        origins = headers.get("origin", [])
        if not origins:
            return None
        # There is one Host header: it was looked at before.
        (host,) = headers["host"]
        if len(origins) == 1 and self._access.admits(origins[0], host):
            return None
        message = "pages of another origin may not ask; who runs this server can allow origins"
        return Refusal(403, message)

    def _content_refusal(self, scope: Scope, headers: Headers) -> Refusal | None:
        """Refuses what a page can send to other origins without asking first. Forms with files are
        such, where they are taken: what keeps pages away there is the Origin header."""
        if scope["method"] != "POST":
            return None
        allowed = self._types.get(scope["path"])
        if allowed is None:
            return None  # there is nothing at this path, which the application says
        given = headers.get("content-type", [])
        types = [value.partition(";")[0].strip().lower() for value in given]
        if len(types) == 1 and types[0] in allowed:
            return None
        return Refusal(415, f"the Content-Type must be {' or '.join(sorted(allowed))}")


def _headers(scope: Scope) -> Headers:
    """The values of each header, by its name in lower case."""
    headers: Headers = {}
    for name, value in scope["headers"]:
        values = headers.setdefault(name.decode("latin-1").lower(), [])
        values.append(value.decode("latin-1"))
    return headers


def _framing_refusal(scope: Scope, headers: Headers) -> Refusal | None:
    """Refuses what a proxy in front may have read with another length (request smuggling)."""
    if "transfer-encoding" not in headers:
        return None
    if "content-length" not in headers and scope["http_version"] != "1.0":
        return None
    message = "Content-Length beside Transfer-Encoding, or Transfer-Encoding in HTTP/1.0"
    return Refusal(400, message)
