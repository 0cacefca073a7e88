"""A web server on 127.0.0.1 for tests of downloads: it serves a folder, remembers what was asked, and may break off."""

import contextlib
import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path


class FileServer:
    """Serves the files of `folder` at `url`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.requests: list[str] = []
        self.cut_at: int | None = None
        """Bytes after which an answer breaks off, whatever its length was said to be."""
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append(self.path)
                path = folder / self.path.lstrip("/")
                if not path.is_file():
                    self.send_error(404)
                    return
                content = path.read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: server.cut_at])

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def copy(self, *files: Path) -> None:
        for file in files:
            shutil.copyfile(file, self.folder / file.name)

    def stop(self) -> None:
        """From here on nobody answers at `url`."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[FileServer]:
    server = FileServer(folder)
    try:
        yield server
    finally:
        if server._thread.is_alive():
            server.stop()
