"""Labels from files and into files: CSV, parquet, and the JSON of Label Studio.

A plain table has the columns uid or url, and value (1 drop, 0 keep, empty: no answer). What `export_labels` writes has more: who,
how drawn, how asked, how long it took; read again it gives the same labels. Images reported as illegal are never written.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from filters.catalog import filter_specs
from filters.label_database import now
from filters.label_opinions import answer_of, standing
from filters.label_records import MODES, VALUES, Answer, Row, policy_version
from filters.label_studio import read_label_studio, write_label_studio
from filters.labels import LabelStore, check_origin
from winnow.digests import SHORT, digest
from winnow.errors import ConfigError
from winnow.storage import Storage
from winnow.tables import read_table
from winnow.workspace import manifest_part

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = (
    "uid", "value", "answer", "person", "origin", "batch", "mode", "policy_version", "seconds", "blur", "zoomed", "flagged", "early",
    "item_digest", "decided_at", "created_at",
)  # fmt: skip
"""Of an exported table, a row for each standing answer."""
MEASURED = ("seconds", "blur", "zoomed", "flagged", "early", "item_digest", "decided_at")


def import_labels(
    store: LabelStore,
    storage: Storage,
    filter_name: str,
    table: str,
    *,
    origin: str,
    person: str,
    partitions: Sequence[str],
    replace: bool = False,
) -> int:
    """Adds labels made elsewhere; those that are in the store already are not added again.

    Args:
        table: a .csv, .json (Label Studio) or parquet file. Columns `person`, `origin`, `mode` and `answer` go before the arguments.
        origin: how the images were drawn. Say `random` of random draws alone: they prove what a filter promises.
        replace: these labels overrule the store's where they differ; the old ones stay on record.

    Returns:
        How many labels were added; a url speaks for every sample that has it.

    Raises:
        ConfigError: an unknown origin, a file that cannot be read, lacks a column or holds another value, an image that is not in the
            manifest, or labels that contradict each other or the store. Nothing was added then.
    """
    (spec,) = filter_specs((filter_name,))
    check_origin(origin)
    key, entries = _read_entries(table, origin=origin, person=person)
    _check_agreement(entries, table)
    uids_of = listed_uids(key, {entry["name"] for entry in entries}, storage, partitions)
    names = {str(entry["name"]) for entry in entries}
    if missing := sorted(str(name) for name in names if name not in uids_of):
        raise ConfigError(f"{table}: {len(missing)} of {len(names)} images are not in the manifest, the first is {key} {missing[0]}")
    rows = store.rows(filter_name)
    there = {(row.uid, row.person, answer_of(row), row.origin) for row in standing(rows)}
    given = [{**entry, "uid": uid} for entry in entries for uid in uids_of[entry["name"]]]
    new = [entry for entry in given if (entry["uid"], entry["person"], entry["answer"], entry["origin"]) not in there]
    if not new:
        return 0
    if replace:
        new = [{**entry, "mode": "adjudicate"} for entry in new]
    else:
        _check_against_store(store, filter_name, new, table)
    store.add_answers(filter_name, _batched(new, policy_version(spec.policy)))
    return len(new)


def _read_entries(table: str, *, origin: str, person: str) -> tuple[str, list[dict[str, Any]]]:
    """What names the images, and an entry for each answer: name, value, answer, person, origin, mode and what was measured."""
    if table.lower().endswith(".json"):
        key, found = read_label_studio(table)
    else:
        read = read_label_file(table)
        key = key_column(read, table)
        if "value" not in read.column_names:
            raise ConfigError(f"{table} has no column 'value'; it has {', '.join(read.column_names)}")
        found = [{**row, "name": row[key]} for row in read.to_pylist()]
    entries = []
    for row in found:
        value = as_label(row.get("value"), table, str(row["name"]))
        entry = {"name": row["name"], "value": value, "answer": _answer(row.get("answer"), value, table, str(row["name"]))}
        entry |= {"person": row.get("person") or person, "origin": row.get("origin") or origin, "mode": row.get("mode") or "table"}
        check_origin(entry["origin"])
        if entry["mode"] not in MODES:
            raise ConfigError(f"{table}: {row['name']} has the unknown mode {entry['mode']!r}; there are {', '.join(MODES)}")
        measured: dict[str, Any] = {name: row.get(name) for name in MEASURED}
        entries.append(entry | measured | {"policy_version": row.get("policy_version"), "created_at": row.get("created_at")})
    return key, entries


def _answer(answer: Any, value: int | None, path: str, image: str) -> Answer:
    if not answer:
        return "skip" if value is None else "yes" if value else "no"
    if answer not in ("yes", "no", "unsure", "skip") or VALUES.get(answer) != value:
        raise ConfigError(f"{path}: {image} has answer {answer!r} and value {value!r}, which do not belong together")
    return answer


def _check_agreement(entries: Sequence[Mapping[str, Any]], path: str) -> None:
    """Raises ConfigError if a person says two things of an image."""
    said: dict[tuple[Any, str, str], str] = {}
    for entry in entries:
        key = (entry["name"], entry["person"], entry["mode"])
        if said.setdefault(key, entry["answer"]) != entry["answer"]:
            raise ConfigError(
                f"{path}: {entry['person']} says both {said[key]!r} and {entry['answer']!r} of {entry['name']}. "
                "Leave one, or name the people in a column 'person'. Nothing was imported."
            )


def _check_against_store(store: LabelStore, filter_name: str, new: Sequence[Mapping[str, Any]], path: str) -> None:
    """Raises ConfigError if a table's label contradicts what the store has. People's answers on a page may differ: that is a conflict."""
    known = {label.uid: label.value for label in store.labels(filter_name)}
    against = [
        entry
        for entry in new
        if entry["mode"] == "table" and entry["value"] is not None and known.get(entry["uid"], entry["value"]) != entry["value"]
    ]
    if against:
        first, words = against[0], ("keep", "drop")
        raise ConfigError(
            f"{path}: {len(against)} of {len(new)} labels contradict the store, the first is {first['name']}: the file says "
            f"{words[first['value']]}, the store {words[known[first['uid']]]}. Nothing was imported. Correct the file, or overrule the "
            "store (--replace); the old labels stay on record."
        )


def _batched(entries: Sequence[Mapping[str, Any]], version: str) -> list[dict[str, Any]]:
    """Rows for the store; those of one origin and mode are a batch, named by what is in it."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for entry in entries:
        groups.setdefault((entry["origin"], entry["mode"]), []).append(entry)
    rows = []
    for (origin, mode), own in groups.items():
        content = [origin, mode, sorted([entry["uid"], entry["person"], entry["answer"]] for entry in own)]
        for entry in own:
            row = {name: entry[name] for name in ("uid", "value", "answer", "person", "origin", "mode", *MEASURED)}
            row |= {"batch": f"file-{digest(content)[:SHORT]}", "kind": "item", "policy_version": entry["policy_version"] or version}
            rows.append({**row, "created_at": entry["created_at"] or now()})
    return rows


