"""Reads one source of image-text pairs: parquet, CSV, TSV, or a COCO captions file.

Every reader yields tables of url, caption, licence, sha256 (SOURCE_COLUMNS), a batch at a time; only COCO's JSON is read
whole (92 MB for the largest one there is). Errors name the file, the row and the cure. Rows count from 1, the
header left out (but Arrow's own messages about malformed CSV count it).
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from winnow.errors import ManifestError
from winnow.object_store import open_store

FORMATS = ("parquet", "csv", "tsv", "coco")
SOURCE_COLUMNS = ("url", "caption", "licence", "sha256")
BATCH_ROWS = 64 * 1024
CSV_BLOCK_BYTES = 16 * 1024 * 1024
"""Read at a time, and the longest row there may be."""
TEXT = pa.string()


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One entry of a manifest, checked as far as that goes without reading the files."""

    name: str
    files: tuple[str, ...]
    """Full paths or urls, sorted."""
    format: str
    licence: str
    """Of rows that do not bring their own."""
    sha256: str | None = None
    """Expected digest of the one file."""
    columns: Mapping[str, str]
    """Our column -> the file's, for parquet, CSV and TSV."""
    column_names: tuple[str, ...] = ()
    """Of a CSV or TSV without a header row."""
    quotes: bool = True
    """Whether a double quote in CSV or TSV encloses a field."""
    url_field: str = "coco_url"
    """Of a COCO image."""
    captions: str = "all"
    """Of a COCO image: "all" makes a row of each, "first" one row of the first."""
    bad_rows: str = "error"
    """What a row without url or with a broken sha256 leads to: "error", or "skip" (counted)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Some rows of a source."""

    rows: pa.Table
    """url, caption, licence, sha256 (nullable); strings."""
    skipped: int = 0


def open_file(path: str) -> BinaryIO:
    """A list of urls, wherever it is. Raises StorageError if its store does not answer."""
    if "://" not in path:
        return open(path, "rb")
    store = open_store(path)
    return store.open(store.root)


def check_source(source: Source) -> None:
    """Columns, types and emptiness of every file, from headers and schemas. Raises ManifestError."""
    for file in source.files:
        with open_file(file) as stream:
            if not stream.read(1):
                raise ManifestError(f"{file} is empty. Give a file with rows, or remove source {source.name!r}.")
            stream.seek(0)
            if source.format == "parquet":
                _check_parquet(source, file, stream)
            elif source.format in ("csv", "tsv"):
                _check_csv(source, file, stream)


def read_source(source: Source, file: str) -> Iterator[Batch]:
    """All rows of one file. Raises ManifestError naming file and row."""
    with open_file(file) as stream:
        if source.format == "coco":
            yield from _read_coco(source, file, stream)
            return
        first = 1
        invalid: list[str] = []
        for rows in _read_parquet(source, file, stream) if source.format == "parquet" else _read_csv(source, file, stream, invalid):
            yield _checked(source, file, rows, first, skipped=len(invalid))
            first += rows.num_rows
            invalid.clear()
        if invalid:
            yield Batch(rows=_plain([[], [], [], []]), skipped=len(invalid))


def _parquet(file: str, stream: BinaryIO) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(stream)
    except (pa.ArrowInvalid, OSError) as problem:
        raise ManifestError(f"{file} is not a parquet file: {problem}. Check path and format.") from problem


def _check_parquet(source: Source, file: str, stream: BinaryIO) -> None:
    parquet = _parquet(file, stream)
    _check_columns(source, file, parquet.schema_arrow.names)
    for ours, theirs in source.columns.items():
        kind = parquet.schema_arrow.field(theirs).type
        plain = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(plain) or pa.types.is_large_string(plain) or pa.types.is_string_view(plain)):
            raise ManifestError(
                f"{file}: column {theirs!r} ({ours}) is {kind}, expected text. Name another column, or convert it to strings."
            )
    if not parquet.metadata.num_rows:
        raise ManifestError(f"{file} has no rows. Give a file with rows, or remove source {source.name!r}.")


def _check_columns(source: Source, file: str, names: list[str]) -> None:
    for ours, theirs in source.columns.items():
        if theirs not in names:
            raise ManifestError(
                f"{file} has no column {theirs!r} for {ours}; it has {', '.join(map(repr, names))}. "
                f"Say which one to take: columns: {{{ours}: ...}} of source {source.name!r}."
            )


def _read_parquet(source: Source, file: str, stream: BinaryIO) -> Iterator[pa.Table]:
    parquet = _parquet(file, stream)
    wanted = sorted(set(source.columns.values()))
    try:
        for batch in parquet.iter_batches(BATCH_ROWS, columns=wanted):
            yield pa.Table.from_batches([batch])
    except (pa.ArrowInvalid, OSError) as problem:
        raise ManifestError(f"{file} is damaged: {problem}. Fetch it again.") from problem


def _open_csv(source: Source, file: str, stream: BinaryIO, invalid: list[str], columns: list[str] | None) -> pcsv.CSVStreamingReader:
    def on_invalid(row: Any) -> str:
        if source.bad_rows == "skip":
            invalid.append(row.text)
            return "skip"
        return "error"

    delimiter = "\t" if source.format == "tsv" else ","
    return pcsv.open_csv(
        stream,
        # One thread: only then do errors carry row numbers.
        read_options=pcsv.ReadOptions(use_threads=False, block_size=CSV_BLOCK_BYTES, column_names=list(source.column_names) or None),
        parse_options=pcsv.ParseOptions(
            delimiter=delimiter,
            quote_char='"' if source.quotes else False,
            newlines_in_values=source.quotes,
            invalid_row_handler=on_invalid,
        ),
        convert_options=pcsv.ConvertOptions(column_types=dict.fromkeys(columns or [], TEXT), include_columns=columns),
    )


