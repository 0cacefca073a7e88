"""How sites say no: robots.txt by RFC 9309, headers for all robots or for ours, reservations of text and data mining."""

import gzip
import socket
import time
import tracemalloc
import zlib
from http.client import HTTPMessage
from typing import Any

import pytest

from tests.raw_server import Reply, serving, silent
from winnow import refusals
from winnow.fetch_failures import FetchError
from winnow.guard import Answer, GuardConfig, GuardedOpener
from winnow.refusals import Origins, RefusalPolicy, Rules, header_refusal, origin_of

DIRECTIVES = ("noai", "noimageai", "noml", "noindex")
SITE = "http://site.example"
PICTURE = f"{SITE}/pictures/a.jpg"


def headers(*lines: tuple[str, str]) -> HTTPMessage:
    message = HTTPMessage()
    for name, value in lines:
        message[name] = value
    return message


class Site(GuardedOpener):
    """Answers from a dict: path -> body, or a cause."""

    def __init__(self, pages: dict[str, str | bytes | FetchError]) -> None:
        super().__init__(GuardConfig())
        self.pages, self.asked = pages, []

    asked: list[str]

    def follow(self, url: str, deadline: float, *, max_bytes: int | None = None) -> Answer:
        path = url.removeprefix(SITE)
        self.asked.append(path)
        page = self.pages.get(path, FetchError("http_404", "Not Found"))
        if isinstance(page, FetchError):
            raise page
        body = page.encode() if isinstance(page, str) else page
        return Answer(url=url, status=200, headers=HTTPMessage(), body=body[:max_bytes])


def verdict(pages: dict[str, Any], url: str = PICTURE, policy: RefusalPolicy | None = None, **answer: str) -> str | None:
    """What becomes of a picture of a site with these pages: None if it is taken."""
    origins = Origins(policy or RefusalPolicy(directives=DIRECTIVES))
    try:
        rules = origins.rules(url, Site(pages))
        origins.check(url, rules)
        origins.check_answer(url, headers(*((name.replace("_", "-"), value) for name, value in answer.items())), rules)
    except FetchError as problem:
        return str(problem)
    return None


ROBOTS: dict[str, tuple[str, bool]] = {
    "empty": ("", True),
    "nothing for anybody": ("User-agent: *\nDisallow: /", False),
    "an empty disallow allows": ("User-agent: *\nDisallow:", True),
    "another path": ("User-agent: *\nDisallow: /private/", True),
    "its path": ("User-agent: *\nDisallow: /pictures/", False),
    "the longest rule wins": ("User-agent: *\nDisallow: /pictures/\nAllow: /pictures/a", True),
    "a rule for us beats one for all": ("User-agent: *\nDisallow: /\n\nUser-agent: winnow\nDisallow: /other/", True),
    "refused to us alone": ("User-agent: WINNOW\nDisallow: /\n\nUser-agent: *\nDisallow:", False),
    "our name with a version": ("User-agent: Winnow/2.0\nDisallow: /", False),
    "another robot": ("User-agent: winnowing\nDisallow: /\nUser-agent: win\nDisallow: /\nUser-agent: a\nDisallow: /", True),
    "one group for several": ("User-agent: other\nUser-agent: winnow\nDisallow: /pictures/", False),
    "groups of one name are one": ("User-agent: winnow\nDisallow: /x\n\nUser-agent: winnow\nDisallow: /pictures", False),
    "wildcards": ("User-agent: *\nDisallow: /*.jpg$", False),
    "wildcards, not to the end": ("User-agent: *\nDisallow: /*.jp$", True),
    "comments, and lines that are none": ("# hello\nUser-agent: * # all\nSitemap: http://x/\nnonsense\nDisallow: /pictures # ours", False),
    "carriage returns and a byte order mark": ("\ufeffUser-agent: *\r\nDisallow: /pictures/\r\n", False),
    "a sitemap between name and rules": ("User-agent: *\nSitemap: http://x/\nDisallow: /pictures/", False),
    "a web page": ("<!doctype html><title>Not here</title>", True),
}


