//! The end of each `--help`: examples, and environment variables.

/// The end of `sluice --help`.
pub fn of_sluice() -> String {
    format!("{EXAMPLES}\n\n{}\n\n{ENVIRONMENT}", super::exit::help())
}

const EXAMPLES: &str = "Examples:
  sluice run safety.toml --input 'gs://bucket/photos/*.tar' --output gs://bucket/safety/2026-11-23
  sluice show gs://bucket/safety/2026-11-23 --failed
  sluice completions bash > /etc/bash_completion.d/sluice
  sluice help run";

const ENVIRONMENT: &str = "Environment:
  RUST_LOG                        log level: error, warn, info (default), debug, trace
  NO_COLOR, CLICOLOR, CLICOLOR_FORCE, TERM=dumb
                                  colours of the log; a dumb terminal gets no progress bar
  GOOGLE_APPLICATION_CREDENTIALS  key file for gs://; without it, the metadata server is used
  STORAGE_EMULATOR_HOST           address of an emulator of gs://
  AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL, ...
                                  for s3://; without keys, the role of the instance or task is used
  AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN, ...
                                  for az://";

pub const RUN: &str = "Examples:
  sluice run safety.toml
  sluice run safety.toml --input 'photos/*.tar' --output out/safety
  sluice run safety.toml --limit 1000 --set engine.batch_size=64 --set output.scores=top5
  sluice run safety.toml --shard-index 3 --num-shards 8

Run the same command again to resume a run that was interrupted or killed.

Environment:
  ORT_DYLIB_PATH           library of ONNX Runtime, libonnxruntime.so
  SLUICE_CACHE_DIR         folder for built engines (~/.cache/sluice)
  SLUICE_TENSORRT_DIR      folder of TensorRT's libraries
  SLUICE_ORT_TENSORRT_RTX  ONNX Runtime's plugin for TensorRT-RTX
  JOB_COMPLETION_INDEX     number of this worker on Kubernetes, with --num-shards
  BATCH_TASK_INDEX, BATCH_TASK_COUNT, CLOUD_RUN_TASK_INDEX, CLOUD_RUN_TASK_COUNT,
  AWS_BATCH_JOB_ARRAY_INDEX, AWS_BATCH_JOB_ARRAY_SIZE
                           number and count of workers on Google Batch, Cloud Run, AWS Batch
  `sluice --help` lists the variables for stores and logs.";

pub const CHECK: &str = "Examples:
  sluice check safety.toml
  sluice check safety.toml --input 'photos/*.tar' --set preprocess.max_pixels=50000000

Environment: as for `sluice run`.";

pub const SHOW: &str = "Examples:
  sluice show out/safety --rows 20
  sluice show out/safety --failed 1000
  sluice show --failed out/safety
  sluice show gs://bucket/safety/2026-11-23 --json

Environment: `sluice --help` lists the variables for stores.";

pub const INSPECT: &str = "Examples:
  sluice inspect photos/000.tar
  sluice inspect 'gs://bucket/photos/*.parquet' --image-key photo
  sluice inspect photos --json

Environment: `sluice --help` lists the variables for stores.";

pub const VERIFY: &str = "Examples:
  sluice verify out/safety
  sluice verify gs://bucket/safety/2026-11-23 --json

Environment: `sluice --help` lists the variables for stores.";

pub const DIFF: &str = "Examples:
  sluice diff out/yesterday out/today
  sluice diff out/cpu out/gpu --tolerance 1e-3 --rows 50

Exits with 0 if the outputs agree on the same images, with 5 if not.

Environment: `sluice --help` lists the variables for stores.";

pub const EXTRACT: &str = "Examples:
  sluice extract out/safety 'photos/000.tar#17' -o image.jpg
  sluice extract out/safety 'photos/000.tar#17' > image.jpg

A relative name is relative to the folder in which the run was started: run the command there.

Environment: `sluice --help` lists the variables for stores.";

pub const BUILD_ENGINE: &str = "Examples:
  sluice build-engine --onnx model.onnx --saveEngine model.engine --shapes input_1:128x384x384x3
  sluice build-engine --onnx model.onnx --saveEngine model.engine --minShapes x:1x3x224x224 --optShapes x:32x3x224x224 --maxShapes x:128x3x224x224

Environment:
  SLUICE_TENSORRT_DIR  folder of TensorRT's libraries";

