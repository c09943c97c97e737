//! `sluice beam worker`.

use std::ffi::OsString;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clap::Args;
use signal_hook::consts::{SIGINT, SIGTERM};
use sluice::beam::{Endpoints, Process};
use sluice::crash::leave;
use tokio::runtime::Runtime;
use tokio::sync::watch;

use super::exit;
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

/// The arguments of `sluice beam worker` among those that a runner passes to its worker, without the program's name.
/// `None` if they are not those of a runner.
pub fn of_runner(arguments: &[OsString]) -> Option<Vec<OsString>> {
    let is_flag = |argument: &OsString, flag: &str| {
        let rest = argument.to_str().and_then(|argument| argument.strip_prefix(flag));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
    };
    let starts = |argument: &OsString| argument.as_encoded_bytes().starts_with(b"--");
    if !arguments.first().is_some_and(starts) || !arguments.iter().any(|argument| is_flag(argument, "--id")) {
        return None;
    }
    let mut known = vec!["beam".into(), "worker".into()];
    let mut is_known = false;
    for argument in arguments {
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
    stop_on_signals(stop, Some(Duration::from_secs_f64(args.grace.clamp(0.0, 86_400.0))))?;
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

/// The first signal sets `stop`; the second, or the end of `grace`, ends the process.
pub fn stop_on_signals(stop: watch::Sender<bool>, grace: Option<Duration>) -> anyhow::Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM])?;
    thread::spawn(move || {
        for signal in signals.forever() {
            let code = if signal == SIGTERM { exit::TERMINATED } else { exit::INTERRUPTED };
            if *stop.borrow() {
                leave(code);
            }
            stop.send_replace(true);
            let Some(grace) = grace else { continue };
            thread::spawn(move || {
                thread::sleep(grace);
                tracing::error!("the grace period is over; exiting while workers are still running");
                leave(code);
            });
        }
    });
    Ok(())
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
        for other in ["run --id", "--version", "--log-format json run", "--identity x"] {
            assert_eq!(of(other), None, "{other}");
        }
    }
}
