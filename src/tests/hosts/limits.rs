//! Limits of the system (`ulimit`). A run reports a limit that is too low before it starts, and never as an error of an
//! image.

use std::process::Command;

use super::support::*;

/// The command under the limits that `ulimit` sets with these arguments.
fn limited(command: &Command, limits: &str) -> Command {
    let mut shell = Command::new("bash");
    let script = format!("ulimit {limits}; exec \"$0\" \"$@\"");
    shell.args(["-c", &script]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        shell.current_dir(folder);
    }
    shell
}

#[test]
fn too_few_threads_are_an_error_before_the_run_starts() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(0, 3));
    // the limit does not apply to root
    let is_root = rustix::process::geteuid().is_root();
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"];
    for limit in ["1", "10"] {
        let run = bench.command("run", "out", &[]);
        let mut command = Command::new(if is_root { nobody[0] } else { "env" });
        if is_root {
            command.args(&nobody[1..]);
        }
        command.args(["bash", "-c", &format!("ulimit -u {limit}; exec \"$0\" \"$@\"")]);
        command.arg(run.get_program()).args(run.get_args()).current_dir("/");
        command.envs(run.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let output = command.output().expect("setpriv of util-linux, or env");
        assert_code(&output, 2);
        assert!(stderr(&output).contains("ulimit -u"), "{}", stderr(&output));
        assert!(!stderr(&output).contains("panicked"), "{}", stderr(&output));
    }
}

#[test]
fn too_little_address_space_is_an_error_before_the_run_starts() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(0, 3));
    // with less, the system cannot load the binary; with the most, a run may succeed
    for kib in (100_000..4_000_000).step_by(300_000) {
        let output =
            limited(&bench.command("run", "out", &[]), &format!("-v {kib}")).output().expect("bash starts");
        assert!(
            matches!(output.status.code(), Some(0 | 2 | 4)),
            "{kib} KiB: {:?}: {}",
            output.status,
            stderr(&output)
        );
        assert!(!stderr(&output).contains("panicked"), "{kib} KiB: {}", stderr(&output));
        assert!(!bench.path("out/_crashes").exists());
    }
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn too_few_open_files_are_an_error_before_the_run_starts() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(0, 3));
    for files in [5, 16, 32, 64, 100] {
        let limit = format!("-n {files}");
        let output = limited(&bench.command("run", "out", &[]), &limit).output().expect("bash starts");
        assert_code(&output, 2);
        assert!(stderr(&output).contains("ulimit -n"), "{files}: {}", stderr(&output));
        assert!(!bench.path("out").exists());
    }
    // a soft limit is raised
    let output = limited(&bench.command("run", "out", &[]), "-S -n 64").output().expect("bash starts");
    assert_code(&output, 0);
    let output = limited(&bench.command("run", "other", &[]), "-n 256").output().expect("bash starts");
    assert_code(&output, 0);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn too_little_memory_for_data_or_stacks_is_an_error_before_the_run_starts() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(0, 3));
    for (option, kib) in
        [("-d", 60_000), ("-d", 110_000), ("-d", 300_000), ("-s", 64), ("-s", 128), ("-s", 512)]
    {
        let limit = format!("{option} {kib}");
        let output = limited(&bench.command("run", "out", &[]), &limit).output().expect("bash starts");
        assert_code(&output, 2);
        assert!(stderr(&output).contains(&format!("ulimit {option}")), "{limit}: {}", stderr(&output));
        assert!(!bench.path("out").exists());
    }
    let output = limited(&bench.command("run", "out", &[]), "-d 8000000").output().expect("bash starts");
    assert_code(&output, 0);
}

#[test]
#[ignore = "needs scripts/setup.sh --with onnxruntime"]
fn a_limit_on_file_size_is_an_error_and_not_a_signal() {
    let bench = Bench::new();
    write_tar(&bench.path("in/a.tar"), &images(0, 300));
    // the unit is 1,024 bytes; the part is longer than four of them
    let output = limited(&bench.command("run", "out", &[]), "-f 4").output().expect("bash starts");
    assert_code(&output, 6);
    assert!(stderr(&output).to_lowercase().contains("file too large"), "{}", stderr(&output));
    assert!(!bench.path("out/_SUCCESS").exists());
    assert_code(&bench.run("out", &[]), 0);
}
