"""The label page as people use it: in a real browser, by keys and clicks."""

import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from filters.label_batches import find_batch
from filters.label_opinions import answer_of, standing
from filters.label_page.settings import PageConfig
from filters.labels import LabelStore
from tests.label_world import LINES, desk_of, make_batch, make_pictures

ROOT = Path(__file__).resolve().parent.parent
WAIT_MS = 60_000


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    return root, make_pictures(root, rows=10)[1]


class Served:
    """A page's server in a thread, and browsers that look at it."""

    def __init__(self, browser, root, store, **settings):
        import uvicorn

        from filters.label_page.app import create_app

        self.browser, self.store = browser, store
        self.app = create_app(desk_of(store, root, **settings), {"token-of-ada": "ada", "token-of-bob": "bob"})
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.server = uvicorn.Server(uvicorn.Config(self.app, log_level="warning", ws="none", lifespan="off"))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]})
        self.thread.start()
        self.contexts = []

    def open(self, person="ada", first="#stage img", **settings):
        context = self.browser.new_context(**settings)
        self.contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        page.problems = []
        page.on("pageerror", lambda problem: page.problems.append(str(problem)))
        page.on("dialog", lambda dialog: (page.problems.append("dialog"), dialog.dismiss()))
        page.goto(f"{self.url}/?token=token-of-{person}")
        page.wait_for_selector(first)
        return page

    def close(self):
        for context in self.contexts:
            context.close()
        self.server.should_exit = True
        self.thread.join()
        self.socket.close()


@pytest.fixture
def serve(browser, pictures, tmp_path):
    opened = []
    with LabelStore.open(tmp_path / "labels.sqlite") as store:

        def start(mode, *, count=6, overlap=1, filter_name="people", config=None):
            root, uids = pictures
            make_batch(store, uids[:count], mode, filter_name=filter_name, overlap=overlap)
            opened.append(Served(browser, root, store, filter_name=filter_name, config=config))
            return opened[-1]

        yield start
        for served in opened:
            served.close()


def until(page, expression, *arguments):
    """Waits until an expression of the page holds. Playwright's own waiting uses eval, which the page's policy refuses."""
    deadline = time.monotonic() + WAIT_MS / 1000
    while not page.evaluate(expression, *arguments):
        assert time.monotonic() < deadline, f"still not so: {expression}"
        page.wait_for_timeout(15)


def press(page, *keys):
    """Each key when the picture before it has given way to another."""
    for key in keys:
        page.wait_for_selector("#stage img")
        before = page.evaluate("document.querySelector('#stage img')?.src")
        page.evaluate("() => new Promise((then) => requestAnimationFrame(() => requestAnimationFrame(then)))")
        page.keyboard.press(key)
        until(page, "(before) => document.querySelector('#stage img')?.src !== before", before)


def saved(page):
    until(page, "document.querySelector('#saved').textContent === 'all saved'")


def answers(store, filter_name="people"):
    """uid -> person -> answer that stands."""
    found = {}
    for row in standing(store.rows(filter_name)):
        found.setdefault(row.uid, {})[row.person] = answer_of(row)
    return found


def test_each_key_is_an_answer_and_the_store_knows_how_it_was_given(serve, pictures):
    served = serve("query")
    page = served.open()
    page.keyboard.press("z")
    page.keyboard.press("f")
    press(page, "a", "x", "u", " ", "y")
    saved(page)
    rows = served.store.rows("people")
    assert [answer_of(row) for row in rows] == ["yes", "no", "unsure", "skip", "yes"]
    assert [row.uid for row in rows] == pictures[1][:5]
    first = rows[0]
    assert (first.person, first.mode, first.origin, first.batch, first.blur) == ("ada", "query", "random", "one", "off")
    assert first.zoomed and first.flagged and not rows[1].zoomed and not rows[1].flagged
    assert first.seconds > 0 and first.decided_at and len(first.item_digest) == 64
    assert len({row.item_digest for row in rows}) == 5
    assert page.problems == []


def test_a_decision_can_be_taken_back_by_key_and_from_the_strip_after_a_reload(serve, pictures):
    served = serve("query")
    page = served.open()
    press(page, "a", "x", "Backspace", "a", "x")
    saved(page)
    page.reload()
    page.wait_for_selector("#strip li:nth-child(3)")
    page.wait_for_selector("#stage img")
    page.click("#strip li:first-child button")
    press(page, "x")
    saved(page)
    uids = pictures[1]
    assert answers(served.store) == {uids[0]: {"ada": "no"}, uids[1]: {"ada": "yes"}, uids[2]: {"ada": "no"}}
    assert [row.answer for row in served.store.rows("people")].count("undo") == 2
    assert page.problems == []


