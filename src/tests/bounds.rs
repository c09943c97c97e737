//! Runs over files that are made to need much memory stay within the bound that sluice prints.
//!
//! Each case writes its files to `in` and calls [`peak::run_within_bound`]. Limits that the case does not need are low,
//! so that the bound is tight.

mod support;

use std::fs::{self, File};
use std::io::Write;
use std::sync::Arc;

use arrow_array::{ArrayRef, BinaryArray, RecordBatch};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use support::*;

/// Low limits. A case replaces those that it needs.
const SMALL: [&str; 10] = [
    "--set",
    "input.look_ahead=1",
    "--set",
    "input.max_image_bytes=1000000",
    "--set",
    "input.max_page_bytes=1000000",
    "--set",
    "preprocess.max_pixels=1000000",
    "--set",
    "preprocess.threads=1",
];

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).expect("to memory");
    encoder.finish().expect("to memory")
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).expect("to memory");
    encoder.finish().expect("to memory")
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_tar_of_one_endless_member_stays_within_the_bound() {
    let bench = Bench::new();
    let mut header = tar::Header::new_gnu();
    header.set_path("a.png").expect("a name");
    header.set_size(1 << 43);
    header.set_mode(0o644);
    header.set_cksum();
    let zeros = gzip(&vec![0; 16 << 20]);
    let bomb = [gzip(header.as_bytes()), zeros.repeat(70)].concat();
    fs::write(bench.path("in/bomb.tar.gz"), bomb).expect("file");
    assert_code(&peak::run_within_bound(&bench, "out", &SMALL), 5);
}

/// An unsigned number in Thrift's compact protocol.
fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

/// A Parquet file without rows or row groups. `schema` encodes `elements` schema elements.
fn parquet_of_schema(elements: u64, schema: &[u8]) -> Vec<u8> {
    // fields 1 to 4: version, schema, rows, row groups
    let footer = [&[0x15, 2, 0x19, 0xfc], &varint(elements)[..], schema, &[0x16, 0, 0x19, 0x0c, 0]].concat();
    [&b"PAR1"[..], &footer, &(footer.len() as u32).to_le_bytes(), b"PAR1"].concat()
}

/// A schema element: an optional group with `children` children.
fn group(name: &str, children: u64) -> Vec<u8> {
    // fields 3, 4 and 5: repetition, name, children
    let (length, children) = (varint(name.len() as u64), varint(children << 1));
    [&[0x35, 2, 0x18], &length[..], name.as_bytes(), &[0x15], &children, &[0]].concat()
}

/// A schema element: an optional binary column.
fn column(name: &str) -> Vec<u8> {
    [&[0x15, 12, 0x25, 2, 0x18], &varint(name.len() as u64)[..], name.as_bytes(), &[0]].concat()
}

