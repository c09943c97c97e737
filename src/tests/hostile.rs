//! Malicious input: decompression bombs, path traversal, wrong lengths, crashes, secrets, and the findings of fuzzing.

mod support;
#[path = "support/hostile.rs"]
mod targets;

use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use arrow_array::{ArrayRef, BinaryArray, RecordBatch};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use support::*;

/// Address space of a run that reads a bomb, less than the unpacked size of the bombs.
const MEMORY_KIB: u64 = 3 << 20;

/// Unpacked size of the data in a PNG.
const PNG_BOMB_BYTES: usize = 4 << 30;
const _: () = assert!(PNG_BOMB_BYTES as u64 > MEMORY_KIB << 10, "a run cannot hold it");

/// The command with a limit on its address space.
fn in_little_memory(command: &Command) -> Command {
    let mut shell = Command::new("sh");
    let script = format!("ulimit -v {MEMORY_KIB}; exec \"$0\" \"$@\"");
    shell.args(["-c", &script]).arg(command.get_program()).args(command.get_args());
    let set = command.get_envs().filter_map(|(name, value)| Some((name, value?)));
    shell.envs(set);
    if let Some(folder) = command.get_current_dir() {
        shell.current_dir(folder);
    }
    shell
}

/// The output of `sluice inspect FILE` with a limit on its address space.
fn inspect(file: &Path) -> Output {
    in_little_memory(sluice().arg("inspect").arg(file)).output().expect("sh starts")
}

/// Assert that the bomb ends its shard with exit code 5 and a reason that contains `reason`.
fn assert_stopped(file: &Path, reason: &str) {
    let output = inspect(file);
    let printed = format!("{}{}", stdout(&output), stderr(&output));
    assert_eq!(output.status.code(), Some(5), "{}: {printed}", file.display());
    assert!(printed.contains(reason), "{}: {printed}", file.display());
}

fn tar_header(name: &str, size: u64) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_gnu_mut().expect("GNU").name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_size(size);
    header.set_mode(0o644);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_cksum();
    header.as_bytes().to_vec()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).expect("to memory");
    encoder.finish().expect("to memory")
}

#[test]
fn a_tar_that_unpacks_endlessly_is_stopped() {
    let bench = Bench::new();
    let size = 1 << 43; // a member of 8 TiB
    // gzip: many members of zeros
    let member = gzip(&vec![0; 16 << 20]);
    let bomb = [gzip(&tar_header("a.png", size)), member.repeat(100)].concat();
    fs::write(bench.path("bomb.tar.gz"), &bomb).expect("file");
    assert_stopped(&bench.path("bomb.tar.gz"), "limit is 200 times as much");

    // zstd: a frame of blocks that repeat one byte 128 Ki times (RFC 8878)
    let head = tar_header("a.png", size);
    let mut bomb = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x38]; // no checksum, a window of 128 KiB
    let block = |kind: u32, size: usize| ((size as u32) << 3 | kind << 1).to_le_bytes()[..3].to_vec();
    bomb.extend(block(0, head.len()));
    bomb.extend(head);
    bomb.extend([block(1, 128 << 10), vec![0]].concat().repeat(100_000));
    fs::write(bench.path("bomb.tar.zst"), &bomb).expect("file");
    assert_stopped(&bench.path("bomb.tar.zst"), "limit is 200 times as much");
}

