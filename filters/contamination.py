"""Which images are near-duplicates of an evaluation set's: they must not be trained on (GLIDE, arXiv:2112.10741, section 5.2).

There 21 % of COCO's validation set was purged. Here the training data gives way: an image that matches any item of a reference set is
dropped, with the set's name as the reason; what share of the set had a match is told all the same.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from filters.duplicate_search import images_of, read_images
from filters.duplicates import Images, Limits, cosines_of, hash_distance, near_rows
from winnow.duplicates import CONTAMINATION, contamination_file, reference_file
from winnow.partitions import Outcome
from winnow.storage import Storage
from winnow.tables import write_table

VERSION = 1
ITEMS_AT_A_TIME = 100_000
MATCH = np.dtype([("row", "i8"), ("item", "i8"), ("cosine", "f8"), ("hamming", "u1"), ("mirrored", "?")])


def find_contaminated(storage: Storage, name: str, *, limits: Limits, references: tuple[str, ...]) -> Outcome:
    """Writes `contamination/<name>.parquet`: images of a partition that match an item of a reference, with the item.

    Args:
        references: names of sets whose features lie in references/.
    """
    images = read_images(storage, name, 0)
    tables = []
    counts = {}
    for reference in references:
        matches, items = match(images, _items(storage, reference), limits)
        counts[reference] = len(np.unique(matches["row"]))
        columns = [
            images.uids[matches["row"]].astype("U32"), [reference] * len(matches), items, matches["cosine"], matches["hamming"],
            matches["mirrored"],
        ]  # fmt: skip
        tables.append(pa.table([pa.array(list(c), f.type) for c, f in zip(columns, CONTAMINATION, strict=True)], schema=CONTAMINATION))
    table = pa.concat_tables(tables).sort_by([("uid", "ascending"), ("reference", "ascending"), ("item", "ascending")])
    written = write_table(storage, contamination_file(name), table)
    return Outcome.of(written, counts={f"matches_{key}": count for key, count in counts.items()})


def match(images: Images, references: Iterator[tuple[Images, list[str]]], limits: Limits) -> tuple[np.ndarray, list[str]]:
    """Of each image the closest item it matches, of each matched item its closest image; and the items' names.

    Args:
        references: items and their names, some at a time.
    """
    found, names = [np.empty(0, MATCH)], list[str]()
    for items, called in references:
        for rows, columns in near_rows(images, items, limits):
            matches = np.empty(len(rows), MATCH)
            matches["row"], matches["item"] = rows, columns + len(names)
            matches["cosine"] = cosines_of(images, rows, items, columns)
            matches["hamming"], matches["mirrored"] = hash_distance(images.dhashes[rows], items.dhashes[columns])
            found = [_closest(np.concatenate([*found, matches]))]
        names += called
    matches = found[0] if len(found) == 1 else np.concatenate(found)
    return matches, [names[item] for item in matches["item"]]


def _closest(matches: np.ndarray) -> np.ndarray:
    """Of each row the closest item, of each item the closest row; by row, then item."""
    chosen = np.zeros(len(matches), dtype=bool)
    for one, other in (("row", "item"), ("item", "row")):
        order = np.lexsort((matches[other], -matches["cosine"], matches[one]))
        first = np.ones(len(order), dtype=bool)
        first[1:] = matches[one][order][1:] != matches[one][order][:-1]
        chosen[order[first]] = True
    matches = matches[chosen]
    return matches[np.lexsort((matches["item"], matches["row"]))]


def _items(storage: Storage, reference: str) -> Iterator[tuple[Images, list[str]]]:
    path = reference_file(reference)
    with storage.open(path) as stream:
        for batch in pq.ParquetFile(stream).iter_batches(batch_size=ITEMS_AT_A_TIME):
            table = pa.Table.from_batches([batch])
            yield images_of(table, 0, f"{storage.url}/{path}"), table["item"].to_pylist()
