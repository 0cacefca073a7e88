"""Where the listed pairs went, stage by stage, and how long each stage worked."""

import json
from typing import Any

from winnow.conservation import Conservation
from winnow.forgotten import SLUGS
from winnow.receipts import FOLDER, read_receipts
from winnow.run_files import manifest_index
from winnow.storage import Storage

STAGES = (
    "manifest",
    "download",
    "import",
    "embed",
    "references",
    "contamination",
    "duplicates-centroids",
    "duplicates-cells",
    "duplicates-pairs",
    "duplicates-groups",
    "fit",
    "duplicates-judge",
    "duplicates-choose",
    "score",
    "shard",
    "train",
    "sample",
    "regurgitation",
)
"""Order of the table; a stage of several rounds (fit-0, fit-1) stands under its name without the number."""

CAUSES = {
    "dns": "The host's name is known nowhere any more.",
    "dns_temporary": "The name server did not answer, however often it was asked.",
    "timeout": "The server did not answer in time, however often it was asked.",
    "reset": "The connection broke, again and again.",
    "incomplete": "The connection broke in the middle of the file, again and again.",
    "refused": "The server refuses connections.",
    "unreachable": "No way leads to the server.",
    "bad_response": "The server answered in a way that is no HTTP.",
    "tls": "The server's certificate is not valid.",
    "robots": "The site's robots.txt does not let us have it.",
    "robots_unreachable": "The site could not say whether it lets us: its robots.txt could not be had.",
    "opt_out": "The site asks that its images not be used for training.",
    "postponed": "The site asks for longer pauses than the run waits, or did not answer many times; a later run tries again.",
    "http_401": "The image is not public (401).",
    "http_403": "The server refuses to give the image out (403).",
    "http_404": "The image is gone from its address (404).",
    "http_410": "The image was removed for good (410).",
    "http_429": "The server asked for fewer requests (429), again and again.",
    "http_500": "The server failed (500), again and again.",
    "http_503": "The server was not available (503), again and again.",
    "too_large": "The file is larger than the run allows.",
    "too_small": "The image is smaller than the run asks for.",
    "too_many_pixels": "The image would need more memory than the run allows.",
    "too_elongated": "The image is far longer than it is wide, or the other way round.",
    "too_costly": "The file is made so that decoding or storing it would cost far more than others of its size.",
    "not_an_image": "What came was no image: an error page, for example.",
    "empty": "What came was an empty file.",
    "damaged": "The file is damaged and cannot be decoded.",
    "undecodable": "The file is damaged and cannot be decoded.",
    "truncated": "The file ends too early.",
    "private_address": "The address leads into a private network; nothing was asked of it.",
    "broken_url": "What is listed is no address.",
    "scheme_refused": "What is listed is no http or https address.",
    "redirect_loop": "The server sent the request round in circles.",
    "hash_mismatch": "The image is not the one that was listed: its digest differs.",
    "stopped": "The run was stopped while it was being fetched.",
    "unexpected": "Something failed that the download does not know; its log has the details.",
}


def explain_cause(reason: str) -> str:
    """A sentence about a reason such as `download:http_404`."""
    stage, _, slug = reason.partition(":")
    if slug in CAUSES:
        return CAUSES[slug]
    if slug.startswith("http_"):
        return f"The server answered with status {slug.removeprefix('http_')} instead of an image."
    return f"{slug.replace('_', ' ').capitalize()}, at the {stage} stage."


def gather_counts(storage: Storage, found: Conservation) -> dict[str, Any]:
    index = manifest_index(storage)
    download_failed = sum(count for cause, count in found.failed_by_cause.items() if cause.startswith("download:"))
    # Dropped without having been looked at, or as if they never had been.
    forgotten = sum(found.dropped_by_reasons.get(slug, 0) for slug in SLUGS)
    return {
        "listed": found.listed,
        "duplicates": index["duplicates"],
        "withdrawn": index["withdrawn"],
        "undecided": found.listed - found.failed - found.dropped - found.kept,
        "downloaded": found.failed - download_failed + found.dropped - forgotten + found.kept,
        "embedded": found.dropped - forgotten + found.kept,
        "failed": found.failed,
        "failed_by_cause": found.failed_by_cause,
        "dropped": found.dropped,
        "forgotten": forgotten,
        "dropped_by_filter": found.dropped_by_filter,
        "dropped_by_reasons": found.dropped_by_reasons,
        "kept": found.kept,
        "datasets": {
            name: {"shards": count.shards, "samples": count.samples, "bytes": count.bytes} for name, count in found.datasets.items()
        },
    }


def gather_stages(storage: Storage) -> list[dict[str, Any]]:
    """A row for each stage with receipts: partitions and seconds of work, summed over partitions (not wall time: they overlap)."""
    rounds: dict[str, list[str]] = {}
    for path in storage.walk(FOLDER):
        folder = path.split("/")[1]
        name = folder.rstrip("0123456789").rstrip("-") if folder[-1:].isdigit() else folder
        if name != "report" and folder not in rounds.setdefault(name, []):
            rounds[name].append(folder)
    table = []
    for name in sorted(rounds, key=lambda name: (STAGES.index(name) if name in STAGES else len(STAGES), name)):
        receipts = [receipt for folder in rounds[name] for receipt in read_receipts(storage, folder)]
        counts: dict[str, int] = {}
        for receipt in receipts:
            for key, value in receipt.counts.items():
                counts[key] = counts.get(key, 0) + value
        facts = sorted({json.dumps(receipt.facts, sort_keys=True) for receipt in receipts})
        table.append(
            {
                "stage": name,
                "partitions": len(receipts),
                "seconds": round(sum(receipt.seconds for receipt in receipts), 1),
                "counts": counts,
                "versions": sorted({receipt.version for receipt in receipts}),
                "facts": [json.loads(fact) for fact in facts[:4]],
            }
        )
    return table
