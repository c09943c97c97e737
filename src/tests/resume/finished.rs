//! Outputs of finished runs: `verify` detects tampering, and later commands leave them unchanged.

use super::*;

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn verify_detects_any_tampering_with_a_finished_output() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(0, 5));
    write_tar(&bench.path("in/b.tar"), &images(5, 3));
    assert_code(&bench.run("out", &[]), 0);
    let out = bench.path("out");
    let verify = || {
        let mut verify = sluice();
        verify.arg("verify").arg(&out).output().expect("starts")
    };
    let holds = verify();
    assert_code(&holds, 0);
    assert!(stdout(&holds).contains("the output holds: 3 parts, 8 rows"), "{}", stdout(&holds));

    for (name, bytes) in contents(&out) {
        let path = Path::new(&name);
        // about 40 bytes spread over the file, and two at its end
        let spread = (0..bytes.len()).step_by(bytes.len() / 40 + 1);
        for at in spread.chain([bytes.len() - 9, bytes.len() - 1]) {
            let mut tampered = bytes.clone();
            tampered[at] ^= 1;
            fs::write(path, &tampered).expect("write");
            let found = verify();
            assert_code(&found, 9);
            assert!(stdout(&found).contains("DOES NOT HOLD"), "{}", stdout(&found));
        }
        fs::remove_file(path).expect("a file");
        assert_code(&verify(), 9);
        fs::write(path, &bytes).expect("write");
    }
    assert_code(&verify(), 0);

    let first = whole_parts(&bench).remove(0);
    let stray = bench.path("out/predictions/part-000007-0123456789ab.parquet");
    fs::copy(first, &stray).expect("a copy");
    let found = verify();
    assert_code(&found, 9);
    assert!(stdout(&found).contains("part-000007-0123456789ab.parquet: it is not in the manifest"));
    // a repeated run removes a part that is not in the manifest
    assert_code(&bench.run("out", &[]), 0);
    assert!(!stray.exists());
    assert_code(&verify(), 0);

    let batches = parts(&bench.path("out/batches")).remove(0);
    for stray in
        ["batches/part-000000-000009-000000.parquet", "batches/more.parquet", "predictions/a.parquet#1"]
    {
        let stray = bench.path("out").join(stray);
        fs::copy(&batches, &stray).expect("a copy");
        assert_code(&verify(), 9);
        fs::remove_file(stray).expect("the copy");
    }
    assert_code(&verify(), 0);
    // a missing output is an input error, not tampering
    let nowhere = sluice().arg("verify").arg(bench.path("nowhere")).output().expect("starts");
    assert_code(&nowhere, 3);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_repeated_run_does_not_change_a_finished_output() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(0, 5));
    assert_code(&bench.run("out", &[]), 0);
    let before = contents(&bench.path("out"));
    let again = bench.run("out", &[]);
    assert_code(&again, 0);
    assert!(stdout(&again).contains("done before"), "{}", stdout(&again));
    assert!(contents(&bench.path("out")) == before);
    // only the remains of an attempt that was killed after the end of the run are removed
    fs::create_dir(bench.path("out/_attempts")).expect("a folder");
    fs::write(bench.path("out/_attempts/000001-0123abcd.json"), "{}").expect("a note");
    assert_code(&bench.run("out", &[]), 0);
    assert!(contents(&bench.path("out")) == before);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn another_run_is_refused_with_the_difference() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(0, 5));
    write_tar(&bench.path("in/b.tar"), &images(5, 5));
    assert_code(&bench.run("out", &[]), 0);
    let before = contents(&bench.path("out"));
    let refused = |args: &[&str], words: &str| {
        let output = bench.run("out", args);
        assert_code(&output, 6);
        assert!(stderr(&output).contains(words), "{}", stderr(&output));
        assert!(contents(&bench.path("out")) == before, "{args:?} changed the output");
    };
    refused(&["--set", "preprocess.scale=0.5"], "preprocess.scale was");
    refused(&["--set", "engine.batch_size=8"], "batch_size was 4, is 8");
    refused(&["--limit", "3"], "--limit 3");

    write_tar(&bench.path("in/c.tar"), &images(10, 5));
    refused(&[], "c.tar: it was added after the run finished");
    fs::remove_file(bench.path("in/c.tar")).expect("a file");
    fs::remove_file(bench.path("in/b.tar")).expect("a file");
    refused(&[], "b.tar: it has a part, but no longer exists");
    write_tar(&bench.path("in/b.tar"), &images(50, 5));
    refused(&[], "b.tar: it has another version now");

    assert_code(&bench.run("out", &["--overwrite"]), 0);
    assert_eq!(bench.rows("out")[5].image_id, "img-00050");
    assert!(bench.path("out/_SUCCESS").is_file());
}
