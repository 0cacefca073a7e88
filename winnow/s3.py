"""What is peculiar to S3 and to stores that speak its protocol: listings by page, conditional writes, uploads in parts.

s3fs tries a request again (TRIES times in all, with 17 s of pauses) and botocore below it does not: two layers of tries multiply,
and a silent server would hold a run for minutes. The deadline above both is in winnow/object_store.py.
"""

import asyncio
import contextlib
import os
import uuid
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from typing import Any, cast

import aiohttp
import botocore.exceptions
import s3fs
import s3fs.core
from fsspec.asyn import sync

from winnow.errors import ConfigError, StorageError
from winnow.object_store import READS_AT_A_TIME, Found, ObjectStore, error_code, operation_seconds

TRIES = 9
"""Of one request; the pauses between them grow from 0.1 to 4 s."""
PART_BYTES = 16 * 1024 * 1024
"""Files of more than two parts are uploaded in parts of this size."""
PARTS_AT_A_TIME = 4
"""Parts in memory at once, in each worker."""
MAX_PARTS = 10_000
"""The protocol's limit."""
PASSING = frozenset({"500", "502", "503", "504", "InternalError", "RequestTimeout", "ServiceUnavailable", "SlowDown", "Throttling"})
REFUSED = frozenset({"PreconditionFailed", "412", "ConditionalRequestConflict", "409", "NoSuchKey", "404"})
"""Answers to a conditional write whose condition does not hold (any more)."""
PROBE = ".probe-"


def passes(problem: BaseException) -> bool:
    """Whether trying the same request again may help, beyond what s3fs knows of that."""
    if isinstance(problem, botocore.exceptions.ClientError):
        status = problem.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status >= 500 or status == 429 or problem.response.get("Error", {}).get("Code") in PASSING
    return isinstance(problem, botocore.exceptions.ConnectionError | aiohttp.ClientError | ConnectionError)


def open_s3(url: str) -> "S3Store":
    """Address, region and credentials come from the environment and files that botocore knows (AWS_*).

    Raises:
        ConfigError: the address is no url.
    """
    for variable in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if not os.environ.get(variable, "http://").startswith(("http://", "https://")):
            raise ConfigError(f"{variable} must be a url (https://store.example.org), got {os.environ[variable]!r}")
    s3fs.core.set_custom_error_handler(passes)  # one for the process: every S3 filesystem here is of this module
    seconds = operation_seconds()
    filesystem = s3fs.S3FileSystem(
        use_listings_cache=False,
        max_concurrency=PARTS_AT_A_TIME,
        default_block_size=PART_BYTES,
        config_kwargs={
            "connect_timeout": min(5.0, seconds / 4),
            "read_timeout": min(10.0, seconds / 4),
            "retries": {"total_max_attempts": 1},
            "max_pool_connections": READS_AT_A_TIME,
        },
    )
    filesystem.retries = TRIES
    return S3Store(url, filesystem, filesystem._strip_protocol(url).rstrip("/"))


