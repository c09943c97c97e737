//! Makes the paths of a pipeline file absolute, because workers run in another folder.

use std::path::{Path, PathBuf, absolute};

use crate::config::{LabelsSection, Overrides, PipelineFile};
use crate::error::ConfigError;
use crate::shown::looks_like_uri;

/// `path` below the current folder, if it is relative. `..` and links stay.
///
/// # Errors
/// If the current folder is unknown.
pub fn absolute_path(path: &Path) -> Result<PathBuf, ConfigError> {
    let message = |error: std::io::Error| {
        ConfigError::invalid(path.to_string_lossy(), format!("cannot be made an absolute path: {error}"))
    };
    absolute(path).map_err(message)
}

/// `overrides`, with absolute paths for every relative one in `file`, to which they were applied. Inputs and the output
/// are only replaced where they are relative paths.
///
/// # Errors
/// If the input is standard input, which no worker can read, or the current folder is unknown.
pub fn absolute_overrides(file: &PipelineFile, overrides: &Overrides) -> Result<Overrides, ConfigError> {
    let mut overrides = overrides.clone();
    let inputs = file.input.uri.clone().into_vec();
    if inputs.iter().any(|input| input == "-") {
        return Err(ConfigError::invalid(
            "input.uri",
            "standard input cannot be read by the workers of a runner",
        ));
    }
    if inputs.iter().any(|uri| is_relative(uri)) {
        overrides.inputs = inputs.iter().map(|uri| absolute_uri(uri)).collect::<Result<_, _>>()?;
    }
    if is_relative(&file.output.uri) {
        overrides.output = Some(absolute_uri(&file.output.uri)?);
    }
    let labels = match &file.model.labels {
        Some(LabelsSection::File(path)) => Some(path),
        _ => None,
    };
    let files = [("model.path", Some(&file.model.path)), ("model.labels", labels)];
    for (key, path) in files {
        if let Some(path) = path.filter(|path| path.is_relative()) {
            let path = absolute_path(path)?.to_string_lossy().into_owned();
            overrides.set.push(format!("{key}={}", toml::Value::String(path)));
        }
    }
    Ok(overrides)
}

/// Whether `uri` is a path below the current folder.
pub fn is_relative(uri: &str) -> bool {
    !uri.is_empty() && !looks_like_uri(uri) && !uri.contains("://") && Path::new(uri).is_relative()
}

fn absolute_uri(uri: &str) -> Result<String, ConfigError> {
    if !is_relative(uri) {
        return Ok(uri.to_owned());
    }
    Ok(absolute_path(Path::new(uri))?.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(overrides: &Overrides) -> PipelineFile {
        let text = "name = \"t\"\n[input]\nuri = [\"in/*.tar\", \"gs://b/x\"]\n[preprocess]\n\
                    resize = { width = 2, height = 2 }\n[model]\npath = \"m.onnx\"\nlabels = \"l.txt\"\n\
                    [output]\nuri = \"out/\"\n";
        PipelineFile::parse(text, "/a b/p.toml".as_ref(), overrides).expect("a file")
    }

    #[test]
    fn every_relative_path_becomes_absolute_and_nothing_else_changes() {
        let here = std::env::current_dir().expect("a folder");
        let here = |name: &str| format!("{}/{name}", here.display());
        let given = Overrides { set: vec!["model.path=x \"y\".onnx".to_owned()], ..Overrides::default() };
        let overrides = absolute_overrides(&parse(&given), &given).expect("overrides");
        let file = parse(&overrides);
        assert_eq!(file.input.uri.into_vec(), [here("in/*.tar"), "gs://b/x".to_owned()]);
        assert_eq!(file.output.uri, here("out/"));
        assert_eq!(file.model.path, PathBuf::from(here("x \"y\".onnx")));
        assert_eq!(file.model.labels, Some(LabelsSection::File("/a b/l.txt".into())));
        let again = absolute_overrides(&parse(&overrides), &overrides).expect("overrides");
        assert_eq!(again, overrides, "nothing is left to be changed");
    }

    #[test]
    fn addresses_stay_as_they_are_and_standard_input_is_refused() {
        let given = Overrides {
            inputs: vec!["/in/a.tar".to_owned(), "https://h/a.tar".to_owned()],
            output: Some("s3://b/out".to_owned()),
            ..Overrides::default()
        };
        assert_eq!(absolute_overrides(&parse(&given), &given).expect("overrides"), given);
        let stdin = Overrides { inputs: vec!["-".to_owned()], ..given };
        assert!(absolute_overrides(&parse(&stdin), &stdin).is_err());
    }
}
