//! The files of a plan that a job's artifacts contain: the model, its weights, and the labels.

use std::path::Path;

use prost::Message;

use super::payload::StagedFile;
use super::proto::pipeline::{ArtifactFilePayload, ArtifactInformation};
use crate::config::{LabelsSection, PipelineFile};
use crate::engine::{HashedFile, hash_file};
use crate::error::EngineError;

/// Digits of the hash in a staged name: enough to keep files of the same name apart.
const HASH_DIGITS: usize = 16;

/// The files of the plan of `file`, whose model has the files `model`.
///
/// # Errors
/// When the labels cannot be read.
pub fn staged_files(
    model: impl IntoIterator<Item = HashedFile>,
    file: &PipelineFile,
) -> Result<Vec<StagedFile>, EngineError> {
    let mut files: Vec<_> = model.into_iter().map(staged).collect();
    if let Some(LabelsSection::File(labels)) = &file.model.labels {
        files.push(staged(HashedFile { path: labels.clone(), sha256: hash_file(labels)? }));
    }
    Ok(files)
}

/// The file that an artifact of ours stands for, if it is one of `files`.
///
/// # Errors
/// The path of the artifact.
pub fn file_of<'a>(
    artifact: &ArtifactInformation,
    files: &'a [StagedFile],
) -> Result<&'a StagedFile, String> {
    let asked = ArtifactFilePayload::decode(&artifact.type_payload[..]).unwrap_or_default().path;
    files.iter().find(|file| file.path.to_string_lossy() == asked).ok_or(asked)
}

fn staged(file: HashedFile) -> StagedFile {
    let HashedFile { path, sha256 } = file;
    let name = format!("{}-{}", &sha256[..HASH_DIGITS], base_name(&path));
    StagedFile { path, sha256, name }
}

/// Whether a file with this SHA-256 may be staged as `name`. Of two files with the same content, Dataflow's SDK stages
/// only one, under the name of the first.
pub fn is_name_of_content(name: &str, sha256: &str) -> bool {
    name.strip_prefix(&sha256[..HASH_DIGITS]).is_some_and(|rest| rest.starts_with('-'))
}

/// The last component of `path`, with those characters only that every file system accepts.
fn base_name(path: &Path) -> String {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let accepted = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') { c } else { '_' };
    name.chars().map(accepted).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::Overrides;
    use crate::engine::hash_files;

    #[test]
    fn the_model_and_the_labels_are_staged_under_names_of_their_content() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        fs::write(path("my model.plan"), "m").expect("a file");
        fs::write(path("labels.txt"), "a\nb\n").expect("a file");
        let text = "name = \"t\"\n[input]\nuri = \"in\"\n[preprocess]\nresize = { width = 2, height = 2 }\n\
                    [model]\npath = \"my model.plan\"\nlabels = \"labels.txt\"\n[output]\nuri = \"out\"\n";
        let parse = |text: &str| PipelineFile::parse(text, &path("p.toml"), &Overrides::default());
        let files = |text: &str| {
            let file = parse(text).expect("a file");
            staged_files(hash_files(&file.model.path)?, &file)
        };
        let found = files(text).expect("files");
        let [model, labels] = &found[..] else { panic!("{found:?}") };
        assert_eq!((model.path.clone(), labels.path.clone()), (path("my model.plan"), path("labels.txt")));
        // sha256("m")
        assert_eq!(model.sha256, "62c66a7a5dd70c3146618063c344e531e6d4b59e379808443ce962b3abd63c5a");
        assert_eq!(model.name, "62c66a7a5dd70c31-my_model.plan");
        let inline = text.replace("\"labels.txt\"", "[\"a\"]");
        assert_eq!(files(&inline).expect("files").len(), 1);
        fs::remove_file(path("labels.txt")).expect("removed");
        assert!(files(text).is_err());
    }
}
