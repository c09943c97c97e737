//! The cache of engines built from ONNX files.
//!
//! - It is in `$SLUICE_CACHE_DIR`, else `$XDG_CACHE_HOME/sluice`, else `~/.cache/sluice`. The name of an
//!   engine is a hash of everything that it depends on.
//! - A lock file keeps two processes from building the same engine at once: the second waits, and then
//!   finds the engine. An engine becomes visible only when it is complete.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::{FLAVOUR, Passport, Recipe, Target, Wanted};
use crate::engine::cuda::LoadError;
use crate::error::EngineError;
use crate::plan::hex;

/// The engine of `recipe` for `target`, loaded by `load`: the cached one in `folder`, else a new one that
/// `build` makes.
pub fn load_or_build<T>(
    folder: &Path,
    recipe: &Recipe,
    target: &Target,
    build: impl FnOnce(&Recipe) -> Result<Vec<u8>, String>,
    load: impl Fn(&[u8]) -> Result<T, LoadError>,
) -> Result<Result<T, LoadError>, EngineError> {
    let path = folder.join(format!("{}.engine", key(recipe, target)));
    let fail = |error: std::io::Error| EngineError::Cache { message: format!("{}: {error}", path.display()) };
    let mut refused = None;
    let mut load_cached = || {
        let serialized =
            cached(&path, recipe, target).filter(|serialized| refused.as_ref() != Some(serialized))?;
        match load(&serialized) {
            Err(LoadError::Refused(reason)) => {
                tracing::warn!(engine = %path.display(), reason, "the cached engine cannot be used");
                refused = Some(serialized);
                None
            }
            loaded => Some(loaded),
        }
    };
    // before taking the lock, so that a read-only folder works, too
    if let Some(loaded) = load_cached() {
        return Ok(loaded);
    }
    std::fs::create_dir_all(folder).map_err(fail)?;
    let lock = File::create(path.with_extension("lock")).map_err(fail)?;
    if lock.try_lock().is_err() {
        tracing::info!(engine = %path.display(), "waiting for another process that is building the engine");
        lock.lock().map_err(fail)?;
    }
    // another process may have built it in the meantime
    if let Some(loaded) = load_cached() {
        return Ok(loaded);
    }
    tracing::info!(
        model = %recipe.onnx.display(),
        gpu = target.gpu,
        tensorrt = %target.version,
        engine = %path.display(),
        "building an engine: none is cached for this model, batch size, GPU and TensorRT version"
    );
    let start = Instant::now();
    let serialized =
        build(recipe).map_err(|message| EngineError::Load { path: recipe.onnx.clone(), message })?;
    let passport = Passport::issue(recipe, target, &serialized);
    write_whole(&path, &serialized, &passport).map_err(fail)?;
    tracing::info!(engine = %path.display(), took = seconds(start.elapsed()), "engine built");
    Ok(load(&serialized))
}

/// The cached kernels that TensorRT-RTX has compiled for an engine on a kind of device. Without them a run starts a few
/// seconds later, so no failure here is an error.
#[derive(Debug)]
pub struct Kernels(Option<PathBuf>);

impl Kernels {
    /// The cache entry for the kernels of the engine `serialized` on `target`, for batches of `dims`.
    pub fn of(serialized: &[u8], target: &Target, dims: &[i64]) -> Self {
        let text = format!("{} {FLAVOUR} {target:?} {dims:?}", hex(&Sha256::digest(serialized)));
        let name = format!("{}.kernels", &hex(&Sha256::digest(text))[..32]);
        Self(folder().ok().map(|folder| folder.join(name)))
    }

    pub fn read(&self) -> Option<Vec<u8>> {
        std::fs::read(self.0.as_ref()?).ok()
    }

    /// Cache `kernels`, unless they are cached already.
    pub fn write(&self, kernels: Result<Vec<u8>, String>) {
        let Some(path) = &self.0 else { return };
        let written = kernels.and_then(|kernels| {
            if kernels.is_empty() || self.read().is_some_and(|cached| cached == kernels) {
                return Ok(());
            }
            let write = || {
                std::fs::create_dir_all(path.parent().unwrap_or(Path::new("")))?;
                replace(path, &kernels)
            };
            write().map_err(|error| error.to_string())
        });
        if let Err(error) = written {
            tracing::debug!(path = %path.display(), error, "the kernels are not cached");
        }
    }
}

