//! The command line: a thin shell around the library.

mod bench;
mod build_engine;
mod check;
mod diff;
mod doctor;
mod exit;
mod extract;
mod help;
mod inspect;
mod logging;
mod parts;
mod print;
mod progress;
mod run;
mod share;
mod shells;
mod show;
mod summary;
mod terminal;
mod total;
mod verify;

use std::any::Any;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::{Args, Parser, Subcommand};
use sluice::config::{Overrides, PipelineFile};
use sluice::error::ConfigError;
use sluice::limits::{check_stack, open_files, reserve_threads};
use sluice::plan::Plan;
use sluice::shown::{message_without_secrets, printable};

use logging::LogFormat;
use progress::Progress;

/// Batch image scoring: shards from a bucket or a disk in, Parquet out.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, after_help = help::of_sluice())]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// How log lines look, and the summary of a run. json: one object a line, with severity and message.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Score the input and write predictions.
    #[command(after_help = help::RUN)]
    Run(run::RunArgs),
    /// Validate a pipeline without running it, and print the resolved plan.
    #[command(after_help = help::CHECK)]
    Check(PipelineArgs),
    /// Tell what is in an output: rows, statuses and reasons, labels, scores, latency.
    #[command(after_help = help::SHOW)]
    Show(show::ShowArgs),
    /// Tell what is in a shard: format, records, sizes, the first bad record.
    #[command(after_help = help::INSPECT)]
    Inspect(inspect::InspectArgs),
    /// Prove that an output is whole and as its run has written it: every row, every byte.
    #[command(after_help = help::VERIFY)]
    Verify(verify::VerifyArgs),
    /// Compare what two outputs say of the same images.
    #[command(after_help = help::DIFF)]
    Diff(diff::DiffArgs),
    /// Write the image that a row is of, out of its shard.
    #[command(after_help = help::EXTRACT)]
    Extract(extract::ExtractArgs),
    /// Build a TensorRT engine from ONNX, with trtexec's options.
    #[command(after_help = help::BUILD_ENGINE)]
    BuildEngine(build_engine::BuildEngineArgs),
    /// Measure every engine on this host: latency and images/s by batch size.
    #[command(after_help = help::BENCH)]
    Bench(bench::BenchArgs),
    /// Tell which GPUs and libraries this host has, and which engines can run.
    #[command(after_help = help::DOCTOR)]
    Doctor,
    /// Print completions for a shell.
    #[command(after_help = help::COMPLETIONS)]
    Completions(shells::CompletionsArgs),
    /// Print a manual page.
    #[command(after_help = help::MAN)]
    Man(shells::ManArgs),
}

/// A pipeline file and what the command line puts over it.
#[derive(Debug, Args)]
struct PipelineArgs {
    /// Pipeline file (TOML).
    file: PathBuf,
    /// Score this instead of input.uri: object, folder or glob; may be given more than once.
    #[arg(long, value_name = "URI")]
    input: Vec<String>,
    /// Write here instead of output.uri.
    #[arg(long, value_name = "URI")]
    output: Option<String>,
    /// Override one key of the file; may be given more than once.
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
}

impl PipelineArgs {
    fn load(&self) -> Result<Plan, ConfigError> {
        let overrides =
            Overrides { inputs: self.input.clone(), output: self.output.clone(), set: self.set.clone() };
        Plan::check(PipelineFile::load(&self.file, &overrides)?)
    }
}

/// Run the command that the arguments name, if there is stack enough to read them.
pub fn main() -> ExitCode {
    match check_stack() {
        Ok(()) => parse_and_run(),
        Err(error) => {
            // who cannot be told sees the exit code
            let _ = writeln!(io::stderr(), "error: {error}");
            ExitCode::from(exit::code_of(&error))
        }
    }
}

#[inline(never)]
fn parse_and_run() -> ExitCode {
    // clap exits with 2 on a usage error, as the exit codes promise
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refused(&error),
    };
    survive_file_size_limits();
    let terminal = terminal::Terminal::detect();
    let progress = Progress::detect(terminal);
    let verbose = matches!(&cli.command, Command::BuildEngine(args) if args.verbose);
    logging::init(cli.log_format, verbose, terminal.colors, &progress);
    let result = catch_unwind(AssertUnwindSafe(|| run_command(&cli, &progress)));
    let result = result.unwrap_or_else(|panic| Err(anyhow::anyhow!("{}", broken_promise(&*panic))));
    match result {
        Ok(code) => code,
        Err(error) => {
            tracing::error!(retry = %exit::retry_of_any(&error).as_str(), "{}", told(&error));
            ExitCode::from(exit::code_of_any(&error))
        }
    }
}

/// Tell what is wrong with the arguments, or print the help that they ask for.
fn refused(error: &clap::Error) -> ExitCode {
    let text = error.render().to_string();
    let shown = message_without_secrets(&text);
    let shown = printable(&shown);
    if !error.use_stderr() || shown == text {
        error.exit();
    }
    // who cannot be told sees the exit code
    let _ = write!(io::stderr(), "{shown}");
    ExitCode::from(exit::USAGE)
}

/// Threads of any command: stores, signals, progress.
const COMMAND_THREADS: usize = 16;

/// Run one command to its end.
fn run_command(cli: &Cli, progress: &Progress) -> anyhow::Result<ExitCode> {
    open_files()?;
    reserve_threads(COMMAND_THREADS)?;
    match &cli.command {
        Command::Run(args) => run::run(args, cli.log_format, progress),
        Command::Check(args) => check::run(args),
        Command::Show(args) => show::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Diff(args) => diff::run(args),
        Command::Extract(args) => extract::run(args),
        Command::BuildEngine(args) => build_engine::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Doctor => doctor::run(),
        Command::Completions(args) => shells::completions(args),
        Command::Man(args) => shells::man(args),
    }
}

/// What is said of a panic: it is an internal failure like any other.
fn broken_promise(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
    format!("internal failure, please report it: {text}")
}

/// A file that grows beyond what `ulimit -f` allows then fails to be written, and is told so, in place of the
/// signal that ends the process.
fn survive_file_size_limits() {
    let received = Arc::new(AtomicBool::new(false));
    if let Err(error) = signal_hook::flag::register(libc::SIGXFSZ, received) {
        // the signal then does what it always does
        tracing::debug!(%error, "SIGXFSZ cannot be handled");
    }
}

/// An error and its causes. Most say themselves what their cause says, which is then not said again.
fn told(error: &anyhow::Error) -> String {
    let mut told = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !told.contains(&cause) {
            told = format!("{told}: {cause}");
        }
    }
    told
}

/// A small runtime for object stores; everything else runs on threads of its own.
fn storage_runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("storage")
        .enable_all()
        .build()?)
}

#[cfg(test)]
mod tests {
    use sluice::error::Error;

    use super::*;

    #[test]
    fn what_an_error_says_of_its_cause_is_not_said_twice() {
        let refused = std::io::Error::other("refused");
        let source = ConfigError::Read { path: "a.toml".into(), source: refused };
        let error = anyhow::Error::from(Error::from(source));
        assert_eq!(told(&error), "cannot read the pipeline file a.toml: refused");
        assert_eq!(
            told(&error.context("cannot begin")),
            "cannot begin: cannot read the pipeline file a.toml: refused"
        );
    }
}
