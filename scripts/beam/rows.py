"""Compares the rows of two outputs, bit for bit, and finds files that do not belong to an output."""

import json

import pyarrow
import pyarrow.parquet

# Columns and keys of a part's footer that name the run, its attempt or the batches that an image was scored in.
OF_THE_RUN = ("run_id", "batch_id")
FOOTER_OF_THE_RUN = (b"sluice.run_id", b"sluice.attempt", b"sluice.body", b"ARROW:schema")


def parts(output):
    """The parts of an output, by name."""
    return {path.name: path for path in sorted((output / "predictions").glob("*.parquet"))}


def read(part):
    """(schema, columns, footer) of a part, without what differs between runs."""
    with pyarrow.parquet.ParquetFile(part) as file:
        table = file.read().drop_columns(list(OF_THE_RUN)).combine_chunks()
        footer = {key: value for key, value in file.metadata.metadata.items() if key not in FOOTER_OF_THE_RUN}
    columns = [bits(column.chunk(0)) if column.num_chunks else None for column in table.columns]
    return table.schema.remove_metadata(), columns, footer


def bits(array):
    """The array with integers of the same bits in place of floats; a list as its lengths and its values."""
    if pyarrow.types.is_float32(array.type):
        return array.view(pyarrow.int32())
    if pyarrow.types.is_list(array.type):
        return array.value_lengths(), bits(array.flatten())
    if pyarrow.types.is_floating(array.type):
        raise TypeError(f"a column of type {array.type}")
    return array


def rows(output):
    """All rows of an output, by part, for `difference`."""
    return {name: read(path) for name, path in parts(output).items()}


def count(of_output):
    """The number of rows."""
    return sum(len(columns[0]) for _, columns, _ in of_output.values() if columns[0] is not None)


def difference(found, expected):
    """How the rows of two outputs differ, in words; None if they are identical."""
    if found.keys() != expected.keys():
        missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
        return f"{len(missing)} parts are missing, {len(extra)} parts are extra: {(missing + extra)[:3]}"
    for name, (schema, columns, footer) in expected.items():
        found_schema, found_columns, found_footer = found[name]
        if found_schema != schema:
            return f"{name} has another schema"
        for field, column, found_column in zip(schema, columns, found_columns, strict=True):
            if not same(found_column, column):
                return f"{name} differs in {field.name}"
        if found_footer != footer:
            keys = [key for key in footer.keys() | found_footer.keys() if footer.get(key) != found_footer.get(key)]
            return f"the footer of {name} differs in {keys}"
    return None


def same(one, other):
    if isinstance(one, tuple) and isinstance(other, tuple):
        return all(same(left, right) for left, right in zip(one, other, strict=True))
    if one is None or other is None:
        return one is other
    return one.equals(other)


def statuses(of_output):
    """The number of rows by status, in words."""
    counts = {}
    for schema, columns, _ in of_output.values():
        column = columns[schema.get_field_index("status")]
        for status in column.to_pylist() if column is not None else []:
            counts[status] = counts.get(status, 0) + 1
    return ", ".join(f"{rows} {status}" for status, rows in sorted(counts.items()))


def strays(output):
    """The files of a finished output that its manifest does not list."""
    manifest = json.loads((output / "_manifest.json").read_text())
    listed = {entry["path"] for entry in (*manifest["parts"], *manifest["batches"], manifest["record"])}
    found = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    return sorted(found - listed - {"_manifest.json", "_SUCCESS"})
