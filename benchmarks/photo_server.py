"""Serves the JPEGs of a folder from memory, on 127.0.0.1, for the benchmarks of the download: a process of its own.

    python -m benchmarks.photo_server --photos FOLDER [--count 1000] [--tls FOLDER] [--closing]

Prints its port, then one line of the requests it has answered for each line it reads; ends with its standard input. `/n/NAME` answers
the n-th photo whatever the NAME. With --tls it makes a certificate for 127.0.0.1 in FOLDER (cert.pem); with --closing it hangs
up after every answer, as a server that each url has to itself would.
"""

import argparse
import asyncio
import datetime
import ipaddress
import ssl
import sys
from pathlib import Path


def certificate(folder: Path) -> Path:
    """A certificate for 127.0.0.1 with its key, in cert.pem."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "photos")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "cert.pem"
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + private)
    return path


class Photos(asyncio.Protocol):
    """HTTP as far as it takes: GET, one request after the other."""

    photos: list[bytes]
    delay_seconds: float
    closing: bool
    answered = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.buffer = transport, b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while b"\r\n\r\n" in self.buffer:
            head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
            path = head.split(b" ", 2)[1].decode()
            if self.delay_seconds:
                asyncio.get_running_loop().call_later(self.delay_seconds, self.answer, path)
            else:
                self.answer(path)

    def answer(self, path: str) -> None:
        number = path.split("/")[1]
        keep = b"Connection: close\r\n" if self.closing else b""
        if number.isdecimal():
            Photos.answered += 1
            body = self.photos[int(number) % len(self.photos)]
            head = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n" + keep + b"Content-Length: %d\r\n\r\n" % len(body)
        else:
            body, head = b"", b"HTTP/1.1 404 Not Found\r\n" + keep + b"Content-Length: 0\r\n\r\n"
        self.transport.write(head + body)  # type: ignore[attr-defined]  # of a socket: a transport that writes
        if self.closing:
            self.transport.close()


async def serve(port: int, tls: ssl.SSLContext | None) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Photos, "127.0.0.1", port, ssl=tls, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    while await loop.run_in_executor(None, sys.stdin.readline):
        print(Photos.answered, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--count", type=int, default=1_000)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--tls", type=Path)
    parser.add_argument("--closing", action="store_true")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before each answer")
    arguments = parser.parse_args()
    Photos.photos = [path.read_bytes() for path in sorted(arguments.photos.rglob("*.jpg"))[: arguments.count]]
    Photos.closing, Photos.delay_seconds = arguments.closing, arguments.delay
    tls = None
    if arguments.tls:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate(arguments.tls))
    asyncio.run(serve(arguments.port, tls))


if __name__ == "__main__":
    main()
