"""Whose turn it is: which of many urls may be asked for now, so that no host is asked too often or by too many at once.

Threads ask for a turn when they are free, instead of holding a url and waiting for its host: a slow host keeps at most its own
few connections busy, never all threads. Each host has

- so many connections at a time; half as many after each failure of the net in a row, down to one;
- a time between the beginnings of two requests: the run's rate, or what its robots.txt asks for (Crawl-delay) if that is longer;
- after 429 or 503 a pause, as long as it asks for (Retry-After) or growing by itself, and then a longer time between requests,
  which shrinks again with every answer.

A host that asks for longer pauses than the run has patience for, or that failed GIVE_UP_AFTER times in a row, is left for a later
run: its urls are `postponed`.
"""

import heapq
import itertools
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

FIRST_PAUSE_SECONDS = 1.0
"""After a 429 or 503 that names no time; twice as long after each next one."""
FIRST_GAP_SECONDS = 0.2
"""From then on between requests; twice as long after each next one, four fifths as long after each answer."""
GIVE_UP_AFTER = 10
HOSTS_REMEMBERED = 20_000
NET_FAILURES = frozenset({"timeout", "reset", "refused", "unreachable", "robots_unreachable"})


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast hosts may be asked, by this worker."""

    connections: int = 6
    """At a time, to one host."""
    seconds_between: float = 0.0
    """From the beginning of one request to a host to that of the next."""
    workers: int = 1
    """That ask the same hosts at the same time: what a host asks for is meant for all of them together."""
    max_pause_seconds: float = 60.0
    """A host that asks for a longer pause is left for a later run."""
    patience_seconds: float = 600.0
    """How long to wait in all once nothing is left but hosts that asked for pauses."""
    own: tuple[str, ...] = ()
    """Addresses with ports that may be asked as fast as they answer, for they are the run's own. What they ask for still counts."""


@dataclass(eq=False, slots=True)
class Job:
    """A url on its way."""

    row: Any
    url: str
    seconds_left: float
    """Of the time limit for one url: waiting for a turn does not count."""
    hops: int = 0
    host: "Host | None" = None
    """Where it waits, or is being asked for."""


@dataclass(eq=False, slots=True)
class Host:
    """What is known of a host's patience; outlives partitions."""

    name: str
    base: float
    """Seconds from one beginning to the next, by our own rule."""
    connections: int
    """At a time, by our own rule."""
    between: float
    """Seconds from one beginning to the next, now."""
    slow: float = 0.0
    """What of `between` it asked for by Crawl-delay; never shrinks."""
    next_start: float = 0.0
    pauses: int = 0
    """429 and 503 in a row."""
    failures: int = 0
    """Of the net, in a row."""
    waiting: deque[Job] = field(default_factory=deque)
    running: int = 0
    asking: bool = False
    """Its robots.txt is being fetched."""
    queued_for: float | None = None
    """When it may be asked, if it stands in the queue; an entry for another time is out of date."""


