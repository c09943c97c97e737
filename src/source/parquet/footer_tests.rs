use super::super::thrift::CompactWriter;
use super::*;

fn options() -> ReadOptions {
    ReadOptions { image_key: None, id_key: None, max_image_bytes: 1000, max_page_bytes: 1 << 20 }
}

/// A schema element; one without children is an optional binary column.
fn element(out: &mut CompactWriter, name: &str, children: u64) {
    const BYTE_ARRAY: i64 = 6;
    if children == 0 {
        out.number(1, I32, BYTE_ARRAY);
    }
    out.number(3, I32, 1);
    out.bytes(4, name.as_bytes());
    if children > 0 {
        out.number(5, I32, children as i64);
    }
    out.end();
}

/// A file that is only a footer, with a schema of `elements` elements and the list `row_groups`.
fn file(elements: u64, schema: &CompactWriter, row_groups: &[u8]) -> Bytes {
    let mut footer = CompactWriter::default();
    footer.number(1, I32, 1);
    footer.list(2, STRUCT, elements);
    footer.0.extend(&schema.0);
    footer.number(3, I64, 0);
    footer.field(4, LIST);
    footer.0.extend(row_groups);
    footer.end();
    let length = (footer.0.len() as u32).to_le_bytes();
    [&b"PAR1"[..], &footer.0, &length, b"PAR1"].concat().into()
}

const NO_ROW_GROUPS: [u8; 1] = [STRUCT];

fn nested(depth: u64) -> Bytes {
    let mut schema = CompactWriter::default();
    (0..depth).for_each(|_| element(&mut schema, "g", 1));
    element(&mut schema, "image", 0);
    file(depth + 1, &schema, &NO_ROW_GROUPS)
}

fn reason(file: &Bytes, options: &ReadOptions) -> String {
    read(file, options).err().expect("refused").to_string()
}

#[test]
fn a_deep_schema_is_refused_before_the_library_walks_it() {
    let deep = ReadOptions { image_key: Some(["g"; 62].join(".") + ".image"), ..options() };
    assert_eq!(read(&nested(63), &deep).expect("the deepest schema allowed").metadata.num_row_groups(), 0);
    for depth in [TOO_DEEP, 1500, 90_000] {
        let reason = reason(&nested(depth), &options());
        assert_eq!(reason, "footer: the schema has more than 64 groups inside each other");
    }
}

const TOO_DEEP: u64 = 65;

#[test]
fn the_library_gets_only_the_columns_that_are_read_of_a_wide_schema() {
    let wide = |columns: u64| {
        let mut schema = CompactWriter::default();
        element(&mut schema, "root", columns);
        (1..columns).for_each(|_| element(&mut schema, "x", 0));
        element(&mut schema, "image", 0);
        file(columns + 1, &schema, &NO_ROW_GROUPS)
    };
    let footer = read(&wide(99_999), &options()).expect("the widest schema allowed");
    assert_eq!(footer.metadata.file_metadata().schema_descr().num_columns(), 1);
    assert_eq!(footer.columns.leaves, [99_998]);
    let reason = reason(&wide(300_000), &options());
    assert_eq!(reason, "footer: the schema has 300001 fields, limit is 100000");
}

#[test]
fn a_schema_that_is_not_a_tree_is_refused() {
    for (elements, children) in [(1, 1), (3, 3), (4, 2), (2, 0)] {
        let mut schema = CompactWriter::default();
        element(&mut schema, "root", children);
        (1..elements).for_each(|_| element(&mut schema, "image", 0));
        assert!(
            reason(&file(elements, &schema, &NO_ROW_GROUPS), &options()).contains("malformed"),
            "{elements} {children}"
        );
    }
}

#[test]
fn row_groups_are_limited_and_must_have_the_columns_of_the_schema() {
    let mut schema = CompactWriter::default();
    element(&mut schema, "root", 1);
    element(&mut schema, "image", 0);
    let of = |count: u64, columns: u64| {
        let mut group = CompactWriter::default();
        group.list(1, STRUCT, columns);
        group.0.extend(vec![0; columns as usize]);
        group.number(2, I64, 0);
        group.number(3, I64, 0);
        group.end();
        let mut list = CompactWriter::default();
        list.list(1, STRUCT, count);
        // `file` writes the head of the field itself
        let head = list.0.split_off(2);
        reason(&file(2, &schema, &[head, group.0.repeat(count as usize)].concat()), &options())
    };
    assert_eq!(of(32_768, 1), "footer: the file has 32768 row groups, limit is 32767");
    assert_eq!(of(1, 2), "footer: a row group has 2 columns, the schema 1");
}
