"""Near-duplicates: what is found of planted ones, what is taken for one by mistake, how fast, with how much memory.

    .venv/bin/python -m benchmarks.near_duplicates quality --data PHOTOS --cache /tmp/variants.npz
    .venv/bin/python -m benchmarks.near_duplicates world
    .venv/bin/python -m benchmarks.near_duplicates cells
    .venv/bin/python -m benchmarks.near_duplicates growth

`quality` changes real photos (folder with photos/index.parquet) in ten ways and looks for each among all photos. Features are those of the
demo's CLIP, which has seen drawings only: a stand-in for real weights, and a poor one, as it is moved more by grain and colour.
Photos of one `group` of the index are known copies and count for neither side. `world` needs no photos: drawn scenes, whose
copies are known, with the CLIP that was trained on such scenes. `cells` and `growth` use made-up features.
"""

import argparse
import io
import multiprocessing
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from filters.duplicates import DuplicateConfig, Images, Limits, are_near, exact_cosines, hash_distance, near_rows

KINDS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "re-encoded, JPEG 40": lambda image: _encoded(image, 40),
    "resized to half": lambda image: image.resize((max(1, image.width // 2), max(1, image.height // 2)), Image.Resampling.LANCZOS),
    "cropped, 3 % of each edge": lambda image: _cropped(image, 0.03),
    "cropped, 5 % of each edge": lambda image: _cropped(image, 0.05),
    "cropped, 10 % of each edge": lambda image: _cropped(image, 0.1),
    "watermarked, a line below": lambda image: _marked(image, 0.55, 0.85, 14, 200),
    "watermarked, across": lambda image: _marked(image, 0.1, 0.4, 4, 110),
    "flipped": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "flipped, half size, JPEG 60": lambda image: _encoded(KINDS["flipped"](KINDS["resized to half"](image)), 60),
    "brighter by a fifth": lambda image: image.point(lambda value: min(255, value * 6 // 5)),
}
COSINES = (0.85, 0.90, 0.91, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98)
HAMMINGS = (4, 5, 6, 8, 10, 12, 14, 16, 64)
RULES: tuple[Limits, ...] = (((0.95, 10),), DuplicateConfig().limits)
"""Limits that are shown side by side: one pair, and the defaults."""


def _encoded(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


def _cropped(image: Image.Image, share: float) -> Image.Image:
    x, y = int(image.width * share), int(image.height * share)
    return image.crop((x, y, image.width - x, image.height - y))


def _marked(image: Image.Image, x: float, y: float, size: int, opacity: int) -> Image.Image:
    marked = image.copy()
    height = max(12, image.height // size)
    ImageDraw.Draw(marked, "RGBA").text(
        (image.width * x, image.height * y), "SAMPLE.EXAMPLE", fill=(255, 255, 255, opacity), font_size=height
    )
    return marked


MODEL = ["demo"]
"""Of --model: a CLIP that is on this machine."""


def embedded(pictures: Iterator[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
    """Float16 features, and difference hashes."""
    from models.clip_embedder import ClipConfig, loaded_clip, resolve_weights
    from models.embedding import embed_table

    config = ClipConfig(model=MODEL[0])
    clip = loaded_clip(config, resolve_weights(config))

    def samples() -> Iterator[tuple[str, bytes]]:
        for number, picture in enumerate(pictures):
            buffer = io.BytesIO()
            picture.save(buffer, "PNG", compress_level=0)
            yield f"{number:032x}", buffer.getvalue()

    table, _ = embed_table(clip, samples())
    vectors = table["feature"].combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.float16)
    return vectors.reshape(table.num_rows, -1), table["dhash"].to_numpy().astype(np.int64).view(np.uint64)


def images_of(vectors: np.ndarray, hashes: np.ndarray) -> Images:
    count = len(vectors)
    uids = np.array([f"{number:032x}" for number in range(count)], dtype="S32")
    return Images(uids=uids, vectors=vectors, dhashes=hashes, pixels=np.ones(count, np.int64), partitions=np.zeros(count, np.int32))


def quality(data: Path, cache: Path, changed: int) -> None:
    import pandas as pd

    index = pd.read_parquet(data / "photos" / "index.parquet")
    index = index[~index["file"].str.startswith("flags")].reset_index(drop=True)
    chosen = index.drop_duplicates("group").sample(changed, random_state=0).index.to_numpy()
    if not cache.exists():
        arrays = {}
        pictures = [data / "photos" / file for file in index["file"]]
        arrays["vectors"], arrays["hashes"] = embedded(Image.open(path).convert("RGB") for path in pictures)
        for number, change in enumerate(KINDS.values()):
            found = embedded(change(Image.open(pictures[row]).convert("RGB")) for row in chosen)
            arrays[f"vectors{number}"], arrays[f"hashes{number}"] = found
            print(f"{number + 1} of {len(KINDS)} kinds", flush=True)
        np.savez(cache, **arrays)
    arrays = dict(np.load(cache))
    print(f"{len(index):,} photos, {changed:,} of them changed in {len(KINDS)} ways; CLIP {MODEL[0]}\n")
    truth = [
        _pairs(arrays[f"vectors{n}"], arrays[f"hashes{n}"], arrays["vectors"][chosen], arrays["hashes"][chosen]) for n in range(len(KINDS))
    ]
    wrong = _wrong_pairs(images_of(arrays["vectors"], arrays["hashes"]), index["group"].to_numpy())
    total = len(index) * (len(index) - 1) / 2
    print(f"Distinct photos taken for near-duplicates, of {total:,.0f} pairs (rows: cosine at least; columns: bits at most)")
    _grid(lambda cosine, hamming: f"{int(((wrong[0] >= cosine) & (wrong[1] <= hamming)).sum()):,}")
    print("\nMean recall over the kinds")
    _grid(lambda cosine, hamming: f"{np.mean([((c >= cosine) & (h <= hamming)).mean() for c, h in truth]):.3f}")
    print("\nFalse near-duplicates of an image among 1 M and 250 M others, if cosine and hash were independent")
    near, alike = _shares(images_of(arrays["vectors"], arrays["hashes"]), index["group"].to_numpy())
    _grid(lambda cosine, hamming: f"{1e6 * near[cosine] * alike[hamming]:.1g}, {2.5e8 * near[cosine] * alike[hamming]:.2g}")
    limits = DuplicateConfig().limits
    _show_wrong(images_of(arrays["vectors"], arrays["hashes"]), index, limits)
    for rule in RULES:
        found = [are_near(cosines, bits, rule).mean() for cosines, bits in truth]
        wrong_pairs = int(are_near(*wrong, rule).sum())
        expected = _expected(near, alike, rule)
        print(f"\n{rule}: mean recall {np.mean(found):.3f}, {wrong_pairs} distinct pairs, {expected:.2g} false of 250 M")
        for kind, share in zip(KINDS, found, strict=True):
            print(f"  {kind:<30} {share:6.1%}")
    print(f"\nAlone: {', '.join(f'cosine >= {cosine}, bits <= {bits}' for cosine, bits in limits)}")
    for kind, (cosines, hammings) in zip(KINDS, truth, strict=True):
        print(f"  {kind:<30} " + " ".join(f"{(cosines >= cosine).mean():6.1%} {(hammings <= bits).mean():6.1%}" for cosine, bits in limits))
    _precision(arrays, chosen, index["group"].to_numpy(), limits)
    _other_features(data, index, limits)


def _expected(near: dict[float, float], alike: dict[int, float], rule: Limits) -> float:
    """False near-duplicates of an image among 250 M others, were cosine and hash independent: the sum over bands of cosines."""
    above, total = 0.0, 0.0
    for cosine, bits in rule:
        total += 2.5e8 * (near[cosine] - above) * alike[bits]
        above = near[cosine]
    return total


def _pairs(vectors: np.ndarray, hashes: np.ndarray, originals: np.ndarray, original_hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return exact_cosines(vectors, originals), hash_distance(hashes, original_hashes)[0]


def _wrong_pairs(images: Images, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and differing bits of all pairs of photos of different groups that one of the limits of the grid lets pass."""
    found = [(np.empty(0), np.empty(0))]
    for rows, columns in near_rows(images, images, ((min(COSINES), 64),), same=True):
        apart = groups[rows] != groups[columns]
        rows, columns = rows[apart], columns[apart]
        bits = hash_distance(images.dhashes[rows], images.dhashes[columns])[0]
        found.append((exact_cosines(images.vectors[rows], images.vectors[columns]), bits))
    return np.concatenate([pair[0] for pair in found]), np.concatenate([pair[1] for pair in found])


def _shares(images: Images, groups: np.ndarray) -> tuple[dict[float, float], dict[int, float]]:
    """Of pairs of distinct photos the share at each cosine, and the share within each number of bits."""
    near, alike, total = dict.fromkeys(COSINES, 0), dict.fromkeys(HAMMINGS, 0), 0
    unit = images.vectors.astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    for start in range(0, len(images), 256):
        rows = np.arange(start, min(start + 256, len(images)))
        apart = (groups[rows][:, None] != groups) & (rows[:, None] < np.arange(len(images)))
        cosines = (unit[rows] @ unit.T)[apart]
        shape = apart.shape
        pairs = (np.broadcast_to(images.dhashes[rows][:, None], shape)[apart], np.broadcast_to(images.dhashes, shape)[apart])
        bits = hash_distance(*pairs)[0]
        for cosine in COSINES:
            near[cosine] += int((cosines >= cosine).sum())
        for hamming in HAMMINGS:
            alike[hamming] += int((bits <= hamming).sum())
        total += int(apart.sum())
    return {key: count / total for key, count in near.items()}, {key: count / total for key, count in alike.items()}


def _show_wrong(images: Images, index: Any, limits: Limits) -> None:
    """Names the distinct photos that are taken for near-duplicates: to be looked at."""
    groups = index["group"].to_numpy()
    for rows, columns in near_rows(images, images, limits, same=True):
        for row, column in zip(rows, columns, strict=True):
            if groups[row] != groups[column]:
                print(f"  taken for near-duplicates: {index['file'][row]} and {index['file'][column]}")


def _grid(cell: Callable[[float, int], str]) -> None:
    print("        " + "".join(f"{hamming:>14}" for hamming in HAMMINGS))
    for cosine in COSINES:
        print(f"  {cosine:.2f}  " + "".join(f"{cell(cosine, hamming):>14}" for hamming in HAMMINGS))


def _precision(arrays: dict[str, np.ndarray], chosen: np.ndarray, groups: np.ndarray, limits: Limits) -> None:
    """Of all pairs found in the pool of photos and their variants, the share that shows one picture."""
    pool = images_of(
        np.concatenate([arrays["vectors"], *(arrays[f"vectors{n}"] for n in range(len(KINDS)))]),
        np.concatenate([arrays["hashes"], *(arrays[f"hashes{n}"] for n in range(len(KINDS)))]),
    )
    names = np.concatenate([groups, *(groups[chosen] for _ in KINDS)])
    originals = images_of(arrays["vectors"], arrays["hashes"])
    known = {
        tuple(sorted((groups[r], groups[c])))
        for rs, cs in near_rows(originals, originals, limits, same=True)
        for r, c in zip(rs, cs, strict=True)
    }
    right = wrong = of_these = 0
    for rows, columns in near_rows(pool, pool, limits, same=True):
        same = names[rows] == names[columns]
        right, wrong = right + int(same.sum()), wrong + int((~same).sum())
        of_these += sum(tuple(sorted(pair)) in known for pair in zip(names[rows[~same]], names[columns[~same]], strict=True))
    found = f"{right:,} pairs found rightly, {wrong:,} wrongly, {of_these:,} of them of the photos named above"
    print(f"\nPool of {len(pool):,} photos and variants: {found}: precision {right / (right + wrong):.4f}")


def _other_features(data: Path, index: Any, limits: Limits) -> None:
    """The other side with features of a network that knows photos (MobileNetV2): how near distinct photos come."""
    import pandas as pd

    path = data / "photos" / "features_mobilenetv2.parquet"
    if not path.exists():
        return
    table = pd.read_parquet(path).merge(index[["file", "group"]].assign(row=np.arange(len(index))), on="file")
    vectors = np.stack(table["feature"].to_numpy()).astype(np.float16)
    pairs = near_rows(images_of(vectors, np.zeros(len(vectors), np.uint64)), images_of(vectors, np.zeros(len(vectors), np.uint64)),
                      ((0.85, 0),), same=True)  # fmt: skip
    groups = table["group"].to_numpy()
    cosines = [exact_cosines(vectors[rows], vectors[columns])[groups[rows] != groups[columns]] for rows, columns in pairs]
    every = np.concatenate([np.empty(0), *cosines])
    print(
        f"MobileNetV2 features of {len(vectors):,} photos: distinct pairs at cosine "
        + ", ".join(f">= {c}: {int((every >= c).sum()):,}" for c in COSINES)
    )


def world(scenes: int) -> None:
    from winnow.demo.world import WorldConfig, draw, make_world

    drawn = make_world(WorldConfig(num_scenes=scenes, duplicate_share=0.1))
    vectors, hashes = embedded(draw(scene) for scene in drawn)
    groups = np.array([scene.group for scene in drawn])
    images = images_of(vectors, hashes)
    sizes = np.bincount(np.unique(groups, return_inverse=True)[1])
    planted = int((sizes * (sizes - 1) // 2).sum())
    print(f"{scenes:,} drawn scenes, {planted:,} pairs planted (resized, cropped by up to 3 %); CLIP {MODEL[0]}")
    singles = ((0.94, 64), (0.94, 10), (0.96, 10), (0.98, 10), (0.97, 12), (0.91, 5))
    for rule in (*((single,) for single in singles), *RULES):
        right = wrong = 0
        for rows, columns in near_rows(images, images, rule, same=True):
            same = groups[rows] == groups[columns]
            right, wrong = right + int(same.sum()), wrong + int((~same).sum())
        print(f"  {rule}: recall {right / planted:.3f}, precision {right / max(1, right + wrong):.3f} ({wrong:,} wrong)")


def made_up(count: int, dim: int, copies: float, rng: np.random.Generator, *, clusters: bool = True) -> Images:
    """Features in overlapping clusters, or spread evenly; a share of them near-duplicates of others at cosines of 0.9 to 1."""
    centres = rng.normal(size=(max(2, count // 200), dim)).astype(np.float32)
    vectors = centres[rng.integers(0, len(centres), count)] * 0.8 * clusters + rng.normal(size=(count, dim)).astype(np.float32)
    hashes = rng.integers(0, 2**64, count, dtype=np.uint64)
    copied = rng.choice(count, int(count * copies), replace=False)
    source = rng.integers(0, count, len(copied))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    angle = np.arccos(rng.uniform(0.9, 1, len(copied)))[:, None]
    aside = rng.normal(size=(len(copied), dim)).astype(np.float32)
    aside -= (aside * vectors[source]).sum(axis=1, keepdims=True) * vectors[source]
    aside /= np.linalg.norm(aside, axis=1, keepdims=True)
    vectors[copied] = np.cos(angle) * vectors[source] + np.sin(angle) * aside
    hashes[copied] = hashes[source]
    made = images_of(vectors.astype(np.float16), hashes)
    made.pixels[:] = rng.integers(10_000, 1_000_000, count)
    return made


def write_partitions(folder: Path, made: Images, rows: int, first: int = 0) -> dict[str, str]:
    """Embeddings of made-up images, so many a partition, numbered from `first` on; partition -> a digest."""
    import pyarrow as pa

    from winnow.storage import Storage
    from winnow.tables import write_table
    from winnow.workspace import embeddings

    storage, digests = Storage(str(folder)), {}
    for number, start in enumerate(range(0, len(made), rows), first):
        here = np.arange(start, min(start + rows, len(made)))
        part = made.take(here)
        feature = pa.FixedSizeListArray.from_arrays(pa.array(made.vectors[here].ravel()), made.vectors.shape[1])
        uids = [f"{number:08x}{place:024x}" for place in range(len(part))]
        ones = pa.array(np.ones(len(part), np.int32))
        columns = {"uid": uids, "feature": feature, "dhash": part.dhashes.view(np.int64), "height": ones}
        name = f"{number:05}-{number:08x}"
        write_table(storage, embeddings(name), pa.table({**columns, "width": pa.array(part.pixels.astype(np.int32))}))
        digests[name] = f"{number}"
    return digests


def write_many(folder: Path, partitions: int, rows: int, dim: int) -> dict[str, str]:
    """As `write_partitions`, made some at a time: copies and clusters lie in partitions next to each other."""
    digests: dict[str, str] = {}
    while len(digests) < partitions:
        count = min(max(1, 50_000 // rows), partitions - len(digests))
        made = made_up(count * rows, dim, 0.2, np.random.default_rng((1, len(digests))))
        digests |= write_partitions(folder, made, rows, len(digests))
    return digests


def searched(folder: str, config: DuplicateConfig, digests: dict[str, str]) -> tuple[float, int, set[tuple[str, str]]]:
    """CPU seconds, peak memory in MiB, and the pairs: of a search in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone:
        return alone.submit(_search, folder, config, digests).result()


def _search(folder: str, config: DuplicateConfig, digests: dict[str, str]) -> tuple[float, int, set[tuple[str, str]]]:
    import torch

    from filters.duplicate_stage import find_duplicates
    from winnow.storage import Storage
    from winnow.tables import read_table

    torch.set_num_threads(1)
    storage = Storage(folder)
    began = time.process_time()
    find_duplicates(storage, config, digests, "made up")
    seconds, peak = time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    pairs: set[tuple[str, str]] = set()
    for path in storage.walk("duplicates/pairs"):
        table = read_table(storage, path, ["worse", "better"])
        pairs |= set(zip(table["worse"].to_pylist(), table["better"].to_pylist(), strict=True))
    return seconds, peak, pairs


def cells(count: int, dim: int, clusters: bool) -> None:
    """Recall of cells against the exact search."""
    with tempfile.TemporaryDirectory() as scratch:
        made = made_up(count, dim, 0.2, np.random.default_rng(0), clusters=clusters)
        digests = write_partitions(Path(scratch), made, 5_000)
        seconds, peak, exact = searched(scratch, DuplicateConfig(exact_rows=10**9), digests)
        print(f"{count:,} x {dim}, {len(exact):,} pairs, {'in clusters' if clusters else 'spread evenly: the worst for cells'}")
        print(f"  exact: {seconds:.1f} CPU s, {count / seconds:,.0f} rows/s, {count**2 / 2 / seconds / 1e6:,.0f} M pairs/s, {peak:,} MiB")
        for nprobe in (1, 2, 3, 4, 8):
            shutil.rmtree(f"{scratch}/duplicates")
            shutil.rmtree(f"{scratch}/receipts")
            config = DuplicateConfig(exact_rows=1, cell_rows=512, nprobe=nprobe)
            seconds, peak, found = searched(scratch, config, digests)
            recall, more = len(found & exact) / len(exact), len(found - exact)
            line = f"  nprobe {nprobe}: {seconds:.1f} CPU s, {count / seconds:,.0f} rows/s, {peak:,} MiB"
            print(f"{line}, recall {recall:.4f}, {more} not in exact")


def growth(rows: int, dim: int, cell_rows: int) -> None:
    """Ten times the partitions, and one in a hundred more."""
    for kind, config in (("exact", DuplicateConfig(exact_rows=10**9)), ("cells", DuplicateConfig(exact_rows=1, cell_rows=cell_rows))):
        for partitions in (10, 100):
            with tempfile.TemporaryDirectory() as scratch:
                digests = write_many(Path(scratch), partitions + partitions // 100, rows, dim)
                seconds, peak, _ = searched(scratch, config, dict(list(digests.items())[:partitions]))
                line = f"{kind}, {partitions} partitions of {rows:,}: {seconds:.2f} CPU s ({seconds / partitions:.3f} each), {peak:,} MiB"
                if len(digests) > partitions:
                    more, _, _ = searched(scratch, config, digests)
                    line += f"; {len(digests) - partitions} more: {more:.2f} s ({more / seconds:.1%})"
                print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("part", choices=("quality", "world", "cells", "growth"))
    parser.add_argument("--data", type=Path, help="folder with photos/index.parquet (quality)")
    parser.add_argument("--cache", type=Path, default=Path("/tmp/near-duplicates.npz"), help="features of the photos and their variants")
    parser.add_argument("--changed", type=int, default=1_000, help="photos that are changed (quality)")
    parser.add_argument("--scenes", type=int, default=3_000, help="drawn scenes (world)")
    parser.add_argument("--rows", type=int, default=0, help="made-up images (cells: all, growth: a partition)")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--cell-rows", type=int, default=512, help="images a cell, on average (growth)")
    parser.add_argument("--model", default="demo", help="the CLIP (quality, world): demo, or ViT-B-16 where its weights are")
    arguments = parser.parse_args()
    MODEL[0] = arguments.model
    import torch

    torch.set_num_threads(1)
    if arguments.part == "quality":
        if arguments.data is None:
            parser.error("quality needs --data")
        quality(arguments.data, arguments.cache, arguments.changed)
    elif arguments.part == "world":
        world(arguments.scenes)
    elif arguments.part == "cells":
        for clusters in (True, False):
            cells(arguments.rows or 40_000, arguments.dim, clusters)
    else:
        growth(arguments.rows or 500, arguments.dim, arguments.cell_rows)


if __name__ == "__main__":
    main()
