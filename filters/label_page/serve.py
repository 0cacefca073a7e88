"""Serves the page on 127.0.0.1 until it is stopped, with a link for each person."""

import json
import os
import secrets
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from filters.label_page.desk import Desk
from winnow.errors import ConfigError

HOST = "127.0.0.1"


def serve(desk: Desk, people: Sequence[str], *, port: int, tokens: Path | None, announce: Callable[[str], None]) -> None:
    """Runs until Ctrl-C.

    Args:
        people: who labels; each gets a link of their own, so that nobody answers in another's name.
        tokens: file that keeps the links' tokens, so that open pages go on after a restart; None: new ones each time.
        announce: called with lines for the terminal.

    Raises:
        ConfigError: the port is taken, nobody is named, or the file of tokens cannot be used.
    """
    import uvicorn

    from filters.label_page.app import create_app

    named = tokens_of(people, tokens)
    listening = _listen(port)
    bound = listening.getsockname()[1]
    for token, person in named.items():
        announce(f"{person}: http://{HOST}:{bound}/?token={token}")
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(desk, named),
            log_level="warning",
            access_log=False,  # it would hold the tokens
            server_header=False,
            ws="none",
            lifespan="off",
            timeout_graceful_shutdown=3,
        )
    )
    with listening:
        server.run(sockets=[listening])


def tokens_of(people: Sequence[str], path: Path | None) -> dict[str, str]:
    """token -> person; those in the file stay as they are, missing ones are added to it. Only its owner may read the file."""
    if not people or any(not person.strip() or len(person) > 80 or not person.isprintable() for person in people):
        raise ConfigError("whoever labels needs a name of at most 80 printable characters (--person)")
    try:
        known = json.loads(path.read_text()) if path is not None and path.exists() else {}
        kept = {person: str(known.get(person) or secrets.token_urlsafe(32)) for person in people}
        if path is not None and any(known.get(person) != token for person, token in kept.items()):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f"{path.name}.{os.getpid()}")
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
                json.dump({**known, **kept}, stream)
            os.replace(temporary, path)
    except (OSError, ValueError, AttributeError) as problem:
        raise ConfigError(f"the links' tokens in {path} cannot be read or written: {problem}. Remove the file.") from problem
    return {token: person for person, token in kept.items()}


def _listen(port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
        listening.listen(128)  # now, so that a link opened as soon as it is printed is answered a moment later and not refused
    except OSError as problem:
        listening.close()
        raise ConfigError(f"port {port} of {HOST} cannot be used: {problem.strerror}. Give another one (--port).") from problem
    return listening