/// The engine at `path`, if it exists and its passport confirms it; a damaged one is rebuilt.
fn cached(path: &Path, recipe: &Recipe, target: &Target) -> Option<Vec<u8>> {
    let passport = Passport::read(path).unwrap_or_default()?;
    let serialized = std::fs::read(path).ok()?;
    let wanted = Wanted { dims: recipe.profile.max.clone(), tf32: recipe.tf32 };
    match passport.check(path, &serialized, target, &wanted) {
        Ok(()) => Some(serialized),
        Err(error) => {
            tracing::warn!(%error, "the cached engine cannot be used");
            None
        }
    }
}

/// Write an engine and then its passport, each atomically.
pub fn write_whole(path: &Path, serialized: &[u8], passport: &Passport) -> std::io::Result<()> {
    let passport = serde_json::to_vec_pretty(passport)?;
    replace(path, serialized)?;
    replace(&Passport::path(path), &passport)
}

/// Check that a file can be created at `path`, before spending work on its content.
pub fn check_writable(path: &Path) -> std::io::Result<()> {
    let part = path.with_extension(format!("{}.part", std::process::id()));
    File::create(&part)?;
    std::fs::remove_file(part)
}

/// Write a file atomically: readers see all of it or nothing.
fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    static WRITTEN: AtomicU64 = AtomicU64::new(0);
    let part = path.with_extension(format!("{}-{}.part", std::process::id(), WRITTEN.fetch_add(1, Relaxed)));
    let written = std::fs::write(&part, bytes).and_then(|()| std::fs::rename(&part, path));
    if written.is_err() {
        // the disk may be full
        let _ = std::fs::remove_file(&part);
    }
    written
}

/// The folder of the cache.
pub fn folder() -> Result<PathBuf, String> {
    let from = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    from("SLUICE_CACHE_DIR")
        .or_else(|| from("XDG_CACHE_HOME").map(|folder| folder.join("sluice")))
        .or_else(|| from("HOME").map(|folder| folder.join(".cache/sluice")))
        .ok_or_else(|| {
            "neither HOME nor SLUICE_CACHE_DIR is set: there is no folder to cache engines in".to_owned()
        })
}

/// A hash of everything that an engine depends on.
fn key(recipe: &Recipe, target: &Target) -> String {
    // the hash identifies the model, whatever its path
    let Recipe { onnx: _, model_sha256, input: _, precision: _, profile, tf32, workspace_bytes } = recipe;
    let text = format!("{model_sha256} {FLAVOUR} {target:?} {profile:?} {tf32} {workspace_bytes:?}");
    hex(&Sha256::digest(text))[..32].to_owned()
}