@pytest.mark.parametrize(("robots", "allowed"), ROBOTS.values(), ids=ROBOTS)
def test_robots_txt_is_kept_to(robots: str, allowed: bool) -> None:
    assert verdict({"/robots.txt": robots}) == (None if allowed else "robots: robots.txt disallows it")


@pytest.mark.parametrize(
    ("status", "refusal"), [(404, None), (403, None), (410, None), (401, None), (429, "later"), (500, "later"), (503, "later")]
)
def test_a_missing_robots_txt_allows_all_and_one_that_cannot_be_had_refuses_for_now(status: int, refusal: str | None) -> None:
    found = verdict({"/robots.txt": FetchError(f"http_{status}", "Because")})
    assert found == (f"robots_unreachable: asked for robots.txt: http_{status}: Because" if refusal else None)


@pytest.mark.parametrize("slug", ["timeout", "reset", "incomplete", "bad_response", "redirect_loop"])
def test_a_host_that_does_not_say_refuses_for_now(slug: str) -> None:
    assert str(verdict({"/robots.txt": FetchError(slug, "x")})).startswith("robots_unreachable: ")


@pytest.mark.parametrize("slug", ["dns", "refused", "private_address", "tls"])
def test_a_host_that_no_way_leads_to_fails_by_that_cause(slug: str) -> None:
    assert verdict({"/robots.txt": FetchError(slug, "x")}) == f"{slug}: asked for robots.txt: {slug}: x"


def test_only_the_first_half_megabyte_of_a_robots_txt_counts() -> None:
    filling = "# " + "x" * 100 + "\n"
    early = "User-agent: *\nDisallow: /pictures/\n" + filling * 6_000
    late = "User-agent: *\n" + filling * 6_000 + "Disallow: /pictures/\n"
    assert verdict({"/robots.txt": early}) == "robots: robots.txt disallows it"
    assert verdict({"/robots.txt": late}) is None


def test_a_robots_txt_that_is_made_to_hurt_does_not() -> None:
    # Every robot with every rule would be 400 million of them.
    many = "".join(f"User-agent: r{n}\n" for n in range(20_000)) + "User-agent: *\n" + "".join(f"Disallow: /{n}\n" for n in range(20_000))
    began = time.process_time()
    assert verdict({"/robots.txt": many}) is None
    stars = "User-agent: *\nDisallow: /" + "*a" * 200 + "*b$\n"
    assert verdict({"/robots.txt": stars}, url=f"{SITE}/{'a' * 2_000}") is None
    assert len(refusals._our_groups(many).splitlines()) == 20_001
    assert time.process_time() - began < 30  # not a measurement: without care it never ends


REFUSING = b"User-agent: *\nDisallow: /\n"


def endless(connection: socket.socket, request: bytes) -> None:
    connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + REFUSING)
    while True:
        connection.sendall(b"# and so on\n" * 1_000)


