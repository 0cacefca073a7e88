"""Are the files those that the receipts name, is every file named, and does each stage stand on the one before it?"""

import json
from typing import Any

from winnow.digests import SHORT
from winnow.duplicates import WAVES
from winnow.findings import Ledger
from winnow.progress import Progress
from winnow.receipts import FOLDER, Done, Receipt, Work, list_done, parse_name, read_receipt
from winnow.reported import REPORTED
from winnow.rules import RULES_USED, rules_used
from winnow.run_files import FILTERS_USED, datasets, filters_used, manifest_index, read_json, sidecar
from winnow.storage import Storage
from winnow.tables import read_table
from winnow.tallies import Counts, path_of, read_tally
from winnow.workspace import MANIFEST_INDEX, WITHDRAWN, manifest_part

PER_PARTITION = ("download", "embed", "score")
OWNED = (
    "manifest", "raw", "embeddings", "imports", "duplicates", "references", "contamination", "caption_similarity", "decisions",
    "weights", "words", "shards", "samples", "regurgitation", "report",
)  # fmt: skip
"""Folders in which every file is some stage's output. (Checkpoints of a training that was resumed, and label stores, are not.)"""
INDEXES = (FILTERS_USED, WAVES, RULES_USED, REPORTED)
MANIFEST_STAGE = "manifest"


def check_receipts(storage: Storage, ledger: Ledger) -> dict[str, str]:
    """Recomputes every digest that a receipt names. Returns the sha256 of every output that a receipt vouches for, as it is now."""
    names = [path.removeprefix(f"{FOLDER}/") for path in storage.walk(FOLDER)]
    digests: dict[str, str] = {}
    seen: dict[tuple[str, str], str] = {}
    tallies = {stage: read_tally(storage, stage) for stage in sorted({name.partition("/")[0] for name in names})}
    with Progress("verify receipts", total=len(names), unit="receipts") as progress:
        for name in names:
            path = f"{FOLDER}/{name}"
            stage, _, file_name = name.partition("/")
            done = parse_name(file_name)
            if done is None:
                ledger.add("receipts", path, "is not named as a receipt: <partition>.<fingerprint>.<output digest>.json")
                continue
            if (stage, done.partition) in seen:
                ledger.add("receipts", path, f"is a second receipt of {stage} for {done.partition}, beside {seen[stage, done.partition]}")
            seen[stage, done.partition] = file_name
            with ledger.reading("receipts", path):
                _check_receipt(storage, path, stage, done, tallies[stage], digests, ledger)
            progress.advance()
    return digests


def _check_receipt(
    storage: Storage, path: str, stage: str, done: Done, tally: dict[str, Counts], digests: dict[str, str], ledger: Ledger
) -> None:
    try:
        receipt = Receipt(**json.loads(storage.read_bytes(path)))
    except (ValueError, TypeError) as problem:
        ledger.add("receipts", path, f"is damaged: {problem}")
        return
    ledger.count("receipts")
    if (receipt.stage, receipt.partition, receipt.fingerprint) != (stage, done.partition, done.fingerprint):
        ledger.add(
            "receipts",
            path,
            f"speaks of {receipt.stage} of {receipt.partition} with fingerprint {receipt.fingerprint}: not what its name says",
        )
    if tally.get(done.file_name, receipt.counts) != receipt.counts:
        ledger.add("receipts", path_of(stage), f"has other counts for {done.partition} than its receipt: remove it, it is made again")
    if receipt.done.output != done.output:
        ledger.add("receipts", path, f"the digests in it give {receipt.done.output}, its name says {done.output}: it was changed")
    if stage != MANIFEST_STAGE:  # whose fingerprint stands for the recipe of the whole manifest, compared with its index below
        work = Work(name=receipt.partition, inputs=receipt.inputs, arguments=receipt.arguments)
        if work.fingerprint(stage, receipt.version) != receipt.fingerprint:
            ledger.add("receipts", path, "its inputs, settings and version do not give its fingerprint: it was changed")
    for output, entry in receipt.outputs.items():
        _check_output(storage, output, entry, stage, digests, ledger)


def _check_output(storage: Storage, output: str, entry: dict[str, Any], stage: str, digests: dict[str, str], ledger: Ledger) -> None:
    if output not in digests:
        if not storage.exists(output):
            ledger.add("receipts", output, f"is missing; {stage} wrote it")
            return
        digests[output] = storage.sha256(output)
        ledger.count("receipts")
    if storage.size(output) != entry["bytes"]:
        ledger.add("receipts", output, f"has {storage.size(output):,} bytes, its receipt ({stage}) says {entry['bytes']:,}")
    elif digests[output] != entry["sha256"]:
        ledger.add(
            "receipts",
            output,
            f"was changed after {stage} wrote it: sha256 {digests[output][:16]}…, its receipt says {entry['sha256'][:16]}…",
        )


