"""Parquet files with the same bytes for the same rows."""

import io

import pyarrow as pa
import pyarrow.parquet as pq

from winnow.errors import ShardError
from winnow.storage import Storage, Written


def write_table(storage: Storage, path: str, table: pa.Table) -> Written:
    """Writes a table whole, as `table_bytes` makes it."""
    return storage.write_bytes(path, table_bytes(table))


def table_bytes(table: pa.Table) -> bytes:
    """A table as a parquet file. The bytes depend on rows and schema alone: nothing of pandas, machine or time goes in."""
    sink = io.BytesIO()
    # A dictionary of features is no shorter than they are, and makes reading them three to four times as slow.
    leaves = [field.name + ".list.element" * _is_list(field.type) for field in table.schema if not _is_feature(field.type)]
    plain = table.replace_schema_metadata(None)
    pq.write_table(plain, sink, compression="zstd", row_group_size=64 * 1024, store_schema=False, use_dictionary=leaves)
    return sink.getvalue()


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_feature(kind: pa.DataType) -> bool:
    return _is_list(kind) and pa.types.is_float16(kind.value_type)


def read_table(storage: Storage, path: str, columns: list[str] | None = None) -> pa.Table:
    """Reads a table (of these columns only). Raises ShardError naming the file if it is damaged."""
    try:
        with storage.open(path) as stream:
            return pq.read_table(stream, columns=columns)
    except (pa.ArrowInvalid, OSError) as problem:
        if isinstance(problem, FileNotFoundError):
            raise
        raise ShardError(
            f"{storage.url}/{path} cannot be read as parquet: {problem}. Remove it and its receipt, and run again."
        ) from problem
