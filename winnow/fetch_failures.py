"""Why a url could not be fetched: a cause by name, and which of them may be gone a moment later."""

import http.client
import socket
import ssl

from winnow.addresses import NameServerSilent
from winnow.errors import WinnowError

PASSING = frozenset(
    {"timeout", "reset", "incomplete", "unreachable", "dns_temporary", "robots_unreachable", "postponed"}
    | {"http_408", "http_425", "http_429"}
)
"""Causes that may be gone a moment later; all of http_5xx besides."""


class FetchError(WinnowError):
    """A url could not be fetched, or was refused. As text: `slug: detail`."""

    def __init__(self, slug: str, detail: str, *, retry_after: float | None = None) -> None:
        # Details quote strangers (urls, headers, reason phrases): one short printable line.
        super().__init__(f"{slug}: {''.join(c if c.isprintable() else '?' for c in detail)[:300]}")
        self.slug = slug
        self.retry_after = retry_after
        """Seconds the server asks us to stay away, if it said so."""


def is_passing(slug: str) -> bool:
    """Whether a cause may be gone a moment later, so that trying again makes sense."""
    return slug in PASSING or slug.startswith("http_5")


def translated(problem: object) -> FetchError:
    """The cause behind what socket, ssl and http.client raise."""
    text = str(problem) or type(problem).__name__
    kinds: tuple[tuple[type | tuple[type, ...], str], ...] = (
        (http.client.IncompleteRead, "incomplete"),
        (ssl.SSLError, "tls"),
        (ConnectionRefusedError, "refused"),
        (ConnectionError, "reset"),  # http.client.RemoteDisconnected is one
        (OSError, "unreachable"),
        ((http.client.InvalidURL, UnicodeError, ValueError), "broken_url"),
        (http.client.HTTPException, "bad_response"),
    )
    if isinstance(problem, FetchError):
        return problem
    if isinstance(problem, NameServerSilent):
        return FetchError("timeout", text)
    if isinstance(problem, TimeoutError):
        # One wording, whichever of connecting and reading noticed first: the detail goes into the table of the download.
        return FetchError("timeout", "no whole answer within the time for one url")
    if isinstance(problem, socket.gaierror):
        return FetchError("dns_temporary" if problem.errno == socket.EAI_AGAIN else "dns", problem.strerror or text)
    return FetchError(next((slug for kind, slug in kinds if isinstance(problem, kind)), "broken_url"), text)