def check_strays(storage: Storage, partitions: list[str], digests: dict[str, str], ledger: Ledger) -> None:
    """Files without a receipt, and receipts that are missing."""
    for folder in OWNED:
        for path in storage.walk(folder):
            ledger.count("strays")
            if path not in digests and path not in INDEXES and not path.endswith("/index.json"):
                ledger.add("strays", path, "has no receipt: left over from a killed run, or put there by hand. Remove it")
    for used in filters_used(storage):
        for path in storage.walk(used.folder):
            ledger.count("strays")
            if path not in digests:
                ledger.add("strays", path, "has no receipt, though the decisions were made with this filter")
    for stage in PER_PARTITION:
        done = {entry.partition for entry in list_done(storage, stage)}
        for name in partitions:
            if name not in done:
                ledger.add("strays", f"{FOLDER}/{stage}", f"has no receipt for {name}: {stage} has not finished there, or it was removed")
        for name in sorted(done - set(partitions)):
            ledger.add("strays", f"{FOLDER}/{stage}", f"has a receipt for {name}, a partition that the manifest does not have")


def check_lineage(storage: Storage, partitions: list[str], ledger: Ledger, progress: Progress) -> None:
    """Inputs that receipts name against the outputs that are there: a stage that was not run again after a change is found."""
    outputs = {stage: {done.partition: done for done in list_done(storage, stage)} for stage in PER_PARTITION}
    settings = read_json(storage, FILTERS_USED) if storage.exists(FILTERS_USED) else None
    rules = [rule.settled() for rule in rules_used(storage)]
    upstream = {"embed": {"raw": "download"}, "score": {"raw": "download", "embeddings": "embed"}}
    for name in partitions:
        for stage, needs in upstream.items():
            done = outputs[stage].get(name)
            if done is None:
                continue  # named by check_strays
            receipt = read_receipt(storage, stage, done)
            for key, before in needs.items():
                made_from, there = receipt.inputs.get(key), outputs[before].get(name)
                ledger.count("lineage")
                if made_from is not None and there is not None and made_from != there.output:
                    ledger.add(
                        "lineage",
                        f"{FOLDER}/{stage}/{done.file_name}",
                        f"was made from {before} {made_from}, but there is {there.output}: run {stage} again",
                    )
            if stage == "score" and "filters" in receipt.arguments and receipt.arguments["filters"] != settings:
                _changed_filters(name, receipt.arguments["filters"], settings or [], ledger)
            if stage == "score" and (decided_by := receipt.arguments.get("rules", [])) != rules:
                ledger.add("lineage", RULES_USED, f"holds {rules}, but partition {name} was decided with {decided_by}: run score again")
        progress.advance()
    for used in filters_used(storage):
        current = f"filters/{used.name}/current.json"
        with ledger.reading("lineage", current):
            version = read_json(storage, current)["version"]
            ledger.count("lineage")
            if version != used.version:
                ledger.add("lineage", current, f"names version {version}, but the decisions were made with {used.version}: run score again")
    for done in list_done(storage, "shard"):
        receipt = read_receipt(storage, "shard", done)
        for key, made_from in receipt.inputs.items():
            kind, _, name = key.partition("/")
            there = outputs[{"decisions": "score", "raw": "download"}.get(kind, "score")].get(name)
            ledger.count("lineage")
            if there is not None and there.output != made_from:
                ledger.add(
                    "lineage",
                    f"{FOLDER}/shard/{done.file_name}",
                    f"was made from {kind} {made_from} of {name}, but there is {there.output}: run shard again",
                )


def _changed_filters(name: str, before: list[dict[str, Any]], now: list[dict[str, Any]], ledger: Ledger) -> None:
    by_name = {entry["name"]: entry for entry in now}
    for entry in before:
        other = by_name.get(entry["name"])
        if other is None:
            ledger.add("lineage", FILTERS_USED, f"lacks the filter {entry['name']}, which partition {name} was decided with")
        elif other != entry:
            what = ", ".join(f"{key} {other.get(key)!r} instead of {entry[key]!r}" for key in sorted(entry) if other.get(key) != entry[key])
            ledger.add("lineage", FILTERS_USED, f"filter {entry['name']} has {what}, which partition {name} was decided with")
    for extra in sorted(set(by_name) - {entry["name"] for entry in before}):
        ledger.add("lineage", FILTERS_USED, f"names the filter {extra}, which partition {name} was not decided with: run score again")


