"""Whose turn it is: hosts interleave, none is asked too often, and one that wants rest does not hold up the others."""

import itertools
import threading
import time
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.turns import FIRST_GAP_SECONDS, GIVE_UP_AFTER, Hosts, Job, Pace, Turns, host_of


class Clock:
    """A clock that moves only when the test says so, or when a turn waits for it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def jobs(*urls: str) -> list[Job]:
    return [Job(row=url, url=url, seconds_left=1.0) for url in urls]


def turns_of(*urls: str, hosts: Hosts | None = None, knows: Any = lambda url: True, **pace: Any) -> tuple[Turns, Clock]:
    clock = Clock()
    found = Turns(hosts or Hosts(Pace(**{"connections": 2, **pace})), jobs(*urls), knows=knows, clock=clock)

    def wait(seconds: float | None = None) -> bool:
        assert seconds is not None
        clock.now += seconds
        return True

    found._condition.wait = wait  # type: ignore[method-assign]  # a turn that waits lets the time pass
    return found, clock


def take(turns: Turns) -> Job:
    job = turns.take()
    assert job is not None
    return job


def test_hosts_take_turns_however_the_list_is_sorted() -> None:
    turns, _ = turns_of(*(f"http://a/{n}" for n in range(4)), "http://b/0", "http://c/0", connections=9)
    assert [take(turns).url for _ in range(6)] == ["http://a/0", "http://b/0", "http://c/0", "http://a/1", "http://a/2", "http://a/3"]


def test_a_host_has_so_many_connections_and_no_more() -> None:
    turns, _ = turns_of("http://a/0", "http://a/1", "http://a/2", "http://b/0")
    first = [take(turns) for _ in range(3)]
    assert [job.url for job in first] == ["http://a/0", "http://b/0", "http://a/1"]
    turns.done(first[0], None)
    assert take(turns).url == "http://a/2"


def test_requests_to_one_host_begin_so_far_apart() -> None:
    turns, clock = turns_of(*(f"http://a/{n}" for n in range(3)), "http://b/0", seconds_between=2.0, connections=9)
    began = [(take(turns).url, clock.now - 1000) for _ in range(4)]
    assert began == [("http://a/0", 0), ("http://b/0", 0), ("http://a/1", 2), ("http://a/2", 4)]


def test_the_runs_own_addresses_are_asked_as_fast_as_they_answer() -> None:
    turns, clock = turns_of(*(f"http://127.0.0.1:8/{n}" for n in range(9)), seconds_between=2.0, own=("127.0.0.1:8",))
    assert [take(turns) and clock.now for _ in range(9)] == [1000.0] * 9


def test_after_429_a_host_gets_the_pause_it_asks_for_and_others_go_on() -> None:
    turns, clock = turns_of("http://a/0", "http://a/1", "http://b/0")
    turns.done(take(turns), "http_429", retry_after=30.0)
    assert take(turns).url == "http://b/0"
    assert (take(turns).url, clock.now) == ("http://a/1", 1030.0)


def test_pauses_that_nobody_measured_grow_and_an_answer_ends_them() -> None:
    turns, clock = turns_of(*(f"http://a/{n}" for n in range(6)))
    waited = []
    for slug in ("http_429", "http_503", "http_429", None):
        before = clock.now
        job = take(turns)
        waited.append(clock.now - before)
        turns.done(job, slug)
    assert waited == [0.0, 1.0, 2.0, 4.0]
    before = clock.now
    take(turns)
    assert 0 < clock.now - before <= 8 * FIRST_GAP_SECONDS  # no pause any more, but some room between requests yet


def test_a_host_that_asks_for_too_long_a_pause_is_left_for_a_later_run() -> None:
    turns, clock = turns_of("http://a/0", "http://a/1", "http://a/2", "http://b/0", max_pause_seconds=60)
    turns.done(take(turns), "http_503", retry_after=3600)
    turns.done(take(turns), None)
    assert turns.take() is None
    assert [(job.url, why) for job, why in turns.postponed] == [
        (f"http://a/{n}", "its host asks for longer pauses than this run waits") for n in (1, 2)
    ]
    assert clock.now < 1001


def test_patience_with_slow_hosts_ends_when_nothing_else_is_left() -> None:
    turns, clock = turns_of(*(f"http://a/{n}" for n in range(100)), patience_seconds=100, connections=1)
    asked = take(turns)
    turns.crawl_delay("http://a/", 10.0)
    turns.done(asked, None)
    served = 1
    while (job := turns.take()) is not None:
        turns.done(job, None)
        served += 1
    assert 10 <= served <= 12
    assert served + len(turns.postponed) == 100
    assert 100 <= clock.now - 1000 <= 120


def test_a_crawl_delay_is_meant_for_all_workers_together() -> None:
    turns, clock = turns_of("http://a/0", "http://a/1", workers=4)
    job = take(turns)
    turns.crawl_delay("http://a/0", 5.0)
    turns.done(job, None)
    take(turns)
    assert clock.now - 1000 == 20.0


def test_what_a_host_asked_for_stands_in_the_next_pass() -> None:
    hosts = Hosts(Pace())
    first, _ = turns_of("http://a/0", hosts=hosts)
    first.done(take(first), "http_429", retry_after=25.0)
    second, clock = turns_of("http://a/0", hosts=hosts)
    take(second)
    assert clock.now - 1000 == 25.0


def test_a_host_that_fails_gets_fewer_connections_and_is_given_up_at_last() -> None:
    turns, _ = turns_of(*(f"http://a/{n}" for n in range(30)), "http://b/0", connections=4)
    running = [take(turns), take(turns)]  # a/0, b/0
    turns.done(running[0], "timeout")
    turns.done(running[1], None)
    two = [take(turns), take(turns)]  # two at a time now, of four
    assert [job.url for job in two] == ["http://a/1", "http://a/2"]
    for job in two:
        turns.done(job, "timeout")
    asked = 3
    while (following := turns.take()) is not None:
        turns.done(following, "reset")
        asked += 1
    assert asked == GIVE_UP_AFTER
    assert {why for _, why in turns.postponed} == {f"its host failed {GIVE_UP_AFTER} times in a row"}
    assert len(turns.postponed) == 30 - GIVE_UP_AFTER


def test_while_a_host_is_asked_for_its_rules_nothing_else_is_asked_of_it() -> None:
    known: set[str] = set()
    turns, _ = turns_of("http://a/0", "http://a/1", "http://b/0", knows=lambda url: host_of(url) in known, connections=9)
    job, other = take(turns), take(turns)
    assert (job.url, other.url) == ("http://a/0", "http://b/0")
    known.add("a")
    turns.done(job, "robots", asked=False)
    assert take(turns).url == "http://a/1"


def test_urls_that_nothing_was_asked_for_cost_no_time() -> None:
    turns, clock = turns_of(*(f"http://a/{n}" for n in range(50)), seconds_between=5.0)
    for _ in range(50):
        turns.done(take(turns), "robots", asked=False)
    assert (turns.take(), clock.now) == (None, 1000.0)


def test_a_redirect_waits_for_its_turn_at_the_host_it_leads_to() -> None:
    turns, clock = turns_of("http://a/0", "http://b/0", seconds_between=3.0)
    job = take(turns)
    take(turns)
    turns.moved(job, "http://b/1")
    assert (take(turns), job.url, job.hops, clock.now) == (job, "http://b/1", 1, 1003.0)


def test_a_stop_ends_all_waiting() -> None:
    turns = Turns(Hosts(Pace(connections=1)), jobs("http://a/0", "http://a/1"), knows=lambda url: True)
    take(turns)
    ended: list[Job | None] = []
    threads = [threading.Thread(target=lambda: ended.append(turns.take())) for _ in range(3)]
    for thread in threads:
        thread.start()
    turns.stop()
    for thread in threads:
        thread.join(10)
    assert ended == [None] * 3


@given(
    urls=st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 9)), max_size=40),
    fates=st.lists(st.sampled_from([None, "http_404", "http_429", "timeout", "moved", "robots"]), min_size=1, max_size=20),
)
@settings(max_examples=60, deadline=None)
def test_every_url_has_exactly_one_end_whatever_happens(urls: list[tuple[str, int]], fates: list[str | None]) -> None:
    wanted = [f"http://{host}/{number}/{position}" for position, (host, number) in enumerate(urls)]
    turns, _ = turns_of(*wanted)
    ended: Counter[str] = Counter()
    for fate in itertools.cycle(fates):
        job = turns.take()
        if job is None:
            break
        if fate == "moved" and job.hops < 2:
            turns.moved(job, job.url.replace("//", "//d.", 1))
            continue
        turns.done(job, "http_404" if fate == "moved" else fate, asked=fate != "robots")
        ended[job.row] += 1
    ended.update(job.row for job, _ in turns.postponed)
    assert ended == Counter(wanted)


def test_many_threads_share_the_turns_without_loss() -> None:
    wanted = [f"http://{'abcdefgh'[n % 8]}/{n}" for n in range(400)]
    turns = Turns(Hosts(Pace(connections=2)), jobs(*wanted), knows=lambda url: True)
    running: Counter[str] = Counter()
    most: Counter[str] = Counter()
    ended: list[str] = []
    lock = threading.Lock()

    def work() -> None:
        while (job := turns.take()) is not None:
            with lock:
                running[host_of(job.url)] += 1
                most[host_of(job.url)] = max(most[host_of(job.url)], running[host_of(job.url)])
            time.sleep(0.0002)
            with lock:
                running[host_of(job.url)] -= 1
                ended.append(job.row)
            turns.done(job, None)

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(ended) == sorted(wanted)
    assert max(most.values()) == 2


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://A.example/x", "a.example"),
        ("https://a.example:443/", "a.example"),
        ("http://a:8080/", "a:8080"),
        ("http://[::1]:9/", "[::1]:9"),
    ],
)
def test_a_host_is_the_same_for_both_schemes_and_has_its_port(url: str, host: str) -> None:
    assert host_of(url) == host
