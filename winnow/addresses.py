"""Which addresses may be connected to, and how host names become addresses."""

import ipaddress
import queue
import socket
import threading
import time
from typing import Any

from winnow.errors import ConfigError

DNS_SECONDS = 60.0
"""How long the answer of a name server is remembered, "no such name" included."""
DNS_AGAIN_SECONDS = 1.0
"""The same for "ask again later"."""
MAX_ADDRESSES, MAX_HOSTS = 8, 5_000
"""Of a host; remembered at a time. A name server can answer with thousands of addresses for each of any number of names."""
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class NameServerSilent(TimeoutError):
    """The time for one url went by while its name was looked up."""


def parse_endpoint(entry: str) -> tuple[Address, int]:
    """An address and port as the config spells them. Raises ConfigError for anything else, names of hosts included."""
    host, _, port = entry.rpartition(":")
    try:
        number = int(port)
        if not 0 < number < 65536:
            raise ValueError
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")), number
    except ValueError:
        raise ConfigError(f'allow: {entry!r} is not an address with a port, such as "127.0.0.1:8731" or "[::1]:8731"') from None


def is_public(address: Address) -> bool:
    """Whether an address belongs to the public internet, as far as its number tells; IPv4 inside IPv6 is looked into."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address in NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        # 6to4 and Teredo lead into IPv4 networks by way of relays; nobody serves images there.
        if address in LOCAL_NAT64 or address.sixtofour is not None or address.teredo is not None or address.is_site_local:
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


class Resolver:
    """Addresses of hosts, remembered for a while. A lookup that hangs is left alone when the fetch's time is over."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], tuple[float, list[Any] | Exception]] = {}

    def __call__(self, host: str, port: int, deadline: float) -> list[Any]:
        """What getaddrinfo says, the first MAX_ADDRESSES of it. Raises what it raises, or TimeoutError."""
        until, answer = self._known.get((host, port), (0.0, []))
        if time.monotonic() >= until:
            # getaddrinfo takes no time limit: it runs in a thread that nobody waits for longer than the fetch may take.
            answers: queue.SimpleQueue[list[Any] | Exception] = queue.SimpleQueue()
            threading.Thread(target=self._ask, args=(host, port, answers), daemon=True).start()
            try:
                answer = answers.get(timeout=time_left(deadline))
            except queue.Empty:
                raise NameServerSilent(f"the name server did not answer for {host}") from None
            again = isinstance(answer, socket.gaierror) and answer.errno == socket.EAI_AGAIN
            if len(self._known) >= MAX_HOSTS:
                self._known.clear()
            self._known[host, port] = (time.monotonic() + (DNS_AGAIN_SECONDS if again else DNS_SECONDS), answer)
        if isinstance(answer, Exception):
            raise answer.with_traceback(None)
        return answer

    @staticmethod
    def _ask(host: str, port: int, answers: "queue.SimpleQueue[list[Any] | Exception]") -> None:
        try:
            answers.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[:MAX_ADDRESSES])
        except (OSError, UnicodeError) as problem:
            answers.put(problem)


def time_left(deadline: float) -> float:
    """Seconds until then. Raises TimeoutError if there are none."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the time for one url is over")
    return left
