//! The environment, files, web servers and terminal of a run. No command sends telemetry or hangs, and every refusal
//! has a reason.

#[path = "hosts/limits.rs"]
mod limits;
#[path = "support/servers.rs"]
mod servers;
mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::Ordering;

use support::*;

/// Every file below `folder`.
fn files_below(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else {
            found.push(path.display().to_string());
        }
    }
    found
}

fn printed(output: &Output) -> String {
    stdout(output) + &stderr(output)
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn no_command_writes_to_the_home_folder() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(0, 3));
    let home = bench.path("home");
    fs::create_dir(&home).expect("a folder");
    let model = format!("{REPOSITORY}/fixtures/tiny.onnx");
    let commands = [
        (bench.command("run", "out", &[]), 0),
        (bench.command("check", "other", &[]), 0),
        (
            {
                let mut bench = sluice();
                bench.args(["bench", "--onnx", &model, "--setups", "onnxruntime-cpu"]);
                bench.args(["--batch", "1", "--iterations", "1"]);
                bench
            },
            0,
        ),
        (
            {
                let mut doctor = sluice();
                doctor.arg("doctor");
                doctor
            },
            0,
        ),
    ];
    for (mut command, code) in commands {
        command.env_remove("ORT_DISABLE_TELEMETRY");
        for variable in ["XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"] {
            command.env_remove(variable);
        }
        assert_code(&command.env("HOME", &home).output().expect("starts"), code);
        assert_eq!(files_below(&home), Vec::<String>::new(), "{command:?}");
    }
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_closed_log_does_not_stop_a_run() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(0, 3));
    let mut command = Command::new("bash");
    let run = bench.command("run", "out", &[]);
    // the readers of standard error and standard output have exited
    command.args(["-c", "exec 2> >(exec true) > >(exec true); wait $!; \"$0\" \"$@\"; echo $? > code"]);
    command.arg(run.get_program()).args(run.get_args()).current_dir(bench.path(""));
    command.envs(run.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.env("RUST_LOG", "trace").status().expect("bash starts");
    assert_eq!(fs::read_to_string(bench.path("code")).expect("a code").trim(), "0");
    assert_eq!(bench.rows("out").len(), 3);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn control_characters_in_names_never_reach_a_terminal() {
    let bench = Bench::new();
    let steering = "evil\u{1b}]0;title\u{7}\u{9b}31m\u{202e}gpj";
    write_tar(
        &bench.path("in/a.tar"),
        &[(steering.to_owned(), b"no image".to_vec()), ("b".to_owned(), png(1))],
    );
    // the log names this damaged shard
    fs::write(bench.path(&format!("in/{}.tar", "x\u{202e}")), [7; 600]).expect("a file");
    let lenient = ["--set", "output.max_error_rate=1", "--set", "output.max_damaged_shards=9"];
    let text = bench.run("out", &lenient);
    assert_code(&text, 0);
    let json = bench.run("json", &[&lenient[..], &["--log-format", "json"]].concat());
    assert_code(&json, 0);
    for line in stderr(&json).lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    }
    let mut show = sluice();
    let show = show.args(["show", "--rows", "9"]).arg(bench.path("out")).output().expect("starts");
    let mut inspect = sluice();
    let inspect = inspect.arg("inspect").arg(bench.path("in/a.tar")).output().expect("starts");
    let missing = bench.run("x", &["--input", "nowhere\u{9b}31m"]);
    assert_code(&missing, 3);
    let refused = bench.run("x\u{1b}[31m", &[]);
    assert_code(&refused, 2);
    for output in [&text, &json, &show, &inspect, &missing, &refused] {
        let printed = printed(output);
        let is_control = |c: char| (c.is_control() && !matches!(c, '\n' | '\t')) || c == '\u{202e}';
        assert!(!printed.contains(is_control), "{printed:?}");
    }
    assert!(
        stdout(&inspect).contains("evil\\x1B]0;title\\x07\\xC2\\x9B31m\\u{202e}gpj"),
        "{}",
        stdout(&inspect)
    );
    assert!(stderr(&text).contains("x\\u{202e}"), "{}", stderr(&text));
    // stored names escape control characters, but not U+202E, which only display escapes
    let stored = "evil\\x1B]0;title\\x07\\xC2\\x9B31m\u{202e}gpj";
    assert!(bench.rows("out").iter().any(|row| row.image_id == stored));
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_second_signal_at_any_moment_ends_the_run_without_a_panic() {
    use rustix::process::Signal;
    let bench = Bench::new();
    let mut running = started(&bench, 2);
    send(Signal::INT, &running);
    // two signals that arrive before the first is handled count as one
    while running.try_wait().expect("a child").is_none() {
        send(Signal::TERM, &running);
        std::thread::yield_now();
    }
    let output = running.wait_with_output().expect("a child");
    assert!(matches!(output.status.code(), Some(130 | 143)), "{:?}: {}", output.status, stderr(&output));
    assert!(!stderr(&output).contains("panicked"), "{}", stderr(&output));
    assert_code(&bench.run("out", &[]), 0);
}

/// Make a FIFO. It has no writer.
fn make_fifo(path: &Path) {
    let made = Command::new("mkfifo").arg(path).status().expect("mkfifo");
    assert!(made.success());
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn fifos_and_devices_are_refused_unread() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(0, 2));
    for name in ["fifo", "fifo.tar", "fifo.jpg", "fifo.txt", "fifo.onnx", "fifo.toml"] {
        make_fifo(&bench.path(name));
    }
    let expect = |mut command: Command, code: i32, words: &[&str]| {
        let output = command.output().expect("starts");
        assert_code(&output, code);
        for word in words {
            assert!(stderr(&output).contains(word), "{word}: {}", stderr(&output));
        }
    };
    for input in ["fifo", "fifo.tar", "fifo.jpg", "fifo.txt"] {
        expect(bench.command("run", "out", &["--input", input]), 3, &[input, "is a FIFO"]);
        let mut inspect = sluice();
        inspect.arg("inspect").arg(bench.path(input));
        expect(inspect, 3, &["is a FIFO"]);
    }
    expect(bench.command("run", "out", &["--input", "/dev/zero"]), 3, &["is a device"]);
    let labels = bench.path("fifo.txt");
    let labels = format!("model.labels={}", labels.display());
    expect(bench.command("run", "out", &["--set", &labels]), 2, &["label file", "is a FIFO"]);
    expect(bench.command("run", "out", &["--set", "model.labels=/dev/zero"]), 2, &["is a device"]);
    let model = format!("model.path={}", bench.path("fifo.onnx").display());
    expect(bench.command("run", "out", &["--set", &model]), 4, &["fifo.onnx", "is a FIFO"]);
    let mut pipeline = sluice();
    pipeline.arg("run").arg(bench.path("fifo.toml"));
    expect(pipeline, 2, &["pipeline file", "is a FIFO"]);
    expect(bench.command("run", "fifo", &[]), 6, &["fifo", "not a folder"]);

    // if a manifest names it, it has a row
    fs::write(bench.path("list.txt"), "fifo.jpg\n/dev/zero\n").expect("a manifest");
    let args = ["--input", "list.txt", "--set", "output.max_error_rate=1"];
    assert_code(&bench.run("rows", &args), 0);
    let rows = bench.rows("rows");
    let rows: Vec<_> =
        rows.iter().map(|row| (row.status.as_str(), row.error.clone().unwrap_or_default())).collect();
    assert_eq!((rows[0].0, rows[1].0), ("read_error", "read_error"));
    assert!(rows[0].1.contains("is a FIFO") && rows[1].1.contains("is a device"), "{rows:?}");
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_pipeline_file_may_come_from_a_pipe_of_the_shell() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(0, 2));
    let run = bench.command("run", "out", &[]);
    let mut shell = Command::new("bash");
    shell.args(["-c", "\"$0\" run <(cat pipeline.toml) --input in --output out"]).arg(run.get_program());
    shell.envs(run.get_envs().filter_map(|(name, value)| Some((name, value?))));
    assert_code(&shell.current_dir(bench.path("")).output().expect("bash starts"), 0);
}