def sent(headers: bytes, body: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.0 %s\r\n%sContent-Length: %d\r\n\r\n" % (status, headers, len(body)) + body


UNREADABLE = "robots_unreachable: asked for robots.txt: bad_response"
SERVED: dict[str, tuple[Reply | bytes, str]] = {
    "endless": (endless, "robots: robots.txt disallows it"),
    "silent": (silent, "robots_unreachable: asked for robots.txt: timeout: "),
    "broken": (sent(b"", b"", b"500 Oh"), "robots_unreachable: asked for robots.txt: http_500: "),
    "leading inside": (sent(b"Location: http://10.0.0.1/\r\n", b"", b"302 F"), "private_address: asked for robots.txt: "),
    "going round": (sent(b"Location: /robots.txt\r\n", b"", b"302 F"), "robots_unreachable: asked for robots.txt: redirect_loop: "),
    "packed unasked": (sent(b"Content-Encoding: gzip\r\n", gzip.compress(REFUSING)), "robots: robots.txt disallows it"),
    "packed otherwise": (sent(b"Content-Encoding: deflate\r\n", zlib.compress(REFUSING)), "robots: robots.txt disallows it"),
    "a bomb": (sent(b"Content-Encoding: gzip\r\n", gzip.compress(REFUSING + bytes(50_000_000), 1)), "robots: robots.txt disallows it"),
    "packed by name only": (
        sent(b"Content-Encoding: gzip\r\n", REFUSING),
        "robots_unreachable: asked for robots.txt: bad_response: it is sent",
    ),
    "packed in an unknown way": (
        sent(b"Content-Encoding: br\r\n", b"x"),
        "robots_unreachable: asked for robots.txt: bad_response: it is sent",
    ),
}


@pytest.mark.parametrize(("reply", "refusal"), SERVED.values(), ids=SERVED)
def test_a_server_that_makes_it_hard_to_read_its_robots_txt_is_heard_or_refused_for_now(reply: Reply | bytes, refusal: str) -> None:
    with serving(reply) as port:
        opener = GuardedOpener(GuardConfig(allow=(f"127.0.0.1:{port}",), timeout_seconds=0.5 if reply is silent else 20))
        origins, url = Origins(RefusalPolicy(tdm=False)), f"http://127.0.0.1:{port}/a.jpg"
        with pytest.raises(FetchError) as caught:
            origins.check(url, origins.rules(url, opener))
    assert str(caught.value).startswith(refusal)


TAGS: dict[str, tuple[list[str], str | None]] = {
    "for all": (["noai"], "noai"),
    "images": (["noimageai"], "noimageai"),
    "machine learning": (["noml"], "noml"),
    "among others, in capitals": (["nofollow, NoAI"], "noai"),
    "in a second header": (["nofollow", "noindex"], "noindex"),
    "for us": (["winnow: noai"], "noai"),
    "for us, in capitals": (["Winnow: nofollow, noml"], "noml"),
    "for another robot": (["otherbot: noai"], None),
    "for another robot, then for us": (["otherbot: noai, winnow: noindex"], "noindex"),
    "for us, then for another": (["winnow: nofollow, otherbot: noai"], None),
    "for all by a star": (["*: noai"], "noai"),
    "a directive with a value is no robot": (["max-snippet: 20, noai"], "noai"),
    "a date with a comma": (["unavailable_after: Wednesday, 25 Jun 2010 15:00:00 PST, noai"], "noai"),
    "others": (["nofollow, nosnippet"], None),
    "nothing": ([], None),
    "garbage": (["::,:,,é"], None),
}


@pytest.mark.parametrize(("lines", "found"), TAGS.values(), ids=TAGS)
def test_an_x_robots_tag_refuses_by_its_directives(lines: list[str], found: str | None) -> None:
    message = headers(*(("X-Robots-Tag", line) for line in lines))
    assert header_refusal(message, DIRECTIVES, tdm=True) == (f"X-Robots-Tag: {found}" if found else None)


def test_directives_that_were_not_chosen_do_not_count() -> None:
    assert header_refusal(headers(("X-Robots-Tag", "noai, noindex")), (), tdm=True) is None
    assert header_refusal(headers(("x-robots-tag", "noai, noindex")), ("noindex",), tdm=True) == "X-Robots-Tag: noindex"


def test_a_reservation_of_data_mining_is_a_refusal_unless_switched_off() -> None:
    assert verdict({}, tdm_reservation="1") == "opt_out: tdm-reservation: 1"
    assert verdict({}, tdm_reservation="0") is None
    assert verdict({}, policy=RefusalPolicy(tdm=False), tdm_reservation="1") is None


RESERVED = '[{"location": "/free/*", "tdm-reservation": 0}, {"location": "/*.jpg$", "tdm-reservation": 1, "tdm-policy": "http://x"}]'


def test_a_tdmrep_file_reserves_paths_and_the_header_overrules_it() -> None:
    pages = {"/.well-known/tdmrep.json": RESERVED}
    assert verdict(pages) == "opt_out: tdm-reservation: 1 in /.well-known/tdmrep.json"
    assert verdict(pages, url=f"{SITE}/free/a.jpg") is None
    assert verdict(pages, url=f"{SITE}/a.png") is None
    assert verdict(pages, tdm_reservation="0") is None


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[1, null]", '[{"location": 3}]', "<html>", "[" * 100_000, '[{"location": "/a\\nDisallow: /"}]'],
    ids=["empty", "object", "numbers", "number", "html", "deep", "two lines"],
)
def test_a_tdmrep_file_that_is_none_reserves_nothing(text: str) -> None:
    assert verdict({"/.well-known/tdmrep.json": text}) is None


def test_an_origin_is_asked_once_and_again_after_a_failure() -> None:
    site, origins = Site({"/robots.txt": FetchError("http_500", "Oh")}), Origins(RefusalPolicy())
    for _ in range(3):
        with pytest.raises(FetchError, match="robots_unreachable"):
            origins.rules(PICTURE, site)
    assert site.asked == ["/robots.txt"]
    site.pages["/robots.txt"] = "User-agent: *\nCrawl-delay: 7\n"
    origins.forget_failures()
    assert not origins.knows(PICTURE)
    assert [origins.rules(PICTURE, site).crawl_delay for _ in range(3)] == [7.0] * 3
    assert origins.knows(f"{SITE}/other.jpg")
    assert not origins.knows("https://site.example/other.jpg")
    assert site.asked == ["/robots.txt", "/robots.txt", "/.well-known/tdmrep.json"]


def test_rules_are_asked_for_again_after_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    site, origins = Site({}), Origins(RefusalPolicy(tdm=False))
    origins.rules(PICTURE, site)
    tomorrow = time.monotonic() + refusals.REMEMBERED_SECONDS + 1
    monkeypatch.setattr(time, "monotonic", lambda: tomorrow)
    assert not origins.knows(PICTURE)
    origins.rules(PICTURE, site)
    assert site.asked == ["/robots.txt"] * 2


def test_what_is_remembered_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "REMEMBERED_BYTES", 10 * refusals.ORIGIN_BYTES)
    site, origins = Site({}), Origins(RefusalPolicy(tdm=False))
    for number in range(50):
        origins.rules(f"http://h{number}.example/", site)
    assert [number for number in range(50) if origins.knows(f"http://h{number}.example/")] == list(range(40, 50))


