"""Forgetting in the label store: what people said of an image stays as a number under its uid; nothing else of the image does.

A label is evidence of a certificate, and an audit counts answers: taking them away would silently weaken both. What goes are digests of
pictures, captions and references to pictures that a batch asks with, questions that nobody has answered yet, and leases. Labels
themselves go when that is asked for; filters that learned from them are then fitted anew.

The tables only grow otherwise: their guards are lifted within the one transaction that does this, so that a kill leaves all as it was.
"""

import json
from collections.abc import Collection, Mapping
from typing import Any

from filters.label_database import LabelDatabase
from filters.label_schema import GROWING, tables

AT_ONCE = 500
"""uids in one statement."""


def forget_in_labels(
    database: LabelDatabase, uids: Collection[str], *, captions: Collection[str], pictures: Collection[str], erase: bool = False
) -> dict[str, int]:
    """Takes images out of the label store; how many rows were touched. Calling it again changes nothing.

    Args:
        captions: of the images: questions about two pictures show them.
        pictures: paths of samples that go with the images.
        erase: their labels go, too.

    Raises:
        ConfigError: somebody holds the store; it is as it was.
    """
    from sqlalchemy import delete, func, select, update

    labels, items, leases = tables().labels, tables().items, tables().leases
    references = {f"uid:{uid}" for uid in uids} | {f"file:{path}" for path in pictures}
    counts = {"labels": 0, "questions": 0}
    with database.writing() as connection, database.guards_lifted(connection, GROWING):
        asked = [row for row in connection.execute(select(items)).mappings() if _concerns(row, set(uids), set(captions), references)]
        for row in asked:
            place = (items.c.filter == row["filter"], items.c.batch == row["batch"], items.c.position == row["position"])
            answers = (labels.c.filter == row["filter"], labels.c.batch == row["batch"], labels.c.uid == row["uid"])
            answered = connection.execute(select(func.count()).select_from(labels).where(*answers)).scalar_one()
            if not answered or (erase and row["uid"] in uids):
                counts["questions"] += connection.execute(delete(items).where(*place)).rowcount
                continue
            bare = _bare(row, set(captions), references)
            if bare:
                counts["questions"] += connection.execute(update(items).where(*place).values(**bare)).rowcount
            connection.execute(update(labels).where(*answers, labels.c.item_digest.is_not(None)).values(item_digest=None))
        for part in _parts(sorted(uids)):
            connection.execute(delete(leases).where(leases.c.uid.in_(part)))
            if erase:
                counts["labels"] += connection.execute(delete(labels).where(labels.c.uid.in_(part))).rowcount
            else:
                bare_labels = update(labels).where(labels.c.uid.in_(part), labels.c.item_digest.is_not(None)).values(item_digest=None)
                counts["labels"] += connection.execute(bare_labels).rowcount
    database.scrub()
    return counts


def _concerns(row: Mapping[Any, Any], uids: set[str], captions: set[str], references: set[str]) -> bool:
    return row["uid"] in uids or row["reason"] in captions or not references.isdisjoint(json.loads(row["pictures"]).values())


def _bare(row: Mapping[Any, Any], captions: set[str], references: set[str]) -> dict[str, str]:
    """What of a question has to be emptied."""
    if not references.isdisjoint(json.loads(row["pictures"]).values()):
        return {"pictures": "{}", "reason": ""}
    return {"reason": ""} if row["reason"] in captions else {}


def _parts(uids: list[str]) -> list[list[str]]:
    return [uids[start : start + AT_ONCE] for start in range(0, len(uids), AT_ONCE)]