def check_indexes(storage: Storage, digests: dict[str, str], ledger: Ledger) -> None:
    """What index files say of the files they list."""
    index = manifest_index(storage)
    for part in index["partitions"]:
        path = manifest_part(part["name"])
        ledger.count("indexes")
        if "sha256" in part and path in digests and part["sha256"] != digests[path]:
            ledger.add("indexes", MANIFEST_INDEX, f"names another sha256 for {path} than it has")
    if "withdrawn_sha256" in index and index["withdrawn_sha256"] != storage.sha256(WITHDRAWN):
        ledger.add("indexes", MANIFEST_INDEX, f"names another sha256 for {WITHDRAWN} than it has")
    for done in list_done(storage, MANIFEST_STAGE):
        if "recipe" in index and done.fingerprint != index["recipe"][:SHORT]:
            ledger.add("indexes", MANIFEST_INDEX, "was made with another recipe than its receipt names")
    for dataset, content in datasets(storage).items():
        _check_dataset(storage, dataset, content, digests, ledger)
    _check_sample_indexes(storage, ledger)


def _check_sample_indexes(storage: Storage, ledger: Ledger) -> None:
    """Which sample was drawn for which caption, against what the receipts of sampling say was asked for."""
    asked = {}
    for done in list_done(storage, "sample"):
        for prompt in read_receipt(storage, "sample", done).arguments.get("prompts", ()):
            asked[prompt["file"]] = (prompt["uid"], prompt["text"], prompt["seed"])
    for path in storage.walk("samples"):
        if path.endswith("/index.json"):
            with ledger.reading("indexes", path):
                listed = {entry["file"]: (entry["uid"], entry["prompt"], entry["seed"]) for entry in read_json(storage, path)["samples"]}
                folder = path.removesuffix("index.json")
                there = {file: prompt for file, prompt in asked.items() if file.startswith(folder)}
                ledger.count("indexes", len(listed))
                for file in sorted(listed.keys() | there.keys()):
                    if listed.get(file) != there.get(file):
                        ledger.add("indexes", path, f"says {listed.get(file)} of {file}, the receipt of sampling says {there.get(file)}")


def _check_dataset(storage: Storage, dataset: str, content: dict[str, Any], digests: dict[str, str], ledger: Ledger) -> None:
    path = f"shards/{dataset}/index.json"
    total = 0
    for shard in content["shards"]:
        tar = f"shards/{dataset}/{shard['name']}"
        ledger.count("indexes")
        if not storage.exists(tar):
            ledger.add("indexes", path, f"lists {tar}, which is missing")
            continue
        if tar not in digests:
            digests[tar] = storage.sha256(tar)
        if digests[tar] != shard["sha256"]:
            ledger.add("indexes", path, f"says that {tar} has sha256 {shard['sha256'][:16]}…, it has {digests[tar][:16]}…")
        if storage.size(tar) != shard["bytes"]:
            ledger.add("indexes", path, f"says that {tar} has {shard['bytes']:,} bytes, it has {storage.size(tar):,}")
        table = sidecar(dataset, shard["name"])
        with ledger.reading("indexes", table):
            rows = read_table(storage, table, ["index"])["index"].to_pylist()
            if rows != list(range(len(rows))):
                ledger.add("indexes", table, "its rows are not numbered from 0 without a gap")
            if len(rows) != shard["num_samples"]:
                ledger.add("indexes", path, f"says that {tar} has {shard['num_samples']:,} samples, {table} has {len(rows):,}")
            total += len(rows)
    listed = {f"shards/{dataset}/{shard['name']}" for shard in content["shards"]}
    for extra in sorted(file for file in storage.walk(f"shards/{dataset}") if file.endswith(".tar") and file not in listed):
        ledger.add("indexes", path, f"does not list {extra}")
    if content["num_samples"] != total:
        ledger.add("indexes", path, f"says {content['num_samples']:,} samples, its shards have {total:,}")
    lineage = content.get("lineage", {})
    if lineage.get("manifest") not in (None, storage.sha256(MANIFEST_INDEX)):
        ledger.add("indexes", path, "was made from another manifest than is there: run shard again")
    if "filters" in lineage and storage.exists(FILTERS_USED) and lineage["filters"] != read_json(storage, FILTERS_USED):
        ledger.add("indexes", path, f"was made with other filters than {FILTERS_USED} names: run shard again")