def test_two_people_at_once_share_the_images_and_neither_gets_the_others(serve, pictures):
    served = serve("query", count=20)
    ada, bob = served.open("ada"), served.open("bob")
    done = "document.querySelector('#screen').textContent.includes('All done')"
    deadline = time.monotonic() + 300
    while not (ada.evaluate(done) and bob.evaluate(done)) and time.monotonic() < deadline:
        for page in (ada, bob):
            page.keyboard.press("x")
    for page in (ada, bob):
        saved(page)
    rows = served.store.rows("people")
    assert len(rows) == 20 and {row.uid for row in rows} == set(pictures[1])
    assert {row.person for row in rows} == {"ada", "bob"}


def test_two_people_get_the_same_images_where_both_are_asked(serve, pictures):
    served = serve("test", overlap=2, count=4, config=PageConfig(min_dwell_ms=0))
    ada, bob = served.open("ada"), served.open("bob")
    for page, keys in ((ada, "axxx"), (bob, "axax")):
        press(page, *keys)
        page.wait_for_selector("text=/All done|Nothing for you/")
        saved(page)
    assert all(set(people) == {"ada", "bob"} for people in answers(served.store).values())
    assert len(served.store.conflicts("people")) == 1
    assert sum(label.value for label in served.store.labels("people")) == 2


def test_captions_of_strangers_are_words_and_nothing_else(serve):
    served = serve("query", count=20)
    page = served.open()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    shown = [page.text_content("#caption")]
    for _ in range(9):
        press(page, "x")
        shown.append(page.text_content("#caption"))
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert shown == [line or "(no caption)" for line in LINES[:10]]
    assert page.evaluate("window.stung") is None
    assert page.query_selector("#caption *") is None
    assert all(url.startswith((served.url, "blob:")) for url in asked)
    assert page.problems == []


def test_a_blind_page_tells_nothing_and_takes_no_hasty_answer(serve):
    served = serve("audit", config=PageConfig(min_dwell_ms=700))
    page = served.open()
    told = page.evaluate(
        """async () => (await (await fetch("/api/claim", {method: "POST", headers: {"content-type": "application/json"},
        body: JSON.stringify({tab: sessionStorage.getItem("winnow-tab"), want: 3})})).json())"""
    )
    assert all(set(item) == {"item", "caption", "reason"} and item["reason"] == "" for item in told["items"])
    assert "positives" not in told["progress"]
    assert page.is_hidden("#caption") and page.is_hidden("#reason")
    page.wait_for_timeout(800)
    press(page, "u")
    page.wait_for_timeout(50)
    page.keyboard.press("x")
    assert "Look for at least" in page.text_content("#nudge")
    page.wait_for_timeout(800)
    press(page, "x")
    saved(page)
    rows = served.store.rows("people")
    assert [(answer_of(row), row.early) for row in rows] == [("unsure", 0), ("no", 1)]
    assert {label.uid: (label.value, label.unsure) for label in served.store.labels("people")} == {
        rows[0].uid: (1, True),
        rows[1].uid: (0, False),
    }


def test_images_that_may_hurt_are_blurred_until_hovered(serve):
    served = serve("query", filter_name="violence")
    page = served.open()
    page.mouse.move(2, 2)
    assert "blur" in page.evaluate("getComputedStyle(document.querySelector('#stage img')).filter")
    press(page, "x")
    page.hover("#stage img")
    until(page, "getComputedStyle(document.querySelector('#stage img')).filter === 'none'")
    page.mouse.move(2, 2)
    press(page, "a")
    saved(page)
    assert [row.blur for row in served.store.rows("violence")] == ["blurred", "revealed"]


def test_a_grid_marks_many_and_its_answers_prove_nothing(serve, pictures):
    served = serve("triage", count=5)
    page = served.open(first=".tile img")
    for key in ("a", "ArrowRight", "x"):
        page.keyboard.press(key)
    page.click(".tile:nth-child(5)")
    page.wait_for_timeout(200)
    page.keyboard.press("Enter")
    page.wait_for_selector("text=/All done|Nothing for you/")
    saved(page)
    uids = pictures[1]
    assert {label.uid: (label.value, label.origin) for label in served.store.labels("people")} == {
        uids[0]: (1, "text_search"),
        uids[2]: (0, "text_search"),
        uids[4]: (1, "text_search"),
    }


