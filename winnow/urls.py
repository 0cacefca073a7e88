"""Urls as strangers list them: which of them can be asked for, and how they stand in a request."""

import re
import string
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

from winnow.fetch_failures import FetchError

SCHEMES = ("http", "https")
MAX_URL_CHARACTERS = 8_000
"""What servers are asked to put up with (RFC 9110, 4.1). Redirects can name longer ones, and tables of urls are kept in memory."""


def check_url(url: str) -> None:
    """Raises FetchError for what is not an http or https url with a host."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as problem:
        raise FetchError("broken_url", str(problem)) from None
    if not parts.scheme:
        raise FetchError("broken_url", "it has no scheme (http:// or https://)")
    if parts.scheme not in SCHEMES:
        raise FetchError("scheme_refused", f"{parts.scheme} is neither http nor https")
    if len(url) > MAX_URL_CHARACTERS:
        raise FetchError("broken_url", f"{len(url):,} characters, {MAX_URL_CHARACTERS:,} allowed")
    if not host:
        raise FetchError("broken_url", "it names no host")
    if port == 0:
        raise FetchError("broken_url", "port 0")
    # urlsplit drops some of these silently: what is asked for would not be what is listed.
    if re.search(r"[\x00-\x1f\x7f]", url):
        raise FetchError("broken_url", "it holds a control character")


def ascii_url(url: str) -> str:
    """The url as it may stand in a request: other scripts and spaces as %-escapes, the host in punycode, no user or password."""
    if url.isascii() and " " not in url:
        return url
    parts = urlsplit(url)
    assert parts.hostname is not None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname.encode("idna").decode()
    place = host if parts.port is None else f"{host}:{parts.port}"
    return urlunsplit((parts.scheme, place, *(quote(part, safe=string.punctuation) for part in parts[2:])))


def redirect_target(url: str, location: str) -> str:
    """Where a Location header leads to from there; not yet checked but for its scheme. Raises FetchError."""
    try:
        # Headers come decoded as Latin-1: quoting by it gives back the bytes that were sent.
        target = urljoin(url, quote(location.strip(), safe=string.punctuation, encoding="iso-8859-1"))
        scheme = urlsplit(target).scheme
    except ValueError as problem:
        raise FetchError("broken_url", f"redirected to {location}: {problem}") from None
    if scheme not in SCHEMES:
        raise FetchError("scheme_refused", f"redirected to {scheme}, which is neither http nor https")
    return target
