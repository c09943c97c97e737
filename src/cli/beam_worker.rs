//! `sluice beam worker`.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use sluice::beam::{Endpoints, Process};
use sluice::error::Error;
use tokio::runtime::Runtime;
use tokio::sync::watch;

use super::exit;
use super::signals::{checked_grace, stop_on_signals};
use super::storage::storage_runtime;

/// Arguments of `sluice beam worker`.
#[derive(Debug, Args)]
pub struct WorkerArgs {
    /// Serve a pool of workers at this address, for environments of the kind EXTERNAL.
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "id", required_unless_present = "id")]
    pool: Option<String>,
    /// Id of the single worker to run, as passed by runners that start processes or containers.
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// Address of the runner's provision service, which knows the others.
    #[arg(long = "provision_endpoint", value_name = "HOST:PORT")]
    provision: Option<String>,
    /// Address of the runner's control service.
    #[arg(long = "control_endpoint", value_name = "HOST:PORT")]
    control: Option<String>,
    /// Address of the runner's artifact service.
    #[arg(long = "artifact_endpoint", value_name = "HOST:PORT")]
    artifact: Option<String>,
    /// Address of the runner's logging service.
    #[arg(long = "logging_endpoint", value_name = "HOST:PORT")]
    logging: Option<String>,
    /// Seconds after SIGTERM or SIGINT in which to store the rows scored so far and exit.
    #[arg(long, value_name = "SECONDS", default_value_t = 25.0)]
    grace: f64,
}

/// The flags of a runner that [`WorkerArgs`] accepts. Runners pass others, too, which are dropped.
const FLAGS: [&str; 5] =
    ["--id", "--provision_endpoint", "--control_endpoint", "--artifact_endpoint", "--logging_endpoint"];

/// The option that an image may have before the flags of a runner.
const LOG_FORMAT: &str = "--log-format";

/// Whether `argument` is `flag` or `flag=VALUE`.
fn is_flag(argument: &OsString, flag: &str) -> bool {
    let rest = argument.to_str().and_then(|argument| argument.strip_prefix(flag));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
}

/// The arguments of `sluice beam worker` among those that a runner passes to its worker, without the program's name.
/// `None` if they are not those of a runner: those have no command.
pub fn of_runner(arguments: &[OsString]) -> Option<Vec<OsString>> {
    let starts = |argument: &OsString| argument.as_encoded_bytes().starts_with(b"--");
    let options = match arguments {
        [first, _, ..] if first == LOG_FORMAT => 2,
        [first, ..] if is_flag(first, LOG_FORMAT) => 1,
        _ => 0,
    };
    let (options, flags) = arguments.split_at(options);
    if !flags.first().is_some_and(starts) || !flags.iter().any(|argument| is_flag(argument, "--id")) {
        return None;
    }
    let mut known = vec!["beam".into(), "worker".into()];
    known.extend_from_slice(options);
    let mut is_known = false;
    for argument in flags {
        if starts(argument) {
            is_known = FLAGS.iter().any(|flag| is_flag(argument, flag));
        }
        // a value belongs to the flag before it
        if is_known {
            known.push(argument.clone());
        }
    }
    Some(known)
}

/// Run a worker, or a pool of them.
pub fn run(args: &WorkerArgs) -> anyhow::Result<ExitCode> {
    let (stop, stopped) = watch::channel(false);
    let said = "stopping: storing the rows scored so far; a second signal exits at once";
    let grace = checked_grace(args.grace).map_err(Error::from)?;
    let stop = move || {
        stop.send_replace(true);
    };
    stop_on_signals(stop, said, Some(grace))?;
    let runtime = storage_runtime()?;
    let process = Process::new(runtime.handle().clone());
    let ended = runtime.block_on(async {
        match (&args.pool, &args.id) {
            (Some(address), _) => {
                let ready = |address| tracing::info!(%address, "the pool is ready");
                process.pool(address, stopped, ready).await
            }
            (None, id) => {
                let endpoints = Endpoints {
                    provision: args.provision.clone(),
                    control: args.control.clone(),
                    artifact: args.artifact.clone(),
                    logging: args.logging.clone(),
                };
                process.worker(id.as_deref().unwrap_or_default(), endpoints, stopped).await
            }
        }
    });
    Ok(end(runtime, ended))
}

/// End the runtime. Returns the exit code.
pub fn end(runtime: Runtime, ended: Result<(), String>) -> ExitCode {
    // tasks that hang in a request must not keep the process
    runtime.shutdown_timeout(Duration::from_secs(1));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            tracing::error!("{message}");
            ExitCode::from(exit::FAILED)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_a_runner_are_taken_in_any_order_and_others_are_dropped() {
        let of = |words: &str| {
            let words: Vec<_> = words.split(' ').map(OsString::from).collect();
            let found = of_runner(&words)?;
            Some(found.iter().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" "))
        };
        let worker = Some("beam worker --id=1-1 --provision_endpoint=h:1".to_owned());
        assert_eq!(of("--id=1-1 --provision_endpoint=h:1"), worker);
        assert_eq!(of("--id=1-1 --semi_persist_dir=/tmp --provision_endpoint=h:1 --unknown"), worker);
        let apart = "--semi_persist_dir /tmp --id 1-1 --logging_endpoint h:2 --x y z --control_endpoint h:3";
        let expected = "beam worker --id 1-1 --logging_endpoint h:2 --control_endpoint h:3";
        assert_eq!(of(apart).as_deref(), Some(expected));
        for options in ["--log-format json", "--log-format=json"] {
            let expected = format!("beam worker {options} --id 1-1");
            assert_eq!(of(&format!("{options} --id 1-1 --x y")), Some(expected));
        }
        let others = [
            "run --id",
            "--version",
            "--log-format json run --id x",
            "--log-format json beam worker --id x --grace 60",
            "--log-format=json beam worker --id x --grace 60",
            "--log-format --id",
            "--identity x",
        ];
        for other in others {
            assert_eq!(of(other), None, "{other}");
        }
    }
}
