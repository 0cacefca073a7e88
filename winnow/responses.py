"""Answers over HTTP, read with an end to what a server may say around the body, and without guessing where the body ends.

Python's reader bounds a line of the head and the number of its lines, but not what stands between heads and bodies: interim answers
(1xx), chunk extensions and trailers go on for as long as a server likes, a chunk of -1 bytes is read until memory is full, and a head of
a hundred full lines takes 50 MB. Where an answer says two different things about its length, or something in its head is no header, it
takes what it understands; the next answer on the same connection, or a header that says "noai", may then be read as something else.
"""

import http.client
import io
import re
from typing import Any

SPOKEN_BYTES = 128 * 1024
"""Of all lines of an answer: interim answers, status, headers, chunk sizes, trailers. Browsers stop at 256 kB of headers."""
BODY_BYTES_A_SPOKEN = 8
"""A body in chunks may have one more byte of lines for so many of its own: chunks of 50 bytes and more."""


class Unreadable(http.client.HTTPException):
    """An answer that is no HTTP, or more of it than an answer can need."""


class _Stream(io.BufferedReader):
    """What comes over the connection: lines are counted against bodies."""

    spoken = 0
    carried = 0

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(size)
        self.spoken += len(line)
        if self.spoken > SPOKEN_BYTES + self.carried // BODY_BYTES_A_SPOKEN:
            raise Unreadable(f"{self.spoken:,} bytes around a body of {self.carried:,} so far")
        return line

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:  # every length is known or asked for piece by piece: only a chunk can be that
            raise Unreadable("a chunk of less than no bytes")
        data = super().read(size)
        self.carried += len(data)
        return data


class Response(http.client.HTTPResponse):
    """One answer. Its body is to be read in pieces of a given size."""

    def __init__(self, sock: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        self.fp = _Stream(self.fp.detach())

    def begin(self) -> None:
        """Reads to the end of the head. Raises HTTPException."""
        super().begin()
        # Python leaves out "100 Continue" alone. Any other interim answer it would take for the whole, and the answer behind it for
        # that to the next question on this connection.
        while 100 <= self.status < 200:
            if self.status == http.client.SWITCHING_PROTOCOLS:
                raise Unreadable("it switched to another protocol unasked")
            self.headers = None  # type: ignore[assignment]  # by this it knows whether it has begun
            super().begin()
        if self.headers.get_payload():  # the parser takes what follows a line that is no header for a text
            raise Unreadable("a line of its head is no header")
        _check_length(self.headers)


def _check_length(headers: http.client.HTTPMessage) -> None:
    """Raises Unreadable unless there is one way to tell where the body ends (RFC 9112, 6.3)."""
    lengths, codings = headers.get_all("content-length", []), headers.get_all("transfer-encoding", [])
    if len(set(lengths)) > 1 or not all(re.fullmatch(r"[0-9]{1,18}", length.strip()) for length in lengths):
        raise Unreadable(f"its length is {' and '.join(lengths)}")
    if len(codings) > 1 or (codings and codings[0].strip().lower() != "chunked"):
        raise Unreadable(f"it is sent as {' and '.join(codings)}, which nobody asked for")
