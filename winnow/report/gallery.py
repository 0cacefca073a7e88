"""Which images the report shows, and their thumbnails: small, re-encoded, with captions made harmless."""

import base64
import heapq
import io
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from winnow.decisions import score_column
from winnow.images import DECODE_ERRORS
from winnow.reported import REASON, read_reported
from winnow.run_files import FilterUsed, datasets, read_json, rows, sidecar
from winnow.storage import Storage
from winnow.tables import read_table
from winnow.tars import read_members
from winnow.workspace import decisions, manifest_part, raw_tar

SIDE_PX = 160
QUALITY = 80
MAX_PIXELS = 50_000_000
DROPPED_SHOWN, EDGE_SHOWN, KEPT_SHOWN, SAMPLES_SHOWN, PAIRS_SHOWN = 12, 6, 21, 40, 8
CAPTION_LENGTH = 140
CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\ufffe\uffff]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """One image with what is known about it."""

    uid: str
    partition: str
    scores: dict[str, float] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Picked:
    """Which decisions are shown; every list is in the order of the page."""

    kept: list[Shown]
    dropped: dict[str, list[Shown]]
    """Filter -> a random draw of what it drops."""
    just_dropped: dict[str, list[Shown]]
    """Filter -> closest to its threshold from above."""
    just_kept: dict[str, list[Shown]]
    """Filter -> closest to its threshold from below, among images that no filter drops."""

    def all(self) -> Iterator[Shown]:
        yield from self.kept
        for group in (self.dropped, self.just_dropped, self.just_kept):
            for shown in group.values():
                yield from shown


def pick(storage: Storage, filters: list[FilterUsed], partitions: Iterable[str]) -> Picked:
    """One pass over the decision log. A uid is a hash, so the smallest ones are a random draw that new data changes least."""
    kept: list[tuple[str, Shown]] = []
    dropped: dict[str, list[tuple[str, Shown]]] = {used.name: [] for used in filters}
    above: dict[str, list[tuple[float, str, Shown]]] = {used.name: [] for used in filters}
    below: dict[str, list[tuple[float, str, Shown]]] = {used.name: [] for used in filters}
    for partition in partitions:
        decided = rows(read_table(storage, decisions(partition)))
        fresh = [_shown(row, partition, filters) for row in decided if row["verdict"] != "failed" and REASON not in (row["reasons"] or ())]
        fresh_kept = [shown for shown in fresh if not shown.reasons]
        kept = heapq.nsmallest(KEPT_SHOWN, [*kept, *((shown.uid, shown) for shown in fresh_kept)], key=lambda item: item[0])
        for used in filters:
            hit = [shown for shown in fresh if used.name in shown.reasons]
            dropped[used.name] = heapq.nsmallest(
                DROPPED_SHOWN, [*dropped[used.name], *((one.uid, one) for one in hit)], key=lambda item: item[0]
            )
            for side, group in ((above, hit), (below, fresh_kept)):
                near = ((abs(one.scores[used.name] - used.threshold), one.uid, one) for one in group if used.name in one.scores)
                side[used.name] = heapq.nsmallest(EDGE_SHOWN, [*side[used.name], *near], key=lambda item: item[:2])
    return Picked(
        kept=[shown for _, shown in kept],
        dropped={name: [shown for _, shown in found] for name, found in dropped.items()},
        just_dropped={name: [shown for _, _, shown in found] for name, found in above.items()},
        just_kept={name: [shown for _, _, shown in found] for name, found in below.items()},
    )


def _shown(row: dict[str, Any], partition: str, filters: list[FilterUsed]) -> Shown:
    scores = {used.name: row[score_column(used.name)] for used in filters if row.get(score_column(used.name)) is not None}
    return Shown(uid=row["uid"], partition=partition, scores=scores, reasons=tuple(row["reasons"] or ()))


