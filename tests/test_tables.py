import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from winnow.tables import table_bytes


def features(rows, dim=8):
    values = np.random.default_rng(0).normal(size=rows * dim).astype(np.float16)
    return pa.table(
        {
            "uid": [f"{row:032x}" for row in range(rows)],
            "reasons": [["blurry"], ["duplicate", "blurry"]] * (rows // 2),
            "feature": pa.FixedSizeListArray.from_arrays(pa.array(values), dim),
        }
    )


def test_a_table_of_features_is_the_same_bytes_when_it_is_read_and_written_again():
    table = features(200)
    data = table_bytes(table)
    again = pq.read_table(io.BytesIO(data))
    assert again.to_pylist() == table.to_pylist()
    assert table_bytes(again) == data


def test_only_features_go_without_a_dictionary_which_makes_reading_them_slow():
    group = pq.ParquetFile(io.BytesIO(table_bytes(features(200)))).metadata.row_group(0)
    columns = [group.column(number) for number in range(group.num_columns)]
    with_dictionary = {column.path_in_schema for column in columns if "RLE_DICTIONARY" in column.encodings}
    assert with_dictionary == {"uid", "reasons.list.element"}


def test_tables_without_features_are_as_they_would_be_without_this():
    table, sink = features(20).drop_columns(["feature"]), io.BytesIO()
    pq.write_table(table, sink, compression="zstd", row_group_size=64 * 1024, store_schema=False)
    assert table_bytes(table) == sink.getvalue()