@pytest.mark.parametrize(
    ("robots", "tdm"),
    [
        ("".join(f"Disallow: /some/path/{n}/\n" for n in range(500)), 0),
        ("".join(f"Allow:/*{n}\n" for n in range(2_000)), 0),
        ("Allow:/" + "*a" * 5_000, 0),
        ("", 500),
    ],
    ids=["usual", "wildcards", "stars", "reservations"],
)
def test_rules_take_no_more_memory_than_is_reckoned(robots: str, tdm: int) -> None:
    Rules("User-agent: *\nDisallow: /", [("/", True)])  # imports and caches
    tracemalloc.start()
    rules = Rules(f"User-agent: *\n{robots}", [("/", True)] * tdm)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken < 1.5 * rules.size
    assert rules.size < 5 * taken


def test_nothing_is_asked_when_nothing_is_honoured() -> None:
    site, origins = Site({"/robots.txt": "User-agent: *\nDisallow: /"}), Origins(RefusalPolicy(robots=False, tdm=False))
    assert origins.knows(PICTURE)
    origins.check(PICTURE, origins.rules(PICTURE, site))
    assert site.asked == []


def test_an_origin_is_scheme_host_and_port() -> None:
    assert origin_of("http://User:pw@Host.example:8080/x?y#z") == "http://host.example:8080"
    assert Rules("").crawl_delay == 0.0
