//! From the text of a pipeline file to the payload of its workers.

use std::path::PathBuf;

use super::absolute::absolute_overrides;
use super::payload::{Payload, VERSION};
use super::staged::staged_files;
use crate::config::{Overrides, PipelineFile};
use crate::engine::{hash_files, hash_of_files};
use crate::error::{ConfigError, Error};
use crate::plan::Plan;

/// The payload of the pipeline file `path` with this text, for workers in any folder, and the plan that `check` makes.
/// Relative paths are made absolute: those of the model against the folder of `path`, others against the current
/// folder. Blocks, because the model is hashed.
///
/// # Errors
/// If the file or the overrides are invalid, or the model or the labels cannot be read.
pub fn prepare(
    path: PathBuf,
    text: String,
    overrides: &Overrides,
    check: impl FnOnce(PipelineFile) -> Result<Plan, ConfigError>,
) -> Result<(Payload, Plan), Error> {
    let file = PipelineFile::parse(&text, &path, overrides)?;
    let overrides = absolute_overrides(&file, overrides)?;
    let file = PipelineFile::parse(&text, &path, &overrides)?;
    let plan = check(file.clone())?;
    let model = hash_files(&plan.model.path)?;
    let model_sha256 = hash_of_files(&model);
    let staged = staged_files(model, &file)?;
    Ok((Payload { version: VERSION, path, text, overrides, model_sha256, staged }, plan))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::mem::MaybeUninit;

    use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
    use rustix::io::Errno;

    use super::*;
    use crate::engine::hash_model;

    /// An ONNX file with one weight, in the file `w`.
    const MODEL: &[u8] = b"\x3a\x11\x2a\x0f\x6a\x0d\x0a\x08location\x12\x01w";

    #[test]
    fn a_model_and_its_weights_are_read_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        fs::write(path("m.onnx"), MODEL).expect("a file");
        fs::write(path("w"), "1").expect("a file");
        let text = "name = \"t\"\n[input]\nuri = \"/in\"\n[preprocess]\nresize = { width = 2, height = 2 }\n\
                    [model]\npath = \"m.onnx\"\n[output]\nuri = \"/out\"\n";
        // equal events are merged if none is between them
        let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).expect("inotify");
        inotify::add_watch(&watch, folder.path(), WatchFlags::OPEN | WatchFlags::CLOSE).expect("a watch");
        let prepared = prepare(path("p.toml"), text.to_owned(), &Overrides::default(), Plan::check);
        let (payload, _) = prepared.expect("a payload");
        let (mut reads, mut buffer) = (BTreeMap::<String, usize>::new(), [MaybeUninit::uninit(); 4096]);
        let mut events = Reader::new(&watch, &mut buffer);
        loop {
            let event = match events.next() {
                Err(Errno::WOULDBLOCK) => break,
                event => event.expect("an event"),
            };
            if let Some(name) = event.file_name().filter(|_| event.events().contains(ReadFlags::OPEN)) {
                *reads.entry(name.to_string_lossy().into_owned()).or_default() += 1;
            }
        }
        assert_eq!(reads, BTreeMap::from([("m.onnx".to_owned(), 1), ("w".to_owned(), 1)]));
        assert_eq!(payload.model_sha256, hash_model(&path("m.onnx")).expect("a hash"));
        assert_eq!(payload.staged.len(), 2);
    }
}
