//! Where a runner gets its workers from, as asked for on the command line and as Beam's message.
//!
//! - A runner starts the command of a process environment without a shell, with the path as one argument, and adds
//!   `--id=…` and `--provision_endpoint=…`. So the command is the path of the binary alone, and the binary treats
//!   arguments that begin with `--id` as those of `sluice beam worker`.
//! - Every environment carries the same dependencies: the files of the plan.

use std::path::PathBuf;

use prost::Message;

use super::payload::StagedFile;
use super::proto::pipeline as beam;
use super::urns;
use crate::error::ConfigError;

/// The option that names an environment.
const OPTION: &str = "--environment";

/// Where a runner gets its workers from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Environment {
    /// The runner starts a process on the host where it needs a worker.
    Process {
        /// Path of sluice on that host.
        command: PathBuf,
        /// Variables of the process, besides those of the runner.
        variables: Vec<(String, String)>,
    },
    /// The runner asks a pool for workers.
    External {
        /// `HOST:PORT` of the pool.
        pool: String,
    },
    /// The runner starts a container.
    Docker {
        /// Its image.
        image: String,
    },
}

impl Environment {
    /// Parse the value of `--environment`: `process`, `external=HOST:PORT` or `docker=IMAGE`. `command` and `variables`
    /// are those of a process.
    ///
    /// # Errors
    /// If it is none of these.
    pub fn parse(
        text: &str,
        command: PathBuf,
        variables: Vec<(String, String)>,
    ) -> Result<Self, ConfigError> {
        let refuse = |message: String| Err(ConfigError::Argument { argument: OPTION, message });
        match text.split_once('=') {
            None if text == "process" => Ok(Self::Process { command, variables }),
            Some(("external", pool)) => {
                let pool = pool.strip_prefix("http://").unwrap_or(pool).trim_end_matches('/');
                if !is_address(pool) {
                    return refuse(format!("{pool:?} is not the HOST:PORT of a worker pool"));
                }
                Ok(Self::External { pool: pool.to_owned() })
            }
            Some(("docker", image)) if !image.is_empty() => Ok(Self::Docker { image: image.to_owned() }),
            _ => refuse(format!("is {text:?}, expected process, external=HOST:PORT or docker=IMAGE")),
        }
    }

    /// Its URN.
    pub(super) fn urn(&self) -> &'static str {
        match self {
            Self::Process { .. } => urns::PROCESS,
            Self::External { .. } => urns::EXTERNAL,
            Self::Docker { .. } => urns::DOCKER,
        }
    }

    /// The message, with `files` as dependencies.
    pub(super) fn message(&self, files: &[StagedFile]) -> beam::Environment {
        let payload = match self {
            Self::Process { command, variables } => {
                let command = command.to_string_lossy().into_owned();
                let env = variables.iter().cloned().collect();
                beam::ProcessPayload { command, env, ..Default::default() }.encode_to_vec()
            }
            Self::External { pool } => {
                let endpoint = beam::ApiServiceDescriptor { url: pool.clone(), authentication: None };
                beam::ExternalPayload { endpoint: Some(endpoint), ..Default::default() }.encode_to_vec()
            }
            Self::Docker { image } => beam::DockerPayload { container_image: image.clone() }.encode_to_vec(),
        };
        beam::Environment {
            urn: self.urn().to_owned(),
            payload,
            capabilities: self.capabilities(),
            dependencies: files.iter().map(artifact).collect(),
            ..Default::default()
        }
    }

    /// What our workers support. A runner may use anything that is named here.
    fn capabilities(&self) -> Vec<String> {
        const ALL: [&str; 10] = [
            urns::BYTES,
            urns::KV,
            urns::ITERABLE,
            urns::LENGTH_PREFIX,
            urns::VARINT,
            urns::STRING,
            urns::GLOBAL_WINDOW,
            urns::WINDOWED_VALUE,
            urns::PROGRESS_REPORTING,
            urns::MULTI_CORE_BUNDLES,
        ];
        let mut all: Vec<_> = ALL.map(str::to_owned).into();
        if let Self::Docker { image } = self {
            // Dataflow reads the version of the SDK's image from it
            all.push(format!("beam:version:sdk_base:{image}"));
        }
        all
    }
}

/// Whether `text` is `HOST:PORT`, without a scheme and a path.
pub(super) fn is_address(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && !host.contains(['/', ' ']) && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

/// A file to be staged, as a dependency.
fn artifact(file: &StagedFile) -> beam::ArtifactInformation {
    let path = file.path.to_string_lossy().into_owned();
    let from = beam::ArtifactFilePayload { path, sha256: file.sha256.clone() };
    let to = beam::ArtifactStagingToRolePayload { staged_name: file.name.clone() };
    beam::ArtifactInformation {
        type_urn: urns::FILE.to_owned(),
        type_payload: from.encode_to_vec(),
        role_urn: urns::STAGING_TO.to_owned(),
        role_payload: to.encode_to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Environment, ConfigError> {
        Environment::parse(text, "/opt/my tools/sluice".into(), vec![("A".to_owned(), "b".to_owned())])
    }

    #[test]
    fn an_environment_is_a_process_a_pool_or_an_image() {
        let pool = |pool: &str| Environment::External { pool: pool.to_owned() };
        assert_eq!(parse("external=localhost:50000").expect("an address"), pool("localhost:50000"));
        assert_eq!(parse("external=http://[::1]:50000/").expect("an address"), pool("[::1]:50000"));
        let image = "registry.example:5000/sluice:1".to_owned();
        assert_eq!(
            parse("docker=registry.example:5000/sluice:1").expect("an image"),
            Environment::Docker { image }
        );
        for wrong in [
            "",
            "Process",
            "process=x",
            "external",
            "external=",
            "external=a",
            "external=a:b",
            "docker=",
            "vm=x",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_process_is_one_path_without_arguments() {
        let message = parse("process").expect("a process").message(&[]);
        assert_eq!(message.urn, "beam:env:process:v1");
        let payload = beam::ProcessPayload::decode(&message.payload[..]).expect("a payload");
        assert_eq!(payload.command, "/opt/my tools/sluice");
        assert_eq!(payload.env["A"], "b");
    }

    #[test]
    fn staged_files_are_dependencies_with_their_hash_and_name() {
        let file =
            StagedFile { path: "/a/m.onnx".into(), sha256: "ab".to_owned(), name: "ab-m.onnx".to_owned() };
        let message = parse("docker=x").expect("an image").message(&[file]);
        let [artifact] = &message.dependencies[..] else { panic!("{message:?}") };
        let from = beam::ArtifactFilePayload::decode(&artifact.type_payload[..]).expect("a payload");
        assert_eq!((from.path.as_str(), from.sha256.as_str()), ("/a/m.onnx", "ab"));
        let to = beam::ArtifactStagingToRolePayload::decode(&artifact.role_payload[..]).expect("a payload");
        assert_eq!(to.staged_name, "ab-m.onnx");
        assert!(message.capabilities.contains(&"beam:version:sdk_base:x".to_owned()));
    }
}
