//! Expands the transform that pipelines of other SDKs use: from the request of an SDK to the components that the runner
//! executes.
//!
//! - The input is one bounded collection of URIs, which are strings or bytes, in the global window. It has no trigger
//!   that may fire more than once, because all URIs are one group.
//! - The payload of the transform is the text of a pipeline file, or JSON with the file's `path`, its text as
//!   `pipeline`, or both, and overrides as `output` and `set`. `input.uri` of the file is ignored.
//! - The output is a collection of strings: the report of each shard as JSON.
//! - The request's components are not changed. Ids of new ones begin with the request's namespace, as SDKs require.
//! - Only the pipeline file, the model and the labels are read. Workers check the input and the output.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::PathBuf;

use serde::Deserialize;

use super::absolute::absolute_path;
use super::coders::Coder;
use super::components::Builder;
use super::environment::Environment;
use super::payload::StagedFile;
use super::pipeline::{Steps, add_transform};
use super::prepare::prepare;
use super::proto::expansion::{ExpansionRequest, ExpansionResponse};
use super::proto::pipeline::{self as beam, trigger};
use super::urns;
use crate::config::Overrides;
use crate::error::{ConfigError, Error};
use crate::plan::Plan;
use crate::regular_file::read_text;

/// The name of the payload in messages. Paths in the payload are relative to the current folder.
const PAYLOAD: &str = "the payload";

/// Replaces `input.uri`, which is ignored: it need not be an input that workers can read, and a relative path does not
/// put the current folder into the payload.
const INPUT: &str = "beam://collection";

/// The name of the output.
const OUTPUT: &str = "out";

/// Why a request cannot be expanded.
#[derive(Debug, thiserror::Error)]
pub enum ExpansionError {
    /// The SDK asks for an unknown transform, or the input cannot be used.
    #[error("{0}")]
    Request(String),
    /// The payload is neither of the two forms.
    #[error(
        "the payload must be the text of a pipeline file, or JSON with the keys path, pipeline, output and set: \
         {0}"
    )]
    Payload(String),
    /// The pipeline file, the model or the labels cannot be used.
    #[error(transparent)]
    Pipeline(#[from] Error),
}

/// The payload of the transform.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Configuration {
    /// The pipeline file. Model paths are relative to its folder, as on the command line.
    #[serde(default)]
    path: Option<PathBuf>,
    /// The text of the pipeline file; by default, `path` is read.
    #[serde(default)]
    pipeline: Option<String>,
    /// Replaces `output.uri`.
    #[serde(default)]
    output: Option<String>,
    /// `section.key=value`, as the command line has it.
    #[serde(default)]
    set: Vec<String>,
}

/// The response to a request, with the files that its workers need. The workers run in `environment`. Blocks, because
/// the model is hashed.
///
/// # Errors
/// If the input or the payload cannot be used.
pub fn expand(
    request: ExpansionRequest,
    environment: &Environment,
) -> Result<(ExpansionResponse, Vec<StagedFile>), ExpansionError> {
    let ExpansionRequest { components, transform, namespace, .. } = request;
    let components = components.unwrap_or_default();
    let mut transform = transform.unwrap_or_default();
    let spec = transform.spec.clone().unwrap_or_default();
    if spec.urn != urns::TRANSFORM {
        let (urn, known) = (spec.urn, urns::TRANSFORM);
        return Err(ExpansionError::Request(format!("sluice has no transform {urn:?}, only {known:?}")));
    }
    let (uris, windowing) = input(&components, &transform).map_err(ExpansionError::Request)?;
    let configuration = Configuration::decode(&spec.payload)?;
    let (path, pipeline) = configuration.file()?;
    let Configuration { output, set, .. } = configuration;
    let overrides = Overrides { inputs: vec![INPUT.to_owned()], output, set };
    let (payload, _) = prepare(path, pipeline, &overrides, Plan::without_inputs)?;
    let mut builder = Builder::within(
        components,
        format!("{namespace}_"),
        format!("{}/", transform.unique_name),
        windowing,
        payload.encode(),
        environment.message(&payload.staged),
    );
    let Steps { transforms, output } = add_transform(&mut builder, &uris);
    transform.subtransforms = transforms;
    transform.outputs = HashMap::from([(OUTPUT.to_owned(), output)]);
    let response = ExpansionResponse {
        components: Some(builder.finish()),
        transform: Some(transform),
        ..ExpansionResponse::default()
    };
    Ok((response, payload.staged))
}

