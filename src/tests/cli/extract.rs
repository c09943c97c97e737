//! `sluice extract`.

use std::process::Output;

use super::*;

fn extract(bench: &Bench, out: &str, key: &str, more: &[&str]) -> Output {
    sluice().current_dir(bench.path("")).args(["extract", out, key]).args(more).output().expect("starts")
}

/// Three images, and a text with the name of an image, in every format. Returns the members, and the inputs.
fn every_format(bench: &Bench) -> (Vec<(String, Vec<u8>)>, [&'static str; 5]) {
    let mut members = images(0, 4);
    members[2].1 = b"I am no image at all".to_vec();
    write_tar(&bench.path("in/a.tar"), &members);
    write_tfrecord(&bench.path("in/a.tfrecord"), &members);
    support::write_parquet(&bench.path("in/a.parquet"), &members);
    fs::create_dir(bench.path("loose")).expect("folder");
    let mut list = String::new();
    for (id, bytes) in &members {
        fs::write(bench.path("loose").join(format!("{id}.png")), bytes).expect("image");
        list += &format!("{{\"uri\": \"loose/{id}.png\", \"id\": \"other-{id}\"}}\n");
    }
    fs::write(bench.path("list.jsonl"), list).expect("manifest");
    (members, ["in/a.tar", "in/a.tfrecord", "in/a.parquet", "loose", "list.jsonl"])
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn the_image_of_every_row_is_extracted_byte_by_byte_from_every_format() {
    let bench = Bench::new();
    let (members, inputs) = every_format(&bench);
    for (number, input) in inputs.iter().enumerate() {
        let out = format!("out{number}");
        // a run with too many errors has a manifest, too
        let (rate, code) = if number % 2 == 0 { ("0.5", 0) } else { ("0.1", 5) };
        let rate = format!("output.max_error_rate={rate}");
        let args = ["--input", input, "--set", &rate, "--set", "input.files_per_shard=3"];
        assert_code(&bench.run(&out, &args), code);
        let rows = bench.rows(&out);
        assert_eq!(rows.len(), 4);
        for (row, (id, bytes)) in rows.iter().zip(&members) {
            let found = extract(&bench, &out, &row.key, &[]);
            assert_code(&found, 0);
            assert!(found.stdout == *bytes, "{input}: {id}");
        }
        assert_code(&extract(&bench, &out, &rows[2].key, &["-o", "image.bin"]), 0);
        assert_eq!(fs::read(bench.path("image.bin")).expect("the file"), members[2].1);
    }
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn images_can_be_extracted_from_an_unfinished_output() {
    let bench = Bench::new();
    let (members, _) = every_format(&bench);
    for (out, input) in [("loose-out", "loose"), ("tar-out", "in/a.tar")] {
        // one of two workers writes no manifest
        let share = ["--input", input, "--num-shards", "2", "--shard-index", "0"];
        assert_code(&bench.run(out, &share), 0);
        assert!(!bench.path(out).join("_manifest.json").exists());
        for (row, (_, bytes)) in bench.rows(out).iter().zip(&members) {
            let found = extract(&bench, out, &row.key, &[]);
            assert_code(&found, 0);
            assert!(found.stdout == *bytes, "{}", row.key);
        }
    }
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn an_image_other_than_the_one_that_was_scored_is_refused() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(0, 3));
    fs::create_dir(bench.path("loose")).expect("folder");
    fs::write(bench.path("loose/b.png"), png(1)).expect("image");
    assert_code(&bench.run("out", &["--input", "in", "--input", "loose"]), 0);
    let keys: Vec<_> = bench.rows("out").into_iter().map(|row| row.key).collect();
    let refused = |key: &str, words: &str| {
        let found = extract(&bench, "out", key, &["-o", "never"]);
        assert_code(&found, 3);
        assert!(stderr(&found).contains(words), "{key}: {}", stderr(&found));
        assert!(!bench.path("never").exists());
    };
    refused("in/a.tar", "is not a key");
    refused("in/other.tar#0", "no part of the output has rows of that shard");
    refused("in/a.tar#3", "the output has no such row");
    // another file with the same name, and another image
    write_tar(&bench.path("in/a.tar"), &images(5, 3));
    fs::write(bench.path("loose/b.png"), [png(1), vec![0]].concat()).expect("image");
    refused(&keys[0], "has changed since it was scored");
    refused(&keys[3], "has changed since it was scored");
    fs::remove_file(bench.path("in/a.tar")).expect("remove");
    refused(&keys[0], "in/a.tar");
    assert_code(&extract(&bench, "nothing", &keys[0], &[]), 3);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_record_without_an_image_says_why() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &[("empty".to_owned(), Vec::new()), ("good".to_owned(), png(1))]);
    assert_code(&bench.run("out", &["--set", "output.max_error_rate=0.5"]), 0);
    let found = extract(&bench, "out", "in/a.tar#0", &[]);
    assert_code(&found, 3);
    assert!(stderr(&found).contains("has no image: image is 0 bytes"), "{}", stderr(&found));
    // longer than the run's limit
    let bytes = png(1);
    let limit = format!("input.max_image_bytes={}", bytes.len() - 1);
    assert_code(&bench.run("limited", &["--set", &limit, "--set", "output.max_error_rate=1"]), 0);
    let found = extract(&bench, "limited", "in/a.tar#1", &[]);
    assert_code(&found, 0);
    assert!(found.stdout == bytes);
}
