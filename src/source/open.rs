//! Opens shards of all formats.
//!
//! Input: a [`ShardRef`]. Output: [`Records`], in the order in which they are stored.
//!
//! - A reader ends after its first error. A storage error takes precedence over the damage that the parser reports
//!   because of it: nothing is known about data that did not arrive.

use crate::error::{ReadError, SourceError, StorageError};
use crate::items::{RawRecord, ShardContent, ShardFormat, ShardRef, Status};
use crate::sniff::is_tfrecord;

use super::compression::{decompressed, decompressed_records};
use super::files::FileRecords;
use super::parquet::{self, ParquetRecords};
use super::read_ahead::Turn;
use super::records::{OpenedShard, ReadOptions, Records, guarded, records};
use super::skips::Skips;
use super::tfrecord::TfRecords;
use super::webdataset::TarRecords;
use crate::store::{ColumnWindows, Object, Stores};

/// Start reading `shard` at the record `first`, or earlier if its format must be read from the beginning
/// ([`OpenedShard::first_record`]). Blocks on the store for the first bytes of a container.
///
/// # Errors
/// [`ReadError::Storage`] when the object cannot be opened, [`ReadError::Corrupt`] when its first bytes (or, for
/// Parquet, its footer) cannot be parsed, [`ReadError::Config`] when its compression is not supported or the pipeline's
/// keys do not fit it.
pub fn open_shard(
    stores: &Stores,
    shard: &ShardRef,
    first: u64,
    options: &ReadOptions,
) -> Result<OpenedShard, ReadError> {
    open(stores, shard, first, options, None)
}

/// Like [`open_shard`], for a shard that is read ahead: reads that take much memory wait for its `turn`.
pub fn open_shard_in_turn(
    stores: &Stores,
    shard: &ShardRef,
    first: u64,
    options: &ReadOptions,
    turn: &Turn,
) -> Result<OpenedShard, ReadError> {
    open(stores, shard, first, options, Some(turn))
}

fn open(
    stores: &Stores,
    shard: &ShardRef,
    first: u64,
    options: &ReadOptions,
    turn: Option<&Turn>,
) -> Result<OpenedShard, ReadError> {
    let object = match &shard.content {
        ShardContent::Objects(entries) => {
            // loose images can be read from any position
            let first_record = first;
            let skips = Skips::default();
            let mut reader = FileRecords::new(
                stores.clone(),
                entries.clone(),
                first_record,
                options.max_image_bytes,
                skips.clone(),
            );
            let next = move || guarded(ShardFormat::Files, || reader.next_record());
            return Ok(OpenedShard { first_record, records: records(next), skips });
        }
        ShardContent::Container(object) => {
            Object::open(stores, object).map_err(|error| unreadable(stores, error))?
        }
    };
    let (format, skips) = (shard.format, Skips::default());
    let inner = guarded(format, || open_container(&object, format, options, &skips, turn));
    let mut inner = inner.map_err(|error| blame(&object, error))?;
    let inner = records(move || guarded(format, || inner.next().transpose()));
    let blamed = Blamed { object, inner, turn: turn.cloned(), ended: false };
    Ok(OpenedShard { first_record: 0, records: Box::new(blamed), skips })
}

/// Check that a shard has what the pipeline's keys name, judged by its first records.
///
/// # Errors
/// [`SourceError::Uri`], which says what does not fit and which key to set. All other errors are left to the reader of
/// the shard.
pub fn check_fit(stores: &Stores, shard: &ShardRef, options: &ReadOptions) -> Result<(), SourceError> {
    let ShardContent::Container(object) = &shard.content else { return Ok(()) };
    let Ok(object) = Object::open(stores, object) else { return Ok(()) };
    let checked = guarded(shard.format, || match shard.format {
        ShardFormat::Parquet => parquet::check_columns(&ColumnWindows::new(object), options),
        format => check_records(&object, format, options),
    });
    match checked {
        Err(ReadError::Config(message)) => Err(SourceError::Uri { uri: shard.name.clone(), message }),
        _ => Ok(()),
    }
}

/// Records that must all lack an image before a key is refused: a few records of a sound input may lack theirs.
const RECORDS_CHECKED: usize = 16;

