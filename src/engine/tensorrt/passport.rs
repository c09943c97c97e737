//! The passport of a serialized engine: what it was made from, by what and for what. A small JSON
//! file beside the engine, `NAME.engine.json`.
//!
//! - An engine runs only where its passport says: on the same kind of GPU, with the same TensorRT.
//!   That is checked before anything else is done with it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{FLAVOUR, Profile, VERSION};
use crate::engine::cuda::Device;
use crate::error::EngineError;
use crate::plan::hex;

/// Where an engine comes from and where it may go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passport {
    /// Of the ONNX file.
    pub model_sha256: String,
    pub engine_sha256: String,
    /// `TensorRT-RTX` or `TensorRT`.
    pub flavour: String,
    /// Major and minor.
    pub tensorrt_version: String,
    pub gpu: String,
    /// `9.0`
    pub compute_capability: String,
    pub profile: Profile,
}

impl Passport {
    /// The passport of a new engine.
    pub fn issue(model_sha256: &str, serialized: &[u8], device: &Device, profile: &Profile) -> Self {
        Self {
            model_sha256: model_sha256.to_owned(),
            engine_sha256: sha256(serialized),
            flavour: FLAVOUR.to_owned(),
            tensorrt_version: VERSION.to_owned(),
            gpu: device.name.clone(),
            compute_capability: capability(device),
            profile: profile.clone(),
        }
    }

    /// Where the passport of the engine at `engine` lies.
    pub fn path(engine: &Path) -> PathBuf {
        let mut name = engine.as_os_str().to_owned();
        name.push(".json");
        PathBuf::from(name)
    }

    /// The passport beside an engine, if there is one.
    pub fn beside(engine: &Path) -> Result<Option<Self>, EngineError> {
        let path = Self::path(engine);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(EngineError::ModelFile { path, source }),
        };
        serde_json::from_str(&text)
            .map(Some)
            .map_err(|error| EngineError::Passport { path, message: format!("it cannot be read: {error}") })
    }

    /// Whether the engine is the one described, and may run on `device`.
    pub fn check(&self, engine: &Path, serialized: &[u8], device: &Device) -> Result<(), EngineError> {
        let here = (FLAVOUR, VERSION, device.name.as_str(), capability(device));
        self.difference(&sha256(serialized), here)
            .map_or(Ok(()), |message| Err(EngineError::Passport { path: engine.to_owned(), message }))
    }

    fn difference(&self, engine_sha256: &str, here: (&str, &str, &str, String)) -> Option<String> {
        let (flavour, version, gpu, compute_capability) = here;
        if self.engine_sha256 != engine_sha256 {
            return Some("the file is damaged or another one: its SHA-256 is not the passport's".to_owned());
        }
        let differ = |what: &str, was: &str, is: &str| {
            (was != is).then(|| format!("it was built for {what} {was}, here is {is}"))
        };
        differ("", &self.flavour, flavour)
            .or_else(|| differ(&self.flavour, &self.tensorrt_version, version))
            .or_else(|| differ("compute capability", &self.compute_capability, &compute_capability))
            .or_else(|| differ("an", &self.gpu, gpu))
    }
}

fn capability(device: &Device) -> String {
    let (major, minor) = device.compute_capability;
    format!("{major}.{minor}")
}

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passport() -> Passport {
        let shape = vec![32, 384, 384, 3];
        Passport {
            model_sha256: "m".into(),
            engine_sha256: "e".into(),
            flavour: "TensorRT-RTX".into(),
            tensorrt_version: "1.6".into(),
            gpu: "NVIDIA H200".into(),
            compute_capability: "9.0".into(),
            profile: Profile { min: shape.clone(), opt: shape.clone(), max: shape },
        }
    }

    #[test]
    fn an_engine_is_accepted_only_where_it_was_made_for() {
        let passport = passport();
        let here = |flavour, version, gpu, capability: &str| (flavour, version, gpu, capability.to_owned());
        let good = here("TensorRT-RTX", "1.6", "NVIDIA H200", "9.0");
        assert_eq!(passport.difference("e", good.clone()), None);
        for (engine, host, word) in [
            ("f", good.clone(), "damaged"),
            ("e", here("TensorRT", "1.6", "NVIDIA H200", "9.0"), "here is TensorRT"),
            ("e", here("TensorRT-RTX", "1.7", "NVIDIA H200", "9.0"), "here is 1.7"),
            ("e", here("TensorRT-RTX", "1.6", "NVIDIA H200", "8.9"), "here is 8.9"),
            ("e", here("TensorRT-RTX", "1.6", "NVIDIA L4", "9.0"), "here is NVIDIA L4"),
        ] {
            let message = passport.difference(engine, host).expect("refused");
            assert!(message.contains(word), "{message}");
        }
    }

    #[test]
    fn a_passport_survives_its_file() {
        let folder = tempfile::tempdir().expect("temp folder");
        let engine = folder.path().join("model.engine");
        assert_eq!(Passport::beside(&engine).expect("no file is no error"), None);
        let text = serde_json::to_string_pretty(&passport()).expect("to JSON");
        std::fs::write(folder.path().join("model.engine.json"), text).expect("write");
        assert_eq!(Passport::beside(&engine).expect("a passport"), Some(passport()));
    }
}
