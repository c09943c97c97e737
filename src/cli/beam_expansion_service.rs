//! `sluice beam expansion-service`.

use std::process::ExitCode;

use clap::Args;
use sluice::beam::ExpansionService;
use sluice::error::Error;
use tokio::sync::watch;

use super::beam_environment::EnvironmentArgs;
use super::beam_worker::end;
use super::signals::stop_on_signals;
use super::storage::storage_runtime;

/// Arguments of `sluice beam expansion-service`.
#[derive(Debug, Args)]
pub struct ExpansionServiceArgs {
    /// Listen at this address. Whoever can reach it can read every file that this process can.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8097")]
    listen: String,
    #[command(flatten)]
    environment: EnvironmentArgs,
}

/// Serve until a signal.
pub fn run(args: &ExpansionServiceArgs) -> anyhow::Result<ExitCode> {
    let service = ExpansionService::new(args.environment.environment(None).map_err(Error::from)?);
    let (stop, stopped) = watch::channel(false);
    let stop = move || {
        stop.send_replace(true);
    };
    stop_on_signals(stop, "stopping; a second signal exits at once", None)?;
    let runtime = storage_runtime()?;
    let ready = |address| tracing::info!(%address, "the expansion service is ready");
    let ended = runtime.block_on(service.serve(&args.listen, stopped, ready));
    Ok(end(runtime, ended))
}
