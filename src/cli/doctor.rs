//! `sluice doctor`: the GPUs and libraries of this host, and the engines that can run on it.

use std::process::ExitCode;

use sluice::doctor::{Finding, examine};

use super::print::print;

/// Examine the host and print the findings; exits with 0 whatever they are.
pub fn run() -> anyhow::Result<ExitCode> {
    let report = examine();
    let line = |finding: &Finding| {
        let mark = if finding.found { "ok " } else { "-- " };
        format!("  {mark} {:<24} {}", finding.name, finding.detail)
    };
    let mut lines = vec!["host".to_owned()];
    lines.extend(report.host.iter().map(line));
    lines.push("libraries".to_owned());
    lines.extend(report.libraries.iter().map(line));
    lines.push("engines".to_owned());
    lines.extend(report.engines.iter().map(line));
    print(&lines.join("\n"))?;
    Ok(ExitCode::SUCCESS)
}
