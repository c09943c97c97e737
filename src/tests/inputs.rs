//! Which objects of an input are records: names, companions, containers, and inputs without records.

#[path = "support/gcs/mod.rs"]
mod gcs;
mod support;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use gcs::{Gcs, Oddity};
use support::*;

/// Write a tar of `members` with their full names.
fn write_members(path: &Path, members: &[(&str, &[u8])]) {
    let mut tar = tar::Builder::new(File::create(path).expect("tar file"));
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, *bytes).expect("tar member");
    }
    tar.finish().expect("tar end");
}

/// `sluice ARGS…` in the bench's folder.
fn command(bench: &Bench, args: &[&str]) -> std::process::Output {
    sluice().current_dir(bench.path("")).args(args).output().expect("starts")
}

/// Ids and statuses of rows. Ids lack the folder of the input.
fn ids(rows: &[Row]) -> Vec<(&str, &str)> {
    rows.iter().map(|row| (row.image_id.trim_start_matches("in/"), row.status.as_str())).collect()
}

const NAMES: [&str; 10] = [
    "000.png",
    "001.jfif",
    "002.heic",
    "003.img",
    "004",
    "005.JPE",
    "_DSC0006.JPG",
    "_selects/a.jpg",
    "renamed.json",
    "renamed.txt",
];

