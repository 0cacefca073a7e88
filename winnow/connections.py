"""Connections that have one end of patience in all, and are used again while the server keeps them open.

A connection is made once to an address that the guard has checked, and stays with that address: using it again asks no name
server and no handshake. That is most of what an https request costs (a handshake takes about as long as decoding an image).
"""

import functools
import http.client
import math
import select
import socket
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from winnow.addresses import time_left
from winnow.responses import Response

IDLE_SECONDS = 10.0
"""A connection that was not used for longer is closed: servers close theirs after 5 to 60 s."""
MAX_IDLE = 128
"""Idle connections of a pool, over all hosts."""

Key = tuple[str, str, int]
"""Scheme, host and port."""


class Socket(socket.socket):
    """A socket with an end of patience: every read gets what is left of the whole time, not a time limit of its own."""

    deadline: float = math.inf

    def recv_into(self, *args: Any) -> int:
        self.settimeout(time_left(self.deadline))
        return super().recv_into(*args)


class TlsSocket(ssl.SSLSocket):
    """The same for TLS."""

    deadline: float = math.inf

    def recv_into(self, *args: Any) -> int:
        if self.deadline < math.inf:
            self.settimeout(time_left(self.deadline))
        return super().recv_into(*args)


@functools.cache
def tls_context() -> ssl.SSLContext:
    """The one TLS context of this process: the system's authorities, host names checked. (19 ms to make.)"""
    context = ssl.create_default_context()
    context.sslsocket_class = TlsSocket
    return context


class Connection(http.client.HTTPConnection):
    """To one host and port, over TLS or not."""

    response_class = Response

    def __init__(self, key: Key, connect: Callable[[str, int, float], Socket], tls: ssl.SSLContext | None) -> None:
        super().__init__(key[1], key[2])
        self.default_port = http.client.HTTPS_PORT if tls else http.client.HTTP_PORT  # left out of the Host header
        self.key, self.deadline, self.used, self.idle_since = key, math.inf, False, 0.0
        self._connect, self._tls = connect, tls

    def connect(self) -> None:
        plain = self._connect(self.host, self.port, self.deadline)
        if self._tls is None:
            self.sock = plain
            return
        try:
            plain.settimeout(time_left(self.deadline))
            wrapped = self._tls.wrap_socket(plain, server_hostname=self.host)
        except BaseException:
            plain.close()
            raise
        assert isinstance(wrapped, TlsSocket)
        wrapped.deadline = self.deadline
        self.sock = wrapped

    def be_done_by(self, deadline: float) -> None:
        """The end of patience for what is asked next."""
        self.deadline = deadline
        if self.sock is not None:
            assert isinstance(self.sock, Socket | TlsSocket)
            self.sock.deadline = deadline
            self.sock.settimeout(time_left(deadline))

    @property
    def is_quiet(self) -> bool:
        """Nothing has come since the last answer: the server neither closed it nor said more than it had announced."""
        if self.sock is None:
            return False
        poll = select.poll()
        poll.register(self.sock, select.POLLIN | select.POLLHUP | select.POLLERR)
        return not poll.poll(0)


class Pool:
    """Connections that wait to be used again. For many threads at once."""

    def __init__(self) -> None:
        self._idle: OrderedDict[Connection, None] = OrderedDict()  # the one that waits longest first
        self._by_key: dict[Key, list[Connection]] = {}
        self._lock = threading.Lock()

    def take(self, key: Key) -> Connection | None:
        """One that is still open, if there is one."""
        while True:
            with self._lock:
                waiting = self._by_key.get(key)
                if not waiting:
                    return None
                connection = waiting[-1]
                self._forget(connection)
            if time.monotonic() - connection.idle_since < IDLE_SECONDS and connection.is_quiet:
                return connection
            connection.close()

    def put(self, connection: Connection) -> None:
        connection.used, connection.idle_since = True, time.monotonic()
        stale = []
        with self._lock:
            self._idle[connection] = None
            self._by_key.setdefault(connection.key, []).append(connection)
            while self._idle:
                oldest = next(iter(self._idle))
                if len(self._idle) <= MAX_IDLE and connection.idle_since - oldest.idle_since < IDLE_SECONDS:
                    break
                self._forget(oldest)
                stale.append(oldest)
        for old in stale:
            old.close()

    def close(self) -> None:
        with self._lock:
            idle = list(self._idle)
            self._idle.clear()
            self._by_key.clear()
        for connection in idle:
            connection.close()

    def _forget(self, connection: Connection) -> None:
        del self._idle[connection]
        waiting = self._by_key[connection.key]
        waiting.remove(connection)
        if not waiting:
            del self._by_key[connection.key]
