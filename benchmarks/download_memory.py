"""The most memory that a download worker takes when every url answers with what takes most.

    .venv/bin/python -m benchmarks.download_memory --folder /tmp/memory

A process for each kind of answer, and a server of its own. Pictures are as large as may be decoded (`max_decoding_bytes`).

    small        JPEGs of 64 x 64 pixels: what a worker takes anyway
    bodies       19.9 MB that begin like a JPEG
    turned       photos of 9.9 megapixels that have to be turned
    transparent  PNGs of 9.9 megapixels
    webp         WebPs of 4.9 megapixels
    both         PNGs of 19.8 megapixels and 15 MB
"""

import argparse
import io
import resource
import shutil
import socketserver
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.download import Child, ours


def encoded(mode: str, size: tuple[int, int], form: str, **options: Any) -> bytes:
    from PIL import Image

    sink = io.BytesIO()
    Image.new(mode, size).save(sink, form, **options)
    return sink.getvalue()


def turned() -> bytes:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded("RGB", (3_960, 2_500), "JPEG", exif=exif)


def large_in_both_ways() -> bytes:
    """A PNG whose first rows are noise."""
    import numpy as np
    from PIL import Image

    pixels = np.zeros((3_960, 5_000, 3), np.uint8)
    pixels[:1_000] = np.random.default_rng(0).integers(0, 256, (1_000, 5_000, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG", compress_level=1)
    return sink.getvalue()


BODIES: dict[str, Callable[[], bytes]] = {
    "small": lambda: encoded("RGB", (64, 64), "JPEG"),
    "bodies": lambda: b"\xff\xd8\xff" + bytes(19_900_000),
    "turned": turned,
    "transparent": lambda: encoded("RGBA", (3_960, 2_500), "PNG"),
    "webp": lambda: encoded("RGB", (2_450, 2_020), "WEBP", method=0),
    "both": large_in_both_ways,
}


class Answering(socketserver.BaseRequestHandler):
    body: bytes

    def handle(self) -> None:
        try:
            while request := self.request.recv(65536):
                if b".jpg" in request:
                    self.request.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(self.body) + self.body)
                else:
                    self.request.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        except ConnectionError:
            return  # the client had enough


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 128


def serve(kind: str) -> None:
    Answering.body = BODIES[kind]()
    with Server(("127.0.0.1", 0), Answering) as server:
        print(server.server_address[1], len(Answering.body), flush=True)
        server.serve_forever()


def measure(kind: str, folder: Path, count: int) -> None:
    server = Child("benchmarks.download_memory", "--serve", kind)
    port, size = server.read()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        downloaded = ours([f"http://127.0.0.1:{port}/{number}/x.jpg" for number in range(count)], folder)
    finally:
        server.close()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{kind:<12} {count} of {int(size):,} bytes, {downloaded} of them images: {most:.0f} MB at most", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--count", type=int, default=100, help="urls")
    parser.add_argument("--kind", choices=BODIES, help="this one only")
    parser.add_argument("--serve", choices=BODIES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
    elif arguments.folder is None:
        sys.exit("give a folder to write to: --folder")
    elif arguments.kind:
        measure(arguments.kind, arguments.folder, arguments.count)
    else:
        for kind in BODIES:  # each in a process of its own: the most that a process ever took is never less again
            options = ("--folder", str(arguments.folder), "--count", str(arguments.count), "--kind", kind)
            subprocess.run([sys.executable, "-m", "benchmarks.download_memory", *options], check=True)


if __name__ == "__main__":
    main()
