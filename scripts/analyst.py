#!/usr/bin/env python3
"""Read an output with DuckDB, pyarrow and pandas, and check that the counts agree.

    scripts/analyst.py OUT --records N [--labels FILE]

OUT is a local output folder of `sluice run`, N the number of input records, and FILE the correct labels of
each image (JSON, a list by file name). Prints the counts and each check; exits with 1 if a check fails.

- Every record is one row with its own key, and records of a shard keep their order.
- The three tools and the manifest count the same rows for each status.
- Batches other than warm-ups have as many rows as a model ran on, and each such row names its batch.
- All parts of a kind have one schema, with types that BigQuery and Spark read.
- Top-1 is the best score; all scores are finite.
- The labels in the parts' footers agree with top1_label.
"""

import argparse
import json
import sys
from pathlib import Path

import duckdb
import pandas
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq

# Spark has no unsigned integers, BigQuery no float16, and neither reads nanoseconds everywhere.
SAFE_TYPES = {
    pa.string(),
    pa.bool_(),
    pa.int32(),
    pa.int64(),
    pa.float32(),
    pa.float64(),
    pa.timestamp("us", tz="UTC"),
}


class Checks:
    """Prints each check and remembers whether one failed."""

    def __init__(self):
        self.failed = False

    def check(self, claim, holds, detail=""):
        self.failed |= not holds
        print(f"{'ok  ' if holds else 'FAIL'}  {claim}{f': {detail}' if detail and not holds else ''}")


def counts_by_duckdb(parts):
    statuses = duckdb.sql(f"SELECT status, count(*) FROM '{parts}' GROUP BY status").fetchall()
    keys = duckdb.sql(f"SELECT count(DISTINCT key) FROM '{parts}'").fetchall()
    return dict(statuses), keys[0][0]


def counts_by_pyarrow(folder):
    table = pyarrow.dataset.dataset(folder, format="parquet").to_table(columns=["status", "key"])
    counts = {row["values"].as_py(): row["counts"].as_py() for row in pc.value_counts(table["status"])}
    return counts, pc.count_distinct(table["key"]).as_py()


def counts_by_pandas(folder):
    frame = pandas.concat(pandas.read_parquet(part, columns=["status", "key"]) for part in parts_of(folder))
    return {status: int(count) for status, count in frame["status"].value_counts().items()}, frame[
        "key"
    ].nunique()


def parts_of(folder):
    return sorted(folder.glob("part-*.parquet"))


def check_counts(checks, output, records):
    predictions = output / "predictions"
    found = {
        "DuckDB": counts_by_duckdb(predictions / "*.parquet"),
        "pyarrow": counts_by_pyarrow(predictions),
        "pandas": counts_by_pandas(predictions),
    }
    for tool, (statuses, keys) in found.items():
        print(f"{tool:8}{sum(statuses.values())} rows, {keys} keys: {dict(sorted(statuses.items()))}")
        checks.check(f"{tool} counts {records} rows", sum(statuses.values()) == records)
        checks.check(f"{tool} finds every key once", keys == records, f"{keys} keys")
    statuses, _ = found["pyarrow"]
    summary = json.loads((output / "_manifest.json").read_text())["summary"]
    checks.check("DuckDB agrees with pyarrow", found["DuckDB"] == found["pyarrow"])
    checks.check("pandas agrees with pyarrow", found["pandas"] == found["pyarrow"])
    checks.check(
        "the manifest agrees with pyarrow",
        summary["rows_by_status"] == statuses,
        str(summary["rows_by_status"]),
    )
    checks.check("_SUCCESS exists", (output / "_SUCCESS").exists())


