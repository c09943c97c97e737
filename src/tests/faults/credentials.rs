//! Credentials that expire, are missing, or are a key file.

use super::*;

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_run_outlives_its_access_tokens() {
    let cloud = Cloud::new();
    assert_code(&cloud.run("whole"), 0);
    cloud.gcs.require_tokens(10);
    let mut run = cloud.command("out");
    // as on a virtual machine of Google Cloud: no key, but a metadata server
    run.env_remove("STORAGE_EMULATOR_HOST").env("GOOGLE_BASE_URL", cloud.gcs.url());
    run.env("GCE_METADATA_HOST", cloud.gcs.url().trim_start_matches("http://"));
    run.env("HOME", cloud.bench.path("no-such-home")).env_remove("GOOGLE_APPLICATION_CREDENTIALS");
    assert_code(&run.output().expect("starts"), 0);
    let (issued, refused) = cloud.gcs.tokens();
    assert!(issued > 2 && refused > 0, "{issued} tokens, {refused} requests refused: no token expired");
    assert!(cloud.rows("out") == cloud.rows("whole"));
}

#[test]
fn the_error_for_missing_credentials_comes_soon_and_says_what_to_set() {
    let cloud = Cloud::new();
    let mut run = cloud.command("out");
    let unreachable = "127.0.0.1:9";
    // an empty variable counts as unset
    run.env("STORAGE_EMULATOR_HOST", "").env("GOOGLE_BASE_URL", cloud.gcs.url());
    run.env("GCE_METADATA_HOST", unreachable).env("GCE_METADATA_IP", unreachable);
    run.env("HOME", cloud.bench.path("no-such-home")).env_remove("GOOGLE_APPLICATION_CREDENTIALS");
    let output = run.args(["--set", "storage.retry_seconds=1"]).output().expect("starts");
    assert!(matches!(output.status.code(), Some(3 | 6)), "{}", stderr(&output));
    let error = last_error(&output);
    for words in ["nothing answers at 127.0.0.1", "set GOOGLE_APPLICATION_CREDENTIALS", "refused"] {
        assert!(error.contains(words), "{words}: {error}");
    }
    assert_eq!(error.matches("refused").count(), 1, "{error}");
    assert!(!stderr(&output).contains("asking again"), "{}", stderr(&output));
    assert_eq!(cloud.gcs.requests(), 0);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_service_account_key_signs_every_request_and_is_never_printed() {
    let cloud = Cloud::new();
    let key = Command::new("openssl").args(["genpkey", "-algorithm", "RSA"]).output().expect("openssl");
    let key = String::from_utf8(key.stdout).expect("PEM");
    let account = serde_json::json!({
        "type": "service_account",
        "private_key": key,
        "private_key_id": "key-1",
        "client_email": "worker@project.iam.gserviceaccount.com",
    });
    let run = |file: &str| {
        let mut run = cloud.command("out");
        run.env_remove("STORAGE_EMULATOR_HOST").env("GOOGLE_BASE_URL", cloud.gcs.url());
        run.env("GOOGLE_APPLICATION_CREDENTIALS", cloud.bench.path(file)).output().expect("starts")
    };
    let missing = run("account.json");
    assert!(matches!(missing.status.code(), Some(3 | 6)), "{}", stderr(&missing));
    assert!(last_error(&missing).contains("account.json"), "{}", stderr(&missing));
    assert_eq!(cloud.gcs.requests(), 0);

    std::fs::write(cloud.bench.path("account.json"), account.to_string()).expect("a file");
    let output = run("account.json");
    assert_code(&output, 0);
    let printed = stderr(&output) + &stdout(&output);
    for request in cloud.gcs.log() {
        let bearer = request.authorization.as_deref().and_then(|value| value.strip_prefix("Bearer "));
        let signed = bearer.expect("a token");
        assert_eq!(signed.split('.').count(), 3, "{signed}");
        assert!(!printed.contains(signed));
    }
    assert!(!printed.contains(key.lines().nth(1).expect("a line of the key")));
}
