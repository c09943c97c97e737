//! `sluice verify OUT`: whether an output is as its run wrote it.

use std::process::ExitCode;

use clap::Args;
use sluice::commit::{Verification, verify};

use super::exit;
use super::print::{print, print_json};
use super::storage::storage_runtime;

/// Most problems to list.
const LISTED: usize = 20;

/// Arguments of `sluice verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Output folder of a run.
    out: String,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Verify, and print the problems; exits with 9 if there are any. The output of a run with too many errors is verified
/// like any other.
pub fn run(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    let runtime = storage_runtime()?;
    let found = verify(&args.out, runtime.handle())?;
    let code = ExitCode::from(if found.problems.is_empty() { 0 } else { exit::UNVERIFIED });
    if args.json {
        print_json(&object(&args.out, &found))?;
        return Ok(code);
    }
    let mut lines: Vec<_> = found.problems.iter().take(LISTED).cloned().collect();
    if found.problems.len() > LISTED {
        lines.push(format!("and {} more", found.problems.len() - LISTED));
    }
    lines.extend(found.remarks.iter().map(|remark| format!("remark: {remark}")));
    if let Some(errors) = &found.failed {
        lines.push(format!("the run ended with too many errors: {errors}; there is no _SUCCESS"));
    }
    let verdict = match (found.problems.is_empty(), &found.failed) {
        (false, _) => "the output DOES NOT HOLD",
        (true, None) => "the output holds",
        (true, Some(_)) => "the output is as it was written",
    };
    lines.push(format!("{verdict}: {} parts, {} rows, {} bytes read", found.parts, found.rows, found.bytes));
    print(&lines.join("\n"))?;
    Ok(code)
}

/// The complete result as JSON.
fn object(out: &str, found: &Verification) -> serde_json::Value {
    let Verification { parts, rows, bytes, failed, problems, remarks } = found;
    serde_json::json!({
        "output": out,
        "holds": problems.is_empty(),
        "parts": parts,
        "rows": rows,
        "bytes": bytes,
        "too_many_errors": failed,
        "problems": problems,
        "remarks": remarks,
    })
}