class S3Store(ObjectStore):
    """A folder of an S3 bucket."""

    faults = (OSError, TimeoutError, botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError, aiohttp.ClientError)

    def list_files(self, folder: str, *, deep: bool) -> list[str]:
        bucket, key = _split(folder)
        settings = {"Bucket": bucket, "Prefix": f"{key}/" if key else "", "Delimiter": "" if deep else "/"}
        found: list[str] = []
        while True:  # each page has a deadline of its own: there may be any number of them
            page = self._request("list_objects_v2", f"listing {folder}", **settings)
            found += [f"{bucket}/{entry['Key']}" for entry in page.get("Contents", ()) if not entry["Key"].endswith("/")]
            if not page.get("IsTruncated"):
                return found
            settings["ContinuationToken"] = page["NextContinuationToken"]

    def find(self, path: str) -> Found | None:
        bucket, key = _split(path)
        try:
            found = self._request("head_object", f"looking at {path}", Bucket=bucket, Key=key)
        except FileNotFoundError:
            return None
        return Found(size=int(found["ContentLength"]), etag=found["ETag"])

    def read(self, path: str, *, num_bytes: int = 0) -> bytes:
        # s3fs would ask for the size first, to read in parallel: twice the requests for files that are mostly small.
        return cast(bytes, self.call(f"reading {path}", "cat_file", path, max_concurrency=1, num_bytes=num_bytes))

    def read_many(self, paths: Sequence[str]) -> list[bytes]:
        found: list[bytes] = []
        for start in range(0, len(paths), READS_AT_A_TIME):
            batch = paths[start : start + READS_AT_A_TIME]

            async def read_all(batch: Sequence[str] = batch) -> list[bytes]:
                return await asyncio.gather(*(self.filesystem._cat_file(path, max_concurrency=1) for path in batch))

            with self.telling(f"reading {batch[0]} and {len(batch) - 1} more"):
                found += sync(self.filesystem.loop, read_all, timeout=self.seconds)
        return found

    def write(self, path: str, data: bytes) -> None:
        self.call(f"writing {path}", "pipe_file", path, data, chunksize=_part_bytes(len(data)), num_bytes=len(data))

    def upload(self, local: str, path: str) -> None:
        size = os.path.getsize(local)
        self.call(f"writing {path}", "put_file", local, path, chunksize=_part_bytes(size), num_bytes=size)

    def write_if(self, path: str, data: bytes, *, etag: str | None) -> str | None:
        bucket, key = _split(path)
        condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        try:
            answer = self._request("put_object", f"writing {path}", Bucket=bucket, Key=key, Body=data, **condition)
            return str(answer["ETag"])
        except (FileExistsError, FileNotFoundError):
            pass
        except StorageError as problem:
            if error_code(problem) not in REFUSED:
                raise
        # When an answer is lost, s3fs asks again, and that try is refused because of the first: what stands there decides.
        found = self.find(path)
        try:
            return found.etag if found is not None and self.read(path) == data else None
        except FileNotFoundError:
            return None

    def honours_conditions(self) -> bool:
        """A store that does not know the headers overwrites in silence."""
        path = f"{self.root}/{PROBE}{uuid.uuid4().hex}"
        try:
            first = self.write_if(path, b"first", etag=None)
            return (
                first is not None
                and self.write_if(path, b"second", etag=None) is None
                and self.write_if(path, b"third", etag='"00000000000000000000000000000000"') is None
                and self.write_if(path, b"fourth", etag=first) is not None
            )
        finally:
            self.remove(path)

    def abort_uploads(self, older_than_seconds: float) -> int:
        """Of killed writers: invisible, but stored and billed until somebody aborts them.

        Args:
            older_than_seconds: by the store's own clock; younger ones may be some writer's at work.
        """
        bucket, key = _split(self.root)
        settings: dict[str, Any] = {"Bucket": bucket, "Prefix": f"{key}/" if key else ""}
        aborted = 0
        while True:
            page = self._request("list_multipart_uploads", f"listing uploads to {self.root}", **settings)
            now = parsedate_to_datetime(page["ResponseMetadata"]["HTTPHeaders"]["date"])
            for upload in page.get("Uploads", ()):
                if (now - upload["Initiated"]).total_seconds() >= older_than_seconds:
                    what = {"Bucket": bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
                    with contextlib.suppress(FileNotFoundError):  # finished or aborted meanwhile
                        self._request("abort_multipart_upload", f"aborting an upload to {bucket}/{upload['Key']}", **what)
                        aborted += 1
            if not page.get("IsTruncated"):
                return aborted
            settings |= {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def _request(self, operation: str, what: str, **settings: Any) -> Any:
        """One request of the protocol, through s3fs's tries and our deadline."""
        return self.call(what, "call_s3", operation, **settings)


def _split(path: str) -> tuple[str, str]:
    bucket, _, key = path.partition("/")
    return bucket, key


def _part_bytes(size: int) -> int:
    return max(PART_BYTES, -(-size // MAX_PARTS))