/// A duration for log messages.
pub(super) fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::engine::cuda::Version;
    use crate::engine::onnx::Precision;
    use crate::engine::tensorrt::Profile;

    fn recipe() -> Recipe {
        let dims = vec![4, 8, 8, 3];
        Recipe {
            onnx: "model.onnx".into(),
            model_sha256: "m".to_owned(),
            input: "input".to_owned(),
            precision: Precision::Fp32,
            profile: Profile { min: dims.clone(), opt: dims.clone(), max: dims },
            tf32: true,
            workspace_bytes: None,
        }
    }

    fn target() -> Target {
        let version = Version::from_number(10_601);
        Target { gpu: "NVIDIA H200".to_owned(), compute_capability: "9.0".to_owned(), version }
    }

    fn loaded(engine: &[u8]) -> Result<Vec<u8>, LoadError> {
        Ok(engine.to_vec())
    }

    fn get(folder: &Path, build: fn(&Recipe) -> Result<Vec<u8>, String>) -> Vec<u8> {
        load_or_build(folder, &recipe(), &target(), build, loaded).expect("an engine").expect("loaded")
    }

    fn built(_: &Recipe) -> Result<Vec<u8>, String> {
        Ok(b"an engine".to_vec())
    }

    fn not_again(_: &Recipe) -> Result<Vec<u8>, String> {
        panic!("it is cached")
    }

    #[test]
    fn an_engine_is_built_once_and_then_found_in_the_cache() {
        let folder = tempfile::tempdir().expect("temp folder");
        let first = get(folder.path(), built);
        let again = get(folder.path(), not_again);
        assert_eq!(first, again);
    }

    #[test]
    fn the_key_depends_on_everything_that_an_engine_depends_on() {
        let (recipe, target) = (recipe(), target());
        let cached = key(&recipe, &target);
        let wide = vec![8, 8, 8, 3];
        let profile = Profile { max: wide, ..recipe.profile.clone() };
        for other in [
            Recipe { model_sha256: "n".to_owned(), ..recipe.clone() },
            Recipe { profile, ..recipe.clone() },
            Recipe { tf32: false, ..recipe.clone() },
            Recipe { workspace_bytes: Some(1), ..recipe.clone() },
        ] {
            assert_ne!(key(&other, &target), cached, "{other:?}");
        }
        for other in [
            Target { gpu: "NVIDIA L4".to_owned(), ..target.clone() },
            Target { compute_capability: "8.9".to_owned(), ..target.clone() },
            Target { version: Version::from_number(10_602), ..target.clone() },
        ] {
            assert_ne!(key(&recipe, &other), cached, "{other:?}");
        }
        let moved = Recipe { onnx: "elsewhere/model.onnx".into(), ..recipe };
        assert_eq!(key(&moved, &target), cached, "the path does not count");
    }

    #[test]
    fn a_damaged_engine_is_rebuilt() {
        let folder = tempfile::tempdir().expect("temp folder");
        get(folder.path(), built);
        let path = folder.path().join(format!("{}.engine", key(&recipe(), &target())));
        for damage in [&b"an eng"[..], b""] {
            std::fs::write(&path, damage).expect("write");
            let engine = get(folder.path(), built);
            assert_eq!(engine, b"an engine");
        }
        std::fs::write(Passport::path(&path), "{").expect("write");
        let engine = get(folder.path(), built);
        assert_eq!(engine, b"an engine");
        get(folder.path(), not_again);
    }

    #[test]
    fn an_engine_that_tensorrt_rejects_is_rebuilt_and_other_failures_do_not_rebuild() {
        let folder = tempfile::tempdir().expect("temp folder");
        get(folder.path(), |_| Ok(b"of an older driver".to_vec()));
        let load = |engine: &[u8]| match engine {
            b"of an older driver" => Err(LoadError::Refused("driver is older".to_owned())),
            _ => loaded(engine),
        };
        let engine = load_or_build(folder.path(), &recipe(), &target(), built, load).expect("an engine");
        assert_eq!(engine, Ok(b"an engine".to_vec()));
        get(folder.path(), not_again);
        let full = |_: &[u8]| Err::<(), _>(LoadError::Device("out of memory".to_owned()));
        let loaded = load_or_build(folder.path(), &recipe(), &target(), not_again, full).expect("found");
        assert_eq!(loaded, Err(LoadError::Device("out of memory".to_owned())));
    }

    #[test]
    fn a_failed_build_leaves_nothing_in_the_cache() {
        let folder = tempfile::tempdir().expect("temp folder");
        let failed =
            load_or_build(folder.path(), &recipe(), &target(), |_| Err("no memory".to_owned()), loaded);
        assert!(failed.expect_err("it failed").to_string().contains("no memory"));
        get(folder.path(), built);
    }

    #[test]
    fn kernels_are_cached_for_each_engine_and_shape() {
        let of = |engine: &[u8], rows| format!("{:?}", Kernels::of(engine, &target(), &[rows, 8, 8, 3]));
        assert_eq!(of(b"an engine", 4), of(b"an engine", 4));
        assert_ne!(of(b"an engine", 4), of(b"an engine", 8));
        assert_ne!(of(b"an engine", 4), of(b"another", 4));
    }

    #[test]
    fn a_file_that_cannot_be_renamed_leaves_no_temporary_file() {
        let folder = tempfile::tempdir().expect("temp folder");
        let occupied = folder.path().join("m.engine");
        std::fs::create_dir_all(occupied.join("full")).expect("folder");
        assert!(replace(&occupied, b"an engine").is_err());
        assert_eq!(std::fs::read_dir(folder.path()).expect("folder").count(), 1);
    }

    #[test]
    fn a_read_only_cache_still_serves_its_engines() {
        let folder = tempfile::tempdir().expect("temp folder");
        get(folder.path(), built);
        // a folder in place of the lock file prevents locking, as a read-only cache does
        let lock = folder.path().join(format!("{}.lock", key(&recipe(), &target())));
        std::fs::remove_file(&lock).expect("the lock file");
        std::fs::create_dir(&lock).expect("folder");
        get(folder.path(), not_again);
        let other = Recipe { tf32: false, ..recipe() };
        let lock = folder.path().join(format!("{}.lock", key(&other, &target())));
        std::fs::create_dir(&lock).expect("folder");
        let error = load_or_build(folder.path(), &other, &target(), not_again, loaded).expect_err("no lock");
        assert!(error.to_string().contains(".engine"), "{error}");
    }

    #[test]
    fn concurrent_requests_build_an_engine_once() {
        let folder = tempfile::tempdir().expect("temp folder");
        let builds = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let build = |_: &Recipe| {
                        builds.fetch_add(1, Ordering::Relaxed);
                        Ok(b"an engine".to_vec())
                    };
                    load_or_build(folder.path(), &recipe(), &target(), build, loaded)
                        .expect("an engine")
                        .expect("loaded");
                });
            }
        });
        assert_eq!(builds.load(Ordering::Relaxed), 1);
    }
}
