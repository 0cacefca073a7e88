"""The pictures that are shown: found in a workspace's raw shards, decoded behind the guard, made anew in the size of a screen.

What leaves is always a fresh JPEG without metadata: neither file name, nor size in bytes, nor a stranger's bytes reach the browser.
"""

import hashlib
import io
import posixpath
import threading
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from winnow.errors import WinnowError
from winnow.images import ImageLimits, ImageRefused, check_image
from winnow.storage import Storage
from winnow.tables import read_table
from winnow.tars import BLOCK, find_members
from winnow.workspace import manifest_part, raw_tar

LIMITS = ImageLimits(max_pixels=100_000_000, min_side_px=1, max_aspect_ratio=1e6)
QUALITY = 88


class PictureMissing(WinnowError):
    """A picture cannot be shown, and why."""


class Pictures:
    """Pictures by reference: "uid:<uid>" of a raw shard or a curated folder, "file:<path in the workspace>". Threads may share one."""

    def __init__(
        self, storage: Storage, partitions: Sequence[str], wanted: Collection[str], *, files: Mapping[str, Path] | None = None
    ) -> None:
        """
        Args:
            wanted: uids that will be asked for; others are not found.
            files: uid -> file of curated images.
        """
        self._storage = storage
        self._files = dict(files or {})
        self._partition = _partitions_of(storage, partitions, set(wanted) - set(self._files))
        self._places: dict[str, dict[str, tuple[int, int]]] = {}
        self._lock = threading.Lock()

    def jpeg(self, reference: str, max_side_px: int) -> bytes:
        """A picture as JPEG, its longer side at most so long. Raises PictureMissing."""
        data = self.stored(reference)
        # One at a time: decoding is what a stranger's bytes can make dear, and Python's warning filters are no thread's own.
        with self._lock:
            try:
                checked = check_image(data, LIMITS)
            except ImageRefused as problem:
                raise PictureMissing(f"it cannot be decoded ({problem})") from problem
            return _resized(checked.jpeg, max_side_px)

    def caption(self, reference: str) -> str:
        """A sample's caption; empty if it has none. Raises PictureMissing."""
        uid = reference.removeprefix("uid:")
        if reference.startswith("file:") or uid in self._files:
            return ""
        return self._member(uid, "txt").decode("utf-8", "replace")

    def sha256(self, reference: str) -> str | None:
        """Of the bytes as they are stored; None if they cannot be read."""
        try:
            return hashlib.sha256(self.stored(reference)).hexdigest()
        except PictureMissing:
            return None

    def stored(self, reference: str) -> bytes:
        """The bytes as they are stored. Raises PictureMissing."""
        if reference.startswith("file:"):
            return self._file(reference.removeprefix("file:"))
        uid = reference.removeprefix("uid:")
        if uid in self._files:
            try:
                return self._files[uid].read_bytes()
            except OSError as problem:
                raise PictureMissing(f"its file cannot be read ({problem.strerror})") from problem
        return self._member(uid, "jpg")

    def _file(self, path: str) -> bytes:
        if path.startswith("/") or posixpath.normpath(path) != path or path.startswith(".."):
            raise PictureMissing("its path does not lie in the workspace")
        try:
            return self._storage.read_bytes(path)
        except OSError as problem:
            raise PictureMissing("its file is not in the workspace") from problem

    def _member(self, uid: str, extension: str) -> bytes:
        partition = self._partition.get(uid)
        if partition is None:
            raise PictureMissing("no partition of the manifest lists it")
        try:
            place = self._index(partition).get(f"{uid}.{extension}")
            if place is None:
                raise PictureMissing("it was not downloaded")
            with self._storage.open(raw_tar(partition)) as stream:
                stream.seek(place[0] - BLOCK)
                # Its header is read along: samples that were forgotten meanwhile have moved the others.
                header, content = stream.read(BLOCK), stream.read(place[1])
            if header[:100].rstrip(b"\0").decode("ascii", "replace") != f"{uid}.{extension}":
                with self._lock:
                    self._places.pop(partition, None)
                raise PictureMissing("the shard it lies in was changed just now; try again")
            return content
        except OSError as problem:
            raise PictureMissing("the shard it lies in cannot be read") from problem

    def _index(self, partition: str) -> dict[str, tuple[int, int]]:
        with self._lock:
            if partition not in self._places:
                wanted = {uid for uid, own in self._partition.items() if own == partition}
                with self._storage.open(raw_tar(partition)) as stream:
                    self._places[partition] = {
                        name: (offset, size)
                        for name, offset, size in find_members(stream, raw_tar(partition))
                        if name.partition(".")[0] in wanted
                    }
            return self._places[partition]


def _partitions_of(storage: Storage, partitions: Sequence[str], wanted: set[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for partition in partitions:
        if len(found) == len(wanted):
            break
        uids = read_table(storage, manifest_part(partition), ["uid"]).column("uid").to_pylist()
        found |= dict.fromkeys(wanted.intersection(uids), partition)
    return found


def _resized(jpeg: bytes, max_side_px: int) -> bytes:
    import PIL.Image

    with PIL.Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
        image.draft("RGB", (max_side_px, max_side_px))
        image.thumbnail((max_side_px, max_side_px), PIL.Image.Resampling.LANCZOS)
        sink = io.BytesIO()
        image.convert("RGB").save(sink, "JPEG", quality=QUALITY)
        return sink.getvalue()