/// Check that the compression of a tar or TFRecord file is supported, and that one of its first records has what the
/// key names.
fn check_records(object: &Object, format: ShardFormat, options: &ReadOptions) -> Result<(), ReadError> {
    let records = open_container(object, format, options, &Skips::default(), None)?;
    if format == ShardFormat::Webdataset && options.image_key.is_none() {
        return Ok(());
    }
    let mut first_reason = None;
    for record in records.take(RECORDS_CHECKED) {
        match record?.content {
            Err(rejected) if rejected.status == Status::MissingImage => {
                first_reason.get_or_insert(rejected.error);
            }
            _ => return Ok(()),
        }
    }
    first_reason
        .map_or(Ok(()), |reason| Err(ReadError::Config(format!("its first records hold no image: {reason}"))))
}

fn open_container(
    object: &Object,
    format: ShardFormat,
    options: &ReadOptions,
    skips: &Skips,
    turn: Option<&Turn>,
) -> Result<Records, ReadError> {
    let refused = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::Unsupported => ReadError::Config(error.to_string()),
        _ => ReadError::Corrupt(error.to_string()),
    };
    Ok(match format {
        ShardFormat::Tfrecord => {
            let content = decompressed_records(object.reader(), is_tfrecord).map_err(refused)?;
            let mut reader = TfRecords::new(content, options.clone());
            records(move || reader.next_record())
        }
        ShardFormat::Webdataset => {
            let content = decompressed(object.reader()).map_err(refused)?;
            let mut reader = TarRecords::new(content, options, skips.clone());
            records(move || reader.next_record())
        }
        ShardFormat::Parquet => {
            let windows = ColumnWindows::new(object.clone());
            let mut reader = ParquetRecords::open(windows.clone(), options, turn)?;
            windows.keep_inside(reader.column_chunks());
            records(move || reader.next_record())
        }
        ShardFormat::Files => {
            let message = "a container cannot hold loose files; this shard was put together wrongly";
            return Err(ReadError::Corrupt(message.to_owned()));
        }
    })
}

/// Records of a container. Decides for each error whether the data or the store is to blame.
struct Blamed {
    object: Object,
    inner: Records,
    turn: Option<Turn>,
    ended: bool,
}

impl Iterator for Blamed {
    type Item = Result<RawRecord, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.inner.next() {
            // nobody reads the shard any more, so the cause does not matter
            Some(Err(error)) if self.turn.as_ref().is_some_and(Turn::is_over) => Some(Err(error)),
            Some(Err(error)) => Some(Err(blame(&self.object, error))),
            None if !self.ended => {
                self.ended = true;
                self.object.check(false).err().map(|error| Err(storage_error(&self.object, error)))
            }
            item => item,
        }
    }
}

/// The error of the store if it failed or sent wrong bytes, else `error`.
fn blame(object: &Object, error: ReadError) -> ReadError {
    let fault = object.take_error().or_else(|| object.check(true).err());
    fault.map_or(error, |fault| storage_error(object, fault))
}

fn storage_error(object: &Object, error: StorageError) -> ReadError {
    let fault = object.find_fault(&error.source);
    fault.map_or(ReadError::Storage(error), damaged_object)
}

/// A fault of the object itself is damage of its shard: the next attempt would meet it again.
fn damaged_object(fault: String) -> ReadError {
    ReadError::Corrupt(format!("it cannot be read as its store sends it: {fault}"))
}

/// An object that cannot be resolved is a storage error, like one that cannot be reached.
fn unreadable(stores: &Stores, error: SourceError) -> ReadError {
    match error {
        SourceError::Storage(error) => {
            let location = stores.resolve(&error.uri).ok();
            let fault =
                location.and_then(|at| stores.find_object_fault(&at, std::iter::empty(), &error.source));
            fault.map_or(ReadError::Storage(error), damaged_object)
        }
        SourceError::Uri { uri, message }
        | SourceError::NoInput { uri, message }
        | SourceError::Changed { shard: uri, message } => {
            let source = object_store::Error::Generic { store: "URI", source: message.into() };
            ReadError::Storage(StorageError { uri, source })
        }
        SourceError::Late { .. } => unreachable!("only the end of a run reports late shards"),
    }
}
