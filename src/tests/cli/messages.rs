//! Messages about bad input. They name the object and the fault, without the terms of a library.

use super::*;

/// The reasons in the rows of `input`, in order.
fn reasons(bench: &Bench, input: &str) -> Vec<String> {
    let args = ["--input", input, "--set", "output.max_error_rate=1", "--set", "output.max_damaged_shards=9"];
    let run = bench.run("out", &[&args[..], &["--overwrite"]].concat());
    assert_code(&run, 0);
    let message = stderr(&run) + &stdout(&run);
    for words in
        ["Parquet error", "argument error", "External:", "EOF:", "Protobuf", "Error parsing Path", "illegal"]
    {
        assert!(!message.contains(words), "{message}");
    }
    bench.rows("out").into_iter().map(|row| row.error.unwrap_or_default()).collect()
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_bad_line_of_a_manifest_has_a_row_with_the_reason() {
    let bench = Bench::new();
    write_tfrecord(
        &bench.path("a.tfrecord"),
        &[("a".to_owned(), [b"\xff\xd8\xff\xe0\0\x10JFIF\0", &[7; 99][..]].concat())],
    );
    fs::write(bench.path("list.txt"), "in/a.png\tcat\nin/\0b.png\na.tfrecord\n").expect("a manifest");
    let found = reasons(&bench, "list.txt");
    assert!(found[0].contains("holds the control character '\\t'"), "{found:?}");
    assert!(found[1].contains("holds the control character '\\0'"), "{found:?}");
    assert!(found[2].contains("it is a TFRecord file"), "{found:?}");
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn reasons_for_damaged_shards_contain_no_library_terms() {
    let bench = Bench::new();
    let path = bench.path("a.parquet");
    write_parquet(&path, &images(0, 9));
    let whole = fs::read(&path).expect("Parquet");
    let mut expected = 0;
    for at in (4..whole.len() - 8).step_by(whole.len() / 15) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x55;
        fs::write(&path, damaged).expect("written");
        let found = reasons(&bench, "a.parquet");
        expected +=
            found.iter().filter(|reason| reason.contains("row ") || reason.contains("footer: ")).count();
    }
    assert!(expected > 0, "no change damaged a page or the footer");
    let path = bench.path("a.tfrecord");
    for example in [&[0x0a, 0xff][..], &[0xff; 12], &[0x0b, 0x0a], &[0x00, 0x01], &[0x0f, 1]] {
        let length = (example.len() as u64).to_le_bytes();
        let crc =
            |bytes: &[u8]| crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes();
        fs::write(&path, [&length[..], &crc(&length), example, &crc(example)].concat()).expect("written");
        let found = reasons(&bench, "a.tfrecord");
        assert!(found[0].contains("tf.Example"), "{found:?}");
    }
}

#[test]
fn refused_arguments_are_shown_without_secrets_and_escapes() {
    for args in [
        &["show", "a", "https://me:very-secret@h/x"][..],
        &["show", "a", "--rows", "https://h/x?sid=very-secret"],
        &["diff", "a", "b", "c\u{1b}[31m"],
    ] {
        let refused = sluice().args(args).output().expect("starts");
        assert_code(&refused, 2);
        let printed = stdout(&refused) + &stderr(&refused);
        assert!(
            !printed.contains("very-secret") && !printed.contains('\u{1b}') && printed.contains("error: "),
            "{printed}"
        );
    }
}

#[test]
fn bench_measures_engines_or_decoding_and_says_so() {
    let bench = |args: &[&str]| stderr(&sluice().arg("bench").args(args).output().expect("starts"));
    assert!(bench(&[]).contains("<--onnx <FILE>|--decode <DIR>>"), "{}", bench(&[]));
    let both = bench(&["--decode", "a", "--onnx", "b"]);
    assert!(both.contains("'--decode <DIR>' cannot be used with '--onnx <FILE>'"), "{both}");
    let alone = bench(&["--onnx", "b", "--threads", "3"]);
    assert!(alone.contains("'--onnx <FILE>' cannot be used with '--threads <N>'"), "{alone}");
    let empty = tempfile::tempdir().expect("a folder");
    let empty = empty.path().display().to_string();
    let none = bench(&["--decode", &empty]);
    assert!(none.contains(&format!("--decode: {empty} has no image that can be decoded")), "{none}");
}