impl Configuration {
    fn decode(payload: &[u8]) -> Result<Self, ExpansionError> {
        let text =
            std::str::from_utf8(payload).map_err(|error| ExpansionError::Payload(error.to_string()))?;
        // no TOML begins like this
        if text.trim_start().starts_with('{') {
            return serde_json::from_str(text).map_err(|error| ExpansionError::Payload(error.to_string()));
        }
        Ok(Self { pipeline: Some(text.to_owned()), ..Self::default() })
    }

    /// The path and the text of the pipeline file.
    fn file(&self) -> Result<(PathBuf, String), ExpansionError> {
        let path = self.path.clone().map(|path| absolute_path(&path)).transpose().map_err(Error::from)?;
        let text = match (&self.pipeline, &path) {
            (Some(text), _) => text.clone(),
            (None, Some(path)) => read_text(path)
                .map_err(|source| Error::from(ConfigError::Read { path: path.clone(), source }))?,
            (None, None) => {
                return Err(ExpansionError::Payload("it has neither path nor pipeline".to_owned()));
            }
        };
        Ok((path.unwrap_or_else(|| PathBuf::from(PAYLOAD)), text))
    }
}

/// The collection of URIs, and its windowing strategy.
fn input(components: &beam::Components, transform: &beam::PTransform) -> Result<(String, String), String> {
    let mut inputs = transform.inputs.values();
    let (Some(id), None) = (inputs.next(), inputs.next()) else {
        let found = transform.inputs.len();
        return Err(format!("the transform takes one collection, of URIs, and got {found}"));
    };
    let collection = components.pcollections.get(id);
    let collection = collection.ok_or_else(|| format!("the request has no collection {id:?}"))?;
    if collection.is_bounded != i32::from(beam::is_bounded::Enum::Bounded) {
        return Err("the collection of URIs is unbounded, but must be bounded".to_owned());
    }
    let windowing = &collection.windowing_strategy_id;
    let strategy = components.windowing_strategies.get(windowing);
    let strategy = strategy.ok_or_else(|| format!("the request has no windowing strategy {windowing:?}"))?;
    let window_fn = strategy.window_fn.as_ref().map_or("", |window_fn| &window_fn.urn);
    if window_fn != urns::GLOBAL_WINDOWS {
        return Err(format!(
            "the collection of URIs has windows ({window_fn}); the transform needs the global window, because one run \
             scores all of them"
        ));
    }
    if let Some(trigger) = strategy.trigger.as_ref().and_then(|trigger| firing_again(trigger)) {
        return Err(format!(
            "the collection of URIs has the trigger {trigger}, which may fire more than once; the transform needs the \
             default trigger, because one run scores all URIs"
        ));
    }
    check_coder(components, &collection.coder_id)?;
    Ok((id.clone(), windowing.clone()))
}

/// The name of the trigger in Beam's Python SDK, if it may fire more than once in the global window of a bounded
/// collection.
fn firing_again(trigger: &beam::Trigger) -> Option<&'static str> {
    use trigger::Trigger;
    Some(match trigger.trigger.as_ref()? {
        Trigger::Default(_) | Trigger::Never(_) | Trigger::Always(_) => return None,
        Trigger::AfterAll(_) => "AfterAll",
        Trigger::AfterAny(_) => "AfterAny",
        Trigger::AfterEach(_) => "AfterEach",
        Trigger::AfterEndOfWindow(_) => "AfterWatermark",
        Trigger::AfterProcessingTime(_) => "AfterProcessingTime",
        Trigger::AfterSynchronizedProcessingTime(_) => "AfterSynchronizedProcessingTime",
        Trigger::ElementCount(_) => "AfterCount",
        Trigger::OrFinally(_) => "OrFinally",
        Trigger::Repeat(_) => "Repeatedly",
    })
}

/// Check that elements are strings or bytes.
fn check_coder(components: &beam::Components, id: &str) -> Result<(), String> {
    let advice = "URIs must be strings or bytes; in Python, a step before the transform can declare that with \
                  .with_output_types(str)";
    let mut coder = Coder::resolve(&components.coders, id).map_err(|error| format!("{error}; {advice}"))?;
    while let Coder::LengthPrefix(inner) = coder {
        coder = Coder::clone(&inner);
    }
    match coder {
        Coder::Bytes | Coder::String => Ok(()),
        other => Err(format!("the elements of the input are encoded as {}; {advice}", other.urn())),
    }
}
