//! Which columns of a Parquet file hold the images and their ids.
//!
//! Input: the schema of a file and the keys of the pipeline. Output: [`Columns`], and the values that rows have in
//! them.
//!
//! - A key is the name of a column, or a path through structs with dots between the names.
//! - If the keys do not fit a file, [`ReadError::Config`] names the key and the columns of the file.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType};
use arrow_array::{Array, ArrayRef, RecordBatch, StringArray};
use arrow_cast::cast::{can_cast_types, cast};
use arrow_schema::{DataType, TimeUnit};

use crate::error::ReadError;

use super::schema::{Field, Kind};
use crate::source::records::ReadOptions;

/// The image column if no `image_key` is given and several columns may hold images.
const DEFAULT_IMAGE_COLUMN: &str = "image";

/// Children of Hugging Face's image struct.
const STRUCT_BYTES: &str = "bytes";
const STRUCT_PATH: &str = "path";

/// Columns that a message lists.
const COLUMNS_LISTED: usize = 20;

/// Which columns to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Columns {
    /// Names from the top down to the binary column.
    image: Vec<String>,
    /// The same for the path beside the image.
    path: Option<Vec<String>>,
    /// The same for the column with ids.
    id: Option<Vec<String>>,
    id_is_uuid: bool,
    /// The numbers of the leaves to read, in the file's order.
    pub leaves: Vec<usize>,
    /// The one of them with the images.
    pub image_leaf: usize,
}

/// The columns of a batch of rows.
pub(super) struct Values {
    /// Binary; null if a row has no image.
    pub images: ArrayRef,
    /// The structs around the images. A row has no image if one of them is null.
    around: Vec<ArrayRef>,
    /// Strings beside the images: their paths.
    pub paths: Option<StringArray>,
    pub ids: Option<StringArray>,
}

impl Columns {
    /// Find the columns of a file with this schema.
    ///
    /// # Errors
    /// [`ReadError::Config`].
    pub fn find(schema: &Field, options: &ReadOptions) -> Result<Self, ReadError> {
        Self::find_in(schema, options).map_err(ReadError::Config)
    }

    fn find_in(schema: &Field, options: &ReadOptions) -> Result<Self, String> {
        let way = match &options.image_key {
            Some(key) => named_image(schema, key)?,
            None => vec![only_image(schema)?],
        };
        let mut image: Vec<_> = way.iter().map(|field| field.text().into_owned()).collect();
        let field = way.last().ok_or("input.image_key is empty")?;
        let (mut path, mut leaf) = (None, *field);
        if let Some(bytes) = bytes_of(field) {
            let beside = field.child(STRUCT_PATH).filter(|path| path.kind == Kind::Text);
            path = beside.map(|beside| {
                let name = [&image[..], &[STRUCT_PATH.to_owned()]].concat();
                (name, beside.first_leaf)
            });
            image.push(STRUCT_BYTES.to_owned());
            leaf = bytes;
        }
        let id = options.id_key.as_ref().map(|key| named_id(schema, key)).transpose()?;
        if let (Some(id), Some(key)) = (&id, &options.id_key)
            && id.last().is_some_and(|id| id.first_leaf == leaf.first_leaf)
        {
            return Err(format!("input.id_key names the column {key}, which holds the images"));
        }
        let id_leaf = id.as_ref().and_then(|way| way.last());
        let mut leaves = vec![leaf.first_leaf];
        leaves.extend(path.as_ref().map(|(_, leaf)| *leaf));
        leaves.extend(id_leaf.map(|id| id.first_leaf));
        leaves.sort_unstable();
        leaves.dedup();
        Ok(Self {
            image,
            path: path.map(|(name, _)| name),
            id_is_uuid: id_leaf.is_some_and(|id| id.kind == Kind::Uuid),
            id: id.map(|way| way.iter().map(|field| field.text().into_owned()).collect()),
            leaves,
            image_leaf: leaf.first_leaf,
        })
    }

    /// The values of these columns in `batch`.
    pub fn values(&self, batch: &RecordBatch) -> Result<Values, ReadError> {
        let (images, around) = column(batch, &self.image)?;
        if images.as_binary_opt::<i32>().is_none() {
            return Err(ReadError::Corrupt(format!("column {} is not binary", self.image.join("."))));
        }
        let text = |name: &Option<Vec<String>>, is_uuid| {
            let name = name.as_ref();
            name.map(|name| column(batch, name).and_then(|(ids, _)| as_text(&ids, is_uuid))).transpose()
        };
        let (paths, ids) = (text(&self.path, false)?, text(&self.id, self.id_is_uuid)?);
        Ok(Values { images, around, paths, ids })
    }
}

