//! The passport of a serialized engine: a small JSON file next to it, `NAME.engine.json`, that records
//! its model, its builder and its target.
//!
//! - An engine runs only on the GPU model and with the TensorRT version in its passport. Both are checked before the
//!   engine is loaded.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{FLAVOUR, Profile, Recipe};
use crate::engine::cuda::{Device, Version};
use crate::engine::onnx::Precision;
use crate::error::EngineError;
use crate::plan::hex;

/// The target of an engine: a GPU, and the installed version of TensorRT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Name of the GPU.
    pub gpu: String,
    /// Such as `9.0`.
    pub compute_capability: String,
    /// Version of TensorRT.
    pub version: Version,
}

impl Target {
    /// The device, with this version of TensorRT.
    pub fn new(device: &Device, version: Version) -> Self {
        let (major, minor) = device.compute_capability;
        Self { gpu: device.name.clone(), compute_capability: format!("{major}.{minor}"), version }
    }
}

/// The requirements of a pipeline on its engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Dimensions of a batch.
    pub dims: Vec<i64>,
    /// Whether 32-bit floats may be multiplied with the precision of TF32.
    pub tf32: bool,
}

/// The command that rebuilds the engine at `engine`.
pub fn rebuild(engine: &Path, input: &str, dims: &[i64], tf32: bool) -> String {
    let dims: Vec<_> = dims.iter().map(ToString::to_string).collect();
    let dims = if dims.is_empty() { "DIMS".to_owned() } else { dims.join("x") };
    let tf32 = if tf32 { "" } else { " --noTF32" };
    format!(
        "sluice build-engine --onnx MODEL --saveEngine {} --shapes {input}:{dims}{tf32}",
        engine.display()
    )
}

/// What an engine was built from, and what it may run on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passport {
    /// Hash of the ONNX model.
    pub model_sha256: String,
    /// SHA-256 of the engine's file, in hexadecimal.
    pub engine_sha256: String,
    /// Name of the engine's input.
    pub input: String,
    /// `TensorRT-RTX` or `TensorRT`.
    pub flavour: String,
    /// Such as `1.6.1`.
    pub tensorrt_version: String,
    /// Name of the GPU.
    pub gpu: String,
    /// Such as `9.0`.
    pub compute_capability: String,
    /// Dimensions of the input.
    pub profile: Profile,
    /// The precision of most of the model's weights.
    pub precision: Precision,
    /// Whether tensor cores may round float32 operands to TF32.
    pub tf32: bool,
}

impl Passport {
    /// The passport of a new engine.
    pub fn issue(recipe: &Recipe, target: &Target, serialized: &[u8]) -> Self {
        Self {
            model_sha256: recipe.model_sha256.clone(),
            engine_sha256: sha256(serialized),
            input: recipe.input.clone(),
            flavour: FLAVOUR.to_owned(),
            tensorrt_version: target.version.to_string(),
            gpu: target.gpu.clone(),
            compute_capability: target.compute_capability.clone(),
            profile: recipe.profile.clone(),
            precision: recipe.precision,
            tf32: recipe.tf32,
        }
    }

    /// The path of the passport of the engine at `engine`.
    pub fn path(engine: &Path) -> PathBuf {
        let mut name = engine.as_os_str().to_owned();
        name.push(".json");
        PathBuf::from(name)
    }