const COMPANIONS: [&str; 4] = ["000.json", "001.cls", "captions.txt", "_SUCCESS"];

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn an_image_is_scored_whatever_its_name_in_folders_and_tars() {
    let bench = Bench::new();
    let images: Vec<_> = NAMES.iter().zip(0..).map(|(name, seed)| (*name, png(seed))).collect();
    let mut members: Vec<(&str, &[u8])> = images.iter().map(|(name, bytes)| (*name, &bytes[..])).collect();
    members.extend(COMPANIONS.map(|name| (name, &b"{}"[..])));
    members.push((".hidden.png", &images[0].1));
    for (name, bytes) in &members {
        let path = bench.path("in").join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("folders");
        fs::write(path, bytes).expect("a file");
    }
    write_members(&bench.path("a.tar"), &members);
    let folder = bench.run("folder", &[]);
    assert_code(&folder, 0);
    let tar = bench.run("tar", &["--input", "a.tar"]);
    assert_code(&tar, 0);
    let mut found: Vec<_> = bench.rows("folder").into_iter().map(|row| row.score_bits).collect();
    let mut in_tar: Vec<_> = bench.rows("tar").into_iter().map(|row| row.score_bits).collect();
    found.sort();
    in_tar.sort();
    assert!(found.len() == NAMES.len() && found.iter().all(Option::is_some));
    assert_eq!(found, in_tar);
    for (out, run) in [("folder", folder), ("tar", tar)] {
        let skipped = &bench.manifest(out)["summary"]["skipped"];
        let expected = serde_json::json!({"cls": 1, "hidden": 1, "json": 1, "txt": 1, "underscore": 1});
        assert_eq!(*skipped, expected, "{out}");
        let summary = "skipped    5 that are not images: 1 cls, 1 hidden, 1 json, 1 txt, 1 underscore";
        assert!(stdout(&run).contains(summary), "{}", stdout(&run));
        for name in ["captions.txt", "000.json", ".hidden.png"] {
            let is_logged = stderr(&run).lines().any(|line| line.contains("WARN") && line.contains(name));
            assert!(is_logged, "{name} is not logged:\n{}", stderr(&run));
        }
        let shown = command(&bench, &["show", out]);
        assert_code(&shown, 0);
        assert!(stdout(&shown).contains("skipped 5 that are not images"), "{}", stdout(&shown));
        assert_code(&command(&bench, &["verify", out]), 0);
    }
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_bucket_has_the_same_records_as_a_folder() {
    let bench = Bench::new();
    for (name, seed) in NAMES.iter().chain(&COMPANIONS).chain(&["_checkpoints/a.tar", ".hidden.png"]).zip(0..)
    {
        let path = bench.path("in").join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("folders");
        fs::write(path, if NAMES.contains(name) { png(seed) } else { b"{}".to_vec() }).expect("a file");
    }
    let gcs = Gcs::start();
    gcs.load_folder("data", &bench.path("in"));
    let mut run = bench.command("run", "bucket", &["--input", "gs://data"]);
    assert_code(&run.env("STORAGE_EMULATOR_HOST", gcs.url()).output().expect("starts"), 0);
    assert_code(&bench.run("folder", &[]), 0);
    let (bucket, folder) = (bench.rows("bucket"), bench.rows("folder"));
    let stems = |rows: &[Row], root: &str| {
        let mut stems: Vec<_> =
            rows.iter().map(|row| (row.image_id.replace(root, ""), row.score_bits.clone())).collect();
        stems.sort();
        stems
    };
    assert_eq!(stems(&bucket, "gs://data/"), stems(&folder, "in/"));
    assert_eq!(bucket.len(), NAMES.len());
    let skipped = |out| bench.manifest(out)["summary"]["skipped"].clone();
    assert_eq!(skipped("bucket"), skipped("folder"));
    let mut run = bench.command("run", "none", &["--input", "gs://data/_check*/*"]);
    let run = run.env("STORAGE_EMULATOR_HOST", gcs.url()).output().expect("starts");
    assert_code(&run, 5);
    let mut run = bench.command("run", "nothing", &["--input", "gs://data/none/"]);
    assert_code(&run.env("STORAGE_EMULATOR_HOST", gcs.url()).output().expect("starts"), 3);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn companions_with_odd_responses_are_probed() {
    let bench = Bench::new();
    let gcs = Gcs::start();
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, bytes).expect("to memory");
        encoder.finish().expect("to memory")
    };
    gcs.put("data", "a.png", png(0));
    let oddities = [
        Oddity::Gzip,
        Oddity::AlwaysUnpacked,
        Oddity::Labelled,
        Oddity::Chunked,
        Oddity::NoHead,
        Oddity::Endless,
    ];
    for (number, oddity) in oddities.into_iter().enumerate() {
        let is_packed = matches!(oddity, Oddity::Gzip | Oddity::AlwaysUnpacked | Oddity::Labelled);
        let stored = |bytes: &[u8]| if is_packed { gzip(bytes) } else { bytes.to_vec() };
        for (name, bytes) in
            [(format!("{number}.json"), b"{\"label\": 1}".to_vec()), (format!("{number}.txt"), png(7))]
        {
            gcs.put("data", &name, stored(&bytes));
            gcs.serve_oddly("data", &name, oddity);
        }
    }
    gcs.put("data", "archived.json", b"{}".to_vec());
    gcs.serve_oddly("data", "archived.json", Oddity::Archived);
    let args =
        ["--input", "gs://data", "--set", "output.max_error_rate=1", "--set", "storage.retry_seconds=2"];
    let mut run = bench.command("run", "out", &args);
    assert_code(&run.env("STORAGE_EMULATOR_HOST", gcs.url()).output().expect("starts"), 0);
    let rows = bench.rows("out");
    let found: Vec<_> =
        ids(&rows).into_iter().map(|(id, status)| (&id["gs://data/".len()..], status)).collect();
    let expected = [
        ("0.txt", "ok"),
        ("1.txt", "ok"),
        ("2.txt", "ok"),
        ("3.txt", "ok"),
        ("4.txt", "ok"),
        ("a.png", "ok"),
        ("archived.json", "read_error"),
    ];
    assert_eq!(found, expected);
    // one text is skipped: the probe of an endless response finds no image
    let expected = serde_json::json!({"json": 6, "txt": 1});
    assert_eq!(bench.manifest("out")["summary"]["skipped"], expected);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn names_that_are_not_utf8_are_read() {
    let bench = Bench::new();
    for (name, seed) in [&b"a\xe9.png"[..], b"a\xe8.png", b"a\nb.png"].into_iter().zip(0..) {
        fs::write(bench.path("in").join(OsStr::from_bytes(name)), png(seed)).expect("an image");
    }
    assert_code(&bench.run("out", &[]), 0);
    let rows = bench.rows("out");
    assert_eq!(ids(&rows), [(r"a\x0Ab.png", "ok"), (r"a\xE8.png", "ok"), (r"a\xE9.png", "ok")]);
    assert_code(&command(&bench, &["verify", "out"]), 0);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_manifest_keeps_ids_as_written_and_names_that_begin_with_a_hash() {
    let bench = Bench::new();
    for (name, seed) in [("#1.png", 1), ("2.png", 2)] {
        fs::write(bench.path(name), png(seed)).expect("an image");
    }
    let lines = "# two images\n#1.png\n{\"uri\": \"2.png\", \"id\": 18446744073709551615}\n";
    fs::write(bench.path("list.txt"), lines).expect("a manifest");
    assert_code(&bench.run("out", &["--input", "list.txt"]), 0);
    assert_eq!(ids(&bench.rows("out")), [("#1.png", "ok"), ("18446744073709551615", "ok")]);
    assert_eq!(bench.manifest("out")["summary"]["skipped"]["comment"], 1);
    let written = ["123456789012345678901234567890", "1.50", "1e30", "true"];
    let lines: String = written.iter().map(|id| format!("{{\"uri\": \"2.png\", \"id\": {id}}}\n")).collect();
    fs::write(bench.path("list.txt"), lines).expect("a manifest");
    assert_code(&bench.run("numbers", &["--input", "list.txt"]), 0);
    assert_eq!(ids(&bench.rows("numbers")), written.map(|id| (id, "ok")));
    fs::write(bench.path("list.txt"), "{\"uri\": \"2.png\", \"id\": [7]}\n").expect("a manifest");
    let refused = bench.run("refused", &["--input", "list.txt"]);
    assert_code(&refused, 3);
    let message = stderr(&refused);
    assert!(message.contains("line 1 has an id that is neither a string nor a number"), "{message}");
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn members_have_distinct_ids_and_full_names() {
    let bench = Bench::new();
    let (one, two) = (png(1), png(2));
    let names = ["./d/a.2023.01.02.png", "d/a.2023.01.03.png", "b.png", "b.mask.png", "b.jpg"];
    let members: Vec<_> = names.iter().map(|name| (*name, &one[..])).collect();
    write_members(&bench.path("in/a.tar"), &members);
    assert_code(&bench.run("out", &[]), 0);
    let rows = bench.rows("out");
    let found: Vec<_> = rows.iter().map(|row| row.image_id.as_str()).collect();
    assert_eq!(found, ["d/a.2023.01.02", "d/a.2023.01.03", "b", "b.mask", "b.jpg"]);
    assert!(rows[1].rest.contains("member=d/a.2023.01.03.png"), "{}", rows[1].rest);

    write_members(&bench.path("in/a.tar"), &[("0.png", &one), ("0.mask.png", &two), ("1.mask.png", &two)]);
    let chosen = ["--set", "input.image_key=png;jpg", "--set", "output.max_error_rate=0.5"];
    assert_code(&bench.run("chosen", &chosen), 0);
    assert_eq!(ids(&bench.rows("chosen")), [("0", "ok"), ("1", "missing_image")]);
    assert_eq!(bench.manifest("chosen")["summary"]["skipped"]["other image"], 2);
    let wrong = bench.run("wrong", &["--set", "input.image_key=seg.png"]);
    assert_code(&wrong, 3);
    assert!(
        stderr(&wrong).contains("no member seg.png") && !bench.path("wrong").exists(),
        "{}",
        stderr(&wrong)
    );
    for format in ["files", "manifest"] {
        let args = ["--set", "input.image_key=png", "--set", &format!("input.format={format}")];
        let refused = bench.run("refused", &args);
        assert_code(&refused, 2);
        assert!(stderr(&refused).contains("input.image_key"), "{}", stderr(&refused));
    }
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn only_a_missing_end_mark_is_reported() {
    let bench = Bench::new();
    let tar = bench.path("in/a.tar");
    write_members(&tar, &[("0.png", &png(1)), ("0.txt", b"a"), ("1.png", &png(2))]);
    let message = "archive ends without an end mark";
    let keyed = ["--set", "input.image_key=png"];
    for (output, args) in [("plain", &[][..]), ("keyed", &keyed)] {
        let run = bench.run(output, args);
        assert_code(&run, 0);
        assert!(!stderr(&run).contains(message), "{}", stderr(&run));
    }
    let whole = fs::read(&tar).expect("the archive");
    fs::write(&tar, &whole[..whole.len() - 1024]).expect("the archive without its end mark");
    for (output, args) in [("cut", &[][..]), ("cut_keyed", &keyed)] {
        let run = bench.run(output, args);
        assert_code(&run, 0);
        assert_eq!(ids(&bench.rows(output)), [("0", "ok"), ("1", "ok")]);
        assert!(stderr(&run).contains(message), "{}", stderr(&run));
    }
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn an_input_without_a_record_fails_and_leaves_the_output_vacant() {
    let bench = Bench::new();
    let cases = ["texts.tar", "empty.tfrecord", "empty.parquet", "folder", "hidden"];
    write_members(&bench.path("texts.tar"), &[("a.txt", b"text"), ("b.json", b"{}")]);
    fs::write(bench.path("empty.tfrecord"), b"").expect("a file");
    write_parquet(&bench.path("empty.parquet"), &[]);
    fs::create_dir(bench.path("folder")).expect("a folder");
    fs::write(bench.path("folder/a.json"), b"{}").expect("a file");
    fs::create_dir(bench.path("hidden")).expect("a folder");
    fs::write(bench.path("hidden/.keep"), b"").expect("a file");
    for input in cases {
        for _attempt in 0..2 {
            let run = bench.run("out", &["--input", input]);
            assert_code(&run, 3);
            assert!(
                stderr(&run).contains(input) && stderr(&run).contains("nothing to score"),
                "{}",
                stderr(&run)
            );
            assert!(!bench.path("out/_SUCCESS").exists() && !bench.path("out/_run.json").exists(), "{input}");
        }
        let allowed = format!("allowed-{input}");
        assert_code(&bench.run(&allowed, &["--input", input, "--allow-empty"]), 0);
        assert!(bench.path(&allowed).join("_SUCCESS").exists(), "{input}");
        assert_eq!(bench.rows(&allowed), []);
        assert_code(&command(&bench, &["verify", &allowed]), 0);
        assert_code(&command(&bench, &["show", &allowed]), 0);
        let again = bench.run(&allowed, &["--input", input, "--set", "input.allow_empty=true"]);
        assert_code(&again, 0);
        assert!(stdout(&again).contains("done before"), "{}", stdout(&again));
    }
    let message = stderr(&bench.run("out", &["--input", "texts.tar"]));
    assert!(message.contains("1 json, 1 txt"), "{message}");
    write_tar(&bench.path("texts.tar"), &images(0, 2));
    assert_code(&bench.run("out", &["--input", "texts.tar"]), 0);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn an_empty_container_among_others_is_counted() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(0, 3));
    write_members(&bench.path("in/b.tar"), &[("a.txt", b"text")]);
    let run = bench.run("out", &[]);
    assert_code(&run, 0);
    let manifest = bench.manifest("out");
    assert_eq!((&manifest["summary"]["empty_shards"], &manifest["summary"]["rows"]), (&1.into(), &3.into()));
    assert_eq!(manifest["parts"][1]["skipped"]["txt"], 1);
    assert!(stderr(&run).contains("shard holds no record"), "{}", stderr(&run));
    assert!(stdout(&run).contains("1 shards have no record"), "{}", stdout(&run));
    assert_code(&bench.run("limited", &["--limit", "2"]), 0);
    assert_eq!(bench.manifest("limited")["summary"]["empty_shards"], 0);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_worker_may_have_no_shards_and_the_last_one_reports_an_empty_input() {
    let bench = Bench::new();
    let worker = |index: &str| bench.run("out", &["--shard-index", index, "--num-shards", "3"]);
    write_members(&bench.path("in/a.tar"), &[("a.txt", b"text")]);
    assert_code(&worker("0"), 0);
    assert_code(&worker("2"), 0);
    for index in ["1", "1", "0"] {
        assert_code(&worker(index), 3);
        assert!(!bench.path("out/_SUCCESS").exists());
    }
    fs::remove_dir_all(bench.path("out")).expect("removed");
    write_tar(&bench.path("in/a.tar"), &images(0, 3));
    for index in ["1", "0", "2"] {
        assert_code(&worker(index), 0);
    }
    assert_eq!(bench.manifest("out")["summary"]["rows"], 3);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_resumed_shard_with_companions_has_every_record_once() {
    let bench = Bench::new();
    for seed in 0..120 {
        fs::write(
            bench.path(&format!("in/{seed:03}.json")),
            if seed % 5 == 0 { png(500 + seed) } else { b"{}".into() },
        )
        .expect("a file");
        fs::write(bench.path(&format!("in/{seed:03}.png")), png(seed)).expect("an image");
    }
    assert_code(&bench.run("whole", &[]), 0);
    let mut running = bench
        .command(
            "run",
            "killed",
            &["--set", "output.checkpoint_seconds=0.01", "--set", "engine.batch_size=1"],
        )
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("starts");
    let segments = bench.path("killed/_checkpoints");
    while running.try_wait().expect("a child").is_none() && parts_below(&segments) == 0 {
        std::thread::yield_now();
    }
    // the run may have ended before
    let _ = running.kill();
    running.wait().expect("a child");
    assert_code(
        &bench.run("killed", &["--set", "output.checkpoint_seconds=0.01", "--set", "engine.batch_size=1"]),
        0,
    );
    let (whole, killed) = (bench.rows("whole"), bench.rows("killed"));
    assert_eq!(whole.len(), 144);
    assert_eq!(ids(&killed), ids(&whole));
    assert_eq!(scores_by_id(&killed), scores_by_id(&whole));
    for out in ["whole", "killed"] {
        assert_eq!(bench.manifest(out)["summary"]["skipped"]["json"], 96, "{out}");
    }
}

/// The number of files in the subfolders of `folder`.
fn parts_below(folder: &Path) -> usize {
    parts(folder).iter().map(|below| parts(below).len()).sum()
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn unsupported_compressions_and_records_are_named() {
    let bench = Bench::new();
    fs::write(bench.path("a.tar.xz"), b"\xfd7zXZ\0\0\x04").expect("a file");
    fs::write(bench.path("a.tfrecord.bz2"), b"BZh91AY&SY\0\0").expect("a file");
    fs::write(bench.path("zip.tar"), b"PK\x03\x04\x14\0").expect("a file");
    for (input, words) in
        [("a.tar.xz", "xz data"), ("a.tfrecord.bz2", "bzip2 data"), ("zip.tar", "a zip archive")]
    {
        let run = bench.run("out", &["--input", input]);
        assert_code(&run, 3);
        assert!(stderr(&run).contains(words) && !stderr(&run).contains("damaged"), "{}", stderr(&run));
        assert!(!bench.path("out").exists());
    }
    // such a file after a good shard costs one row
    write_tar(&bench.path("in/a.tar"), &images(0, 3));
    fs::write(bench.path("in/b.tar.xz"), b"\xfd7zXZ\0\0\x04").expect("a file");
    let tolerant = ["--set", "output.max_error_rate=0.5", "--set", "output.max_damaged_shards=1"];
    assert_code(&bench.run("stray", &tolerant), 0);
    let rows = bench.rows("stray");
    assert_eq!((rows.len(), rows[3].status.as_str()), (4, "corrupt_record"));
    write_tfrecord(&bench.path("b.tfrecord"), &images(0, 3));
    let packed = {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        std::io::Write::write_all(&mut encoder, &fs::read(bench.path("b.tfrecord")).expect("read"))
            .expect("to memory");
        encoder.finish().expect("to memory")
    };
    fs::write(bench.path("zlib.tfrecord"), packed).expect("a file");
    assert_code(&bench.run("zlib", &["--input", "zlib.tfrecord"]), 0);
    assert_eq!(bench.rows("zlib").len(), 3);
    let wrong = bench.run("wrong", &["--input", "b.tfrecord", "--set", "input.image_key=photo"]);
    assert_code(&wrong, 3);
    assert!(stderr(&wrong).contains("no feature photo; the record has: image/encoded"), "{}", stderr(&wrong));
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_name_with_control_characters_has_one_id_from_a_folder_and_a_manifest() {
    let bench = Bench::new();
    for (name, (_, bytes)) in ["tab\t.png", "esc\u{1b}.png", "plain.png"].iter().zip(images(0, 3)) {
        fs::write(bench.path(&format!("in/{name}")), bytes).expect("an image");
    }
    let lines = r#"{"uri": "in/tab\t.png"}
{"uri": "in/esc\u001b.png"}
{"uri": "in/gone\t.png"}
in/plain.png
"#;
    fs::write(bench.path("list.jsonl"), lines).expect("a manifest");
    assert_code(&bench.run("folder", &["--input", "in"]), 0);
    let named = bench.run("named", &["--input", "list.jsonl", "--set", "output.max_error_rate=1"]);
    assert_code(&named, 0);
    let ids = |out: &str| -> Vec<String> {
        let rows = bench.rows(out).into_iter().filter(|row| row.status == "ok");
        rows.map(|row| row.image_id.rsplit('/').next().expect("a name").to_owned()).collect()
    };
    let (mut folder, mut listed) = (ids("folder"), ids("named"));
    folder.sort();
    listed.sort();
    assert_eq!(folder, listed);
    let rows = bench.rows("named");
    let gone = rows.iter().find(|row| row.status != "ok").expect("one is missing");
    for text in [&gone.image_id, gone.error.as_ref().expect("a reason")] {
        assert!(!text.contains('\t') && text.contains("gone"), "{text:?}");
    }
}
