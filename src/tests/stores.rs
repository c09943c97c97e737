//! Stores: a conformance suite for each of them, and whole runs against independent servers.

#[path = "stores/conformance.rs"]
mod conformance;
#[path = "support/gcs/mod.rs"]
mod gcs;
#[path = "support/servers.rs"]
mod servers;
mod support;

use std::process::{Child, Output, Stdio};

use futures_util::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt};
use rustix::process::Signal;
use servers::Server;
use support::*;

/// `sluice ARGS…` as a client of `server`.
fn client(server: &Server, args: &[&str]) -> Output {
    sluice().args(args).envs(server.environment.iter().cloned()).output().expect("starts")
}

fn ids_and_scores(rows: &[Row]) -> Vec<(String, Option<Vec<u32>>)> {
    let stem = |id: &str| id.rsplit('/').next().unwrap_or_default().to_owned();
    rows.iter().map(|row| (stem(&row.image_id), row.score_bits.clone())).collect()
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime --with servers"]
fn fake_gcs_server_is_listed_and_read() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(0, 9));
    write_parquet(&bench.path("in/b.parquet"), &images(10, 9));
    for (id, bytes) in images(20, 9) {
        std::fs::write(bench.path(&format!("in/{id}.png")), bytes).expect("an image");
    }
    let server = Server::fake_gcs("data", &bench.path("in"));
    for (out, input) in [("all", "gs://data"), ("some", "gs://data/*.png"), ("one", "gs://data/a.tar")] {
        let mut run = bench.command("run", out, &["--input", input]);
        assert_code(&run.envs(server.environment.iter().cloned()).output().expect("starts"), 0);
    }
    assert_code(&bench.run("local", &[]), 0);
    let (all, local) = (ids_and_scores(&bench.rows("all")), ids_and_scores(&bench.rows("local")));
    assert_eq!(all, local);
    assert_eq!(ids_and_scores(&bench.rows("one")), local[..9]);
    assert_eq!(bench.rows("some").len(), 9);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime --with servers"]
fn seaweedfs_holds_input_and_output_of_runs_that_are_killed_and_shared() {
    let bench = Bench::new();
    for shard in 0..8 {
        write_tar(&bench.path(&format!("in/{shard}.tar")), &images(shard * 100, 100));
    }
    // incompressible names make a part that is too long for one request
    let long = images(10_000, 12_000).into_iter().enumerate();
    let long: Vec<_> = long.map(|(seed, (_, bytes))| (noise(seed as u64 + 1), bytes)).collect();
    write_tar(&bench.path("in/long.tar"), &long);
    assert_code(&bench.run("local", &[]), 0);
    let server = Server::seaweedfs("bucket");
    upload(&server, &bench);

    let run = |out: &str, args: &[&str]| {
        let output = format!("s3://bucket/{out}");
        let mut run = bench.command("run", &output, &[&["--input", "s3://bucket/in"], args].concat());
        run.envs(server.environment.iter().cloned()).stdout(Stdio::piped()).stderr(Stdio::piped());
        run
    };
    let often = ["--set", "output.checkpoint_seconds=0.2"];
    let mut killed = run("a", &often).spawn().expect("starts");
    wait_for(&server, "a/predictions/", &mut killed);
    killed.kill().expect("the child is there");
    killed.wait().expect("a child");
    let mut drained = run("a", &often).spawn().expect("starts");
    wait_for(&server, "a/_attempts/000001-", &mut drained);
    send(Signal::TERM, &drained);
    let drained = drained.wait_with_output().expect("a child");
    assert!(matches!(drained.status.code(), Some(143)), "{}", stderr(&drained));
    assert_code(&run("a", &often).output().expect("starts"), 0);

    let workers = ["0", "1", "1"]
        .map(|index| run("b", &["--shard-index", index, "--num-shards", "2"]).spawn().expect("starts"));
    for worker in workers {
        assert_code(&worker.wait_with_output().expect("a child"), 0);
    }
    let expected = ids_and_scores(&bench.rows("local"));
    let longest = parts(&bench.path("local/predictions"))
        .iter()
        .map(|part| part.metadata().expect("a file").len())
        .max();
    assert!(longest > Some(8 << 20), "no part takes more than one request: {longest:?}");
    for out in ["a", "b"] {
        let uri = format!("s3://bucket/{out}");
        assert_code(&client(&server, &["verify", &uri]), 0);
        assert!(stdout(&client(&server, &["show", &uri])).contains(&format!("{} rows", expected.len())));
        download(&server, &bench, out);
        assert!(ids_and_scores(&bench.rows(out)) == expected, "{out} differs");
    }
    let refused = run("a", &["--set", "engine.batch_size=3"]).output().expect("starts");
    assert_code(&refused, 6);
    assert!(!stderr(&refused).contains("very-secret"), "{}", stderr(&refused));

    let mut wrong = run("wrong", &[]);
    wrong.env("AWS_SECRET_ACCESS_KEY", "not-so-secret").env("AWS_SESSION_TOKEN", "session-token");
    let wrong = wrong.output().expect("starts");
    assert!(matches!(wrong.status.code(), Some(3 | 6)), "{}", stderr(&wrong));
    assert!(stderr(&wrong).contains("ERROR"), "{}", stderr(&wrong));
    assert_hidden(&wrong, &["not-so-secret", "very-secret", "session-token"]);
}