/// A schema element: an optional text column.
fn text_column(name: &str) -> Vec<u8> {
    // field 6: the converted type UTF8
    let column = column(name);
    [&column[..column.len() - 1], &[0x25, 0, 0]].concat()
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn huge_empty_parquet_schemas_stay_within_the_bound() {
    for (name, file, reason) in [
        (
            "deep",
            parquet_of_schema(100_000, &[group("g", 1).repeat(99_999), column("x")].concat()),
            "more than 64 groups inside each other",
        ),
        (
            "wide",
            parquet_of_schema(7_000_001, &[group("g", 7_000_000), column("x").repeat(7_000_000)].concat()),
            "has 7000001 fields, limit is 100000",
        ),
    ] {
        let bench = Bench::new();
        fs::write(bench.path("in/a.parquet"), file).expect("file");
        let output = peak::run_within_bound(&bench, name, &SMALL);
        assert_code(&output, 5);
        let rows = bench.rows(name);
        assert!(rows.len() == 1 && rows[0].status == "corrupt_record", "{rows:?}");
        let error = rows[0].error.as_deref().unwrap_or_default();
        assert!(error.contains(reason), "{error}");
    }
}

/// A little-endian TIFF with four samples of 16 bits per pixel. Its only strip, or its only tile of size `tile`, is
/// `data`.
fn tiff(side: u32, tile: Option<(u32, u32)>, compression: u32, data: &[u8]) -> Vec<u8> {
    let (short, long) = (3_u16, 4_u16);
    let mut fields: Vec<(u16, u16, u32)> = vec![
        (256, long, side),
        (257, long, side),
        (258, short, 16),
        (259, short, compression),
        (262, short, 2),
    ];
    let length = data.len() as u32;
    match tile {
        None => fields.extend([(273, long, 8), (277, short, 4), (279, long, length)]),
        Some((width, height)) => fields.extend([
            (277, short, 4),
            (322, long, width),
            (323, long, height),
            (324, long, 8),
            (325, long, length),
        ]),
    }
    let mut bytes = [b"II*\0", &(8 + length).to_le_bytes()[..], data].concat();
    bytes.extend((fields.len() as u16).to_le_bytes());
    for (tag, kind, value) in fields {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(1_u32.to_le_bytes());
        bytes.extend(value.to_le_bytes());
    }
    bytes.extend([0; 4]);
    bytes
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn images_with_huge_intermediate_buffers_stay_within_the_bound() {
    // a million pixels, the limit in SMALL
    let whole = zlib(&vec![0x55; 8_000_000]);
    let cases: [(&str, Vec<u8>, &str, &str); 4] = [
        ("strip", tiff(1000, None, 8, &whole), "ok", ""),
        ("tile", tiff(16, Some((1 << 20, 1 << 10)), 8, &whole), "too_large", "tile is 1048576×1024 pixels"),
        ("side", tiff(1 << 30, None, 8, &whole), "too_large", "limit is 1048576 on a side"),
        (
            "gif",
            b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\x01\0\x01\0\0\x08\0".to_vec(),
            "too_large",
            "65535×65535",
        ),
    ];
    for (name, file, status, reason) in cases {
        let bench = Bench::new();
        fs::write(bench.path("in/a.img"), file).expect("file");
        let output = peak::run_within_bound(&bench, name, &SMALL);
        assert_code(&output, if status == "ok" { 0 } else { 5 });
        let rows = bench.rows(name);
        assert!(rows.len() == 1 && rows[0].status == status, "{name}: {rows:?}");
        let error = rows[0].error.as_deref().unwrap_or_default();
        assert!(error.contains(reason), "{name}: {error}");
    }
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn only_one_shard_at_a_time_holds_long_parquet_pages() {
    const PAGE_BYTES: usize = 120_000_000;
    const SHARDS: usize = 7;
    let bench = Bench::new();
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(Default::default()))
        .set_write_batch_size(1)
        .build();
    // the first value becomes a dictionary, and each of the others a page
    let row: ArrayRef = Arc::new(BinaryArray::from_iter_values([vec![0_u8; PAGE_BYTES]]));
    let batch = RecordBatch::try_from_iter([("image", row)]).expect("batch");
    let first = bench.path("in/a.parquet");
    let file = File::create(&first).expect("file");
    let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).expect("writer");
    (0..5).for_each(|_| writer.write(&batch).expect("write"));
    writer.close().expect("footer");
    for copy in 1..SHARDS {
        fs::copy(&first, bench.path(&format!("in/b{copy}.parquet"))).expect("copied");
    }

    let pages = ["--set", "input.max_page_bytes=121000000", "--set", "output.max_error_rate=1"];
    let args = [&SMALL[2..], &["--set", "input.look_ahead=6"], &pages].concat();
    assert_code(&peak::run_within_bound(&bench, "out", &args), 0);
    let rows = bench.rows("out");
    assert!(rows.len() == 5 * SHARDS && rows.iter().all(|row| row.status == "too_large"), "{rows:?}");
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn many_empty_parquet_row_groups_stay_within_the_bound() {
    const ROW_GROUPS: u64 = 32_767;
    // empty `ColumnChunk`s of type binary
    let chunk = [0x26, 0, 0x1c, 0x15, 12, 0x19, 0x05, 0x25, 0, 0x16, 0, 0x16, 0, 0x16, 0, 0x26, 0, 0, 0];
    let row_group = [&[0x19, 0x3c][..], &chunk.repeat(3), &[0x16, 0, 0x16, 0, 0]].concat();
    let image = [group("image", 2), column("bytes"), text_column("path")].concat();
    let schema = [group("g", 2), image, text_column("id")].concat();
    let footer = [
        &[0x15, 2, 0x19, 0x5c][..],
        &schema,
        &[0x16, 0, 0x19, 0xfc],
        &varint(ROW_GROUPS),
        &row_group.repeat(ROW_GROUPS as usize),
        &[0],
    ]
    .concat();
    let bench = Bench::new();
    let file = [&b"PAR1"[..], &footer, &(footer.len() as u32).to_le_bytes(), b"PAR1"].concat();
    fs::write(bench.path("in/a.parquet"), file).expect("file");
    let args = [&SMALL[..], &["--set", "input.allow_empty=true", "--set", "input.id_key=id"]].concat();
    let output = peak::run_within_bound(&bench, "out", &args);
    assert_code(&output, 0);
    assert!(!stderr(&output).contains("ended early"), "{}", stderr(&output));
}

/// A lossless WebP of 64 × 64 pixels with `groups` groups of five code tables, each of a kilobyte or more. Its pixels
/// are missing. The format is RFC 9649, section 3.
fn webp_of_tables(groups: u32) -> Vec<u8> {
    let mut bits = Vec::new();
    let mut write = |value: u64, count: u32| bits.extend((0..count).map(|bit| value >> bit & 1 == 1));
    // signature, sides less 1, no alpha, version 0; no transform, no cache, groups in blocks of 512 × 512 pixels
    write(0x2f | 63 << 8 | 63 << 22, 40);
    write(0b11_1100, 6);
    // the image of group numbers: no cache, and codes of one symbol; green and red are the number of the last group
    write(0, 1);
    for symbol in [(groups - 1) & 255, (groups - 1) >> 8, 0, 0, 0] {
        write(0b101 | u64::from(symbol) << 3, 11);
    }
    for _ in 0..5 * groups {
        // a code of 11 symbols with lengths 1 to 10 and 10, which are written as codes of three and four bits
        write(10 << 1, 5);
        for at in [17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10] {
            write(
                if (1..=6).contains(&at) {
                    3
                } else if (7..=10).contains(&at) {
                    4
                } else {
                    0
                },
                3,
            );
        }
        write(0b1001_0011, 8);
        for length in (1..=10_u32).chain([10]) {
            let (code, count) = if length <= 6 { (length - 1, 3) } else { (5 + length, 4) };
            write(u64::from(code.reverse_bits() >> (32 - count)), count);
        }
    }
    let byte = |bits: &[bool]| (0..bits.len()).map(|at| u8::from(bits[at]) << at).sum();
    let data: Vec<u8> = bits.chunks(8).map(byte).collect();
    [b"RIFF\0\0\0\0WEBPVP8L".as_slice(), &(data.len() as u32).to_le_bytes(), &data].concat()
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_webp_made_of_code_tables_stays_within_the_bound() {
    let bench = Bench::new();
    // 14 MiB of tables are allowed, 1.3 GiB are refused
    let members = [700, 65_536].map(|groups| (format!("{groups}"), webp_of_tables(groups)));
    write_tar(&bench.path("in/a.tar"), &members);
    let settings =
        [&SMALL[..], &["--set", "input.max_image_bytes=5000000", "--set", "output.max_error_rate=1"]]
            .concat();
    assert_code(&peak::run_within_bound(&bench, "out", &settings), 0);
    let rows = bench.rows("out");
    let errors: Vec<_> = rows.iter().map(|row| row.error.as_deref().unwrap_or_default()).collect();
    assert!(errors.len() == 2 && errors[0].contains("orrupt"), "{errors:?}");
    assert_eq!(errors[1], "webp: code tables may take 1364 MiB, limit is 16");
}