def export_labels(store: LabelStore, filter_name: str, path: str, *, storage: Storage | None = None, partitions: Sequence[str] = ()) -> int:
    """Writes every standing answer to a .csv, .json (Label Studio) or .parquet file; returns how many.

    Args:
        storage, partitions: a manifest to take the images' urls from, which Label Studio shows.

    Raises:
        ConfigError: another ending, or a file that cannot be written.
    """
    blocked = store.blocked()
    rows = [
        row for row in standing(store.rows(filter_name)) if row.kind == "item" and row.uid not in blocked and answer_of(row) != "report"
    ]
    try:
        if path.lower().endswith(".json"):
            write_label_studio(path, filter_name, rows, _urls(rows, storage, partitions))
        else:
            _write_table(path, rows)
    except OSError as problem:
        raise ConfigError(f"{path} cannot be written: {problem.strerror}") from problem
    return len(rows)


def _write_table(path: str, rows: Sequence[Row]) -> None:
    import pyarrow as pa
    import pyarrow.csv as pc
    import pyarrow.parquet as pq

    if not path.lower().endswith((".csv", ".parquet")):
        raise ConfigError(f"{path}: labels are written as .csv, .parquet or .json (Label Studio)")
    kinds = {"value": pa.int8(), "seconds": pa.float64(), "zoomed": pa.bool_(), "flagged": pa.bool_(), "early": pa.int32()}
    columns = {name: [answer_of(row) if name == "answer" else getattr(row, name) for row in rows] for name in COLUMNS}
    table = pa.table({name: pa.array(values, kinds.get(name, pa.string())) for name, values in columns.items()})
    if path.lower().endswith(".csv"):
        pc.write_csv(table, path)
    else:
        pq.write_table(table, path)


def _urls(rows: Sequence[Row], storage: Storage | None, partitions: Sequence[str]) -> dict[str, str]:
    if storage is None:
        return {}
    wanted, urls = {row.uid for row in rows}, {}
    for partition in partitions:
        table = read_table(storage, manifest_part(partition), ["uid", "url"])
        for uid, url in zip(table.column("uid").to_pylist(), table.column("url").to_pylist(), strict=True):
            if uid in wanted:
                urls[uid] = url
    return urls


def read_label_file(path: str) -> "pa.Table":
    """A parquet or CSV file as a table. Raises ConfigError naming the file."""
    import pyarrow as pa
    import pyarrow.csv as pc
    import pyarrow.parquet as pq

    is_csv = path.lower().endswith(".csv")
    # Texts stay texts: pyarrow would take times for times, and an empty column for one of nulls.
    texts = {name: pa.string() for name in (*COLUMNS, "url") if name not in ("value", "seconds", "zoomed", "flagged", "early")}
    try:
        if is_csv:
            return pc.read_csv(path, convert_options=pc.ConvertOptions(column_types=texts, strings_can_be_null=True))
        return pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as problem:
        raise ConfigError(f"{path} cannot be read as {'CSV' if is_csv else 'parquet'}: {problem}") from problem


def key_column(table: "pa.Table", path: str) -> str:
    """What a table names its images by: "uid" or "url"."""
    for key in ("uid", "url"):
        if key in table.column_names:
            return key
    raise ConfigError(f"{path} has neither a column 'uid' nor 'url'; it has {', '.join(table.column_names)}")


def listed_uids(key: str, names: Collection[str], storage: Storage, partitions: Sequence[str]) -> dict[str, list[str]]:
    """uid or url -> uids of the samples that have it, for those of `names` that the manifest lists."""
    found: dict[str, list[str]] = {}
    for partition in partitions:
        table = read_table(storage, manifest_part(partition), ["uid", key] if key != "uid" else ["uid"])
        for name, uid in zip(table.column(key).to_pylist(), table.column("uid").to_pylist(), strict=True):
            if name in names:
                found.setdefault(name, []).append(uid)
    return found


def as_label(value: object, path: str, image: str) -> int | None:
    """1 (drop), 0 (keep) or None (no answer). Raises ConfigError naming file and image for anything else."""
    if value is None:
        return None
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return int(value)
    raise ConfigError(f"{path}: the label of {image} must be 1 (drop), 0 (keep) or empty (no answer), got {value!r}")
