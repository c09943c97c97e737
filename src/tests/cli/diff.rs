//! `sluice diff`.

use std::path::Path;
use std::process::Output;

use super::*;

fn diff(bench: &Bench, args: &[&str]) -> Output {
    sluice().current_dir(bench.path("")).arg("diff").args(args).output().expect("starts")
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_str(&stdout(output)).unwrap_or_else(|error| panic!("{error}:\n{}", stdout(output)))
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn an_output_with_invalid_scores_equals_itself() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(0, 5));
    let all_invalid = ["--set", "preprocess.scale=3e38", "--set", "output.max_error_rate=1"];
    assert_code(&bench.run("a", &all_invalid), 0);
    assert!(bench.rows("a").iter().all(|row| row.status == "invalid_score"));
    assert_code(&bench.run("b", &all_invalid), 0);
    for other in ["a", "b"] {
        assert_code(&diff(&bench, &["a", other]), 0);
    }
    assert_code(&bench.run("c", &[]), 0);
    let found = diff(&bench, &["a", "c", "--json"]);
    assert_code(&found, 5);
    assert_eq!((&json(&found)["other_status"], &json(&found)["same"]), (&5.into(), &false.into()));
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn images_match_across_folders_and_beside_a_new_image() {
    let bench = Bench::new();
    let write = |folder: &Path, images: &[(String, Vec<u8>)]| {
        fs::create_dir_all(folder).expect("folder");
        for (name, bytes) in images {
            fs::write(folder.join(format!("{name}.png")), bytes).expect("image");
        }
    };
    write(&bench.path("loose/p"), &images(0, 3));
    write(&bench.path("moved/to/p"), &images(0, 3));
    write(&bench.path("moved/to/p"), &[("a-new-one".to_owned(), png(77))]);
    for (folder, out) in [("loose", "a"), ("moved/to", "b")] {
        write_tar(&bench.path(folder).join("p.tar"), &images(10, 3));
        assert_code(
            &bench.run(out, &["--input", &format!("{folder}/p.tar"), "--input", &format!("{folder}/p")]),
            0,
        );
    }
    let found = diff(&bench, &["a", "b", "--json"]);
    assert_code(&found, 5);
    let found = json(&found);
    for (what, count) in [("records_in_both", 6), ("only_in_a", 0), ("only_in_b", 1), ("other_scores", 0)] {
        assert_eq!(found[what], count, "{what} of {found:#}");
    }
    assert!(
        found["rows"][0]["image_id"].as_str().is_some_and(|id| id.ends_with("a-new-one.png")),
        "{found:#}"
    );
    assert_code(&diff(&bench, &["a", "b", "--common"]), 0);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn differences_are_listed() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(0, 4));
    write_tar(&bench.path("other.tar"), &images(0, 4));
    assert_code(&bench.run("a", &[]), 0);
    // one member has another image, and one is not an image
    let mut members = images(0, 4);
    members[1].1 = png(99);
    members[2].1 = b"hello".to_vec();
    write_tar(&bench.path("in/a.tar"), &members);
    assert_code(&bench.run("b", &["--set", "output.max_error_rate=0.5"]), 0);
    let found = diff(&bench, &["a", "b"]);
    assert_code(&found, 5);
    for words in
        ["records in both       4", "img-00001", "differ by", "img-00002  status ok in A, decode_error in B"]
    {
        assert!(stdout(&found).contains(words), "{words} is missing:\n{}", stdout(&found));
    }
    let one = stdout(&diff(&bench, &["a", "b", "--rows", "1"]));
    assert!(!one.contains("img-00002") && one.contains("and others"), "{one}");
    let none = stdout(&diff(&bench, &["a", "b", "--rows", "0"]));
    assert!(!none.contains("img-"), "{none}");
    let tolerated = diff(&bench, &["a", "b", "--tolerance", "1"]);
    assert_code(&tolerated, 5);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_file_that_is_not_a_part_of_an_output_is_refused_with_the_reason() {
    use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(0, 2));
    assert_code(&bench.run("good", &[]), 0);
    let text: ArrayRef = std::sync::Arc::new(StringArray::from(vec!["a", "b"]));
    let numbers: ArrayRef = std::sync::Arc::new(Int64Array::from(vec![1, 2]));
    let foreign = [
        ("columns", vec![("url", text.clone())], "it has no column"),
        (
            "types",
            vec![
                ("key", text.clone()),
                ("record_index", text),
                ("status", numbers.clone()),
                ("image_id", numbers),
            ],
            "of type",
        ),
    ];
    for (name, columns, _) in &foreign {
        let batch = RecordBatch::try_from_iter(columns.clone()).expect("columns");
        let mut bytes = Vec::new();
        let mut writer =
            parquet::arrow::ArrowWriter::try_new(&mut bytes, batch.schema(), None).expect("writer");
        writer.write(&batch).expect("rows");
        writer.close().expect("footer");
        write_part(&bench, name, &bytes);
    }
    write_part(&bench, "torn", b"PAR1 and no more PAR1");
    let expected = foreign.iter().map(|(name, _, words)| (*name, *words));
    for (name, words) in expected.chain([("torn", "Parquet")]) {
        for args in [["show", name, "--rows=1"], ["diff", "good", name], ["diff", name, "good"]] {
            let refused = sluice().current_dir(bench.path("")).args(args).output().expect("starts");
            assert_code(&refused, 3);
            let printed = stderr(&refused);
            assert!(
                printed.contains("is not a part of an output") && printed.contains(words),
                "{args:?}: {printed}"
            );
            assert!(!printed.contains("panic"), "{args:?}: {printed}");
        }
    }
}

fn write_part(bench: &Bench, out: &str, bytes: &[u8]) {
    let folder = bench.path(out).join("predictions");
    fs::create_dir_all(&folder).expect("folder");
    fs::write(folder.join("part-000000-0123456789ab.parquet"), bytes).expect("file");
}