def check_rows(checks, output):
    predictions, batches = (f"'{output / kind / '*.parquet'}'" for kind in ("predictions", "batches"))

    def value(query):
        return duckdb.sql(query).fetchall()[0][0]

    disordered = value(
        f"""SELECT count(*) FROM read_parquet({predictions}, file_row_number = true)
            WHERE record_index != file_row_number"""
    )
    checks.check("record_index counts up from 0 in each part", disordered == 0, f"{disordered} rows")
    scored = value(f"SELECT count(*) FROM {predictions} WHERE status IN ('ok', 'invalid_score')")
    batched = value(f"SELECT coalesce(sum(rows), 0) FROM {batches} WHERE NOT warmup")
    print(f"batches {batched} rows in {value(f'SELECT count(*) FROM {batches} WHERE NOT warmup')} batches")
    checks.check("the batches have every scored row", batched == scored, f"{batched} of {scored}")
    differing = value(
        f"""SELECT count(*) FROM
            (SELECT run_id, batch_id, count(*) AS rows FROM {predictions} WHERE batch_id IS NOT NULL
             GROUP BY run_id, batch_id) AS p
            FULL JOIN (SELECT run_id, batch_id, rows FROM {batches} WHERE NOT warmup) AS b USING (run_id, batch_id)
            WHERE p.rows IS DISTINCT FROM b.rows"""
    )
    checks.check("each batch has the rows that name it", differing == 0, f"{differing} batches")
    wrong = value(
        f"""SELECT count(*) FROM {predictions} WHERE status = 'ok' AND top1_score IS DISTINCT FROM list_max(scores)
            AND len(scores) > 0"""
    )
    checks.check("top1_score is the best score", wrong == 0, f"{wrong} rows")
    scores = f"(SELECT unnest(scores) AS score FROM {predictions})"
    odd = value(f"SELECT count(*) FROM {scores} WHERE score IS NULL OR NOT isfinite(score)")
    checks.check("every score is a finite number", odd == 0, f"{odd} scores")
    halves = value(
        f"""SELECT count(*) FROM {predictions} WHERE (status = 'ok') != (top1_index IS NOT NULL)
            OR (status IN ('ok', 'invalid_score')) != (batch_id IS NOT NULL)"""
    )
    checks.check("scored rows have a top class, and rows that a model ran on have a batch", halves == 0, f"{halves} rows")
    members = value(f"SELECT count(*) FROM {predictions} WHERE member IS NOT NULL AND shard NOT LIKE '%.t%'")
    checks.check("only tars have members", members == 0, f"{members} rows")
    unexplained = value(f"SELECT count(*) FROM {predictions} WHERE (status = 'ok') != (error IS NULL)")
    checks.check("every failure, and nothing else, has a reason", unexplained == 0, f"{unexplained} rows")


# Class names by part, from the footers. They resolve top1_index and scores_index.
NAMES = """SELECT file_name, from_json(decode(value), '["VARCHAR"]') AS labels
           FROM parquet_kv_metadata('{}') WHERE decode(key) = 'sluice.labels'"""


def check_names(checks, output):
    parts = output / "predictions" / "*.parquet"
    names = NAMES.format(parts)
    [[wrong]] = duckdb.sql(
        f"""SELECT count(*) FROM read_parquet('{parts}', filename = true) AS rows
            LEFT JOIN ({names}) AS names ON rows.filename = names.file_name
            WHERE top1_label IS DISTINCT FROM labels[top1_index + 1]
               OR len(list_filter(scores_index, lambda class: labels[class + 1] IS NULL)) > 0 AND labels IS NOT NULL"""
    ).fetchall()
    checks.check("the footers' labels name every class", wrong == 0, f"{wrong} rows")


def check_labels(checks, output, expected):
    found = duckdb.sql(
        f"SELECT parse_filename(image_id), top1_label FROM '{output / 'predictions' / '*.parquet'}'"
    ).fetchall()
    wrong = [f"{image} is not a {label}" for image, label in found if label not in expected.get(image, [])]
    checks.check(f"{len(expected)} labels are right", not wrong, ", ".join(wrong))
    checks.check("every labelled image has a row", {image for image, _ in found} == set(expected))


def unsafe_columns(part):
    """Columns that BigQuery or Spark would refuse or misread."""
    for field in pq.read_schema(part):
        inner = field.type.value_type if pa.types.is_list(field.type) else field.type
        if inner not in SAFE_TYPES:
            yield f"{field.name} is {field.type}"
    columns = pq.ParquetFile(part).schema
    for column in map(columns.column, range(len(columns))):
        if column.physical_type == "INT96":
            yield f"{column.path} is INT96"
        if column.max_repetition_level and not column.path.endswith(".list.element"):
            yield f"{column.path} is not a 3-level list"


def check_schemas(checks, output):
    for kind in ("predictions", "batches"):
        parts = parts_of(output / kind)
        schemas = [pq.read_schema(part) for part in parts]
        odd = [
            part.name for part, schema in zip(parts, schemas, strict=True) if not schema.equals(schemas[0])
        ]
        checks.check(f"all {len(parts)} {kind} parts have one schema", not odd, ", ".join(odd))
        unsafe = sorted({problem for part in parts for problem in unsafe_columns(part)})
        checks.check(f"{kind} have BigQuery's and Spark's types", not unsafe, ", ".join(unsafe))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, metavar="OUT")
    parser.add_argument("--records", type=int, required=True, metavar="N")
    parser.add_argument("--labels", type=Path, metavar="FILE")
    args = parser.parse_args()

    checks = Checks()
    check_counts(checks, args.output, args.records)
    check_rows(checks, args.output)
    check_names(checks, args.output)
    check_schemas(checks, args.output)
    if args.labels:
        check_labels(checks, args.output, json.loads(args.labels.read_text()))
    return 1 if checks.failed else 0


if __name__ == "__main__":
    sys.exit(main())
