//! A random input in one kind of store, and runs over it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use futures_util::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt};

use crate::Random;
use crate::gcs::Gcs;
use crate::servers::Server;
use crate::support::*;

/// The kind of store that holds input and output.
pub enum Place {
    Disk,
    S3(Server),
    /// A server in this process that can inject faults.
    Gcs(Gcs),
}

impl Place {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Disk => "local disk",
            Self::S3(_) => "S3 (SeaweedFS)",
            Self::Gcs(_) => "GCS with faults",
        }
    }

    /// The URI of the folder `name`.
    pub fn uri(&self, bench: &Bench, name: &str) -> String {
        match self {
            Self::Disk => bench.path(name).display().to_string(),
            Self::S3(_) => format!("s3://bucket/{name}"),
            Self::Gcs(_) if name == "in" => "gs://input/in".to_owned(),
            Self::Gcs(_) => format!("gs://bucket/{name}"),
        }
    }

    pub fn environment(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Disk => Vec::new(),
            Self::S3(server) => server.environment.clone(),
            Self::Gcs(gcs) => vec![("STORAGE_EMULATOR_HOST", gcs.url())],
        }
    }

    /// Upload the bench's folder `name`.
    pub fn load(&self, bench: &Bench, name: &str) {
        for file in parts(&bench.path(name)) {
            let bytes = fs::read(&file).expect("a file");
            let key = format!("{name}/{}", file.file_name().and_then(|name| name.to_str()).expect("a name"));
            match self {
                Self::Disk => return,
                Self::Gcs(gcs) => gcs.put("input", &key, bytes),
                Self::S3(server) => {
                    runtime()
                        .block_on(server.bucket("bucket").put(&key.into(), bytes.into()))
                        .expect("stored");
                }
            }
        }
    }

    /// Download the published parts of the output `name` to the bench's folder `saved`.
    pub fn save(&self, bench: &Bench, name: &str) {
        let saved = bench.path("saved");
        let _ = fs::remove_dir_all(&saved);
        fs::create_dir_all(saved.join("predictions")).expect("folders");
        match self {
            Self::Disk => {
                for part in parts(&bench.path(name).join("predictions")) {
                    let is_part = part.extension().is_some_and(|extension| extension == "parquet");
                    if is_part {
                        let file = part.file_name().expect("a name");
                        fs::copy(&part, saved.join("predictions").join(file)).expect("a copy");
                    }
                }
            }
            Self::Gcs(gcs) => {
                gcs.save_folder("bucket", &format!("{name}/predictions/"), &saved.join("predictions"));
            }
            Self::S3(server) => {
                let (store, runtime) = (server.bucket("bucket"), runtime());
                let folder = object_store::path::Path::from(format!("{name}/predictions"));
                let listed: Vec<_> =
                    runtime.block_on(store.list(Some(&folder)).try_collect()).expect("a list");
                for object in listed {
                    let read = async { store.get(&object.location).await?.bytes().await };
                    let file = object.location.filename().expect("a name");
                    fs::write(
                        saved.join("predictions").join(file),
                        runtime.block_on(read).expect("an object"),
                    )
                    .expect("a file");
                }
            }
        }
    }
}

impl Place {
    /// Names of the objects in a folder. On a disk, they include files that are still being written.
    pub fn names(&self, bench: &Bench, folder: &str) -> Vec<String> {
        match self {
            Self::Disk => {
                let files = fs::read_dir(bench.path(folder)).into_iter().flatten().flatten();
                files.map(|file| file.file_name().to_string_lossy().into_owned()).collect()
            }
            Self::Gcs(gcs) => {
                let keys = gcs.keys("bucket").into_iter();
                keys.filter_map(|key| Some(key.strip_prefix(folder)?.strip_prefix('/')?.to_owned())).collect()
            }
            Self::S3(server) => {
                let store = server.bucket("bucket");
                let folder = object_store::path::Path::from(folder);
                let listed: Vec<_> =
                    runtime().block_on(store.list(Some(&folder)).try_collect()).expect("a list");
                listed.iter().filter_map(|object| object.location.filename().map(str::to_owned)).collect()
            }
        }
    }

    /// The bytes of an object, if there is one.
    pub fn read(&self, bench: &Bench, name: &str) -> Option<Vec<u8>> {
        match self {
            Self::Disk => fs::read(bench.path(name)).ok(),
            Self::Gcs(gcs) => gcs.get("bucket", name).map(|bytes| bytes.to_vec()),
            Self::S3(server) => {
                let store = server.bucket("bucket");
                let read = async { store.get(&name.into()).await?.bytes().await };
                match runtime().block_on(read) {
                    Ok(bytes) => Some(bytes.to_vec()),
                    Err(object_store::Error::NotFound { .. }) => None,
                    Err(error) => panic!("{name}: {error}"),
                }
            }
        }
    }

    /// Store a file of the bench's folder `in` again, so that it has another version.
    pub fn put_input(&self, file: &Path, bytes: &[u8]) {
        fs::write(file, bytes).expect("a file");
        let key = input_key(file);
        match self {
            Self::Disk => {
                // a file system may store times in coarse steps
                let later = SystemTime::now() + Duration::from_secs(1);
                fs::File::options()
                    .write(true)
                    .open(file)
                    .and_then(|file| file.set_modified(later))
                    .expect("a time");
            }
            Self::Gcs(gcs) => gcs.put("input", &key, bytes.to_vec()),
            Self::S3(server) => {
                let put = async { server.bucket("bucket").put(&key.into(), bytes.to_vec().into()).await };
                runtime().block_on(put).expect("stored");
            }
        }
    }

