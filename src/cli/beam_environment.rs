//! Arguments that say where a runner of Beam gets its workers from.

use std::path::PathBuf;

use clap::Args;
use sluice::beam::{Environment, check_command, own_path};
use sluice::error::ConfigError;

/// Where a runner gets its workers from.
#[derive(Debug, Args)]
pub struct EnvironmentArgs {
    /// Where the runner gets its workers from: process, external=HOST:PORT (of a pool) or docker=IMAGE.
    #[arg(long, value_name = "ENVIRONMENT", default_value = PROCESS)]
    environment: String,
    /// Path of sluice on the runner's hosts; only with process. Defaults to the path of this program.
    #[arg(long, value_name = "PATH")]
    worker_command: Option<PathBuf>,
    /// Set an environment variable of the workers; only with process; may be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = name_and_value)]
    worker_env: Vec<(String, String)>,
}

/// The default environment.
const PROCESS: &str = "process";

/// Parse `NAME=VALUE`.
pub fn name_and_value(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
    pair.map(|(name, value)| (name.to_owned(), value.to_owned()))
        .ok_or_else(|| "expected NAME=VALUE".to_owned())
}

impl EnvironmentArgs {
    /// The environment. `job_endpoint` is that of the runner, if it is known.
    pub fn environment(&self, job_endpoint: Option<&str>) -> Result<Environment, ConfigError> {
        let of_process = [
            ("--worker-command", self.worker_command.is_some()),
            ("--worker-env", !self.worker_env.is_empty()),
        ];
        if let Some((argument, _)) = of_process.into_iter().find(|(_, is_given)| *is_given)
            && self.environment != PROCESS
        {
            let message = "only applies to --environment process".to_owned();
            return Err(ConfigError::Argument { argument, message });
        }
        let command = match &self.worker_command {
            Some(command) => command.clone(),
            None => own_path()?,
        };
        check_command(&command, job_endpoint)?;
        Environment::parse(&self.environment, command, self.worker_env.clone())
    }
}