impl Values {
    /// The image of a row, if it has one.
    pub fn image(&self, row: usize) -> Option<&[u8]> {
        let is_null = self.images.is_null(row) || self.around.iter().any(|around| around.is_null(row));
        (!is_null).then(|| self.images.as_binary::<i32>().value(row))
    }

    /// A string of a row, if it has one that is not empty.
    pub fn text(column: Option<&StringArray>, row: usize) -> Option<&str> {
        column
            .filter(|column| column.is_valid(row))
            .map(|column| column.value(row))
            .filter(|text| !text.is_empty())
    }
}

/// The column of that name, and the structs around it.
fn column(batch: &RecordBatch, name: &[String]) -> Result<(ArrayRef, Vec<ArrayRef>), ReadError> {
    let missing = || ReadError::Corrupt(format!("column {} is not where the footer says", name.join(".")));
    let (first, rest) = name.split_first().ok_or_else(missing)?;
    let mut found = batch.column_by_name(first).cloned().ok_or_else(missing)?;
    let mut around = Vec::new();
    for name in rest {
        let child = found.as_struct_opt().and_then(|parts| parts.column_by_name(name).cloned());
        let child = child.ok_or_else(missing)?;
        around.push(std::mem::replace(&mut found, child));
    }
    Ok((found, around))
}

/// Ids as text: numbers in decimal, dates in ISO 8601, and bytes in hexadecimal if they have a fixed length or are not
/// UTF-8.
fn as_text(ids: &ArrayRef, is_uuid: bool) -> Result<StringArray, ReadError> {
    let bytes = |value: &[u8]| match std::str::from_utf8(value) {
        _ if is_uuid && value.len() == 16 => uuid(value),
        Ok(text) => text.to_owned(),
        Err(_) => hex(value),
    };
    if let Some(ids) = ids.as_binary_opt::<i32>() {
        return Ok(ids.iter().map(|id| id.map(bytes)).collect());
    }
    if let Some(ids) = ids.as_fixed_size_binary_opt() {
        let fixed = |value: &[u8]| if is_uuid { bytes(value) } else { hex(value) };
        return Ok(ids.iter().map(|id| id.map(fixed)).collect());
    }
    let ids = &in_utc(ids);
    let kind = ids.data_type();
    if !can_cast_types(kind, &DataType::Utf8) {
        return Err(ReadError::Config(format!("input.id_key names a column of {kind}, which is no id")));
    }
    let text =
        cast(ids, &DataType::Utf8).map_err(|error| ReadError::Corrupt(format!("id column: {error}")))?;
    Ok(text.as_string::<i32>().clone())
}