/// Assert that neither the log nor standard output contains a secret.
fn assert_hidden(output: &Output, secrets: &[&str]) {
    for secret in secrets {
        assert!(!(stderr(output) + &stdout(output)).contains(secret), "{secret}: {}", stderr(output));
    }
}

/// The output of a run over the input `uri`, which ends with exit code 3. Credentials come from `environment` alone.
fn denied(bench: &Bench, uri: &str, environment: &[(&str, &str)]) -> Output {
    let mut run = bench.command("run", "out", &["--input", uri, "--set", "storage.retry_seconds=1"]);
    for (name, _) in std::env::vars_os() {
        if ["AWS_", "AZURE_"].iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            run.env_remove(name);
        }
    }
    let output = run.envs(environment.iter().copied()).output().expect("starts");
    assert_code(&output, 3);
    output
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn an_s3_error_that_echoes_the_request_is_shown_without_secrets() {
    let bench = Bench::new();
    let repeated = "<?xml version='1.0'?><Error><Code>SignatureDoesNotMatch</Code><Message>Check your key.</Message>\
        <AWSAccessKeyId>AKIAME</AWSAccessKeyId><CanonicalRequest>x-amz-security-token:session-token\
        </CanonicalRequest></Error>";
    let server = servers::always(403, repeated.to_owned());
    let environment = [
        ("AWS_ENDPOINT_URL", server.as_str()),
        ("AWS_ACCESS_KEY_ID", "AKIAME"),
        ("AWS_SECRET_ACCESS_KEY", "very-secret"),
        ("AWS_SESSION_TOKEN", "session-token"),
    ];
    let output = denied(&bench, "s3://bucket/*.tar", &environment);
    assert!(stderr(&output).contains("SignatureDoesNotMatch: Check your key."), "{}", stderr(&output));
    assert!(!stderr(&output).contains("asking again"), "{}", stderr(&output));
    assert_hidden(&output, &["AKIAME", "very-secret", "session-token"]);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn empty_variables_count_as_unset() {
    let bench = Bench::new();
    let server = servers::always(403, "<Error><Code>AccessDenied</Code></Error>".to_owned());
    for empty in ["AWS_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN", "AWS_ALLOW_HTTP"] {
        let environment = [
            ("AWS_ENDPOINT_URL", server.as_str()),
            ("AWS_ACCESS_KEY_ID", "AKIAME"),
            ("AWS_SECRET_ACCESS_KEY", "very-secret"),
            (empty, ""),
        ];
        let output = denied(&bench, "s3://bucket/*.tar", &environment);
        assert!(stderr(&output).contains("AccessDenied"), "{empty}: {}", stderr(&output));
    }
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_shared_access_signature_is_never_shown() {
    let bench = Bench::new();
    let repeated = "<Error><Code>AuthenticationFailed</Code><Message>No.</Message><AuthenticationErrorDetail>\
        very-secret</AuthenticationErrorDetail></Error>";
    let (server, unused) = (servers::always(403, repeated.to_owned()), servers::unused_url());
    for (endpoint, expected) in [(&server, "AuthenticationFailed: No."), (&unused, "nothing answers at")] {
        let environment = [
            ("AZURE_STORAGE_ENDPOINT", endpoint.as_str()),
            ("AZURE_STORAGE_ACCOUNT_NAME", "account"),
            ("AZURE_STORAGE_SAS_TOKEN", "sv=2024-01-01&sig=very-secret"),
        ];
        let output = denied(&bench, "az://container/*.tar", &environment);
        assert!(stderr(&output).contains(expected), "{}", stderr(&output));
        assert!(!stderr(&output).contains("asking again"), "{}", stderr(&output));
        assert_hidden(&output, &["very-secret"]);
    }
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_web_identity_token_is_read_from_its_file_and_never_shown() {
    let bench = Bench::new();
    let token = bench.path("token");
    // sluice sends the token over TLS only
    let server = servers::unused_url().replace("http:", "https:");
    let environment = [
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token.to_str().expect("UTF-8")),
        ("AWS_ROLE_ARN", "arn:aws:iam::1:role/worker"),
        ("AWS_ENDPOINT_URL_STS", server.as_str()),
    ];
    let missing = denied(&bench, "s3://bucket/*.tar", &environment);
    assert!(stderr(&missing).contains("token file"), "{}", stderr(&missing));
    std::fs::write(&token, "very-secret").expect("a file");
    let unreached = denied(&bench, "s3://bucket/*.tar", &environment);
    assert!(stderr(&unreached).contains("nothing answers at 127.0.0.1"), "{}", stderr(&unreached));
    assert_hidden(&unreached, &["very-secret"]);
}

#[test]
fn the_error_for_missing_aws_keys_says_what_to_set() {
    let unused = servers::unused_url();
    let output = denied(&Bench::new(), "s3://bucket/in", &[("AWS_METADATA_ENDPOINT", unused.as_str())]);
    assert!(
        stderr(&output).contains("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        "{}",
        stderr(&output)
    );
}

/// Wait until the bucket has an object whose name begins with `prefix`.
fn wait_for(server: &Server, prefix: &str, running: &mut Child) {
    let (store, runtime) = (server.bucket("bucket"), runtime());
    let listed = || runtime.block_on(store.list(None).try_collect::<Vec<_>>()).expect("a list");
    while !listed().iter().any(|object| object.location.as_ref().starts_with(prefix)) {
        assert!(running.try_wait().expect("a child").is_none(), "the run ended before it stored {prefix}");
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime")
}

/// Copy the parts of an output in the bucket to the bench.
fn download(server: &Server, bench: &Bench, out: &str) {
    let (store, runtime) = (server.bucket("bucket"), runtime());
    let folder = object_store::path::Path::from(format!("{out}/predictions"));
    let listed: Vec<_> = runtime.block_on(store.list(Some(&folder)).try_collect()).expect("a list");
    std::fs::create_dir_all(bench.path(out).join("predictions")).expect("folders");
    for object in listed {
        let read = async { store.get(&object.location).await?.bytes().await };
        let bytes = runtime.block_on(read).expect("an object");
        std::fs::write(bench.path(object.location.as_ref()), bytes).expect("a file");
    }
}

/// Upload the bench's input to the bucket's folder `in`.
fn upload(server: &Server, bench: &Bench) {
    let (store, runtime) = (server.bucket("bucket"), runtime());
    for file in parts(&bench.path("in")) {
        let name = format!("in/{}", file.file_name().and_then(|name| name.to_str()).expect("a name"));
        let bytes = std::fs::read(&file).expect("a file");
        runtime.block_on(store.put(&name.into(), bytes.into())).expect("stored");
    }
}