class Hosts:
    """All hosts a worker met lately."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self._own = frozenset(pace.own)
        self._known: OrderedDict[str, Host] = OrderedDict()

    def __getitem__(self, name: str) -> Host:
        host = self._known.get(name)
        if host is None:
            base, connections = (0.0, 1_000) if name in self._own else (self.pace.seconds_between, self.pace.connections)
            host = self._known[name] = Host(name=name, base=base, connections=connections, between=base)
        self._known.move_to_end(name)
        return host

    def renew(self, name: str) -> Host:
        """The host at the beginning of a pass: what it asked for still stands, nothing of it is under way."""
        host = self[name]
        host.waiting.clear()
        host.running, host.asking, host.queued_for = 0, False, None
        host.failures = min(host.failures, GIVE_UP_AFTER // 2)
        return host

    def trim(self) -> None:
        """Forgets those that were not met for longest. Between partitions only."""
        while len(self._known) > HOSTS_REMEMBERED:
            self._known.popitem(last=False)


class Turns:
    """One pass over some urls. For many threads at once."""

    def __init__(
        self, hosts: Hosts, jobs: Iterable[Job], *, knows: Callable[[str], bool], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._hosts, self._knows, self._clock, self._pace = hosts, knows, clock, hosts.pace
        self._order = itertools.count()
        self._heap: list[tuple[float, int, Host]] = []  # hosts that may be asked, by when; others wait for an answer
        self._condition = threading.Condition()
        self._met: dict[str, Host] = {}
        self._running = 0
        self._stopped = False
        self._idle_since: float | None = None
        self.postponed: list[tuple[Job, str]] = []
        """Left for a later run, and why. Complete once `take` has answered None."""
        with self._condition:
            for job in jobs:
                self._enqueue(job)

    def take(self) -> Job | None:
        """The next url that may be asked for, as soon as one may; None when there are none left. Give it back by `done` or `moved`."""
        with self._condition:
            while not self._stopped:
                if not self._heap:
                    if not self._running:
                        break
                    self._condition.wait(1.0)
                    continue
                now = self._clock()
                when, _, host = self._heap[0]
                if when != host.queued_for:
                    heapq.heappop(self._heap)
                elif host.next_start > when:  # it asked for a pause meanwhile
                    self._leave_queue(host)
                    self._offer(host)
                elif host.failures >= GIVE_UP_AFTER:
                    self._postpone(host, f"its host failed {GIVE_UP_AFTER} times in a row")
                elif when <= now:
                    self._leave_queue(host)
                    if host.running < self._limit(host):
                        return self._start(host, now)
                elif self._is_too_slow(host, when, now):
                    self._postpone(host, "its host asks for longer pauses than this run waits")
                else:
                    self._condition.wait(min(when - now, 1.0))
            self._condition.notify_all()
            return None

    def done(self, job: Job, slug: str | None, *, retry_after: float | None = None, asked: bool = True) -> None:
        """The host has answered, or failed by this cause.

        Args:
            asked: something was asked of it. A url that its robots.txt refuses costs the next one no time.
        """
        with self._condition:
            self._end(job, slug, retry_after, asked)

    def moved(self, job: Job, url: str) -> None:
        """The host sent us elsewhere: the url waits for a turn there."""
        with self._condition:
            self._end(job, None, None, True)
            job.url = url
            job.hops += 1
            self._enqueue(job)

    def crawl_delay(self, url: str, seconds: float) -> None:
        """What the robots.txt of the url's host asks for."""
        seconds *= self._pace.workers
        with self._condition:
            host = self._host(url)
            if seconds <= host.base:
                return
            host.slow = seconds
            host.between = max(host.between, seconds)
            host.next_start = max(host.next_start, self._clock() + host.between)

    def stop(self) -> None:
        """No turns any more."""
        with self._condition:
            self._stopped = True
            self._condition.notify_all()

    def _host(self, url: str) -> Host:
        name = host_of(url)
        host = self._met.get(name)
        if host is None:
            host = self._met[name] = self._hosts.renew(name)
        return host

    def _enqueue(self, job: Job) -> None:
        host = job.host = self._host(job.url)
        host.waiting.append(job)
        self._offer(host)

    def _offer(self, host: Host) -> None:
        """Puts a host into the queue if it may be asked."""
        if host.waiting and host.queued_for is None and not host.asking and host.running < self._limit(host):
            host.queued_for = host.next_start
            heapq.heappush(self._heap, (host.next_start, next(self._order), host))
            self._condition.notify()

    def _leave_queue(self, host: Host) -> None:
        """For the one that stands first."""
        heapq.heappop(self._heap)
        host.queued_for = None

    def _limit(self, host: Host) -> int:
        """Connections at a time."""
        return 1 if host.pauses else max(1, host.connections >> host.failures)

    def _start(self, host: Host, now: float) -> Job:
        job = host.waiting.popleft()
        if not self._is_slow(host):
            self._idle_since = None
        host.running += 1
        self._running += 1
        host.next_start = now + host.between
        host.asking = not self._knows(job.url)
        self._offer(host)
        return job

    def _end(self, job: Job, slug: str | None, retry_after: float | None, asked: bool) -> None:
        host = job.host
        assert host is not None
        host.running -= 1
        self._running -= 1
        host.asking = False
        if not asked and slug not in NET_FAILURES:
            host.next_start = min(host.next_start, self._clock())
            host.queued_for = None
        elif slug in ("http_429", "http_503") or (slug == "robots_unreachable" and retry_after is not None):
            self._pause(host, FIRST_PAUSE_SECONDS * 2**host.pauses if retry_after is None else retry_after)
        elif slug in NET_FAILURES:
            host.failures += 1
        else:
            host.failures = host.pauses = 0
            host.between = max(host.base, host.slow, host.between * 0.8 if host.between > 0.1 else 0.0)
        self._offer(host)
        if not self._running and not self._heap:
            self._condition.notify_all()

    def _pause(self, host: Host, seconds: float) -> None:
        host.pauses = min(host.pauses + 1, 10)
        host.between = max(host.between, min(max(2 * host.between, FIRST_GAP_SECONDS), self._pace.max_pause_seconds))
        host.next_start = max(host.next_start, self._clock() + seconds)

    def _is_slow(self, host: Host) -> bool:
        """It asked for more time between requests than the run leaves by itself."""
        return host.pauses > 0 or host.between > host.base

    def _is_too_slow(self, host: Host, when: float, now: float) -> bool:
        """Asked of the host whose turn comes first: if it is slow, all are."""
        if not self._is_slow(host):
            self._idle_since = None
            return False
        if self._idle_since is None:
            self._idle_since = now
        return when - now > self._pace.max_pause_seconds or now - self._idle_since > self._pace.patience_seconds

    def _postpone(self, host: Host, why: str) -> None:
        self._leave_queue(host)
        self.postponed.extend((job, why) for job in host.waiting)
        host.waiting.clear()


def host_of(url: str) -> str:
    """By what name a host is paced: with its port, unless that is the usual one."""
    parts = urlsplit(url)
    name = parts.hostname or ""
    if ":" in name:
        name = f"[{name}]"
    return name if parts.port in (None, 80, 443) else f"{name}:{parts.port}"
