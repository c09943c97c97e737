//! Which of the input's shards this process scores: by flags, or by the platform's variables.
//!
//! - A flag takes precedence over its variable.
//! - A platform that sets a worker's number but not their count needs `--num-shards`; without it, every worker would
//!   score everything.

use clap::Args;
use sluice::commit::Share;
use sluice::error::ConfigError;

/// Flags of a run that several workers share.
#[derive(Debug, Clone, Default, Args)]
pub struct ShareArgs {
    /// Number of this worker, from 0. Set by Kubernetes, Google Batch, Cloud Run and AWS Batch.
    #[arg(long, value_name = "I")]
    shard_index: Option<u32>,
    /// Workers that share the output: each scores the shards whose number, modulo N, is its own.
    #[arg(long, value_name = "N")]
    num_shards: Option<u32>,
}

/// A platform's variables: the number of a task, and how many there are.
struct Platform {
    index: &'static str,
    count: Option<&'static str>,
}

const PLATFORMS: [Platform; 4] = [
    // Kubernetes, an Indexed Job, which has no variable for the count
    Platform { index: "JOB_COMPLETION_INDEX", count: None },
    // Google Batch
    Platform { index: "BATCH_TASK_INDEX", count: Some("BATCH_TASK_COUNT") },
    Platform { index: "CLOUD_RUN_TASK_INDEX", count: Some("CLOUD_RUN_TASK_COUNT") },
    // AWS Batch, array jobs
    Platform { index: "AWS_BATCH_JOB_ARRAY_INDEX", count: Some("AWS_BATCH_JOB_ARRAY_SIZE") },
];

/// Names of all variables of platforms.
#[cfg(test)]
pub fn variables() -> impl Iterator<Item = &'static str> {
    PLATFORMS.iter().flat_map(|platform| [Some(platform.index), platform.count]).flatten()
}

impl ShareArgs {
    /// The share to score; `variable` reads the environment.
    pub fn resolve(&self, variable: impl Fn(&str) -> Option<String>) -> Result<Share, ConfigError> {
        let platform = PLATFORMS.iter().find(|platform| variable(platform.index).is_some());
        let number = |name: &'static str| {
            let text = variable(name)?;
            let message = format!("is {text:?}, expected a number");
            Some(text.parse::<u32>().map_err(|_| ConfigError::Argument { argument: name, message }))
        };
        let index = match (self.shard_index, platform) {
            (Some(index), _) => Some(index),
            (None, Some(platform)) => number(platform.index).transpose()?,
            (None, None) => None,
        };
        let count = match (self.num_shards, platform.and_then(|platform| platform.count)) {
            (Some(count), _) => Some(count),
            (None, Some(count)) => number(count).transpose()?,
            (None, None) => None,
        };
        let share = match (index, count) {
            (None, None) => Share::default(),
            (Some(shard_index), Some(num_shards)) => Share { shard_index, num_shards },
            (None, Some(_)) => return Err(missing("--shard-index", "which of the workers is this?")),
            (Some(index), None) => {
                let source =
                    platform.filter(|_| self.shard_index.is_none()).map_or("--shard-index", |p| p.index);
                return Err(missing("--num-shards", &format!("{source} is {index}; of how many workers?")));
            }
        };
        share.check()?;
        Ok(share)
    }
}

fn missing(argument: &'static str, message: &str) -> ConfigError {
    ConfigError::Argument { argument, message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(flags: (Option<u32>, Option<u32>), variables: &[(&str, &str)]) -> Result<(u32, u32), String> {
        let args = ShareArgs { shard_index: flags.0, num_shards: flags.1 };
        let variable = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let share = args.resolve(variable).map_err(|error| error.to_string())?;
        Ok((share.shard_index, share.num_shards))
    }

    #[test]
    fn platforms_are_detected_and_flags_take_precedence() {
        let kubernetes = &[("JOB_COMPLETION_INDEX", "3")][..];
        let google = &[("BATCH_TASK_INDEX", "1"), ("BATCH_TASK_COUNT", "8")][..];
        let cloud_run = &[("CLOUD_RUN_TASK_INDEX", "0"), ("CLOUD_RUN_TASK_COUNT", "2")][..];
        let aws = &[("AWS_BATCH_JOB_ARRAY_INDEX", "5"), ("AWS_BATCH_JOB_ARRAY_SIZE", "6")][..];
        assert_eq!(resolve((None, None), &[]), Ok((0, 1)));
        assert_eq!(resolve((Some(2), Some(4)), &[]), Ok((2, 4)));
        assert_eq!(resolve((None, Some(4)), kubernetes), Ok((3, 4)));
        assert_eq!(resolve((None, None), google), Ok((1, 8)));
        assert_eq!(resolve((None, None), cloud_run), Ok((0, 2)));
        assert_eq!(resolve((None, None), aws), Ok((5, 6)));
        assert_eq!(resolve((None, Some(16)), aws), Ok((5, 16)));
        assert_eq!(resolve((Some(0), Some(1)), google), Ok((0, 1)));
    }

    #[test]
    fn missing_and_impossible_numbers_are_refused_by_name() {
        for (flags, variables, words) in [
            ((None, None), &[("JOB_COMPLETION_INDEX", "3")][..], "JOB_COMPLETION_INDEX is 3; of how many"),
            ((None, Some(4)), &[], "--shard-index: which"),
            ((Some(1), None), &[], "--num-shards: --shard-index is 1"),
            ((Some(4), Some(4)), &[], "worker 4 of 4 does not exist"),
            ((Some(0), Some(0)), &[], "worker 0 of 0 does not exist"),
            (
                (None, None),
                &[("BATCH_TASK_INDEX", "x"), ("BATCH_TASK_COUNT", "2")],
                "is \"x\", expected a number",
            ),
        ] {
            let message = resolve(flags, variables).expect_err(words);
            assert!(message.contains(words), "{message}");
        }
    }
}
