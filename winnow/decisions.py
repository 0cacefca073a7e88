"""The decision log: one row for every listed uid, with its verdict, its reasons and its scores.

`decisions/<partition>.parquet`, rows sorted by uid:

    uid      string
    verdict  "failed" | "dropped" | "kept"
    reasons  list of slugs: "download:<cause>" or "embed:<cause>" of a failed sample (exactly one), the names of the filters
             that drop a dropped one, none of a kept one
    score_<filter>  float64 decision value, one column a filter; null for failed samples. A sample is dropped by a filter
             when its score is at or above the threshold of the filter's certificate.
"""

from collections.abc import Iterable

import pyarrow as pa

VERDICTS = ("failed", "dropped", "kept")


def score_column(filter_name: str) -> str:
    return f"score_{filter_name}"


def schema(filter_names: Iterable[str]) -> pa.Schema:
    fields = [("uid", pa.string()), ("verdict", pa.string()), ("reasons", pa.list_(pa.string()))]
    return pa.schema(fields + [(score_column(name), pa.float64()) for name in filter_names])
