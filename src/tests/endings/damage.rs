//! Files of an output, or of its input, that are damaged between two attempts at a run.

use super::*;

/// Change one byte in the middle of a file, but not its size or time.
fn flip(path: &Path) {
    let bytes = fs::read(path).expect("a file");
    let at = bytes.len() / 2;
    corrupt(path, at as u64, &[bytes[at] ^ 1]);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_damaged_part_is_not_reused_by_a_resumed_run() {
    let bench = Bench::new();
    half_bad(&bench);
    assert_code(&bench.run("out", &[]), 5);
    let expected = predictions(&bench, "out");
    for (index, part) in whole_parts(&bench).iter().enumerate() {
        flip(part);
        // an attempt that exits with 5 detects the damage, too
        let more: &[&str] = if index == 0 { &[] } else { &ALLOWED };
        let output = bench.run("out", more);
        assert_code(&output, if index == 0 { 5 } else { 0 });
        let name = part.file_name().and_then(|name| name.to_str()).expect("a name");
        let log = stderr(&output);
        let warning =
            log.lines().find(|line| line.contains("removing a damaged part: its shard is scored again"));
        assert!(warning.is_some_and(|line| line.contains(name)), "{log}");
        assert!(stdout(&output).contains("2 rows are from earlier attempts"), "{}", stdout(&output));
        assert!(predictions(&bench, "out") == expected);
        assert_verified(&bench, "out", if index == 0 { "too many errors" } else { "the output holds" });
    }
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_damaged_part_is_not_reused_although_no_manifest_or_note_has_its_checksum() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(0, 40));
    write_tar(&bench.path("in/b.tar"), &images(40, 40));
    assert_code(&bench.run("out", &[]), 0);
    let expected = predictions(&bench, "out");
    // the message about a missing part of a finished run advises this; a finished run has no notes
    for name in ["out/_SUCCESS", "out/_manifest.json"] {
        fs::remove_file(bench.path(name)).expect("a file");
    }
    let part = whole_parts(&bench).remove(1);
    let at = 100;
    corrupt(&part, at, &[fs::read(&part).expect("a part")[at as usize] ^ 1]);
    let output = bench.run("out", &[]);
    assert_code(&output, 0);
    assert!(
        stderr(&output).contains("removing a damaged part: its shard is scored again"),
        "{}",
        stderr(&output)
    );
    assert!(stdout(&output).contains("40 rows are from earlier attempts"), "{}", stdout(&output));
    assert!(predictions(&bench, "out") == expected);
    assert_verified(&bench, "out", "the output holds");
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_damaged_batches_part_is_dropped_and_the_run_ends_without_it() {
    let bench = Bench::new();
    half_bad(&bench);
    assert_code(&bench.run("out", &[]), 5);
    let batches = parts(&bench.path("out/batches")).remove(0);
    flip(&batches);
    let output = bench.run("out", &ALLOWED);
    assert_code(&output, 0);
    assert!(stderr(&output).contains("its batches are lost"), "{}", stderr(&output));
    assert!(!batches.exists());
    assert_verified(&bench, "out", "the output holds");
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_damaged_part_of_another_worker_is_named_with_that_worker() {
    let bench = Bench::new();
    half_bad(&bench);
    let worker = |index: &str| {
        bench.run("out", &[&["--shard-index", index, "--num-shards", "2"], &ALLOWED[..]].concat())
    };
    assert_code(&worker("1"), 0);
    let part = whole_parts(&bench).remove(0);
    flip(&part);
    let refused = worker("0");
    assert_code(&refused, 6);
    let name = part.file_name().and_then(|name| name.to_str()).expect("a name");
    assert!(stderr(&refused).contains(&format!("{name} is damaged")), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("run worker 1 again"), "{}", stderr(&refused));
    assert!(part.exists() && !bench.path("out/_manifest.json").exists());
    assert_code(&worker("1"), 0);
    assert_verified(&bench, "out", "the output holds");
    assert_code(&bench.run("uninterrupted", &ALLOWED), 0);
    assert!(predictions(&bench, "out") == predictions(&bench, "uninterrupted"));
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_shard_that_was_damaged_after_a_checkpoint_is_scored_from_its_beginning() {
    let bench = Bench::new();
    interrupted(&bench, 20_000);
    let stored: usize = segments(&bench).iter().map(|segment| read_rows(segment).len()).sum();
    let shard = bench.path("in/long.tfrecord");
    assert!(stored > 3, "{stored} rows are in segments");
    corrupt(&shard, tfrecord_starts(&shard)[3], b"rot");
    let output = bench.run("out", &[]);
    assert_code(&output, 5);
    assert!(stderr(&output).contains("fewer sound records than a checkpoint"), "{}", stderr(&output));
    assert!(!stderr(&output).contains("panicked"), "{}", stderr(&output));
    assert_code(&bench.run("uninterrupted", &[]), 5);
    let rows = predictions(&bench, "out");
    assert_eq!(rows.len(), 4);
    assert_eq!(rows.last().expect("rows").status, "corrupt_record");
    assert!(rows == predictions(&bench, "uninterrupted"), "rows differ from those of an uninterrupted run");
    assert_verified(&bench, "out", "1 shards ended early");
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn damage_to_any_file_of_an_interrupted_run_costs_time_but_no_row() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(50_000, 10));
    interrupted(&bench, 8_000);
    assert_code(&bench.run("uninterrupted", &[]), 0);
    let expected = predictions(&bench, "uninterrupted");
    let out = bench.path("out");
    fs::rename(&out, bench.path("interrupted")).expect("an output");
    let (mut resumed, mut refused) = (0, 0);
    for name in files_below(&bench.path("interrupted")) {
        let original = fs::read(bench.path("interrupted").join(&name)).expect("a file");
        let mut changed = original.clone();
        changed[original.len() / 2] ^= 1;
        for damaged in [original[..original.len() / 2].to_vec(), changed, b"{}".to_vec(), Vec::new()] {
            let _ = fs::remove_dir_all(&out);
            copy_folder(&bench.path("interrupted"), &out);
            fs::write(out.join(&name), &damaged).expect("a file");
            let output = bench.run("out", &[]);
            let log = format!("{name}: {}", stderr(&output));
            assert!(!log.contains("panicked"), "{log}");
            match output.status.code() {
                Some(0) => {
                    assert_code(&ask("verify", &out), 0);
                    assert!(predictions(&bench, "out") == expected, "{log}");
                    resumed += 1;
                }
                // the message names the file that an operator must remove
                Some(6) => {
                    assert!(log.contains(name.rsplit('/').next().expect("a name")), "{log}");
                    refused += 1;
                }
                code => panic!("{code:?} {log}"),
            }
        }
    }
    assert!(resumed > 0 && refused > 0, "{resumed} resumed, {refused} refused");
}

fn copy_folder(from: &Path, to: &Path) {
    for name in files_below(from) {
        let target = to.join(&name);
        fs::create_dir_all(target.parent().expect("a folder")).expect("a folder");
        fs::copy(from.join(&name), target).expect("a copy");
    }
}
