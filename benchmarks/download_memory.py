"""The most memory that a download worker takes when every url answers with as many bytes as it may.

    .venv/bin/python -m benchmarks.download_memory --folder /tmp/memory

The server, a process of its own, answers each request with 19.9 MB that begin like a JPEG.
"""

import argparse
import resource
import shutil
import socketserver
import sys
from pathlib import Path

from benchmarks.download import Child, ours

BODY_BYTES = 19_900_000


class Large(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        body = b"\xff\xd8\xff" + bytes(BODY_BYTES)
        try:
            while request := self.request.recv(65536):
                if b".jpg" in request:
                    self.request.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                else:
                    self.request.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        except ConnectionError:
            return  # the client had enough


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--count", type=int, default=100, help="urls")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        with Server(("127.0.0.1", 0), Large) as server:
            print(server.server_address[1], flush=True)
            server.serve_forever()
        return
    if arguments.folder is None:
        sys.exit("give a folder to write to: --folder")
    server_process = Child("benchmarks.download_memory", "--serve")
    base = f"http://127.0.0.1:{server_process.read()[0]}"
    shutil.rmtree(arguments.folder, ignore_errors=True)
    arguments.folder.mkdir(parents=True)
    try:
        downloaded = ours([f"{base}/{number}/x.jpg" for number in range(arguments.count)], arguments.folder)
    finally:
        server_process.close()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{arguments.count} bodies of {BODY_BYTES:,} bytes, {downloaded} of them images: {most:.0f} MB at most")


if __name__ == "__main__":
    main()