def _check_csv(source: Source, file: str, stream: BinaryIO) -> None:
    try:
        with _open_csv(source, file, stream, [], None) as reader:
            _check_columns(source, file, reader.schema.names)
    except (pa.ArrowInvalid, UnicodeDecodeError) as problem:
        raise _bad_csv(source, file, problem) from problem


def _read_csv(source: Source, file: str, stream: BinaryIO, invalid: list[str]) -> Iterator[pa.Table]:
    try:
        with _open_csv(source, file, stream, invalid, sorted(set(source.columns.values()))) as reader:
            for batch in reader:
                yield pa.Table.from_batches([batch])
    except (pa.ArrowInvalid, UnicodeDecodeError) as problem:
        raise _bad_csv(source, file, problem) from problem


def _bad_csv(source: Source, file: str, problem: Exception) -> ManifestError:
    return ManifestError(
        f"{file} cannot be read as {source.format.upper()}: {problem}. Mend the row, or set bad_rows: skip (rows with too many or too few "
        f"fields), quotes: {str(not source.quotes).lower()} (stray quotes) or column_names (no header row) in source {source.name!r}."
    )


def _checked(source: Source, file: str, theirs: pa.Table, first: int, *, skipped: int = 0) -> Batch:
    """Our columns out of theirs; rows that cannot be used raise, or are left out and counted."""
    columns: dict[str, pa.ChunkedArray | pa.Array] = {ours: theirs[name].cast(TEXT) for ours, name in source.columns.items()}
    nothing = pa.nulls(theirs.num_rows, TEXT)
    url = pc.fill_null(columns["url"], "")
    caption = pc.fill_null(columns.get("caption", nothing), "")
    licence = pc.fill_null(_blank_to_null(columns.get("licence", nothing)), source.licence)
    sha256 = pc.utf8_lower(_blank_to_null(columns.get("sha256", nothing)))
    faults = {
        "the url is empty": pc.equal(pc.utf8_trim_whitespace(url), ""),
        "the url holds a zero character": pc.match_substring(url, "\0"),
        "sha256 is not 64 hexadecimal digits": pc.fill_null(pc.invert(pc.match_substring_regex(sha256, "^[0-9a-f]{64}$")), False),
    }
    rows = _plain([url, caption, licence, sha256])
    bad = None
    for what, mask in faults.items():
        if not pc.any(mask).as_py():
            continue
        if source.bad_rows == "error":
            row = first + pc.index(mask, True).as_py()
            raise ManifestError(f"{file}, row {row}: {what}. Mend or remove the row, or set bad_rows: skip in source {source.name!r}.")
        bad = mask if bad is None else pc.or_(bad, mask)
    if bad is not None:
        rows = rows.filter(pc.invert(bad))
    return Batch(rows=rows, skipped=skipped + theirs.num_rows - rows.num_rows)


def _plain(columns: list[Any]) -> pa.Table:
    return pa.table(columns, schema=pa.schema([(name, TEXT) for name in SOURCE_COLUMNS]))


def _blank_to_null(values: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    return pc.if_else(pc.equal(values, ""), None, values)


def _read_coco(source: Source, file: str, stream: BinaryIO) -> Iterator[Batch]:
    """One row an (image, caption), in the order of the file's annotations."""
    try:
        content = json.load(stream)
    except ValueError as problem:
        raise ManifestError(f"{file} is not JSON: {problem}. Check path and format.") from problem
    images, annotations = _coco_list(file, content, "images"), _coco_list(file, content, "annotations")
    licences = {entry.get("id"): entry.get("name") for entry in content.get("licenses", []) if isinstance(entry, dict)}
    known = {image.get("id"): image for image in images}
    seen: set[Any] = set()
    rows: dict[str, list[str | None]] = {name: [] for name in SOURCE_COLUMNS}
    for number, annotation in enumerate(annotations, 1):
        place = f"{file}, annotation {number}"
        image, caption = known.get(annotation.get("image_id")), annotation.get("caption")
        if image is None:
            raise ManifestError(f"{place}: no image has the id {annotation.get('image_id')!r}. Mend or remove it.")
        if not isinstance(caption, str):
            raise ManifestError(f"{place}: caption is {caption!r}, expected text. Is this the captions file, not the instances?")
        url = image.get(source.url_field)
        if not isinstance(url, str):
            fields = [key for key, value in image.items() if isinstance(value, str) and re.match("https?:", value)]
            raise ManifestError(
                f"{place}: image {image['id']!r} has no text in {source.url_field!r}; its urls are in: {', '.join(fields) or '-'}. "
                f"Say which one to take: url_field of source {source.name!r}."
            )
        if source.captions == "first" and image["id"] in seen:
            continue
        seen.add(image["id"])
        for name, value in zip(SOURCE_COLUMNS, (url, caption, licences.get(image.get("license")), None), strict=True):
            rows[name].append(value)
    try:
        table = _plain(list(rows.values()))
    except UnicodeEncodeError as problem:
        raise ManifestError(f"{file} holds text that is not valid Unicode: {problem}. Mend it.") from problem
    whole = Source(**{name: getattr(source, name) for name in Source.__slots__} | {"columns": {name: name for name in SOURCE_COLUMNS}})
    for start in range(0, table.num_rows, BATCH_ROWS):
        yield _checked(whole, file, table.slice(start, BATCH_ROWS), start + 1)


def _coco_list(file: str, content: Any, key: str) -> list[dict[str, Any]]:
    value = content.get(key) if isinstance(content, dict) else None
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise ManifestError(f"{file} is not a COCO captions file: it has no list of objects named {key!r}. Check path and format.")
    if not value:
        raise ManifestError(f"{file} has no {key}. Give a file with rows.")
    return value
