import http.client
import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict

import pytest
from PIL import Image

from winnow.demo.server import HOST, DemoServer, bomb
from winnow.demo.world import FAULTS, Scene, WorldConfig, make_world, render
from winnow.errors import ConfigError

FAULTY = WorldConfig(num_scenes=400, seed=3, fault_share=0.9)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def server() -> Iterator[DemoServer]:
    with DemoServer(FAULTY, free_port()) as running:
        yield running


def ask(server: DemoServer, path: str, seconds: float = 20) -> tuple[http.client.HTTPResponse, bytes]:
    """One request; redirects are not followed."""
    connection = http.client.HTTPConnection(HOST, server.port, timeout=seconds)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def with_fault(fault: str | None, place: int = 0) -> Scene:
    return [scene for scene in make_world(FAULTY) if scene.fault == fault][place]


def test_every_fault_is_served_by_this_file() -> None:
    # A fault that is added to the world must be added here, too.
    assert set(FAULTS) == {
        "404", "410", "500", "500_once", "429_once", "slow", "trickle", "truncated", "html", "empty", "bomb",
        "redirect_private", "redirect_port", "redirect_loop", "redirect_file",
    }  # fmt: skip


def test_a_sound_url_answers_with_the_rendered_bytes(server: DemoServer) -> None:
    scene = with_fault(None)
    response, body = ask(server, scene.path)
    assert (response.status, body) == (200, render(scene))
    assert response.headers["Content-Type"].startswith("image/")


@pytest.mark.parametrize("status", [404, 410, 500])
def test_a_dead_url_stays_dead(server: DemoServer, status: int) -> None:
    scene = with_fault(str(status))
    assert [ask(server, scene.path)[0].status for _ in range(2)] == [status, status]


def test_a_server_error_is_gone_the_second_time(server: DemoServer) -> None:
    scene = with_fault("500_once")
    assert ask(server, scene.path)[0].status == 500
    response, body = ask(server, scene.path)
    assert (response.status, body) == (200, render(scene))


def test_too_many_requests_says_when_to_come_back_and_then_answers(server: DemoServer) -> None:
    scene = with_fault("429_once")
    response, _ = ask(server, scene.path)
    assert (response.status, response.headers["Retry-After"]) == (429, "1")
    assert ask(server, scene.path)[1] == render(scene)


def test_a_slow_url_takes_over_a_second(server: DemoServer) -> None:
    scene = with_fault("slow")
    began = time.monotonic()
    assert ask(server, scene.path)[1] == render(scene)
    assert time.monotonic() - began > 1


def test_a_trickle_does_not_end_while_one_waits(server: DemoServer) -> None:
    with socket.create_connection((HOST, server.port), timeout=10) as connection:
        connection.sendall(f"GET {with_fault('trickle').path} HTTP/1.0\r\n\r\n".encode())
        began, got = time.monotonic(), b""
        while time.monotonic() - began < 2.5:
            got += connection.recv(4096)
    body = got.split(b"\r\n\r\n", 1)[1]
    assert 1 <= len(body) <= 5


def test_a_truncated_body_is_shorter_than_announced(server: DemoServer) -> None:
    scene = with_fault("truncated")
    with pytest.raises(http.client.IncompleteRead) as problem:
        ask(server, scene.path)
    assert len(problem.value.partial) == len(render(scene)) // 2


def test_html_comes_under_the_type_of_an_image(server: DemoServer) -> None:
    response, body = ask(server, with_fault("html").path)
    assert body.startswith(b"<!doctype html>") and response.headers["Content-Type"] == "image/jpeg"


def test_an_empty_body_is_a_success_without_bytes(server: DemoServer) -> None:
    response, body = ask(server, with_fault("empty").path)
    assert (response.status, body) == (200, b"")


def test_the_bomb_is_a_small_file_of_900_million_pixels(server: DemoServer) -> None:
    _, body = ask(server, with_fault("bomb").path)
    assert len(body) < 200_000
    with pytest.raises(Image.DecompressionBombError, match="900000000 pixels"):
        Image.open(io.BytesIO(body))


def test_a_small_bomb_is_a_valid_picture() -> None:
    with Image.open(io.BytesIO(bomb(64))) as image:
        image.load()
        assert image.size == (64, 64)


def test_redirects_lead_where_a_guard_must_not_follow(server: DemoServer) -> None:
    loop = with_fault("redirect_loop")
    wanted = {
        "redirect_private": "http://169.254.169.254/",
        "redirect_port": f"http://127.0.0.1:{server.port + 1}/",
        "redirect_loop": f"{server.url}{loop.path}",
        "redirect_file": "file:///etc/passwd",
    }
    for fault, start in wanted.items():
        response, _ = ask(server, with_fault(fault).path)
        assert response.status == 302
        assert response.headers["Location"].startswith(start)


def test_a_path_that_is_in_no_list_is_not_found_and_not_counted(server: DemoServer) -> None:
    assert ask(server, "/img/999999.jpg")[0].status == 404
    assert ask(server, "/../../etc/passwd")[0].status == 404
    assert "/img/999999.jpg" not in server.stats()


def test_stats_count_requests_by_path(server: DemoServer) -> None:
    scene = with_fault(None, place=1)
    before = server.stats().get(scene.path, 0)
    for _ in range(3):
        ask(server, scene.path)
    assert server.stats()[scene.path] == before + 3


def test_a_port_in_use_is_refused_with_the_cure() -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(ConfigError, match=rf"port {port} of 127\.0\.0\.1 is in use .*choose another \(--port\)"),
            DemoServer(FAULTY, port),
        ):
            pass


def test_the_port_is_free_again_afterwards() -> None:
    port = free_port()
    for _ in range(2):
        with DemoServer(WorldConfig(num_scenes=3), port) as running:
            assert running.stats() == {}
    assert not answers(port)


def test_the_server_ends_with_its_parent_even_if_that_is_killed() -> None:
    port = free_port()
    code = (
        "import sys, time\n"
        "from winnow.demo.server import DemoServer\n"
        "from winnow.demo.world import WorldConfig\n"
        f"with DemoServer(WorldConfig(**{asdict(WorldConfig(num_scenes=3))!r}), {port}):\n"
        "    print('up', flush=True)\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"up\n"
        assert answers(port)
        os.kill(parent.pid, signal.SIGKILL)
    end = time.monotonic() + 20
    while answers(port) and time.monotonic() < end:
        time.sleep(0.05)
    assert not answers(port)


def answers(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=5).close()
    except OSError:
        return False
    return True