/// Timestamps with a zone in UTC, written as an offset. Parquet stores them in UTC, and Arrow can write an offset as
/// text without a time zone database.
fn in_utc(times: &ArrayRef) -> ArrayRef {
    const UTC: &str = "+00:00";
    match times.data_type() {
        DataType::Timestamp(TimeUnit::Millisecond, Some(_)) => {
            Arc::new(times.as_primitive::<TimestampMillisecondType>().clone().with_timezone(UTC))
        }
        DataType::Timestamp(TimeUnit::Microsecond, Some(_)) => {
            Arc::new(times.as_primitive::<TimestampMicrosecondType>().clone().with_timezone(UTC))
        }
        DataType::Timestamp(TimeUnit::Nanosecond, Some(_)) => {
            Arc::new(times.as_primitive::<TimestampNanosecondType>().clone().with_timezone(UTC))
        }
        _ => Arc::clone(times),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The text form of a UUID, with hyphens (RFC 9562).
fn uuid(bytes: &[u8]) -> String {
    let digits = hex(bytes);
    [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-")
}

/// The binary child of a struct as Hugging Face stores images.
fn bytes_of(field: &Field) -> Option<&Field> {
    let is_struct = field.kind == Kind::Struct && field.list_item().is_none();
    let bytes = is_struct.then(|| field.child(STRUCT_BYTES)).flatten()?;
    (bytes.kind == Kind::Binary && bytes.list_item().is_none()).then_some(bytes)
}

fn is_image(field: &Field) -> bool {
    field.list_item().is_none() && (field.kind == Kind::Binary || bytes_of(field).is_some())
}

/// Whether `field` is a list whose items may be images.
fn is_list_of_images(field: &Field) -> bool {
    let item = field.list_item();
    item.is_some_and(|item| {
        item.kind == Kind::Binary
            || item.kind == Kind::Struct
                && item.child(STRUCT_BYTES).is_some_and(|bytes| bytes.kind == Kind::Binary)
    })
}

/// The columns of a file and their types.
fn listed(schema: &Field) -> String {
    let columns = schema.children.iter().take(COLUMNS_LISTED);
    let mut text = columns.map(|field| format!("{} ({field})", field.text())).collect::<Vec<_>>().join(", ");
    match schema.children.len() {
        0 => text.push_str("no columns"),
        columns if columns > COLUMNS_LISTED => {
            text.push_str(&format!(" and {} more", columns - COLUMNS_LISTED));
        }
        _ => {}
    }
    text
}

/// The path to the field that `key` names.
fn named<'a>(schema: &'a Field, key: &str, setting: &str) -> Result<Vec<&'a Field>, String> {
    let way = schema.descend(key);
    way.ok_or_else(|| {
        format!("{setting} is {key}, which is no column of the file; it has: {}", listed(schema))
    })
}

const ONE_IMAGE_A_ROW: &str = "a row holds one image: write a row for each item of the list";

fn named_image<'a>(schema: &'a Field, key: &str) -> Result<Vec<&'a Field>, String> {
    let way = named(schema, key, "input.image_key")?;
    if let Some(list) = way.iter().find(|field| field.list_item().is_some()) {
        return Err(format!("input.image_key is {key}, but {} is {list}; {ONE_IMAGE_A_ROW}", list.text()));
    }
    match way.last() {
        Some(field) if is_image(field) => Ok(way),
        Some(field) if field.kind == Kind::Text => Err(format!(
            "input.image_key is {key}, which is text, not the bytes of images; addresses of images can be scored as a \
             manifest"
        )),
        Some(field) => Err(format!(
            "input.image_key is {key}, which is {field}, expected binary or a struct with binary {STRUCT_BYTES}"
        )),
        None => Err("input.image_key is empty".to_owned()),
    }
}

/// The image column if no key names it.
fn only_image(schema: &Field) -> Result<&Field, String> {
    let candidates: Vec<_> = schema.children.iter().filter(|field| is_image(field)).collect();
    let named = candidates.iter().copied().find(|field| *field.name == *DEFAULT_IMAGE_COLUMN.as_bytes());
    let field = match (named, &candidates[..]) {
        (Some(field), _) | (None, &[field]) => field,
        (None, []) => {
            let mut message = format!("no column holds images as bytes; the file has: {}", listed(schema));
            if let Some(list) = schema.children.iter().find(|field| is_list_of_images(field)) {
                message = format!("{message}; {} is {list}: {ONE_IMAGE_A_ROW}", list.text());
            } else if let Some(path) = nested_image(schema) {
                message = format!("{message}; set input.image_key, to {path} for example");
            }
            return Err(message);
        }
        (None, _) => {
            let names: Vec<_> = candidates.iter().take(COLUMNS_LISTED).map(|field| field.text()).collect();
            let names = names.join(", ");
            return Err(format!(
                "several columns may hold the images: set input.image_key to one of {names}"
            ));
        }
    };
    Ok(field)
}

/// A column inside a struct that may hold images.
fn nested_image(schema: &Field) -> Option<String> {
    schema.children.iter().filter(|field| field.list_item().is_none()).find_map(|field| {
        let inner = field.children.iter().find(|child| is_image(child))?;
        Some(format!("{}.{}", field.text(), inner.text()))
    })
}

fn named_id<'a>(schema: &'a Field, key: &str) -> Result<Vec<&'a Field>, String> {
    let way = named(schema, key, "input.id_key")?;
    let wrong = way.iter().find(|field| field.list_item().is_some() || field.kind == Kind::Map);
    let wrong = wrong.or(way.last().filter(|field| field.kind == Kind::Struct));
    match wrong {
        Some(field) => {
            Err(format!("input.id_key is {key}, which is {field}, expected a text, a number or bytes"))
        }
        None => Ok(way),
    }
}

#[cfg(test)]
#[path = "columns_tests.rs"]
mod tests;
