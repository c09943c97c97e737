//! Invalid listings, unusual keys in listings, and listings of Azure.

use super::*;

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_listing_with_repeated_or_unordered_keys_is_refused() {
    let cloud = Cloud::new();
    for oddity in [ListingOddity::Again, ListingOddity::Twice, ListingOddity::Backwards] {
        cloud.gcs.list_oddly(Some(oddity));
        let output = cloud
            .bench
            .command("run", "out", &["--input", "gs://data"])
            .env("STORAGE_EMULATOR_HOST", cloud.gcs.url())
            .output()
            .expect("starts");
        assert_code(&output, 3);
        assert!(last_error(&output).contains("listing cannot be used"), "{}", stderr(&output));
        let mut verify = sluice();
        verify.args(["verify", "gs://data"]).env("STORAGE_EMULATOR_HOST", cloud.gcs.url());
        assert_code(&verify.output().expect("starts"), 3);
    }
    cloud.gcs.list_oddly(None);
    assert_code(&cloud.run("out"), 0);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn an_invalid_entry_of_a_listing_costs_at_most_its_own_row() {
    let cloud = Cloud::new();
    assert_code(&cloud.run("whole"), 0);
    let expected = by_stem(&cloud.rows("whole"));
    let run = |out: &str, input: &str, lenient: &[&str]| {
        let args = [&["--input", input, "--set", "storage.retry_seconds=2"], lenient].concat();
        let mut run = cloud.bench.command("run", out, &args);
        run.env("STORAGE_EMULATOR_HOST", cloud.gcs.url()).output().expect("starts")
    };
    for (number, (name, content)) in [
        ("LastModified", Some("yesterday")),
        ("LastModified", None),
        ("Size", Some("long")),
        ("Size", None),
        ("Size", Some("18446744073709551615")),
    ]
    .into_iter()
    .enumerate()
    {
        cloud.gcs.list_oddly(Some(ListingOddity::FirstHas(name, content)));
        // a container, and an image
        for (kind, input) in [("container", "gs://data"), ("image", "gs://data/img*")] {
            let out = format!("{kind}-{number}");
            assert_code(&run(&out, input, &[]), 0);
            let found = by_stem(&cloud.bench.rows(&out));
            assert!(found.len() >= IMAGES as usize);
            for (id, row) in found {
                assert_eq!(row, expected[&id], "{kind}, {name} {content:?}");
            }
        }
    }
    // an object is not read if no request can carry its ETag
    cloud.gcs.list_oddly(Some(ListingOddity::FirstHas("ETag", Some("\"a&#10;b\""))));
    let lenient = ["--set", "output.max_error_rate=1", "--set", "output.max_damaged_shards=1"];
    for (kind, input, status) in
        [("container", "gs://data", "corrupt_record"), ("image", "gs://data/img*", "read_error")]
    {
        let out = format!("{kind}-tag");
        let output = run(&out, input, &lenient);
        assert_code(&output, 0);
        assert!(!stderr(&output).contains("panicked"), "{}", stderr(&output));
        let rows = cloud.bench.rows(&out);
        let (odd, others): (Vec<_>, Vec<_>) = rows.iter().partition(|row| row.status != "ok");
        let [odd] = odd[..] else { panic!("{kind}: {rows:?}") };
        assert_eq!(odd.status, status);
        assert!(odd.error.as_deref().is_some_and(|error| error.contains("cannot be sent")), "{odd:?}");
        assert!(others.len() >= IMAGES as usize - 1);
    }
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn an_azure_container_is_listed_and_read_like_a_bucket() {
    let cloud = Cloud::new();
    cloud.gcs.put("data", "below/img-00050.png", png(50));
    assert_code(&cloud.run("whole"), 0);
    let expected = by_stem(&cloud.rows("whole"));
    assert_eq!(expected.len(), 4 * IMAGES as usize + 1);
    let run = |out: &str, input: &str, args: &[&str]| {
        let args = [&["--input", input, "--set", "storage.retry_seconds=1"], args].concat();
        let mut run = cloud.bench.command("run", out, &args);
        run.env("AZURE_STORAGE_ENDPOINT", cloud.gcs.url()).env("AZURE_STORAGE_ACCOUNT_NAME", "account");
        run.env("AZURE_STORAGE_SAS_TOKEN", "sv=2024-01-01&sig=x").output().expect("starts")
    };
    for page in [1000, 2, 1] {
        cloud.gcs.set_page_size(page);
        for (kind, input, count) in [
            ("all", "az://data", expected.len()),
            ("direct", "az://data/*.png", IMAGES as usize),
            ("named", "az://data/a.tar", IMAGES as usize),
        ] {
            let out = format!("{kind}-{page}");
            assert_code(&run(&out, input, &[]), 0);
            let rows = cloud.bench.rows(&out);
            assert_eq!(rows.len(), count, "{out}");
            for (id, row) in by_stem(&rows) {
                assert_eq!(row, expected[&id], "{out}");
            }
        }
    }
    cloud.gcs.set_page_size(1000);
    for (number, (name, content)) in
        [("Last-Modified", Some("2026")), ("Last-Modified", None), ("Content-Length", None)]
            .into_iter()
            .enumerate()
    {
        cloud.gcs.list_oddly(Some(ListingOddity::FirstHas(name, content)));
        let out = format!("odd-{number}");
        assert_code(&run(&out, "az://data", &[]), 0);
        assert!(by_stem(&cloud.bench.rows(&out)) == expected, "{name} {content:?}");
    }
    cloud.gcs.list_oddly(None);
    cloud.gcs.put("data", "img//odd.png", b"never read".to_vec());
    let passed = run("passed", "az://data", &[]);
    assert_code(&passed, 0);
    assert!(stderr(&passed).contains("img//"), "{}", stderr(&passed));
    assert!(by_stem(&cloud.bench.rows("passed")) == expected);
    // one blob cannot be read, and then all of them
    cloud.gcs.serve_oddly("data", "img-00030.png", Oddity::Refused(409, "BlobBeingRehydrated"));
    assert_code(&run("one", "az://data", &["--set", "output.max_error_rate=0.5"]), 0);
    cloud.gcs.serve_all_oddly("data", Oddity::Refused(400, "InvalidAuthenticationInfo"));
    let refused = run("none", "az://data", &["--set", "output.max_error_rate=1"]);
    assert_code(&refused, 3);
    assert!(last_error(&refused).contains("InvalidAuthenticationInfo"), "{}", stderr(&refused));
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_listing_with_an_invalid_page_is_an_error_and_not_the_end() {
    let cloud = Cloud::new();
    cloud.gcs.set_page_size(1);
    for (oddity, expected) in [
        (ListingOddity::NoToken, "does not say where"),
        (ListingOddity::LaterError, "InternalError"),
        (ListingOddity::LaterHtml, "\"html\" instead of ListBucketResult"),
    ] {
        cloud.gcs.list_oddly(Some(oddity));
        let with_url = |command: &mut std::process::Command| {
            command.env("STORAGE_EMULATOR_HOST", cloud.gcs.url()).output().expect("starts")
        };
        let arguments = ["--input", "gs://data", "--set", "storage.retry_seconds=1"];
        let output = with_url(&mut cloud.bench.command("run", "out", &arguments));
        assert_code(&output, 3);
        assert!(last_error(&output).contains(expected), "{oddity:?}: {}", stderr(&output));
        assert!(!cloud.bench.path("out/_SUCCESS").exists());
        // outputs are listed, too; LaterError is left out, because verify would retry it for minutes
        if oddity != ListingOddity::LaterError {
            assert_code(&with_url(sluice().args(["verify", "gs://data"])), 3);
        }
    }
    cloud.gcs.list_oddly(None);
    assert_code(&cloud.run("out"), 0);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn folder_markers_of_consoles_are_not_objects() {
    let cloud = Cloud::new();
    assert_code(&cloud.run("before"), 0);
    // `a.tar/` is beside an object of that name; `img/` comes after names that sort before the slash
    for (bucket, marker) in
        [("data", "a.tar/"), ("data", "img/"), ("out", "after/"), ("out", "after/predictions/")]
    {
        cloud.gcs.put(bucket, marker, Vec::new());
    }
    let after = cloud.run("after");
    assert_code(&after, 0);
    assert!(stderr(&after).contains("folder marker"), "{}", stderr(&after));
    cloud.gcs.remove("out", "after/");
    cloud.gcs.remove("out", "after/predictions/");
    assert!(cloud.rows("after") == cloud.rows("before"));
    // a marker with content beside an object of its name ends the run
    cloud.gcs.put("data", "a.tar/", b"notes".to_vec());
    let refused = cloud.run("refused");
    assert_code(&refused, 3);
    assert!(last_error(&refused).contains("\"a.tar/\""), "{}", stderr(&refused));
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_key_that_cannot_be_addressed_is_skipped_without_losing_its_neighbours() {
    let cloud = Cloud::new();
    cloud.gcs.put("data", "img//odd.png", b"never read".to_vec());
    let arguments = ["--input", "gs://data"];
    let run = |out: &str| {
        let mut command = cloud.bench.command("run", out, &arguments);
        command.env("STORAGE_EMULATOR_HOST", cloud.gcs.url()).output().expect("starts")
    };
    let passed = run("passed");
    assert_code(&passed, 0);
    assert!(stderr(&passed).contains("img//"), "{}", stderr(&passed));
    // if pages hold more than one key, it is unknown which key was skipped
    cloud.gcs.list_oddly(Some(ListingOddity::FullPages));
    let refused = run("refused");
    assert_code(&refused, 3);
    assert!(last_error(&refused).contains("names in a page for which"), "{}", stderr(&refused));
}