def partitions_of_kept(storage: Storage, uids: set[str]) -> dict[str, str]:
    """The partition of each of these kept uids, from the shards' tables."""
    found: dict[str, str] = {}
    for dataset, index in datasets(storage).items():
        for shard in index["shards"]:
            if len(found) == len(uids):
                return found
            for row in rows(read_table(storage, sidecar(dataset, shard["name"]), ["uid", "partition"])):
                if row["uid"] in uids:
                    found[row["uid"]] = row["partition"]
    return found


def thumbnails(storage: Storage, wanted: dict[str, str]) -> dict[str, str]:
    """uid -> data URI of a small JPEG, of raw images. Those that cannot be decoded, and those that were reported, are left out.

    Args:
        wanted: uid -> partition.
    """
    reported = read_reported(storage)
    by_partition: dict[str, set[str]] = {}
    for uid, partition in wanted.items():
        if uid not in reported.get(partition, ()):
            by_partition.setdefault(partition, set()).add(uid)
    found: dict[str, str] = {}
    for partition, uids in sorted(by_partition.items()):
        if not storage.exists(raw_tar(partition)):
            continue  # raw images may have been removed to save room: the page says that they cannot be shown
        with storage.local_file(raw_tar(partition)) as path:
            for name, data in read_members(path, only=frozenset(uids)):
                uid, _, extension = name.partition(".")
                uri = thumbnail(data) if extension == "jpg" else None
                if uri is not None:
                    found[uid] = uri
    return found


def thumbnail(data: bytes, side: int = SIDE_PX) -> str | None:
    """A small JPEG as a data URI: decoded and encoded anew, so that nothing of a stranger's file gets into the page."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is stricter
            with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
                if image.width * image.height > MAX_PIXELS:
                    return None
                image.draft("RGB", (2 * side, 2 * side))
                decoded = image.convert("RGB")
    except (*DECODE_ERRORS, Image.DecompressionBombError):
        return None
    decoded.thumbnail((side, side), Image.Resampling.LANCZOS)
    small = Image.new("RGB", decoded.size)  # pixels alone: comments and other metadata would be copied along
    small.paste(decoded)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def captions(storage: Storage, wanted: dict[str, str]) -> dict[str, str]:
    """uid -> harmless, shortened caption.

    Args:
        wanted: uid -> partition.
    """
    by_partition: dict[str, set[str]] = {}
    for uid, partition in wanted.items():
        by_partition.setdefault(partition, set()).add(uid)
    found = {}
    for partition, uids in sorted(by_partition.items()):
        for row in rows(read_table(storage, manifest_part(partition), ["uid", "caption"])):
            if row["uid"] in uids:
                found[row["uid"]] = harmless(row["caption"] or "")
    return found


def harmless(caption: str) -> str:
    """A caption for a page: no control characters, one line, not too long. Escaping is the template's business."""
    text = " ".join(CONTROLS.sub(" ", caption).split())
    return text if len(text) <= CAPTION_LENGTH else text[: CAPTION_LENGTH - 1] + "…"


def sample_grid(storage: Storage) -> list[dict[str, Any]]:
    """Samples of every model, as drawn: file, prompt, data URI."""
    found = []
    for path in storage.walk("samples"):
        if path.endswith("/index.json"):
            for entry in read_json(storage, path)["samples"][:SAMPLES_SHOWN]:
                found.append(
                    {"prompt": harmless(entry["prompt"]), "file": entry["file"], "image": thumbnail(storage.read_bytes(entry["file"]))}
                )
    return found


def closest_pairs(storage: Storage) -> list[dict[str, Any]]:
    """The samples closest to their own training image, and those closest to any kept image, without thumbnails."""
    if not storage.exists("regurgitation/pairs.parquet"):
        return []
    table = list(rows(read_table(storage, "regurgitation/pairs.parquet")))
    by_own = heapq.nsmallest(PAIRS_SHOWN, table, key=lambda row: (row["distance_own"], row["uid"]))
    by_any = heapq.nsmallest(PAIRS_SHOWN // 2, table, key=lambda row: (row["distance_nearest"], row["uid"]))
    return by_own + [row for row in by_any if row not in by_own]
