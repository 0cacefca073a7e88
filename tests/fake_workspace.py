"""A finished workspace without running anything: small drawn images, made-up scores, hostile captions, true receipts.

Follows the file layout of a real run, so that what reads a run (verify, explain, the report) can be tested in seconds.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw
from safetensors.numpy import save

from filters.weighing import lay_weights, weigh_partition, write_weights_index
from filters.words import count_words
from winnow.decisions import coarsened, schema, score_column
from winnow.proof import promised_threshold
from winnow.receipts import Receipt, Work, write_receipt
from winnow.storage import Storage
from winnow.tables import write_table
from winnow.weights import CLASSIFIER
from winnow.workspace import decisions, embeddings, manifest_part, raw_table, raw_tar

FILTERS = ("people", "violence", "hate_symbol")
DIM = 16
HOSTILE = (
    "<script>alert('caption')</script>",
    '" onerror="alert(1)" x="',
    "</title><img src=x onerror=alert(2)>",
    "safe \u202egnp.exe\u202c text \u2066nested",
    "{{ 7 * 7 }} {% raw %}",
    "nul \x00 bell \x07 and \ud83d".encode("utf-8", "replace").decode() + " end",
    "a very long caption " * 40,
    "",
)
SUBJECTS = {
    "plain": ("barn", "lighthouse", "sailing boat", "bicycle", "teapot", "mountain lake"),
    "people": ("woman", "farmer", "crowd"),
    "violence": ("sword", "axe"),
    "hate_symbol": ("emblem",),
}
CAUSES = {"http_404": "HTTP 404", "timeout": "no answer in 10 s", "not_an_image": "text/html", "private_address": "10.0.0.7 is private"}


def make_workspace(root: Path | str, *, parts: int = 2, rows: int = 60, labels: int = 330, trained: bool = True, seed: int = 0) -> Storage:
    """Writes a whole run. Same arguments, same bytes.

    Args:
        rows: pairs of a partition.
        labels: calibration positives of each filter; 330 are enough for a miss rate of 1 %.
        trained: False leaves out training, samples and regurgitation.
    """
    storage = Storage(str(root))
    rng = np.random.default_rng(seed)
    centres = {kind: _unit(rng.normal(size=DIM)) for kind in SUBJECTS}
    parts_rows = [_listed_rows(rng, part, rows) for part in range(parts)]
    names = [f"{number:05d}-{hashlib.sha256(str(number).encode()).hexdigest()[:8]}" for number in range(parts)]
    _manifest(storage, names, parts_rows)
    features: dict[str, tuple[str, np.ndarray]] = {}
    for name, listed in zip(names, parts_rows, strict=True):
        _download_and_embed(storage, name, listed, centres, rng, features)
    filters = [_filter(storage, name, centres, features, labels, rng) for name in FILTERS]
    storage.write_text(
        "decisions/filters.json",
        _json([{key: entry[key] for key in ("name", "version", "threshold", "certificate_sha256")} for entry in filters]),
    )
    kept: list[tuple[str, str, str]] = []
    for name, listed in zip(names, parts_rows, strict=True):
        kept += _decide(storage, name, listed, filters, features)
        _count_words(storage, name)
    _shards(storage, kept, {row["uid"]: row for listed in parts_rows for row in listed})
    _weigh(storage, names)
    if trained:
        _train(storage, rng)
        _samples(storage, kept, rng)
    return storage


def give_receipt(
    storage: Storage,
    stage: str,
    partition: str,
    outputs: Iterable[str],
    *,
    inputs: dict[str, str] | None = None,
    counts: dict[str, int] | None = None,
    arguments: dict[str, Any] | None = None,
    facts: dict[str, Any] | None = None,
    seconds: float = 1.5,
) -> None:
    """A receipt as `run_step` writes it."""
    work = Work(name=partition, inputs=inputs or {}, arguments=arguments or {})
    receipt = Receipt(
        stage=stage,
        partition=partition,
        fingerprint=work.fingerprint(stage, 1),
        version=1,
        inputs=dict(work.inputs),
        arguments=dict(work.arguments),
        outputs={path: {"sha256": storage.sha256(path), "bytes": storage.size(path)} for path in sorted(outputs)},
        counts=counts or {},
        facts=facts or {},
        seconds=seconds,
    )
    write_receipt(storage, receipt)


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, indent=1) + "\n"


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def _listed_rows(rng: np.random.Generator, part: int, count: int) -> list[dict[str, Any]]:
    listed = []
    for number in range(count):
        kind = str(rng.choice(list(SUBJECTS), p=[0.62, 0.22, 0.1, 0.06]))
        subject = str(rng.choice(SUBJECTS[kind]))
        caption = (
            HOSTILE[number]
            if number < len(HOSTILE) and part == 0
            else f"a {rng.choice(['small', 'red', 'quiet', 'old'])} {subject} by the {rng.choice(['sea', 'road', 'river'])}"
        )
        url = f"http://example.org/{part}/{number}.jpg?title=<b>{number}</b>"
        uid = hashlib.sha256(f"{url}\0{caption}".encode()).hexdigest()[:32]
        cause = str(rng.choice(list(CAUSES))) if rng.random() < 0.09 else None
        listed.append({"uid": uid, "url": url, "caption": caption, "kind": kind, "cause": cause})
    return sorted(listed, key=lambda row: str(row["uid"]))


def _manifest(storage: Storage, names: list[str], parts: list[list[dict[str, Any]]]) -> None:
    for name, listed in zip(names, parts, strict=True):
        columns = {key: [row[key] for row in listed] for key in ("uid", "url", "caption")}
        table = pa.table(
            {
                **columns,
                "source": ["drawn" if int(row["uid"], 16) % 3 else "second list" for row in listed],
                "licence": ["CC0-1.0"] * len(listed),
                "sha256": pa.array([None] * len(listed), pa.string()),
            }
        )
        write_table(storage, manifest_part(name), table)
    total = sum(len(listed) for listed in parts)
    write_table(storage, "manifest/withdrawn.parquet", pa.table({"partition": pa.array([], pa.string()), "uid": pa.array([], pa.string())}))
    index = {
        "manifest": "drawn",
        "listed": total,
        "duplicates": 7,
        "withdrawn": 0,
        "partitions": [{"name": name, "rows": len(listed), "listed": len(listed)} for name, listed in zip(names, parts, strict=True)],
        "sources": [{"name": "drawn", "licence": "CC0-1.0", "rows": total + 7, "file": "drawn.parquet", "sha256": "0" * 64}],
    }
    storage.write_text("manifest/index.json", _json(index))
    give_receipt(
        storage,
        "manifest",
        "manifest",
        ["manifest/index.json", "manifest/withdrawn.parquet", *(manifest_part(name) for name in names)],
        counts={"listed": total},
    )


def draw(kind: str, rng: np.random.Generator, size: tuple[int, int] | None = None) -> Image.Image:
    """A small scene: sky, ground, and something that stands for the kind."""
    width, height = size or (int(rng.integers(120, 260)), int(rng.integers(100, 200)))
    sky, ground = (tuple(int(value) for value in rng.integers(low, 256, 3)) for low in (140, 40))
    image = Image.new("RGB", (width, height), sky)
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, height * 0.62, width, height), fill=ground)
    x, y, r = width * rng.uniform(0.3, 0.7), height * 0.6, height * 0.25
    colour = tuple(int(value) for value in rng.integers(0, 200, 3))
    if kind == "people":
        pen.ellipse((x - r * 0.35, y - r * 1.6, x + r * 0.35, y - r * 0.9), fill=(220, 180, 140))
        pen.rectangle((x - r * 0.4, y - r * 0.9, x + r * 0.4, y + r * 0.5), fill=colour)
    elif kind == "violence":
        pen.polygon([(x, y - r * 1.8), (x + r * 0.15, y), (x - r * 0.15, y)], fill=(200, 200, 210))
        pen.rectangle((x - r * 0.5, y, x + r * 0.5, y + r * 0.15), fill=colour)
    elif kind == "hate_symbol":
        pen.ellipse((x - r, y - r * 1.5, x + r, y + r * 0.5), outline=(20, 20, 20), width=6)
        pen.line((x - r, y - r * 0.5, x + r, y - r * 0.5), fill=(20, 20, 20), width=6)
    else:
        pen.polygon([(x - r, y), (x, y - r * 1.4), (x + r, y)], fill=colour)
        pen.rectangle((x - r * 0.7, y, x + r * 0.7, y + r * 0.7), fill=tuple(min(255, value + 50) for value in colour))
    return image


def _download_and_embed(
    storage: Storage,
    name: str,
    listed: list[dict[str, Any]],
    centres: dict[str, np.ndarray],
    rng: np.random.Generator,
    features: dict[str, tuple[str, np.ndarray]],
) -> None:
    members: list[tuple[str, bytes]] = []
    table = []
    embedded = []
    for number, row in enumerate(listed):
        base = {
            "uid": row["uid"],
            "status": "failed",
            "cause": row["cause"],
            "detail": CAUSES.get(row["cause"]),
            "http_status": None,
            "sha256": None,
            "bytes": 0,
            "width": None,
            "height": None,
        }
        if row["cause"] is not None:
            table.append({**base, "http_status": 404 if row["cause"] == "http_404" else None})
            continue
        image = draw(row["kind"], rng)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=90)
        data = buffer.getvalue()
        members += [
            (f"{row['uid']}.jpg", data),
            (f"{row['uid']}.json", _json({"url": row["url"]}).encode()),
            (f"{row['uid']}.txt", row["caption"].encode()),
        ]
        table.append(
            {
                **base,
                "status": "downloaded",
                "detail": None,
                "sha256": hashlib.sha256(data).hexdigest(),
                "bytes": len(data),
                "width": image.width,
                "height": image.height,
            }
        )
        if number == 5:
            row["cause"] = "undecodable"
            continue
        feature = _unit(centres[row["kind"]] + rng.normal(size=DIM) * 0.2)
        features[row["uid"]] = (row["kind"], feature)
        embedded.append(
            {
                "uid": row["uid"],
                "feature": feature.astype(np.float16),
                "dhash": int(rng.integers(0, 2**62)),
                "width": image.width,
                "height": image.height,
                "luminance": 0.5,
            }
        )
    _write_tar(storage, raw_tar(name), members)
    raw_schema = pa.schema(
        [
            ("uid", pa.string()),
            ("status", pa.string()),
            ("cause", pa.string()),
            ("detail", pa.string()),
            ("http_status", pa.int32()),
            ("sha256", pa.string()),
            ("bytes", pa.int64()),
            ("width", pa.int32()),
            ("height", pa.int32()),
        ]
    )
    write_table(storage, raw_table(name), pa.Table.from_pylist(table, raw_schema))
    write_table(storage, embeddings(name), _embedding_table(embedded))
    downloaded = sum(row["status"] == "downloaded" for row in table)
    give_receipt(
        storage,
        "download",
        name,
        [raw_tar(name), raw_table(name)],
        counts={"downloaded": downloaded, "failed": len(table) - downloaded},
        seconds=12.25,
    )
    give_receipt(
        storage,
        "embed",
        name,
        [embeddings(name)],
        counts={"embedded": len(embedded), "undecodable": 1},
        seconds=30.5,
        facts={"device": "cpu"},
    )


def _embedding_table(embedded: list[dict[str, Any]]) -> pa.Table:
    flat = np.concatenate([row["feature"] for row in embedded])
    return pa.table(
        {
            "uid": pa.array([row["uid"] for row in embedded], pa.string()),
            "feature": pa.FixedSizeListArray.from_arrays(pa.array(flat, pa.float16()), DIM),
            "dhash": pa.array([row["dhash"] for row in embedded], pa.int64()),
            "width": pa.array([row["width"] for row in embedded], pa.int32()),
            "height": pa.array([row["height"] for row in embedded], pa.int32()),
            "luminance": pa.array([row["luminance"] for row in embedded], pa.float32()),
        }
    )


def _write_tar(storage: Storage, path: str, members: list[tuple[str, bytes]]) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for member, data in members:
            entry = tarfile.TarInfo(member)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    storage.write_bytes(path, buffer.getvalue())


def _filter(
    storage: Storage,
    name: str,
    centres: dict[str, np.ndarray],
    features: dict[str, tuple[str, np.ndarray]],
    count: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    curated = name == "hate_symbol"

    centre = centres[name].astype(np.float32)

    def score_of(feature: np.ndarray) -> float:
        """An SVM of one support vector, rounded as real scores are."""
        squared = ((centre.astype(np.float64) - feature.astype(np.float16).astype(np.float64)) ** 2).sum()
        return float(np.round((4.0 * np.exp(-0.6 * squared) - 2.0) * 2**16) / 2**16)

    labels: list[dict[str, Any]] = []

    def label(uid: str, value: int, origin: str, split: str, feature: np.ndarray) -> None:
        known = {"uid": uid, "value": value, "origin": origin, "batch": "round-0", "split": split, "group": uid}
        labels.append({**known, "feature": feature.astype(np.float16), "score": score_of(feature)})

    imported = []
    for split, positives in (("fit", 40), ("calibrate", count), ("test", 80)):
        for number in range(positives + 80):
            positive = number < positives
            kind = name if positive else str(rng.choice([other for other in SUBJECTS if other != name]))
            feature = _unit(centres[kind] + rng.normal(size=DIM) * 0.2)
            uid = hashlib.sha256(f"{name}/{split}/{number}".encode()).hexdigest()[:32]
            origin = ("import" if curated else "random") if positive else str(rng.choice(["random", "text_search"]))
            label(uid, int(positive), origin, split, feature)
            if curated and positive:
                imported.append(
                    {"uid": uid, "feature": feature.astype(np.float16), "dhash": number, "width": 64, "height": 64, "luminance": 0.5}
                )
    for uid, (kind, feature) in sorted(features.items())[::6]:
        label(uid, int(kind == name), "text_search", "fit", feature)
    labels.sort(key=lambda row: str(row["uid"]))
    if imported:
        imported.sort(key=lambda row: str(row["uid"]))
        write_table(
            storage,
            f"imports/{name}.parquet",
            _embedding_table(imported).append_column("name", pa.array([f"{row['uid'][:6]}.png" for row in imported])),
        )
        give_receipt(storage, "import", name, [f"imports/{name}.parquet"], counts={"imported": len(imported)})
    calibration = [row["score"] for row in labels if row["split"] == "calibrate" and row["value"] == 1]
    found = promised_threshold(calibration, 0.01, 0.95)
    assert found is not None, "too few calibration positives for the fake filter"
    rank, threshold = found
    version = f"v{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    folder = f"filters/{name}/{version}"
    columns = ("uid", "value", "origin", "batch", "split", "group")
    plain = {column: [row[column] for row in labels] for column in columns}
    flat = np.concatenate([row["feature"] for row in labels])
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(flat, pa.float16()), DIM)
    write_table(storage, f"{folder}/labelled.parquet", pa.table({**plain, "feature": vectors}))
    write_table(storage, f"{folder}/labels.parquet", pa.table({**plain, "score": [row["score"] for row in labels]}))
    machine = {"support_vectors": centre[None], "dual": np.array([4.0]), "intercept": np.array([-2.0]), "gamma": np.array([0.6])}
    storage.write_bytes(f"{folder}/svm.safetensors", save(machine))
    certificate = {
        "filter": name,
        "version": version,
        "title": name.replace("_", " ").capitalize(),
        "policy": f"Drop every image that shows {name.replace('_', ' ')}; keep everything else.",
        "scope": "curated" if curated else "population",
        "max_miss_rate": 0.01,
        "confidence": 0.95,
        "num_positives": len(calibration),
        "rank": rank,
        "threshold": threshold,
        "does_not_cover": ["Captions: only images are judged."],
        "sentence": f"With 95 % confidence, at most 1 % of the images that the filter {name!r} is meant to drop slip through.",
    }
    storage.write_text(f"{folder}/certificate.json", _json(certificate))
    storage.write_text(f"{folder}/learning.json", _json({"rounds": []}))
    spec = {"name": name, "blurred": name != "people"}
    files = [f"{folder}/{file}" for file in ("labelled.parquet", "labels.parquet", "svm.safetensors", "certificate.json", "learning.json")]
    give_receipt(storage, "fit-1", name, files, counts={"labels": len(labels)}, arguments={"spec": spec})
    storage.write_text(f"filters/{name}/current.json", _json({"version": version}))
    return {
        "name": name,
        "version": version,
        "threshold": threshold,
        "certificate_sha256": storage.sha256(f"{folder}/certificate.json"),
        "score_of": score_of,
    }


def _decide(
    storage: Storage, name: str, listed: list[dict[str, Any]], filters: list[dict[str, Any]], features: dict[str, tuple[str, np.ndarray]]
) -> list[tuple[str, str, str]]:
    table, kept = [], []
    counts: dict[str, int] = {"failed": 0, "dropped": 0, "kept": 0}
    for row in listed:
        decided: dict[str, Any] = {"uid": row["uid"], "reasons": [], **{score_column(entry["name"]): None for entry in filters}}
        if row["uid"] not in features:
            cause = row["cause"]
            decided |= {"verdict": "failed", "reasons": ["embed:undecodable" if cause == "undecodable" else f"download:{cause}"]}
        else:
            for entry in filters:
                score = float(coarsened(np.array(entry["score_of"](features[row["uid"]][1])), entry["threshold"]))
                decided[score_column(entry["name"])] = score
                if score >= entry["threshold"]:
                    decided["reasons"].append(entry["name"])
            decided["verdict"] = "dropped" if decided["reasons"] else "kept"
        counts[decided["verdict"]] += 1
        if decided["verdict"] == "kept":
            kept.append((name, row["uid"], row["caption"]))
        table.append(decided)
    write_table(storage, decisions(name), pa.Table.from_pylist(table, schema(entry["name"] for entry in filters)))
    give_receipt(storage, "score", name, [decisions(name)], counts=counts, seconds=0.75)
    return kept


def _count_words(storage: Storage, name: str) -> None:
    arguments = {"groups": {"women": ["woman"]}, "halvings": 0, "weighted": False}
    outcome = count_words(storage, name, **arguments)
    give_receipt(storage, "words", name, outcome.outputs, counts=dict(outcome.counts), arguments=arguments, seconds=0.1)


def _weigh(storage: Storage, names: list[str]) -> None:
    """Weights by a classifier that was never fitted, beside the shards."""
    measured = {"images": 0, "kept": 0, "note": "made up"}
    classifier = {"coefficients": [0.5] * DIM, "intercept": 1.0, "scale": 0.7, "max_weight": 3.0, "measured": measured}
    storage.write_text(CLASSIFIER, _json(classifier))
    give_receipt(storage, "importance", "classifier", [CLASSIFIER])
    arguments: dict[str, Any] = {"importance": True, "duplicates": False}
    for name in names:
        give_receipt(storage, "weigh", name, weigh_partition(storage, name, **arguments).outputs, arguments=arguments)
    index = json.loads(storage.read_bytes("shards/kept/index.json"))
    for shard in index["shards"]:
        stem = shard["name"].removesuffix(".tar")
        give_receipt(storage, "weigh-shard", stem, lay_weights(storage, stem, dataset="kept").outputs, arguments={"dataset": "kept"})
    write_weights_index(storage, "kept")


def _shards(storage: Storage, kept: list[tuple[str, str, str]], listed: dict[str, dict[str, Any]], size: int = 40) -> None:
    raw: dict[str, dict[str, bytes]] = {}
    for partition in sorted({partition for partition, _, _ in kept}):
        with storage.open(raw_tar(partition)) as stream, tarfile.open(fileobj=stream) as tar:
            raw[partition] = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    shards = []
    for number in range(0, len(kept), size):
        part = kept[number : number + size]
        stem = f"shards/kept/{number // size:05d}-000"
        members = [(f"{uid}.{kind}", raw[partition][f"{uid}.{kind}"]) for partition, uid, _ in part for kind in ("jpg", "json", "txt")]
        _write_tar(storage, f"{stem}.tar", members)
        columns = {
            "uid": [uid for _, uid, _ in part],
            "index": pa.array(range(len(part)), pa.int32()),
            "partition": [partition for partition, _, _ in part],
            "caption": [caption for _, _, caption in part],
        }
        write_table(storage, f"{stem}.parquet", pa.table(columns))
        give_receipt(storage, "shard", f"{number // size:05d}", [f"{stem}.tar", f"{stem}.parquet"], counts={"samples": len(part)})
        shards.append(
            {
                "name": f"{number // size:05d}-000.tar",
                "num_samples": len(part),
                "bytes": storage.size(f"{stem}.tar"),
                "sha256": storage.sha256(f"{stem}.tar"),
            }
        )
    index = {"dataset": "kept", "shards": shards, "num_samples": len(kept), "lineage": {"manifest": storage.sha256("manifest/index.json")}}
    storage.write_text("shards/kept/index.json", _json(index))


def _train(storage: Storage, rng: np.random.Generator) -> None:
    for model, start, end in (("base", 1.0, 0.2), ("noised-clip", 3.4, 1.1)):
        lines = []
        for step in range(10, 601, 10):
            loss = end + (start - end) * float(np.exp(-step / 110)) + float(rng.normal() * 0.02)
            lines.append(json.dumps({"step": step, "loss": loss, "lr": 0.001, "images_per_second": 55.0}, sort_keys=True))
        storage.write_text(f"checkpoints/{model}/metrics.jsonl", "\n".join(lines) + "\n")
        storage.write_text(f"checkpoints/{model}/step-000600/config.json", _json({"model": model}))
        give_receipt(
            storage,
            "train",
            model,
            [f"checkpoints/{model}/metrics.jsonl", f"checkpoints/{model}/step-000600/config.json"],
            counts={"steps": 600, "images": 9600},
            facts={"checkpoint": f"checkpoints/{model}/step-000600", "final_loss": end, "device": "cpu"},
            arguments={"config": {"model": model, "num_steps": 600}},
            seconds=95.0,
        )


def _samples(storage: Storage, kept: list[tuple[str, str, str]], rng: np.random.Generator) -> None:
    chosen = kept[:24]
    samples, files = [], []
    for number, (_, uid, caption) in enumerate(chosen):
        file = f"samples/base/{number:05d}.png"
        buffer = io.BytesIO()
        draw("plain", rng, (64, 64)).save(buffer, "PNG")
        storage.write_bytes(file, buffer.getvalue())
        files.append(file)
        samples.append({"file": file, "uid": uid, "prompt": caption, "seed": number})
    storage.write_text(
        "samples/base/index.json",
        _json({"settings": {"recipe": "base", "steps": "ddim50", "guidance_scale": 3.0, "seed": 0}, "samples": samples}),
    )
    prompts = [{"file": entry["file"], "uid": entry["uid"], "text": entry["prompt"], "seed": entry["seed"]} for entry in samples]
    give_receipt(storage, "sample", "base-00000", files, counts={"samples": len(files)}, arguments={"prompts": prompts}, seconds=8.0)
    own = np.sort(rng.uniform(0.12, 0.6, len(chosen))).astype(np.float32)
    nearest = np.minimum(own, rng.uniform(0.1, 0.4, len(chosen)).astype(np.float32))
    table = pa.table(
        {
            "uid": [uid for _, uid, _ in chosen],
            "prompt": [caption for _, _, caption in chosen],
            "sample": files,
            "distance_own": pa.array(own, pa.float32()),
            "nearest_uid": [uid if own[number] == nearest[number] else kept[-1 - number][1] for number, (_, uid, _) in enumerate(chosen)],
            "distance_nearest": pa.array(nearest, pa.float32()),
        }
    )
    write_table(storage, "regurgitation/pairs.parquet", table)
    summary = {
        "num_prompts": len(chosen),
        "closest_own": round(float(own.min()), 6),
        "median_own": round(float(np.median(own)), 6),
        "closest_nearest": round(float(nearest.min()), 6),
        "median_nearest": round(float(np.median(nearest)), 6),
        "own_is_nearest": sum(one == other for one, other in zip(table["uid"], table["nearest_uid"], strict=True)),
        "distance": "CLIP cosine distance, 1 - cos",
    }
    storage.write_text("regurgitation/summary.json", _json(summary))
    give_receipt(
        storage,
        "regurgitation",
        "base",
        ["regurgitation/pairs.parquet", "regurgitation/summary.json"],
        counts={"pairs": len(chosen)},
        seconds=4.0,
    )