#[test]
fn invalid_variables_are_named_without_their_values() {
    let bench = Bench::new();
    for (name, value, input) in [
        ("AWS_SECRET_ACCESS_KEY", "very-secret\n", "s3://bucket/in"),
        ("AWS_SESSION_TOKEN", "very-secret\r\nx: y", "s3://bucket/in"),
        ("AWS_ACCESS_KEY_ID", "very-secret\u{e4}", "s3://bucket/in"),
        ("AWS_REGION", "very-secret region", "s3://bucket/in"),
        ("AWS_ENDPOINT_URL", "http://me:very-secret@127.0.0.1:9", "s3://bucket/in"),
        ("AWS_ENDPOINT_URL", "127.0.0.1:9/very-secret", "s3://bucket/in"),
        ("AZURE_STORAGE_SAS_TOKEN", "sig=very-secret\n", "az://container/in"),
        ("STORAGE_EMULATOR_HOST", "me:very-secret@127.0.0.1:9", "gs://bucket/in"),
        ("STORAGE_EMULATOR_HOST", "very-secret-h\u{f6}st", "gs://bucket/in"),
    ] {
        let mut run = bench.command("run", "out", &["--input", input, "--set", "storage.retry_seconds=1"]);
        run.env("AWS_ACCESS_KEY_ID", "key")
            .env("AWS_SECRET_ACCESS_KEY", "key")
            .env("AWS_REGION", "us-east-1");
        run.env("AZURE_STORAGE_ACCOUNT_NAME", "account").env(name, value);
        let output = run.output().expect("starts");
        assert_code(&output, 3);
        assert!(stderr(&output).contains(name), "{name}: {}", stderr(&output));
        assert!(!printed(&output).contains("very-secret"), "{}", printed(&output));
        assert!(!printed(&output).contains("panicked"), "{}", printed(&output));
    }
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn secrets_in_addresses_are_neither_shown_nor_stored() {
    let bench = Bench::new();
    let addresses = [
        "https:///me:very-secret@localhost:9/a.jpg",
        "https:/me:very-secret@localhost:9/b.jpg",
        "HTTPS://me:very-secret@localhost:9/c.jpg",
        "https://localhost:9/d.jpg?id=1&access_token=very-secret",
        "https://localhost:9/d.jpg?id=2&access_token=very-secret",
        "https://localhost:9/d.jpg?id=3",
        "https://localhost:9/d.jpg?id=4",
        "https://localhost:9/e.jpg#%73ig=very-secret",
        "https://localhost:9/f.jpg;TOKEN=very-secret?x",
        "s3:///ID:very-secret@localhost/g.jpg",
        "https://localhost:9/h.jpg?sas=very-secret",
        "https://localhost:9/h.jpg?session_id=very-secret",
        "https://localhost:9/h.jpg?sid=very-secret",
        "https://localhost:9/h.jpg?Bearer=very-secret",
        "https://localhost:9/h.jpg?pass_phrase=very-secret",
        "https://localhost:9/h.jpg?sig[]=very-secret",
        "https://localhost:9/h.jpg?%5Bsig%5D=very-secret",
        "https://localhost:9/h.jpg?sig%20=very-secret",
        "https://localhost:9/h.jpg?sig+=very-secret",
        "https://localhost:9/h.jpg?sig;=very-secret",
        "https://localhost:9/h.jpg?sig%3Dvery-secret",
        "https://localhost:9/https://me:very-secret@localhost/i.jpg",
        "//me:very-secret@localhost:9/j.jpg",
        "me:very-secret@localhost:9/k.jpg",
        "file://me:very-secret@localhost:9/l.jpg",
        "file:///me:very-secret@localhost:9/l.jpg",
    ];
    for address in addresses.iter().filter(|address| address.contains("very-secret")) {
        for command in ["run", "check"] {
            let args = ["--input", address, "--set", "storage.retry_seconds=0.1"];
            let refused = bench.command(command, "out", &args).output().expect("starts");
            assert_code(&refused, 3);
            assert!(!printed(&refused).contains("very-secret"), "{address}: {}", printed(&refused));
        }
        let mut run = bench.command("run", address, &["--set", "storage.retry_seconds=0.1"]);
        let refused = run.output().expect("starts");
        assert!(
            !refused.status.success() && !printed(&refused).contains("very-secret"),
            "{}",
            printed(&refused)
        );
    }
    fs::write(bench.path("list.txt"), addresses.join("\n")).expect("a manifest");
    let args =
        ["--input", "list.txt", "--set", "output.max_error_rate=1", "--set", "storage.retry_seconds=0.1"];
    let scored = bench.run("out", &args);
    assert_code(&scored, 0);
    let rows = bench.rows("out");
    let ids: std::collections::BTreeSet<_> = rows.iter().map(|row| &row.image_id).collect();
    assert_eq!(ids.len(), addresses.len(), "{ids:?}");
    for file in files_below(&bench.path("out")) {
        let bytes = fs::read(&file).expect("a file");
        assert!(!bytes.windows(11).any(|window| window == b"very-secret"), "{file}");
    }
    assert!(!format!("{rows:?}{}", printed(&scored)).contains("very-secret"), "{rows:?}");
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn addresses_of_web_servers_are_requested_as_written() {
    let bench = Bench::new();
    let mut pictures = images(0, 5).into_iter().map(|(_, bytes)| bytes);
    let tar = bench.path("whole.tar");
    write_tar(&tar, &images(5, 3));
    let server = servers::objects_by_address(vec![
        ("/d?id=1", pictures.next().expect("five")),
        ("/d?id=2", pictures.next().expect("five")),
        ("/d", pictures.next().expect("five")),
        ("/a%2Fb%2bc.png", pictures.next().expect("five")),
        (
            "/e.png?X-Amz-Credential=A%2Fus&u=http://h//x&X-Amz-Signature=very-secret",
            pictures.next().expect("five"),
        ),
        ("/t.tar?Signature=very-secret", fs::read(&tar).expect("a tar")),
        ("/p.tar?pw=very-secret", fs::read(&tar).expect("a tar")),
        ("/p.tar?pw=another", fs::read(&tar).expect("a tar")),
    ]);
    let list = ["/d?id=1", "/d?id=2", "/d", "/a%2Fb%2bc.png", "/d?id=3", "/a/b+c.png"]
        .map(|address| format!("{server}{address}\n"))
        .concat()
        + &format!("{server}/e.png?X-Amz-Credential=A%2Fus&u=http://h//x&X-Amz-Signature=very-secret\n");
    fs::write(bench.path("list.txt"), &list).expect("a manifest");
    let scored = bench.run("out", &["--input", "list.txt", "--set", "output.max_error_rate=1"]);
    assert_code(&scored, 0);
    let rows = bench.rows("out");
    let status = |end: &str| {
        rows.iter()
            .find(|row| row.image_id.ends_with(end))
            .unwrap_or_else(|| panic!("{end}: {rows:?}"))
            .status
            .as_str()
    };
    assert_eq!(rows.len(), 7);
    assert_eq!(rows.iter().filter(|row| row.status == "ok").count(), 5, "{rows:?}");
    assert_eq!((status("id=3"), status("b+c.png")), ("read_error", "read_error"));
    let all: std::collections::BTreeSet<_> = rows.iter().filter_map(|row| row.score_bits.clone()).collect();
    assert_eq!(all.len(), 5, "two images have the same scores: {rows:?}");
    // a container at a signed address
    let signed = format!("{server}/t.tar?Signature=very-secret");
    assert_code(&bench.run("tar", &["--input", &signed]), 0);
    assert_eq!(bench.rows("tar").len(), 3);
    // an image at a signed address
    let signed = format!("{server}/e.png?X-Amz-Credential=A%2Fus&u=http://h//x&X-Amz-Signature=very-secret");
    assert_code(&bench.run("one", &["--input", &signed]), 0);
    assert_eq!(bench.rows("one").len(), 1);
    // two containers whose addresses differ only in a password
    let twice = ["very-secret", "another"].map(|password| format!("{server}/p.tar?pw={password}"));
    let refused = bench.run("twice", &["--input", &twice[0], "--input", &twice[1]]);
    assert_code(&refused, 3);
    let words = printed(&refused);
    assert!(words.contains("only in a secret") && !words.contains("very-secret"), "{words}");
    for file in ["out", "tar", "one"].iter().flat_map(|out| files_below(&bench.path(out))) {
        let bytes = fs::read(&file).expect("a file");
        assert!(!bytes.windows(11).any(|window| window == b"very-secret"), "{file}");
    }
    // the address of an output may have no query
    let refused = bench.run(&format!("{server}/out?x=1"), &["--input", "whole.tar"]);
    assert!(!refused.status.success() && stderr(&refused).contains("has no query"), "{}", stderr(&refused));
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn messages_of_servers_are_shown_and_stored_without_secrets() {
    let body = "no".to_owned() + &" upstream".repeat(200);
    for body in ["no upstream at http://me:very-secret@h/x?sid=very-secret, token=very-secret", &body] {
        let server = servers::always(500, body.to_owned());
        let bench = Bench::new();
        fs::write(bench.path("list.txt"), format!("{server}/a.jpg\n")).expect("a manifest");
        let args =
            ["--input", "list.txt", "--set", "output.max_error_rate=1", "--set", "storage.retry_seconds=0.1"];
        let scored = bench.run("out", &args);
        assert_code(&scored, 0);
        let rows = format!("{:?}{}", bench.rows("out"), printed(&scored));
        assert!(rows.contains("500") && !rows.contains("very-secret"), "{rows}");
        assert!(!rows.contains(&" upstream".repeat(30)), "{rows}");
    }
}

#[test]
fn a_web_server_that_cannot_list_fails_at_once() {
    for status in [501, 405, 400] {
        let (server, requests) = servers::counting(status, String::new());
        for command in ["show", "verify"] {
            let before = requests.load(Ordering::Relaxed);
            let output = sluice().args([command, &server]).output().expect("starts");
            assert_code(&output, 3);
            assert!(stderr(&output).contains("cannot list"), "{status} {command}: {}", stderr(&output));
            assert_eq!(requests.load(Ordering::Relaxed) - before, 1, "{status} {command}");
        }
    }
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_run_with_a_manifest_from_standard_input_can_be_resumed() {
    use std::io::Write;
    use std::process::Stdio;
    let bench = Bench::new();
    for (id, bytes) in images(0, 6) {
        fs::write(bench.path(&format!("in/{id}.png")), bytes).expect("an image");
    }
    let lines: String = (0..6).map(|number| format!("in/img-{number:05}.png\n")).collect();
    let run = |out: &str, lines: &str, args: &[&str]| {
        let mut run = bench.command("run", out, &[&["--input", "-"], args].concat());
        run.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut running = run.spawn().expect("starts");
        let mut input = running.stdin.take().expect("a pipe");
        input.write_all(lines.as_bytes()).expect("the run reads its input");
        drop(input);
        running.wait_with_output().expect("a child")
    };
    let small = ["--set", "input.files_per_shard=2"];
    assert_code(&run("out", &lines, &small), 0);
    assert_eq!(bench.rows("out").len(), 6);
    assert_code(&bench.run("named", &["--input", "list.txt"]), 3);
    fs::write(bench.path("list.txt"), &lines).expect("a manifest");
    assert_code(&bench.run("named", &["--input", "list.txt"]), 0);
    assert_eq!(scores_by_id(&bench.rows("out")), scores_by_id(&bench.rows("named")));
    // the same lines are the same input
    assert!(stdout(&run("out", &lines, &small)).contains("done before"));
    fs::remove_file(bench.path("out/_SUCCESS")).expect("a file");
    fs::remove_file(bench.path("out/_manifest.json")).expect("a file");
    assert_code(&run("out", &lines, &small), 0);
    assert_eq!(bench.rows("out").len(), 6);
    // other lines are another input
    assert_code(&run("out", "in/img-00003.png\n", &small), 6);
    assert_code(&run("empty", "", &small), 3);
    assert_code(&run("format", &lines, &["--set", "input.format=parquet"]), 3);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_full_standard_output_is_an_error_and_a_closed_one_is_not() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(0, 3));
    assert_code(&bench.run("scored", &[]), 0);
    let mut show = sluice();
    show.arg("show").arg(bench.path("scored"));
    let mut verify = sluice();
    verify.arg("verify").arg(bench.path("scored"));
    let mut completions = sluice();
    completions.args(["completions", "bash"]);
    let mut commands =
        [bench.command("run", "out", &[]), bench.command("check", "new", &[]), show, verify, completions];
    for command in &mut commands {
        let full = fs::File::options().write(true).open("/dev/full").expect("a device");
        let output = command.stdout(full).output().expect("starts");
        assert_code(&output, 6);
        assert!(stderr(&output).contains("cannot write to standard output"), "{}", stderr(&output));
    }
    // the run has stored its rows
    assert!(bench.path("out/_SUCCESS").exists());
    for command in &mut commands {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        assert_code(&command.stdout(writer).output().expect("starts"), 0);
    }
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn certificates_are_read_from_regular_files_only() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(0, 3));
    make_fifo(&bench.path("fifo"));
    let fifo = bench.path("fifo").display().to_string();
    for (name, value) in [
        ("SSL_CERT_FILE", "/dev/zero"),
        ("SSL_CERT_FILE", &fifo),
        ("SSL_CERT_FILE", "/"),
        ("SSL_CERT_DIR", "/dev/zero"),
    ] {
        let args = ["--input", "https://localhost:9/a.tar", "--set", "storage.retry_seconds=0.1"];
        let output = bench.command("run", "out", &args).env(name, value).output().expect("starts");
        assert_code(&output, 3);
        assert!(stderr(&output).contains(name), "{}", stderr(&output));
    }
    // a disk needs neither certificates nor proxies
    for (name, value) in [("SSL_CERT_FILE", "/dev/zero"), ("HTTPS_PROXY", "a\nb")] {
        assert_code(&bench.command("run", name, &[]).env(name, value).output().expect("starts"), 0);
    }
}