def test_reporting_hides_the_image_for_everybody_and_ends_the_session(serve, pictures):
    served = serve("query", config=PageConfig(report_instructions="Call the duty officer."))
    page = served.open()
    page.keyboard.press("Shift+R")
    page.wait_for_selector("#report[open]")
    assert page.is_hidden("#stage img")
    page.keyboard.press("Escape")
    assert page.is_visible("#stage img")
    page.keyboard.press("Shift+R")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Call the duty officer.")
    saved(page)
    assert served.store.blocked() == {pictures[1][0]}
    page.reload()
    page.wait_for_selector("text=Call the duty officer.")
    bob = served.open("bob")
    item = find_item(served.store, pictures[1][0])
    assert bob.evaluate("async (item) => (await fetch(`/picture/${item}/one`)).status", item) == 404
    press(bob, "x")
    saved(bob)
    assert pictures[1][0] not in {label.uid for label in served.store.labels("people")}
    bob.close()
    assert served.open("ada").is_visible("#stage img")


def find_item(store, uid):
    from filters.label_batches import batch_items

    return next(item.item for item in batch_items(store, find_batch(store, "people", "one")) if item.uid == uid)


def test_a_comparison_stores_the_picture_that_won_whatever_its_side(serve):
    served = serve("compare", count=20)
    page = served.open(first="#stage figure:nth-child(2) img")
    expected = []
    for key in itertools.islice(itertools.cycle(["ArrowLeft", "ArrowRight", "t"]), 9):
        left = page.evaluate("document.querySelectorAll('#stage img').length === 2") and page.text_content("#stage figcaption")
        assert left == "Left"
        press(page, key)
        expected.append(key)
    saved(page)
    rows = served.store.rows("people")
    for row, key in zip(rows, expected, strict=True):
        turned = int(find_item(served.store, row.uid)[-1], 16) % 2
        assert row.answer == {"ArrowLeft": "ba"[not turned], "ArrowRight": "ab"[not turned], "t": "tie"}[key]
        assert row.value is None and "+" in row.item_digest


def test_a_break_is_due_after_enough_images_and_a_reload_does_not_help(serve):
    served = serve("query", config=PageConfig(session_images=2))
    page = served.open()
    press(page, "x", "x")
    saved(page)
    page.reload()
    page.wait_for_selector("text=Time for a break")
    assert page.is_hidden("#stage")


def start_server(folder, port):
    command = [sys.executable, "-m", "tests.label_world", str(folder), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ)
    return process, process.stdout.readline().split(": ", 1)[1].strip()


def test_a_killed_server_costs_no_decision_and_doubles_none(browser, tmp_path):
    make_pictures(tmp_path, rows=5)
    with LabelStore.open(tmp_path / "labels.sqlite") as store:
        from tests.label_world import PARTITIONS, _uids
        from winnow.storage import Storage

        uids = [uid for partition in PARTITIONS for uid in _uids(Storage(str(tmp_path)), partition)]
        make_batch(store, uids, "query")
        process, link = start_server(tmp_path, 0)
        port = int(link.split(":")[2].split("/")[0])
        context = browser.new_context()
        try:
            page = context.new_page()
            page.set_default_timeout(WAIT_MS)
            page.goto(link)
            page.wait_for_selector("#stage img")
            press(page, "a", "x")
            saved(page)
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.close()
            press(page, "a", "x", "Backspace")
            page.wait_for_selector("text=3 not saved, offline")
            assert len(store.rows("people")) == 2
            process, again = start_server(tmp_path, port)
            assert again == link
            saved(page)
            press(page, "a", "a")
            saved(page)
            rows = store.rows("people")
            assert [row.answer for row in rows] == ["yes", "no", "yes", "no", "undo", "yes", "yes"]
            assert len({row.idempotency_key for row in rows}) == 7
            assert list(answers(store)) == uids[:5]
        finally:
            context.close()
            process.kill()
            process.wait()
            process.stdout.close()


def test_decisions_made_offline_survive_the_browser_window(serve):
    served = serve("query")
    page = served.open()
    served.contexts[0].set_offline(True)
    press(page, "a", "x")
    page.wait_for_selector("text=2 not saved, offline")
    assert served.store.rows("people") == []
    page.close()
    served.contexts[0].set_offline(False)
    again = served.contexts[0].new_page()
    again.goto(served.url)
    again.wait_for_selector("#stage img")
    deadline = time.monotonic() + 20
    while len(served.store.rows("people")) < 2 and time.monotonic() < deadline:
        again.wait_for_timeout(50)
    assert [row.answer for row in served.store.rows("people")] == ["yes", "no"]