#[test]
fn a_wrong_length_allocates_no_memory() {
    let bench = Bench::new();
    for claimed in [u64::MAX, 1 << 62, 1 << 40] {
        let length = claimed.to_le_bytes();
        let crc = crc32c::crc32c(&length).rotate_right(15).wrapping_add(0xa282_ead8);
        let shard = [&length[..], &crc.to_le_bytes(), b"short"].concat();
        fs::write(bench.path("lie.tfrecord"), shard).expect("file");
        assert_stopped(&bench.path("lie.tfrecord"), "");
        fs::write(bench.path("lie.tar"), [tar_header("a.png", claimed), vec![7; 512]].concat())
            .expect("file");
        assert_stopped(&bench.path("lie.tar"), "");
    }
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_small_png_that_inflates_to_gigabytes_is_scored() {
    let bench = Bench::new();
    let chunk = |name: &[u8; 4], body: &[u8]| {
        let mut crc = flate2::Crc::new();
        crc.update(name);
        crc.update(body);
        [&(body.len() as u32).to_be_bytes()[..], name, body, &crc.sum().to_be_bytes()].concat()
    };
    let deflated = |bytes: u64| {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::copy(&mut std::io::Read::take(std::io::repeat(0), bytes), &mut encoder).expect("to memory");
        encoder.finish().expect("to memory")
    };
    // a stream of zeros; its middle, aligned to bytes by full flushes, is repeated
    let bomb = {
        let mut encoder = flate2::Compress::new(flate2::Compression::best(), true);
        let zeros = vec![0; PNG_BOMB_BYTES / 1024];
        let mut piece = |flush| {
            let mut packed = Vec::with_capacity(1 << 20);
            encoder.compress_vec(&zeros, &mut packed, flush).expect("to memory");
            packed
        };
        let (first, next) = (piece(flate2::FlushCompress::Full), piece(flate2::FlushCompress::Full));
        // an empty last block, and Adler-32: for zeros, the lower sum is 1 and the upper sum is their number
        let checksum = ((PNG_BOMB_BYTES % 65_521) as u32) << 16 | 1;
        [first, next.repeat(1023), vec![3, 0], checksum.to_be_bytes().to_vec()].concat()
    };
    let header = chunk(b"IHDR", &[0, 0, 0, 8, 0, 0, 0, 8, 8, 2, 0, 0, 0]);
    let pixels = deflated(8 * 25);
    let unpacked = std::io::copy(&mut flate2::read::ZlibDecoder::new(&bomb[..]), &mut std::io::sink());
    assert_eq!(unpacked.expect("a sound stream"), PNG_BOMB_BYTES as u64);
    let signature = b"\x89PNG\r\n\x1a\n".as_slice();
    let text = chunk(b"zTXt", &[b"x\0\0", bomb.as_slice()].concat());
    let profile = chunk(b"iCCP", &[b"x\0\0", bomb.as_slice()].concat());
    let end = chunk(b"IEND", b"");
    let whole = chunk(b"IDAT", &pixels);
    for (name, chunks) in [
        ("pixels", vec![chunk(b"IDAT", &bomb)]),
        ("text", vec![text, whole.clone()]),
        ("profile", vec![profile, whole]),
    ] {
        let png = [signature, &header, &chunks.concat(), &end].concat();
        fs::write(bench.path(&format!("in/{name}.png")), png).expect("file");
    }
    let run = bench.command("run", "out", &["--set", "output.max_error_rate=1.0"]);
    let output = in_little_memory(&run).output().expect("sh starts");
    assert_code(&output, 0);
    let rows = bench.rows("out");
    assert_eq!(rows.len(), 3);
    for row in &rows {
        // only the pixels are unpacked, and no more than the image has
        assert_eq!((row.status.as_str(), row.size), ("ok", Some((8, 8))), "{row:?}");
    }
    let scores = |row: &Row| row.score_bits.clone();
    assert!(rows.iter().all(|row| scores(row) == scores(&rows[0])), "an image is not black: {rows:?}");
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn the_limit_on_a_parquet_page_holds_whatever_its_header_says() {
    let bench = Bench::new();
    for (name, codec) in [
        ("gzip", Compression::GZIP(Default::default())),
        ("brotli", Compression::BROTLI(Default::default())),
        ("zstd", Compression::ZSTD(Default::default())),
        ("snappy", Compression::SNAPPY),
        ("plain", Compression::UNCOMPRESSED),
    ] {
        let image: ArrayRef = Arc::new(BinaryArray::from_iter_values([vec![0_u8; 10_000_000]]));
        let batch = RecordBatch::try_from_iter([("image", image)]).expect("batch");
        let properties = WriterProperties::builder()
            .set_compression(codec)
            .set_dictionary_enabled(false)
            .set_statistics_enabled(parquet::file::properties::EnabledStatistics::None)
            .build();
        let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).expect("writer");
        writer.write(&batch).expect("write");
        let honest = writer.into_inner().expect("closed");

        // a lower unpacked size in the page header; both numbers are zigzag varints of the same length
        let varint = |value: u32| {
            let coded = value << 1;
            [coded as u8 | 0x80, (coded >> 7) as u8 | 0x80, (coded >> 14) as u8 | 0x80, (coded >> 21) as u8]
        };
        let page_bytes = 10_000_000 + 4; // the value and its length; the column is required
        let at = honest.windows(4).position(|window| window == varint(page_bytes)).expect("a page header");
        let mut lying = honest.clone();
        lying[at..at + 4].copy_from_slice(&varint(3_000_000));

        for (kind, bytes) in [("honest", &honest), ("lying", &lying)] {
            fs::write(bench.path("in/a.parquet"), bytes).expect("file");
            let out = format!("{name}-{kind}");
            let limit = ["--set", "input.max_page_bytes=4000000", "--set", "input.format=parquet"];
            let output = bench.run(&out, &limit);
            assert_code(&output, 5);
            let printed = format!("{}{}", stdout(&output), stderr(&output));
            let names_the_limit = printed.contains("limit is 4000000 bytes (input.max_page_bytes)")
                || printed.contains("unpacks to more than the 3000000 bytes that its header says");
            // these codecs unpack to the size in the header, and fail without reaching the limit
            let fails_by_itself = kind == "lying" && matches!(name, "zstd" | "snappy" | "plain");
            assert!(names_the_limit || fails_by_itself, "{out}: {printed}");
        }
        fs::write(bench.path("in/a.parquet"), &honest).expect("file");
        let output = bench.run(&format!("{name}-allowed"), &["--set", "output.max_error_rate=1.0"]);
        assert_code(&output, 0);
    }
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_name_with_path_traversal_is_only_a_name() {
    let bench = Bench::new();
    let names = ["../../escaped.png", "/tmp/sluice-escaped.png", "a/../../b.png", "C:\\escaped.png"];
    let mut tar = Vec::new();
    for (seed, name) in names.iter().enumerate() {
        let image = png(seed as u32);
        tar.extend(tar_header(name, image.len() as u64));
        tar.extend(&image);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    // a link has no image, whatever its target
    let mut link = tar::Header::new_gnu();
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_path("link.png").expect("a name");
    link.set_link_name("/etc/passwd").expect("a name");
    link.set_size(0);
    link.set_cksum();
    tar.extend(link.as_bytes());
    tar.resize(tar.len() + 1024, 0);
    fs::write(bench.path("in/names.tar"), tar).expect("file");
    let listed = |folder: &Path| {
        let mut names: Vec<_> = fs::read_dir(folder)
            .expect("a folder")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        names.sort();
        names
    };
    let before = listed(&bench.path("in"));
    assert_code(&bench.run("out", &["--set", "output.max_error_rate=0.5"]), 0);
    assert_eq!(listed(&bench.path("in")), before);
    assert_eq!(listed(&bench.path("")), ["in", "out", "pipeline.toml"]);
    assert!(!Path::new("/tmp/sluice-escaped.png").exists());
    let rows = bench.rows("out");
    let found: Vec<_> = rows.iter().map(|row| (row.image_id.as_str(), row.status.as_str())).collect();
    let expected =
        [("../../escaped", "ok"), ("/tmp/sluice-escaped", "ok"), ("a/../../b", "ok"), ("C:\\escaped", "ok")];
    assert_eq!(found, [&expected[..], &[("link", "missing_image")]].concat());
}

/// Wait until the thread `name` of a process has used some CPU time, and return its id.
fn busy_thread(process: &mut Child, name: &str) -> i32 {
    /// CPU time after which the thread is inside the slow record.
    const WHILE: Duration = Duration::from_millis(50);
    loop {
        assert!(process.try_wait().expect("a child").is_none(), "the run ended before it could crash");
        for (number, thread) in threads::of(process) {
            if thread.name == name && thread.busy >= WHILE {
                return number;
            }
        }
        std::thread::yield_now();
    }
}

/// Send SIGSEGV to a thread, as a fault in native code does.
#[allow(unsafe_code, reason = "no safe interface sends a signal to one thread of another process")]
fn crash(running: &Child, thread: i32) {
    let process = running.id().try_into().expect("a process number");
    // SAFETY: the call takes no pointers
    let sent = unsafe { libc::tgkill(process, thread, libc::SIGSEGV) };
    assert_eq!(sent, 0, "{}", std::io::Error::last_os_error());
}

/// Crash the thread `name` of a run while it works on a slow record, and return the output of the run.
fn crashed(bench: &Bench, name: &str, args: &[&str]) -> Output {
    let mut command = bench.command("run", "out", args);
    let mut running = command.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("starts");
    let thread = busy_thread(&mut running, name);
    crash(&running, thread);
    running.wait_with_output().expect("a child")
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_crashing_decoder_costs_one_attempt_and_one_row() {
    let bench = Bench::new();
    let mut members = images(0, 5);
    members.insert(2, ("slow".to_owned(), slow_png()));
    write_tar(&bench.path("in/a.tar"), &members);
    write_tar(&bench.path("in/b.tar"), &images(5, 3));
    let args = ["--set", "preprocess.threads=1", "--set", "output.max_error_rate=0.5"];
    let output = crashed(&bench, "decode-0", &args);
    assert_code(&output, 10);
    let printed = stderr(&output);
    for words in ["SIGSEGV on record 2 of", "a.tar, image_id slow", "resumes without that record"] {
        assert!(printed.contains(words), "{words}: {printed}");
    }
    assert!(!bench.path("out/_SUCCESS").exists());

    assert_code(&bench.run("out", &args), 0);
    let rows = bench.rows("out");
    let ids: Vec<_> = rows.iter().map(|row| row.image_id.as_str()).collect();
    let expected = members.iter().map(|(id, _)| id.clone()).chain(images(5, 3).into_iter().map(|(id, _)| id));
    assert_eq!(ids, expected.collect::<Vec<_>>());
    for row in &rows {
        let expected = if row.image_id == "slow" { "decode_error" } else { "ok" };
        assert_eq!(row.status, expected, "{row:?}");
    }
    let reason = rows[2].error.as_deref().unwrap_or_default();
    assert_eq!(reason, "a native decoder crashed on it before (SIGSEGV)");
    assert!(!bench.path("out/_crashes").exists());
    assert_code(&sluice().arg("verify").arg(bench.path("out")).output().expect("starts"), 0);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_crashing_reader_costs_one_attempt_and_the_rest_of_its_shard() {
    let bench = Bench::new();
    // the third member exceeds the limit on images, and is slow to skip
    let long = 600 << 20;
    let first: Vec<u8> = images(0, 2)
        .into_iter()
        .flat_map(|(id, image)| {
            let mut member = [tar_header(&format!("{id}.png"), image.len() as u64), image].concat();
            member.resize(member.len().next_multiple_of(512), 0);
            member
        })
        .collect();
    let slow = [gzip(&[first, tar_header("slow.png", long)].concat()), gzip(&vec![0; 30 << 20]).repeat(20)];
    fs::write(bench.path("in/a.tar.gz"), [slow.concat(), gzip(&[0; 1024])].concat()).expect("file");
    write_tar(&bench.path("in/b.tar"), &images(5, 3));
    let args = [
        "--set",
        "input.look_ahead=0",
        "--set",
        "output.max_error_rate=0.5",
        "--set",
        "output.max_damaged_shards=1",
    ];
    let output = crashed(&bench, "source-0", &args);
    assert_code(&output, 10);
    let printed = stderr(&output);
    for words in ["a reader crashed: SIGSEGV on record 2 of", "a.tar.gz", "treats that shard as damaged"] {
        assert!(printed.contains(words), "{words}: {printed}");
    }

    assert_code(&bench.run("out", &args), 0);
    let rows = bench.rows("out");
    let found: Vec<_> = rows.iter().map(|row| (row.image_id.as_str(), row.status.as_str())).collect();
    let expected = [
        ("img-00000", "ok"),
        ("img-00001", "ok"),
        ("2", "corrupt_record"),
        ("img-00005", "ok"),
        ("img-00006", "ok"),
        ("img-00007", "ok"),
    ];
    assert_eq!(found, expected);
    let reason = rows[2].error.as_deref().unwrap_or_default();
    assert_eq!(reason, "the reader crashed on record 2 in an earlier attempt (SIGSEGV)");
    assert!(!bench.path("out/_crashes").exists());
    assert_code(&sluice().arg("verify").arg(bench.path("out")).output().expect("starts"), 0);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_crash_outside_decoders_and_readers_ends_the_process_by_its_signal() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &[("slow".to_owned(), slow_png())]);
    let mut command = bench.command("run", "out", &["--set", "preprocess.threads=1"]);
    let mut running = command.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("starts");
    busy_thread(&mut running, "decode-0");
    let main_thread = running.id().try_into().expect("a thread number");
    crash(&running, main_thread);
    let output = running.wait_with_output().expect("a child");
    assert_eq!(output.status.signal(), Some(libc::SIGSEGV), "{}", stderr(&output));
    assert!(stderr(&output).contains("crashed outside decoders and readers: SIGSEGV"), "{}", stderr(&output));
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn secrets_in_web_addresses_are_never_shown() {
    let addresses = [
        "https://me:very-secret@localhost:9/a.jpg",
        "https://localhost:9/b.jpg?sig=very-secret",
        "s3://ID:very-secret@localhost:9/c.jpg",
        "ftp://me:very-secret@localhost:9/d.jpg",
    ];
    let bench = Bench::new();
    for address in addresses {
        for (name, args) in [("run", ["--input", address]), ("check", ["--input", address])] {
            let refused = bench.command(name, "out", &args).output().expect("starts");
            assert_code(&refused, 3);
            assert!(stderr(&refused).contains("localhost:9"), "{}", stderr(&refused));
            assert!(!format!("{refused:?}").contains("very-secret"), "{refused:?}");
        }
        let refused = sluice().args(["verify", address]).output().expect("starts");
        assert!(!refused.status.success() && !format!("{refused:?}").contains("very-secret"), "{refused:?}");
    }
    // the lines of a manifest become rows
    fs::write(bench.path("list.txt"), addresses.join("\n")).expect("write");
    let list = bench.path("list.txt");
    let args = ["--input", list.to_str().expect("UTF-8"), "--set", "output.max_error_rate=1"];
    let scored = bench.run("out", &args);
    assert_code(&scored, 0);
    assert!(!format!("{scored:?}").contains("very-secret"), "{scored:?}");
    let rows = bench.rows("out");
    assert_eq!(rows.len(), addresses.len());
    assert!(!format!("{rows:?}").contains("very-secret"), "{rows:?}");
}

#[test]
fn inputs_found_by_fuzzing_cause_no_panic() {
    let folder = Path::new(REPOSITORY).join("fixtures/fuzz");
    let mut replayed = 0;
    for target in fs::read_dir(&folder).expect("fixtures/fuzz") {
        let target = target.expect("an entry").path();
        let name = target.file_name().and_then(|name| name.to_str()).expect("UTF-8").to_owned();
        for input in fs::read_dir(&target).expect("a folder") {
            targets::replay(&name, &fs::read(input.expect("an entry").path()).expect("a file"));
            replayed += 1;
        }
    }
    assert!(replayed > 0, "fixtures/fuzz is empty");
}

#[test]
fn every_fuzz_target_accepts_a_valid_and_an_empty_input() {
    for target in ["tfrecord", "tar", "parquet", "image", "pipeline"] {
        targets::replay(target, b"");
    }
    let decoded = targets::image(&png(1));
    assert!(decoded.iter().all(Result::is_ok), "{decoded:?}");
    let bench = Bench::new();
    write_tar(&bench.path("a.tar"), &images(0, 3));
    write_tfrecord(&bench.path("a.tfrecord"), &images(0, 3));
    write_parquet(&bench.path("a.parquet"), &images(0, 3));
    use sluice::items::ShardFormat::{Parquet, Tfrecord, Webdataset};
    for (name, format) in [("a.tar", Webdataset), ("a.tfrecord", Tfrecord), ("a.parquet", Parquet)] {
        let (records, error) = targets::shard(&fs::read(bench.path(name)).expect("a file"), format);
        assert!(records.len() == 3 && records.iter().all(|(_, content)| content.is_ok()), "{records:?}");
        assert!(error.is_none(), "{error:?}");
    }
}

/// Write a Parquet file with one row and these binary columns, all of which hold `image`.
fn write_columns(path: &Path, names: &[&str], image: &[u8]) {
    let columns = names.iter().map(|name| {
        let column: ArrayRef = Arc::new(BinaryArray::from_iter_values([image]));
        (*name, column)
    });
    let batch = RecordBatch::try_from_iter(columns).expect("batch");
    let mut writer =
        ArrowWriter::try_new(fs::File::create(path).expect("file"), batch.schema(), None).expect("writer");
    writer.write(&batch).expect("write");
    writer.close().expect("footer");
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn an_ambiguous_image_column_ends_the_run_and_is_not_damage() {
    let bench = Bench::new();
    write_columns(&bench.path("in/a.parquet"), &["left", "right"], &png(1));
    let refused = bench.run("out", &[]);
    assert_code(&refused, 3);
    let printed = stderr(&refused);
    assert!(printed.contains("set input.image_key to one of left, right"), "{printed}");
    assert!(printed.contains("a.parquet") && !printed.contains("damage"), "{printed}");
    assert!(!bench.path("out").exists());
    assert_code(&bench.command("check", "out", &[]).output().expect("starts"), 3);
    let file = bench.path("in/a.parquet");
    let inspected = sluice().arg("inspect").arg(&file).output().expect("starts");
    assert_code(&inspected, 3);
    assert!(stderr(&inspected).contains("set input.image_key"), "{}", stderr(&inspected));
    let inspected =
        sluice().arg("inspect").arg(&file).args(["--image-key", "left"]).output().expect("starts");
    assert_code(&inspected, 0);
    assert_code(&bench.run("out", &["--set", "input.image_key=right"]), 0);
    assert_eq!(bench.rows("out").len(), 1);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn one_unreadable_parquet_file_among_others_costs_one_row() {
    let bench = Bench::new();
    write_columns(&bench.path("in/a.parquet"), &["image"], &png(1));
    write_columns(&bench.path("in/b.parquet"), &["left", "right"], &png(2));
    write_columns(&bench.path("in/c.parquet"), &["image"], &png(3));
    assert_code(&bench.run("out", &[]), 5);
    let rows = bench.rows("out");
    let found: Vec<_> = rows.iter().map(|row| row.status.as_str()).collect();
    assert_eq!(found, ["ok", "corrupt_record", "ok"]);
    let error = rows[1].error.as_deref().unwrap_or_default();
    assert!(error.contains("set input.image_key to one of left, right"), "{error}");
}
