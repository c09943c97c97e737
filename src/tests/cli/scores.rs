//! Scores of a model in the output.

use super::*;

/// With this scale, pixel values of 2 and more overflow, and the model returns NaN. A black image stays finite.
const OVERFLOWS: [&str; 4] = ["--set", "preprocess.scale=3e38", "--set", "output.max_error_rate=0.9"];

fn black() -> Vec<u8> {
    let mut png = Vec::new();
    let pixels = image::RgbImage::new(16, 12);
    pixels.write_to(&mut std::io::Cursor::new(&mut png), image::ImageFormat::Png).expect("a PNG in memory");
    png
}

/// `a.tar` of two images with NaN scores, a black one between them, and a member that is not an image.
fn overflowing(bench: &Bench) {
    let [first, second] = [png(1), png(2)];
    let members = [("one", first), ("black", black()), ("two", second), ("text", b"hello".to_vec())];
    write_tar(&bench.path("in/a.tar"), &members.map(|(stem, bytes)| (stem.to_owned(), bytes)));
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_nan_score_makes_an_error_row_with_a_reason_and_no_scores() {
    let bench = Bench::new();
    overflowing(&bench);
    let output = bench.run("out", &OVERFLOWS);
    assert_code(&output, 0);
    assert_eq!(stderr(&output).matches("try it in float32").count(), 1, "{}", stderr(&output));

    let rows = bench.rows("out");
    let found: Vec<_> = rows.iter().map(|row| row.status.as_str()).collect();
    assert_eq!(found, ["invalid_score", "ok", "invalid_score", "decode_error"]);
    for row in [&rows[0], &rows[2]] {
        let reason = row.error.as_deref().expect("a reason");
        assert_eq!(reason, "the score of class 0 (north) is NaN; 4 of 4 scores are NaN or infinite");
        assert!(row.top1.is_none() && row.score_bits.is_none() && row.size == Some((16, 12)));
        assert_eq!(row.batch_id, rows[1].batch_id, "the row has no batch");
    }
    assert!(rows[1].top1.is_some() && rows[1].score_bits.is_some() && rows[3].batch_id.is_none());
    let summary = &bench.manifest("out")["summary"];
    assert_eq!(summary["rows_by_status"]["invalid_score"], 2);
    assert_eq!(summary["error_rate"], 0.75);

    let verified = sluice().arg("verify").arg(bench.path("out")).output().expect("starts");
    assert_code(&verified, 0);
    let refused =
        bench.run("strict", &["--set", "preprocess.scale=3e38", "--set", "output.max_error_rate=0.7"]);
    assert_code(&refused, 5);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn each_part_has_the_class_names_in_its_footer() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(0, 2));
    write_tar(&bench.path("in/b.tar"), &[]);
    assert_code(&bench.run("out", &["--set", "output.scores=top2"]), 0);
    let labels = |part: &std::path::Path| {
        let file = SerializedFileReader::new(fs::File::open(part).expect("part")).expect("Parquet");
        let footer = file.metadata().file_metadata().key_value_metadata().expect("a footer").clone();
        footer.into_iter().find(|pair| pair.key == "sluice.labels").and_then(|pair| pair.value)
    };
    for part in parts(&bench.path("out/predictions")) {
        assert_eq!(labels(&part).as_deref(), Some(r#"["north","east","south","west"]"#));
    }
    let pipeline = fs::read_to_string(bench.path("pipeline.toml")).expect("pipeline");
    let nameless: Vec<_> = pipeline.lines().filter(|line| !line.contains("labels")).collect();
    fs::write(bench.path("pipeline.toml"), nameless.join("\n")).expect("pipeline");
    assert_code(&bench.run("nameless", &[]), 0);
    assert!(parts(&bench.path("nameless/predictions")).iter().all(|part| labels(part).is_none()));
}
