"""What is counted and weighed of kept samples, made again without the forgotten ones: words of captions, weights beside the shards.

Both are cheap, and neither can be edited row by row: a count hides whose word it was.
"""

import functools
from collections.abc import Collection

from filters import weighing, words
from filters.weighing import lay_weights, write_weights_index
from filters.words import count_words
from winnow.amending import Amender
from winnow.partitions import Step, perform
from winnow.receipts import Done, Receipt, Work
from winnow.run_files import datasets
from winnow.storage import Storage


def redo_derived(amender: Amender, affected: Collection[str]) -> None:
    """Runs these steps again where they had to do with a forgotten sample.

    Args:
        affected: partitions that held one.
    """
    for name in sorted(amender.partitions(words.STAGE)):
        receipt = amender.receipt(words.STAGE, name)
        if receipt is not None and name in affected:
            _redo(amender, receipt, {key: amender.now(mark) for key, mark in receipt.inputs.items()}, count_words)
    indexes = datasets(amender.storage)
    for name in sorted(amender.partitions(weighing.LAY)):
        receipt = amender.receipt(weighing.LAY, name)
        if receipt is not None:
            shards = {entry["name"].removesuffix(".tar"): entry["sha256"] for entry in indexes[receipt.arguments["dataset"]]["shards"]}
            inputs = {key: amender.now(mark) for key, mark in receipt.inputs.items()}
            inputs |= {"shard": shards[name]} if "shard" in inputs else {}
            _redo(amender, receipt, inputs, lay_weights)
    for dataset in sorted(indexes) if amender.partitions(weighing.LAY) else []:
        write_weights_index(amender.storage, dataset)


def _redo(amender: Amender, receipt: Receipt, inputs: dict[str, str], step: Step) -> None:
    work = Work(name=receipt.partition, inputs=inputs, arguments=receipt.arguments)
    amender.redo(receipt.stage, receipt.partition, receipt, functools.partial(_run, amender.storage, receipt, work, step))


def _run(storage: Storage, receipt: Receipt, work: Work, step: Step, standing: Done | None) -> Receipt:
    mark = work.fingerprint(receipt.stage, receipt.version)
    return perform(step, storage, receipt.stage, receipt.version, mark, work, [standing] if standing else [])