pub const BENCH: &str = "Examples:
  sluice bench --onnx model.onnx --batch 10,32,128
  sluice bench --onnx model.onnx --setups onnxruntime-cpu --iterations 20 --json figures.json

Environment: as for `sluice run`.";

#[cfg(feature = "beam")]
pub const BEAM: &str = "Examples:
  sluice beam submit safety.toml --job-endpoint localhost:8099

See `sluice help beam submit`.";

#[cfg(feature = "beam")]
pub const BEAM_SUBMIT: &str = "Examples:
  sluice beam submit safety.toml --job-endpoint localhost:8099 --parallelism 16
  sluice beam submit safety.toml --job-endpoint flink:8099 --environment external=localhost:15000
  sluice beam submit safety.toml --job-endpoint flink:8099 --environment docker=repo/sluice:1
  sluice beam submit safety.toml --job-endpoint localhost:8099 --option sdk_worker_parallelism=2

The runner's workers list the input, score it and write the rows, so they need access to the input and
the output. The model and the labels are staged with the job. To resume a run, submit it again, or use
`sluice run` with the same file and the same absolute paths. Beam's Python job service starts no
processes: use --environment external.

A signal cancels the job. Some runners let a cancelled job run on to its end.

Environment: `sluice --help` lists the variables for stores.";

#[cfg(feature = "beam")]
pub const BEAM_WORKER: &str = "Examples:
  sluice beam worker --pool 0.0.0.0:15000
  sluice beam worker --id 1-1 --provision_endpoint localhost:40123

With `sluice beam submit --environment process`, the runner itself runs the second command.

Environment: as for `sluice run`.";

#[cfg(feature = "beam")]
pub const BEAM_EXPANSION_SERVICE: &str = "Examples:
  sluice beam expansion-service
  sluice beam expansion-service --environment external=localhost:15000
  sluice beam expansion-service --listen 0.0.0.0:8097 --environment docker=repo/sluice:1

In Python, with URIs of shards, folders or globs, as sluice run --input takes them:
  payload = json.dumps({'path': '/jobs/safety.toml'}).encode()
  uris | beam.ExternalTransform('sluice:transform:score:v1', payload, 'localhost:8097')

It writes the same output as sluice run, and returns one JSON report for each part.

Environment: as for `sluice run`.";

pub const DOCTOR: &str = "Examples:
  sluice doctor

Environment: as for `sluice run`.";

pub const COMPLETIONS: &str = "Examples:
  sluice completions bash > /etc/bash_completion.d/sluice
  sluice completions zsh > ~/.zfunc/_sluice
  sluice completions fish > ~/.config/fish/completions/sluice.fish";

pub const MAN: &str = "Examples:
  sluice man > sluice.1
  sluice man run > sluice-run.1";

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::super::Cli;

    /// The words of a line as a shell would split it, up to a redirection.
    fn words(line: &str) -> Vec<String> {
        let words = line.split_whitespace().take_while(|word| *word != ">");
        words.map(|word| word.trim_matches('\'').to_owned()).collect()
    }

    #[test]
    fn every_command_has_examples_and_they_parse() {
        let mut sluice = Cli::command();
        sluice.build();
        let helps = sluice.get_subcommands_mut().filter(|command| command.get_name() != "help");
        let mut helps: Vec<_> = helps
            .map(|command| (command.get_name().to_owned(), command.render_long_help().to_string()))
            .collect();
        #[cfg(feature = "beam")]
        for command in sluice.find_subcommand_mut("beam").expect("beam").get_subcommands_mut() {
            if command.get_name() != "help" {
                helps.push((format!("beam {}", command.get_name()), command.render_long_help().to_string()));
            }
        }
        helps.push(("sluice".to_owned(), sluice.render_long_help().to_string()));
        assert!(helps.len() > 10);
        for (name, help) in helps {
            let examples: Vec<_> = help.lines().filter(|line| line.starts_with("  sluice ")).collect();
            assert!(!examples.is_empty(), "{name} has no example:\n{help}");
            for example in examples.into_iter().filter(|example| !example.contains("sluice help")) {
                if let Err(error) = Cli::try_parse_from(words(example)) {
                    panic!("{example}: {error}");
                }
            }
        }
    }

    #[test]
    fn the_help_names_every_variable_that_numbers_a_worker() {
        for variable in super::super::share::variables() {
            assert!(super::RUN.contains(variable), "{variable}");
        }
    }
}
