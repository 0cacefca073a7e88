"""The label page's server: who may ask, what is told, which pictures leave."""

import asyncio
import io
import json
import socket
import stat

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from filters.label_batches import batch_items, find_batch
from filters.label_page.app import STATIC, create_app
from filters.label_page.breaks import Limits, session_at
from filters.label_page.pictures import PictureMissing, Pictures
from filters.label_page.serve import _listen, tokens_of
from filters.label_page.settings import PageConfig
from filters.labels import LabelStore
from tests.label_world import PARTITIONS, desk_of, make_batch, make_pictures
from winnow.errors import ConfigError, ShardError
from winnow.tars import TarWriter, find_members, read_members

HOST = "127.0.0.1:8741"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    storage, uids = make_pictures(root, rows=6)
    return root, storage, uids


@pytest.fixture
def page(pictures, tmp_path):
    """Sends requests to the page; `page(method, path, person="ada", ...)`."""
    root, _, uids = pictures
    with LabelStore.open(tmp_path / "labels.sqlite") as store:
        make_batch(store, uids, "query")
        app = create_app(desk_of(store, root), {"t-ada": "ada", "t-bob": "bob"})

        def ask(method, path, *, person="ada", host=HOST, headers=None, app=app, **more):
            async def send():
                transport = httpx.ASGITransport(app=app)
                async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
                    cookie = {"cookie": f"winnow_label_8741=t-{person}"} if person else {}
                    return await client.request(method, path, headers={**cookie, **(headers or {})}, **more)

            return asyncio.run(send())

        ask.store = store
        yield ask


def post(page, path, body, *, origin=f"http://{HOST}", **more):
    return page("POST", path, json=body, headers={"origin": origin} if origin else {}, **more)


def test_the_link_becomes_a_cookie_that_scripts_cannot_read_and_other_sites_do_not_send(page):
    answer = page("GET", "/?token=t-ada", person=None)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert answer.headers["set-cookie"] == "winnow_label_8741=t-ada; HttpOnly; SameSite=Strict; Path=/"
    assert page("GET", "/", person=None).status_code == 401
    assert page("GET", "/?token=guess", person=None).status_code == 401
    assert page("GET", "/", person="guess").status_code == 401
    assert page("GET", "/").text.startswith("<!doctype html>")


@pytest.mark.parametrize("path", ["/api/session", "/static/page.js", "/example/0", "/picture/x/one"])
def test_nothing_is_told_without_the_cookie(page, path):
    answer = page("GET", path, person=None)
    assert answer.status_code == 401 and "Open that link again" in answer.text


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8741", "127.0.0.1.evil.example:8741", "10.0.0.7:8741"])
def test_a_foreign_name_for_this_machine_is_refused(page, host):
    assert page("GET", "/", host=host).status_code == 421


@pytest.mark.parametrize("origin", [None, "null", "http://evil.example", "http://127.0.0.1:9999", f"https://{HOST}"])
def test_another_page_can_change_nothing(page, origin):
    body = {"tab": "tab-12345678", "want": 3}
    assert post(page, "/api/claim", body, origin=origin).status_code == 403
    assert post(page, "/api/claim", body).status_code == 200


def test_every_answer_carries_the_strict_policy(page):
    for answer in (page("GET", "/"), page("GET", "/api/session"), page("GET", "/", person=None), page("GET", "/no-such-thing")):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self';" in policy and "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["cache-control"] == "no-store"


def test_the_page_asks_for_nothing_from_outside_and_has_no_script_within():
    text = (STATIC / "index.html").read_text()
    assert "<script>" not in text and "style=" not in text and " onclick" not in text
    for file in STATIC.iterdir():
        content = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in content and "https://" not in content, file.name
        assert "innerHTML" not in content and "insertAdjacentHTML" not in content and "eval(" not in content, file.name


@pytest.mark.parametrize("path", ["/static/../page.js", "/static/%2e%2e%2fapp.py", "/static/app.py"])
def test_only_the_pages_own_files_are_served(page, path):
    assert page("GET", path).status_code == 404


@pytest.mark.parametrize(
    "broken",
    [{"answer": "maybe"}, {"key": "short"}, {"seconds": -1}, {"more": 1}, {"seconds": "x"}, {"blur": "very"}, {"key": "k" * 65}],
)
def test_a_decision_of_another_form_is_refused(page, broken):
    item = post(page, "/api/claim", {"tab": "tab-12345678", "want": 1}).json()["items"][0]["item"]
    decision = {"key": "key-12345678", "item": item, "answer": "yes", "seconds": 1.0}
    assert post(page, "/api/decisions", {"decisions": [decision | broken]}).status_code == 422
    assert post(page, "/api/decisions", {"decisions": [decision]}).json() == {"saved": ["key-12345678"], "refused": {}}
    assert len(page.store.rows("people")) == 1


def test_people_are_who_their_link_says_they_are(page):
    for person in ("ada", "bob"):
        item = post(page, "/api/claim", {"tab": "tab-12345678", "want": 1}, person=person).json()["items"][0]["item"]
        post(
            page, "/api/decisions", {"decisions": [{"key": f"key-{person}-123", "item": item, "answer": "no", "seconds": 1}]}, person=person
        )
    assert [row.person for row in page.store.rows("people")] == ["ada", "bob"]
    assert page("GET", "/api/session", person="bob").json()["person"] == "bob"


