//! The command line: a thin shell around the library.

#[cfg(feature = "beam")]
mod beam;
#[cfg(feature = "beam")]
mod beam_environment;
#[cfg(feature = "beam")]
mod beam_expansion_service;
#[cfg(feature = "beam")]
mod beam_worker;
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
mod pipeline_args;
mod print;
mod progress;
mod run;
mod share;
mod shells;
mod show;
mod signals;
mod storage;
mod summary;
mod terminal;
mod total;
mod verify;

use std::any::Any;
use std::ffi::OsString;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::{CommandFactory, Parser, Subcommand};
use sluice::limits::{check_stack, check_threads, raise_open_files_limit};
use sluice::shown::{message_without_secrets, printable};

use logging::LogFormat;
use pipeline_args::PipelineArgs;
use progress::Progress;

/// Batch image scoring: shards from a bucket or a disk in, Parquet out.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, after_help = help::of_sluice())]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Format of log lines and of a run's summary; json: one object per line, with severity and message.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Score the input and write predictions.
    #[command(after_help = help::RUN)]
    Run(run::RunArgs),
    /// Check a pipeline without running it, and print the resolved plan.
    #[command(after_help = help::CHECK)]
    Check(PipelineArgs),
    /// Summarise an output: rows, statuses and reasons, labels, scores, latency.
    #[command(after_help = help::SHOW)]
    Show(show::ShowArgs),
    /// Summarise a shard: format, records, sizes, the first bad record.
    #[command(after_help = help::INSPECT)]
    Inspect(inspect::InspectArgs),
    /// Check that an output is complete and as its run wrote it: every row, every byte.
    #[command(after_help = help::VERIFY)]
    Verify(verify::VerifyArgs),
    /// Compare two outputs of the same images.
    #[command(after_help = help::DIFF)]
    Diff(diff::DiffArgs),
    /// Write the image of a row, read from its shard.
    #[command(after_help = help::EXTRACT)]
    Extract(extract::ExtractArgs),
    /// Build a TensorRT engine from ONNX, with trtexec's options.
    #[command(after_help = help::BUILD_ENGINE)]
    BuildEngine(build_engine::BuildEngineArgs),
    /// Measure every engine on this host: latency and images/s by batch size.
    #[command(after_help = help::BENCH)]
    Bench(bench::BenchArgs),
    /// Run on Apache Beam: Flink, Spark, Prism, Dataflow.
    #[cfg(feature = "beam")]
    #[command(after_help = help::BEAM)]
    Beam(beam::BeamArgs),
    /// List the GPUs and libraries of this host, and the engines that can run.
    #[command(after_help = help::DOCTOR)]
    Doctor,
    /// Print completions for a shell.
    #[command(after_help = help::COMPLETIONS)]
    Completions(shells::CompletionsArgs),
    /// Print a manual page.
    #[command(after_help = help::MAN)]
    Man(shells::ManArgs),
}

/// Run the command that the arguments name. Parsing them needs stack, so the limit on it is checked first.
pub fn main() -> ExitCode {
    match check_stack() {
        Ok(()) => parse_and_run(),
        Err(error) => {
            // if standard error is closed, only the exit code remains
            let _ = writeln!(io::stderr(), "error: {error}");
            ExitCode::from(exit::code_of(&error))
        }
    }
}

#[inline(never)]
fn parse_and_run() -> ExitCode {
    // clap exits with 2 on a usage error, as the exit codes promise
    let cli = match Cli::try_parse_from(arguments()) {
        Ok(cli) => cli,
        Err(error) => return refused(&error),
    };
    survive_file_size_limits();
    let terminal = terminal::Terminal::detect();
    let progress = Progress::detect(terminal);
    let verbose = matches!(&cli.command, Command::BuildEngine(args) if args.verbose);
    logging::init(cli.log_format, verbose, terminal.colors, &progress);
    let result = catch_unwind(AssertUnwindSafe(|| run_command(&cli, &progress)));
    let result = result.unwrap_or_else(|panic| Err(anyhow::anyhow!("{}", internal_failure(&*panic))));
    match result {
        Ok(code) => code,
        Err(error) => {
            tracing::error!(retry = %exit::retry_of_any(&error).as_str(), "{}", with_causes(&error));
            ExitCode::from(exit::code_of_any(&error))
        }
    }
}

/// The arguments of the process. A runner of Apache Beam passes those of `sluice beam worker` alone.
fn arguments() -> Vec<OsString> {
    let arguments: Vec<_> = std::env::args_os().collect();
    #[cfg(feature = "beam")]
    if let Some((program, rest)) = arguments.split_first()
        && let Some(of_runner) = beam_worker::of_runner(rest)
    {
        return [vec![program.clone()], of_runner].concat();
    }
    arguments
}

/// Print what is wrong with the arguments, or the help that they ask for.
fn refused(error: &clap::Error) -> ExitCode {
    let text = error.render().to_string();
    let shown = message_without_secrets(&text);
    let shown = printable(&shown);
    if !error.use_stderr() || shown == text {
        error.exit();
    }
    // if standard error is closed, only the exit code remains
    let _ = write!(io::stderr(), "{shown}");
    ExitCode::from(exit::USAGE)
}

/// Threads of any command: stores, signals, progress.
const COMMAND_THREADS: usize = 16;

/// Run one command to its end.
fn run_command(cli: &Cli, progress: &Progress) -> anyhow::Result<ExitCode> {
    raise_open_files_limit()?;
    check_threads(COMMAND_THREADS)?;
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
        #[cfg(feature = "beam")]
        Command::Beam(args) => beam::run(args, cli.log_format, progress),
        Command::Doctor => doctor::run(),
        Command::Completions(args) => shells::completions(args, &mut Cli::command()),
        Command::Man(args) => shells::man(args, Cli::command()),
    }
}

/// The message for a panic.
fn internal_failure(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
    format!("internal failure, please report it: {text}")
}

/// Make a write beyond `ulimit -f` fail with an error. By default the signal SIGXFSZ ends the process.
fn survive_file_size_limits() {
    let received = Arc::new(AtomicBool::new(false));
    if let Err(error) = signal_hook::flag::register(libc::SIGXFSZ, received) {
        // the default action stays
        tracing::debug!(%error, "SIGXFSZ cannot be handled");
    }
}

/// An error's message, followed by those of its causes that it does not contain itself.
fn with_causes(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use sluice::error::{ConfigError, Error};

    use super::*;

    #[test]
    fn a_cause_is_not_repeated() {
        let refused = std::io::Error::other("refused");
        let source = ConfigError::Read { path: "a.toml".into(), source: refused };
        let error = anyhow::Error::from(Error::from(source));
        assert_eq!(with_causes(&error), "cannot read the pipeline file a.toml: refused");
        assert_eq!(
            with_causes(&error.context("cannot begin")),
            "cannot begin: cannot read the pipeline file a.toml: refused"
        );
    }
}
