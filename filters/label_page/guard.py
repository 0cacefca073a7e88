"""Who may speak to the page: people who have the link, in a browser that shows this page, on this machine. Everything else is refused.

- The token of the link becomes a cookie that no script can read and no other site's page sends.
- A foreign Host is refused (a stranger's domain that resolves to 127.0.0.1), and so is any change asked for by another origin.
- The policy for content allows this server's own files and nothing else, and no script or style within a page.
"""

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlencode

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Callable[[], Awaitable[Any]], Send], Awaitable[None]]

COOKIE = "winnow_label"
HOSTS = ("127.0.0.1", "localhost", "[::1]")
MAX_BODY_BYTES = 1_000_000
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",  # pictures of this kind have no business in a browser's cache on disk
}
CLOSED = "This page opens with the link that `winnow label` printed. Open that link again; nothing you decided is lost."


class Guard:
    """ASGI middleware: checks every request, names the person in `scope["state"]["person"]`, sets the headers of every answer."""

    def __init__(self, app: App, people: Mapping[str, str], on_arrival: Callable[[str], None]) -> None:
        """
        Args:
            people: token -> person.
            on_arrival: called with the person when a link is opened.
        """
        self._app, self._people, self._on_arrival = app, people, on_arrival

    async def __call__(self, scope: Scope, receive: Callable[[], Awaitable[Any]], send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        if host.rpartition(":")[0] not in HOSTS and host not in HOSTS:
            return await _refuse(send, 421, "This server answers to 127.0.0.1 and localhost alone.")
        if scope["method"] not in ("GET", "HEAD") and headers.get("origin") != f"http://{host}":
            return await _refuse(send, 403, "Only this page itself may change anything.")
        if int(headers.get("content-length", "0") or 0) > MAX_BODY_BYTES:
            return await _refuse(send, 413, "That is more than the page ever sends.")
        query = parse_qs(scope["query_string"].decode("latin-1"))
        cookie = f"{COOKIE}_{host.rpartition(':')[2]}"  # cookies know no ports: two pages on one machine must not share one
        if scope["path"] == "/" and "token" in query:
            return await self._arrive(send, query.pop("token")[0], cookie, urlencode(query, doseq=True))
        person = self._person(_cookie(headers.get("cookie", ""), cookie))
        if person is None:
            return await _refuse(send, 401, CLOSED)
        scope.setdefault("state", {})["person"] = person
        return await self._app(scope, receive, _with_headers(send))

    async def _arrive(self, send: Send, token: str, cookie: str, rest: str) -> None:
        person = self._person(token)
        if person is None:
            return await _refuse(send, 401, CLOSED)
        await asyncio.to_thread(self._on_arrival, person)
        crumb = f"{cookie}={token}; HttpOnly; SameSite=Strict; Path=/"
        return await _refuse(send, 303, "", {"location": f"/?{rest}" if rest else "/", "set-cookie": crumb})

    def _person(self, token: str) -> str | None:
        found = None
        for known, person in self._people.items():  # all of them, so that time tells nothing
            if hmac.compare_digest(known.encode(), token.encode()):
                found = person
        return found


def _cookie(header: str, name: str) -> str:
    try:
        crumbs = SimpleCookie(header)
    except CookieError:
        return ""
    return crumbs[name].value if name in crumbs else ""


def _with_headers(send: Send) -> Send:
    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *_encoded(HEADERS)]
        await send(message)

    return sending


async def _refuse(send: Send, status: int, text: str, extra: Mapping[str, str] | None = None) -> None:
    headers = {**HEADERS, "content-type": "text/plain; charset=utf-8", **(extra or {})}
    await send({"type": "http.response.start", "status": status, "headers": _encoded(headers)})
    await send({"type": "http.response.body", "body": text.encode()})


def _encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
