"""A workspace with pictures to label, and the page's server over it as a process of its own: `python -m tests.label_world FOLDER ...`."""

import argparse
import asyncio
import dataclasses
import io
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa

from filters.catalog import FILTERS
from filters.label_batches import create_batch, find_batch
from filters.label_page.desk import Desk, Work
from filters.label_page.pictures import Pictures
from filters.label_page.serve import serve
from filters.label_page.settings import PageConfig
from filters.label_records import BLIND, TWO_PICTURES, Item
from filters.labels import LabelStore
from tests.fake_workspace import HOSTILE, SUBJECTS, draw
from tests.filter_world import uid_of, url_of
from winnow.storage import Storage
from winnow.tables import write_table
from winnow.tars import TarWriter
from winnow.workspace import manifest_part, raw_tar

PARTITIONS = ("00000-aaaaaaaa", "00001-bbbbbbbb")
LINES = (
    "<img src=x onerror=\"window.stung='img'\"><script>window.stung='script'</script>",
    "\u202egnp.exe looks left \u2066and nests",
    "verylongword" * 400,
    "javascript:window.stung='link'",
    *HOSTILE,
)


def make_pictures(root: Path, rows: int = 30, side: int | None = None) -> tuple[Storage, list[str]]:
    """Two partitions with manifest and raw shard; returns the uids."""
    storage, uids = Storage(str(root)), []
    for number, partition in enumerate(PARTITIONS):
        own = sorted(uid_of(f"label {number} {i}") for i in range(rows))
        rng = np.random.default_rng(number)
        nothing = pa.array([None] * rows, pa.string())
        table = {
            "uid": own,
            "url": [url_of(uid) for uid in own],
            "caption": nothing,
            "source": nothing,
            "licence": nothing,
            "sha256": nothing,
        }
        write_table(storage, manifest_part(partition), pa.table(table))
        tar = io.BytesIO()
        writer = TarWriter(tar)
        for i, uid in enumerate(own):
            image, sink = draw(list(SUBJECTS)[i % 4], rng, (side, side * 3 // 4) if side else None), io.BytesIO()
            image.save(sink, "JPEG", quality=90)
            for extension, data in (("jpg", sink.getvalue()), ("txt", LINES[i % len(LINES)].encode()), ("json", json.dumps({}).encode())):
                writer.add(f"{uid}.{extension}", data)
        writer.close()
        storage.write_bytes(raw_tar(partition), tar.getvalue())
        uids += own
    return storage, uids


def make_batch(store: LabelStore, uids: list[str], mode: str, *, name: str = "one", filter_name: str = "people", overlap: int = 1) -> None:
    origin = "text_search" if mode == "triage" else "random"
    items = [Item(uid=uid, origin=origin, reason="nearest to the boundary") for uid in uids]
    if mode in TWO_PICTURES:
        items = [
            Item(uid=f"pair {i}", reason="a house under a wide sky", pictures={"left": f"uid:{left}", "right": f"uid:{right}"})
            for i, (left, right) in enumerate(zip(uids[::2], uids[1::2], strict=True))
        ]
    question = {"pairs": "Is one of these a copy of the other?", "compare": "Which picture fits its caption better?"}.get(mode, "")
    seed = 0 if mode in BLIND else None
    create_batch(store, filter_name, name, items, mode=mode, origin=origin, overlap=overlap, seed=seed, question=question)


class Delayed:
    """An application that thinks before every answer: a slow server, or a far one."""

    def __init__(self, app, seconds: float) -> None:
        self.app, self.seconds = app, seconds

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "http":
            await asyncio.sleep(self.seconds)
        await self.app(scope, receive, send)


def desk_of(store: LabelStore, root: Path, *, name: str = "one", filter_name: str = "people", config: PageConfig | None = None) -> Desk:
    storage = Storage(str(root))
    batch = find_batch(store, filter_name, name)
    uids = [uid for number in range(2) for uid in _uids(storage, PARTITIONS[number])]
    spec = FILTERS[filter_name]
    examples = tuple((f"uid:{uid}", int(i < 3)) for i, uid in enumerate(uids[:6])) if batch.mode == "query" else ()
    work = Work(batch=batch, title=spec.title, policy=spec.policy, blurred=spec.blurred, examples=examples)
    return Desk(store, work, Pictures(storage, PARTITIONS, uids), config or PageConfig())


def _uids(storage: Storage, partition: str) -> list[str]:
    from winnow.tables import read_table

    return read_table(storage, manifest_part(partition), ["uid"]).column("uid").to_pylist()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--filter", default="people")
    parser.add_argument("--batch", default="one")
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--config", type=json.loads, default={})
    parser.add_argument("--person", nargs="+", default=["ada", "bob"])
    given = parser.parse_args()
    if given.delay:
        from filters.label_page import app

        made = app.create_app
        app.create_app = lambda *arguments: Delayed(made(*arguments), given.delay)
    config = dataclasses.replace(PageConfig(), **given.config)
    with LabelStore.open(given.folder / "labels.sqlite") as store:
        desk = desk_of(store, given.folder, name=given.batch, filter_name=given.filter, config=config)
        serve(desk, given.person, port=given.port, tokens=given.folder / "tokens.json", announce=lambda line: print(line, flush=True))


if __name__ == "__main__":
    sys.exit(main())
