//! `sluice beam worker`.

use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clap::Args;
use signal_hook::consts::{SIGINT, SIGTERM};
use sluice::beam::{Endpoints, Process};
use sluice::crash::leave;
use tokio::sync::watch;

use super::exit;
use super::storage::storage_runtime;

/// Arguments of `sluice beam worker`. Runners pass more than these, which are ignored.
#[derive(Debug, Args)]
#[command(args_override_self = true)]
pub struct WorkerArgs {
    /// Serve a pool of workers at this address, for environments of the kind EXTERNAL.
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "id", required_unless_present = "id")]
    pool: Option<String>,
    /// Id of the one worker to run; runners that start processes or containers pass it.
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
    /// Seconds from SIGTERM or SIGINT to the exit, in which rows scored so far are stored.
    #[arg(long, value_name = "SECONDS", default_value_t = 25.0)]
    grace: f64,
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
    ignored: Vec<String>,
}

/// Run a worker, or a pool of them.
pub fn run(args: &WorkerArgs) -> anyhow::Result<ExitCode> {
    let (stop, stopped) = watch::channel(false);
    stop_on_signals(stop, Duration::from_secs_f64(args.grace.clamp(0.0, 86_400.0)))?;
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
                };
                process.worker(id.as_deref().unwrap_or_default(), endpoints, stopped).await
            }
        }
    });
    // tasks that hang in a request must not keep the process
    runtime.shutdown_timeout(Duration::from_secs(1));
    match ended {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(message) => {
            tracing::error!("{message}");
            Ok(ExitCode::from(exit::FAILED))
        }
    }
}

/// The first signal stops the workers; the second, or the end of `grace`, ends the process.
fn stop_on_signals(stop: watch::Sender<bool>, grace: Duration) -> anyhow::Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM])?;
    thread::spawn(move || {
        for signal in signals.forever() {
            let code = if signal == SIGTERM { exit::TERMINATED } else { exit::INTERRUPTED };
            if *stop.borrow() {
                leave(code);
            }
            stop.send_replace(true);
            thread::spawn(move || {
                thread::sleep(grace);
                tracing::error!("the workers took longer than --grace; exiting without them");
                leave(code);
            });
        }
    });
    Ok(())
}
