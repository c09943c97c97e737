//! Completions, manual pages and colours.

use std::io::Write;
use std::process::{Command, Output};

use super::*;

fn printed(args: &[&str]) -> String {
    let output = sluice().args(args).output().expect("starts");
    assert_code(&output, 0);
    stdout(&output)
}

#[test]
fn completions_exist_for_three_shells_and_load_in_bash() {
    let script = printed(&["completions", "bash"]);
    let mut bash = Command::new("bash")
        .args(["-c", "source /dev/stdin && complete -p sluice"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("bash starts: install it");
    bash.stdin.take().expect("piped").write_all(script.as_bytes()).expect("bash reads");
    let done = bash.wait_with_output().expect("a child");
    assert!(done.status.success() && stdout(&done).contains("sluice"), "{}", stdout(&done));
    for (shell, begins) in [("zsh", "#compdef sluice"), ("fish", "")] {
        let script = printed(&["completions", shell]);
        assert!(script.starts_with(begins) && script.contains("num-shards"), "{shell}:\n{script}");
    }
    assert_code(&sluice().args(["completions", "tcsh"]).output().expect("starts"), 2);
}

#[test]
fn every_command_has_a_manual_page() {
    let page = printed(&["man"]);
    assert!(page.contains(".TH sluice 1") && page.contains("NO_COLOR"), "{page}");
    for command in
        ["run", "check", "show", "inspect", "verify", "diff", "extract", "build-engine", "bench", "doctor"]
    {
        let page = printed(&["man", command]);
        assert!(page.contains(&format!(".TH sluice-{command} 1")), "{page}");
    }
    assert_code(&sluice().args(["man", "nothing"]).output().expect("starts"), 2);
}

#[test]
fn colours_of_the_log_follow_the_environment() {
    let refused = |variables: &[(&str, &str)]| -> Output {
        let mut command = sluice();
        for name in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE"] {
            command.env_remove(name);
        }
        command
            .envs(variables.iter().copied())
            .args(["inspect", "/no/such/shard.tar"])
            .output()
            .expect("starts")
    };
    for (variables, colours) in [
        (&[][..], false),
        (&[("CLICOLOR_FORCE", "1")], true),
        (&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")], false),
    ] {
        let output = refused(variables);
        assert_code(&output, 3);
        assert_eq!(stderr(&output).contains('\u{1b}'), colours, "{variables:?}: {}", stderr(&output));
    }
}