    /// Remove a file of the bench's folder `in`.
    pub fn remove_input(&self, file: &Path) {
        fs::remove_file(file).expect("a file");
        let key = input_key(file);
        match self {
            Self::Disk => {}
            Self::Gcs(gcs) => gcs.remove("input", &key),
            Self::S3(server) => {
                let store = server.bucket("bucket");
                runtime().block_on(async { store.delete(&key.into()).await }).expect("removed");
            }
        }
    }
}

fn input_key(file: &Path) -> String {
    format!("in/{}", file.file_name().and_then(|name| name.to_str()).expect("a name"))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime")
}

/// Rows by key, without the batch ids, which differ between attempts.
fn keyed(rows: Vec<Row>) -> BTreeMap<String, Row> {
    let count = rows.len();
    let keyed: BTreeMap<_, _> =
        rows.into_iter().map(|row| (row.key.clone(), Row { batch_id: None, ..row })).collect();
    assert_eq!(keyed.len(), count, "a row is duplicated");
    keyed
}

/// A random input in one kind of store, and the rows of an uninterrupted run over it.
pub struct Trial {
    pub bench: Bench,
    pub place: Place,
    pub settings: Vec<String>,
    pub expected: BTreeMap<String, Row>,
    /// Duration of the uninterrupted run.
    pub took: Duration,
}

impl Trial {
    pub fn new(place: Place, random: &mut Random) -> Self {
        let bench = Bench::new();
        let mut seed = random.below(1 << 20) as u32;
        for shard in 0..2 + random.below(6) {
            // one shard in three is long enough for checkpoints
            let records = if random.below(3) == 0 { 3000 + random.below(6000) } else { random.below(400) };
            let records = images(seed, records as u32);
            seed += records.len() as u32;
            match random.below(3) {
                0 => write_tar(&bench.path(&format!("in/{shard}.tar")), &records),
                1 => write_tfrecord(&bench.path(&format!("in/{shard}.tfrecord")), &records),
                _ => write_parquet(&bench.path(&format!("in/{shard}.parquet")), &records),
            }
        }
        for (id, bytes) in images(seed, random.below(100) as u32 + 1) {
            fs::write(bench.path(&format!("in/{id}.png")), bytes).expect("an image");
        }
        let settings = vec![
            format!("output.checkpoint_seconds={}", [0.02, 0.1, 0.5][random.below(3) as usize]),
            format!("engine.batch_size={}", [1, 4, 7, 32][random.below(4) as usize]),
            format!("input.files_per_shard={}", 1 + random.below(60)),
            format!("input.look_ahead={}", random.below(3)),
            format!("output.scores={}", ["all", "top2", "none"][random.below(3) as usize]),
            "storage.timeout_seconds=5".to_owned(),
        ];
        Self::with(bench, place, settings)
    }

    /// A trial over the bench's folder `in`.
    pub fn with_input(bench: Bench, place: Place) -> Self {
        let settings =
            vec!["output.checkpoint_seconds=0.01".to_owned(), "storage.timeout_seconds=5".to_owned()];
        Self::with(bench, place, settings)
    }

    /// A trial over the bench's folder `in`, whose runs have these settings.
    pub fn with(bench: Bench, place: Place, settings: Vec<String>) -> Self {
        place.load(&bench, "in");
        let mut trial = Self { bench, place, settings, expected: BTreeMap::new(), took: Duration::ZERO };
        let start = Instant::now();
        assert_code(&trial.command("uninterrupted", &[]).output().expect("starts"), 0);
        trial.took = start.elapsed();
        trial.expected = trial.rows("uninterrupted");
        trial
    }

    pub fn command(&self, out: &str, args: &[&str]) -> Command {
        let (input, output) = (self.place.uri(&self.bench, "in"), self.place.uri(&self.bench, out));
        let mut command = self.bench.command("run", &output, &[&["--input", &input], args].concat());
        for setting in &self.settings {
            command.args(["--set", setting]);
        }
        command.envs(self.place.environment()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn rows(&self, out: &str) -> BTreeMap<String, Row> {
        self.place.save(&self.bench, out);
        keyed(self.bench.rows("saved"))
    }

    /// A published row of the output `out` that an uninterrupted run does not have. There must be none at any time.
    pub fn unexpected_row(&self, out: &str) -> Option<String> {
        let published = self.rows(out);
        let mut rows = published.iter();
        let (key, _) = rows.find(|(key, row)| self.expected.get(*key) != Some(row))?;
        Some(format!("wrong or unexpected row {key}"))
    }

    /// The output of `sluice verify` if it fails.
    pub fn verify(&self, out: &str) -> Option<String> {
        let mut verify = sluice();
        verify.arg("verify").arg(self.place.uri(&self.bench, out)).envs(self.place.environment());
        let verified = verify.output().expect("starts");
        let failure = || format!("verify: {}{}", stdout(&verified), stderr(&verified));
        (!verified.status.success()).then(failure)
    }

    /// What is wrong with a finished output: `verify` fails, or its rows differ from the expected ones.
    pub fn fault_in(&self, out: &str) -> Option<String> {
        let failure = self.verify(out);
        if failure.is_some() {
            return failure;
        }
        difference(&self.expected, &self.rows(out))
    }
}

/// The first difference between rows, if there is any.
fn difference(expected: &BTreeMap<String, Row>, found: &BTreeMap<String, Row>) -> Option<String> {
    if expected.len() != found.len() {
        return Some(format!("{} rows, expected {}", found.len(), expected.len()));
    }
    let mut pairs = expected.values().zip(found.values());
    pairs.find(|(a, b)| a != b).map(|(a, b)| format!("{b:?}, expected {a:?}"))
}