def test_a_picture_leaves_as_a_new_small_jpeg_without_its_metadata(pictures, page, tmp_path):
    _, storage, uids = pictures
    batch = find_batch(page.store, "people", "one")
    item = batch_items(page.store, batch)[0]
    answer = page("GET", f"/picture/{item.item}/one?size=100")
    assert answer.headers["content-type"] == "image/jpeg"
    assert max(Image.open(io.BytesIO(answer.content)).size) == 100
    own = Pictures(storage, PARTITIONS, uids)
    assert answer.content != own.stored(f"uid:{item.uid}")
    secret = Image.fromarray(np.zeros((40, 80, 3), np.uint8))
    exif = Image.Exif()
    exif[0x010E] = "where and when it was taken"
    secret.save(tmp_path / "secret.jpg", exif=exif)
    curated = Pictures(storage, PARTITIONS, [], files={"c": tmp_path / "secret.jpg"})
    assert b"where and when" in curated.stored("uid:c") and b"where and when" not in curated.jpeg("uid:c", 500)
    assert Image.open(io.BytesIO(curated.jpeg("uid:c", 500))).size == (80, 40)  # never made larger


@pytest.mark.parametrize("reference", ["file:../labels.sqlite", "file:/etc/passwd", "file:a/../../b", "file:nothing.png", "uid:nobody"])
def test_what_is_no_picture_of_the_workspace_is_not_shown(pictures, reference):
    with pytest.raises(PictureMissing):
        Pictures(pictures[1], PARTITIONS, pictures[2]).jpeg(reference, 100)


def test_a_picture_that_cannot_be_decoded_says_so(pictures, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff but no picture")
    own = Pictures(pictures[1], PARTITIONS, [], files={"bad": tmp_path / "bad.jpg"})
    with pytest.raises(PictureMissing, match="cannot be decoded"):
        own.jpeg("uid:bad", 100)
    assert own.sha256("uid:bad") and own.sha256("uid:nobody") is None


def test_members_are_found_where_reading_finds_them(tmp_path):
    tar = io.BytesIO()
    writer = TarWriter(tar)
    contents = {f"{i}.txt": bytes(range(i % 7)) * (200 * i) for i in range(12)}
    for name, data in contents.items():
        writer.add(name, data)
    writer.close()
    (tmp_path / "a.tar").write_bytes(tar.getvalue())
    with open(tmp_path / "a.tar", "rb") as stream:
        places = list(find_members(stream, "a.tar"))
    assert (
        {name: tar.getvalue()[start : start + size] for name, start, size in places} == contents == dict(read_members(tmp_path / "a.tar"))
    )
    with pytest.raises(ShardError, match="it ends after"):
        list(find_members(io.BytesIO(tar.getvalue()[:9000]), "a.tar"))


LIMITS = Limits(images=3, seconds=100.0, break_seconds=30.0)


@pytest.mark.parametrize(
    ("times", "at", "images", "rest_until"),
    [
        ([], 0, 0, None),
        ([10, 12], 15, 2, None),
        ([10, 12, 14], 15, 3, 44.0),
        ([10, 12, 14], 44, 0, None),
        ([1, 50, 52], 53, 2, None),
        ([10, 39], 111, 0, None),
        ([10, 39, 60], 85, 3, 90.0),
    ],
)
def test_a_break_is_due_after_enough_images_and_ends_the_session(times, at, images, rest_until):
    found = session_at(times, LIMITS, at)
    assert (found.images, found.rest_until) == (images, rest_until)


@given(st.lists(st.floats(0, 1000), max_size=12), st.floats(1000, 1200))
def test_a_rest_is_never_longer_than_a_break(times, at):
    found = session_at(sorted(times), LIMITS, at)
    assert found.rest_until is None or at < found.rest_until <= at + LIMITS.break_seconds


def test_the_time_of_a_session_ends_it_too():
    assert session_at([0, 25, 50, 75, 99], Limits(images=100, seconds=100, break_seconds=30), 101).rest_until == 129


def test_links_stay_the_same_after_a_restart_and_only_their_owner_can_read_them(tmp_path):
    path = tmp_path / "labels" / "tokens.json"
    first = tokens_of(["ada", "bob"], path)
    assert tokens_of(["bob", "eve"], path) | first == first | {t: p for t, p in tokens_of(["eve"], path).items()}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert all(len(token) > 40 for token in first) and len(first) == 2
    assert tokens_of(["ada"], None) != tokens_of(["ada"], None)
    path.write_text("[")
    with pytest.raises(ConfigError, match=r"tokens.json cannot be read or written: .* Remove the file"):
        tokens_of(["ada"], path)
    with pytest.raises(ConfigError, match="needs a name of at most 80 printable characters"):
        tokens_of(["a\nb"], None)


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} of 127.0.0.1 cannot be used: .* Give another one \(--port\)"):
            _listen(port)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"session_images": 0}, "session_images must be more than 0"),
        ({"min_dwell_ms": -1}, "min_dwell_ms must be 0 or more"),
        ({"image_px": 10}, "image_px must be between 64 and 8000"),
        ({"report_instructions": " "}, "must say whom to tell"),
    ],
)
def test_settings_that_cannot_be_are_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        PageConfig(**setting)


def test_a_session_tells_a_blind_page_nothing_that_could_sway(pictures, tmp_path):
    root, _, uids = pictures
    with LabelStore.open(tmp_path / "labels.sqlite") as store:
        make_batch(store, uids, "calibrate")
        desk = desk_of(store, root)
        told = json.dumps([desk.session("ada"), desk.claim("ada", "tab-12345678", want=5)])
    assert not any(word in told for word in ("boundary", "random", "expected", "positives", "curve", *uids))