    /// The passport of an engine, if it has one.
    pub fn read(engine: &Path) -> Result<Option<Self>, EngineError> {
        let path = Self::path(engine);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(EngineError::ModelFile { path, source }),
        };
        serde_json::from_str(&text).map(Some).map_err(|error| EngineError::Passport {
            path,
            message: format!("it cannot be read: {error}"),
            rebuild: rebuild(engine, "INPUT", &[], true),
        })
    }

    /// Check that the passport belongs to this engine, and that the engine may run on `target` and meets the
    /// requirements `wanted`.
    pub fn check(
        &self,
        engine: &Path,
        serialized: &[u8],
        target: &Target,
        wanted: &Wanted,
    ) -> Result<(), EngineError> {
        let difference =
            self.difference(&sha256(serialized), FLAVOUR, target).or_else(|| self.shortcoming(wanted));
        difference.map_or(Ok(()), |message| {
            let rebuild = rebuild(engine, &self.input, &wanted.dims, wanted.tf32);
            Err(EngineError::Passport { path: engine.to_owned(), message, rebuild })
        })
    }

    /// The requirement that the engine does not meet, if there is one.
    fn shortcoming(&self, wanted: &Wanted) -> Option<String> {
        let Profile { min, max, .. } = &self.profile;
        let within = wanted.dims.len() == min.len()
            && wanted.dims.iter().zip(min.iter().zip(max)).all(|(dim, (min, max))| min <= dim && dim <= max);
        if !within {
            let batch = &wanted.dims;
            return Some(format!(
                "it takes shapes from {min:?} to {max:?}, the pipeline's batch is {batch:?}"
            ));
        }
        let may_round = self.tf32 && !wanted.tf32;
        may_round.then(|| "it may round to TF32, and engine.tf32 is false".to_owned())
    }

    /// How the engine or the target differs from the passport, if it does.
    fn difference(&self, engine_sha256: &str, flavour: &str, target: &Target) -> Option<String> {
        if self.engine_sha256 != engine_sha256 {
            return Some("its SHA-256 is not the passport's: the file is damaged or was replaced".to_owned());
        }
        let differ = |what: &str, was: &str, is: &str| {
            (was != is).then(|| format!("it was built for {what}{was}, this host has {is}"))
        };
        (self.flavour != flavour)
            .then(|| format!("it was built for {}, this binary uses {flavour}", self.flavour))
            .or_else(|| differ("TensorRT ", &self.tensorrt_version, &target.version.to_string()))
            .or_else(|| differ("compute capability ", &self.compute_capability, &target.compute_capability))
            .or_else(|| differ("GPU ", &self.gpu, &target.gpu))
    }
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
            input: "input_1".into(),
            flavour: "TensorRT-RTX".into(),
            tensorrt_version: "1.6.1".into(),
            gpu: "NVIDIA H200".into(),
            compute_capability: "9.0".into(),
            profile: Profile { min: shape.clone(), opt: shape.clone(), max: shape },
            precision: Precision::Fp32,
            tf32: true,
        }
    }

    #[test]
    fn an_engine_must_meet_the_requirements_of_the_pipeline() {
        let passport = passport();
        let wanted = |rows, tf32| Wanted { dims: vec![rows, 384, 384, 3], tf32 };
        assert_eq!(passport.shortcoming(&wanted(32, true)), None);
        let message = passport.shortcoming(&wanted(64, true)).expect("another batch");
        assert!(message.contains("[64, 384, 384, 3]"), "{message}");
        let message = passport.shortcoming(&wanted(32, false)).expect("full precision");
        assert!(message.contains("TF32"), "{message}");
        let full = Passport { tf32: false, ..passport };
        assert_eq!(full.shortcoming(&wanted(32, false)), None);
    }

    #[test]
    fn the_error_says_how_to_rebuild_the_engine() {
        let target = Target {
            gpu: "NVIDIA L4".to_owned(),
            compute_capability: "8.9".to_owned(),
            version: Version::from_number(10_601),
        };
        let wanted = Wanted { dims: vec![32, 384, 384, 3], tf32: false };
        let refused = passport().check(Path::new("m.engine"), b"", &target, &wanted).expect_err("refused");
        let command =
            "sluice build-engine --onnx MODEL --saveEngine m.engine --shapes input_1:32x384x384x3 --noTF32";
        assert!(refused.to_string().ends_with(command), "{refused}");
    }

    #[test]
    fn an_engine_is_accepted_only_on_its_target() {
        let passport = passport();
        let here = |number, gpu: &str, compute_capability: &str| Target {
            gpu: gpu.to_owned(),
            compute_capability: compute_capability.to_owned(),
            version: Version::from_number(number),
        };
        let good = here(10_601, "NVIDIA H200", "9.0");
        assert_eq!(passport.difference("e", "TensorRT-RTX", &good), None);
        for (engine, flavour, target, word) in [
            ("f", "TensorRT-RTX", good.clone(), "damaged"),
            ("e", "TensorRT", good, "this binary uses TensorRT"),
            ("e", "TensorRT-RTX", here(10_701, "NVIDIA H200", "9.0"), "this host has 1.7.1"),
            ("e", "TensorRT-RTX", here(10_601, "NVIDIA H200", "8.9"), "this host has 8.9"),
            ("e", "TensorRT-RTX", here(10_601, "NVIDIA L4", "9.0"), "this host has NVIDIA L4"),
        ] {
            let message = passport.difference(engine, flavour, &target).expect("refused");
            assert!(message.contains(word), "{message}");
        }
    }

    #[test]
    fn a_passport_is_read_back_as_written() {
        let folder = tempfile::tempdir().expect("temp folder");
        let engine = folder.path().join("model.engine");
        assert_eq!(Passport::read(&engine).expect("no file is no error"), None);
        let text = serde_json::to_string_pretty(&passport()).expect("to JSON");
        std::fs::write(folder.path().join("model.engine.json"), text).expect("write");
        assert_eq!(Passport::read(&engine).expect("a passport"), Some(passport()));
    }
}
