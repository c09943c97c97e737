//! The schema of a Parquet file, read from its footer before the Parquet library sees it.
//!
//! Input: the footer's list of schema elements. Output: a tree of [`Field`]s.
//!
//! - The library walks a schema recursively and makes several allocations for each element, so both depth and number
//!   are limited here.
//! - Names are slices of the footer: a field costs the same however long its name is.
//!
//! The layout is that of `SchemaElement` in Apache Parquet's `parquet.thrift`, the types those of its
//! `LogicalTypes.md`.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::ops::Range;

use bytes::Bytes;

use super::thrift::{BINARY, Compact, I32, STRUCT, malformed};

/// The most fields, groups included: ten times as many as the widest tables have.
pub(super) const MAX_FIELDS: u64 = 100_000;

/// Bytes of memory for a field.
pub(super) const FIELD_BYTES: u64 = size_of::<Field>() as u64;

/// Deepest nesting of groups. A list of lists takes four.
const MAX_DEPTH: usize = 64;

/// Children that the description of a group names.
const CHILDREN_NAMED: usize = 4;

/// A column, or a group of columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Field {
    pub name: Bytes,
    pub kind: Kind,
    /// How often it may occur in its parent, as the format numbers it.
    pub repetition: Option<u64>,
    /// The bytes of its element in the footer.
    pub element: Range<usize>,
    pub children: Vec<Field>,
    /// Whether it is a column, not a group.
    pub is_leaf: bool,
    /// The number of leaf columns before it in the file.
    pub first_leaf: usize,
}

/// The type of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Struct,
    /// A group whose only child repeats.
    List,
    Map,
    Boolean,
    Integer {
        bits: u8,
    },
    Float,
    /// Dates, times, decimal numbers.
    Other(&'static str),
    Binary,
    Text,
    /// Values of this many bytes.
    FixedBinary(u64),
    Uuid,
    /// Nothing but nulls.
    Null,
}

impl Field {
    /// Read the list of elements at the position of `compact`, which reads `footer`.
    ///
    /// # Errors
    /// A malformed schema, or one over a limit.
    pub fn read(compact: &mut Compact<&[u8]>, footer: &Bytes) -> io::Result<Self> {
        let fields = compact.list(STRUCT)?;
        if fields > MAX_FIELDS {
            let message = format!("the schema has {fields} fields, limit is {MAX_FIELDS}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        let mut left = fields;
        let mut leaves = 0;
        let root = Self::read_tree(compact, footer, &mut left, &mut leaves, 0)?;
        if left > 0 || root.kind != Kind::Struct {
            return Err(malformed("the schema is not one tree"));
        }
        Ok(root)
    }

    fn read_tree(
        compact: &mut Compact<&[u8]>,
        footer: &Bytes,
        left: &mut u64,
        leaves: &mut usize,
        depth: usize,
    ) -> io::Result<Self> {
        if depth > MAX_DEPTH {
            let message = format!("the schema has more than {MAX_DEPTH} groups inside each other");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        *left = left.checked_sub(1).ok_or_else(|| malformed("a group has more children than there are"))?;
        let element = Element::read(compact, footer)?;
        let first_leaf = *leaves;
        if element.children > *left {
            return Err(malformed("a group has more children than there are"));
        }
        let mut children = Vec::with_capacity(element.children as usize);
        for _ in 0..element.children {
            children.push(Self::read_tree(compact, footer, left, leaves, depth + 1)?);
        }
        let kind = if depth == 0 { Kind::Struct } else { element.kind(&children) };
        let is_leaf = depth > 0 && children.is_empty() && element.physical.is_some();
        *leaves += usize::from(is_leaf);
        let Element { name, range, repetition, .. } = element;
        Ok(Self { name, kind, repetition, element: range, children, is_leaf, first_leaf })
    }

    /// Whether it may occur any number of times in its parent.
    fn repeats(&self) -> bool {
        self.repetition == Some(REPEATED)
    }

    /// Its name as text, with invalid UTF-8 replaced.
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.name)
    }

    pub fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.name == name.as_bytes())
    }

    /// The fields on `path` below this one, from the top down to the one that `path` names.
    pub fn descend(&self, path: &str) -> Option<Vec<&Self>> {
        if let Some(child) = self.child(path) {
            return Some(vec![child]);
        }
        // names may contain dots themselves
        let dots = path.match_indices('.').map(|(at, _)| at);
        dots.filter_map(|dot| {
            let child = self.child(&path[..dot])?;
            let mut way = child.descend(&path[dot + 1..])?;
            way.insert(0, child);
            Some(way)
        })
        .next()
    }

    /// The item of a list; `None` if this is not a list.
    pub fn list_item(&self) -> Option<&Self> {
        if self.repeats() {
            return Some(self);
        }
        let repeated = (self.kind == Kind::List).then(|| self.children.first()).flatten()?;
        // three levels: the list, the repeated group, the item
        match &repeated.children[..] {
            [item] => Some(item),
            _ => Some(repeated),
        }
    }
}

/// The type, as messages name it.
impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let single = |field: &Self, f: &mut fmt::Formatter<'_>| match field.kind {
            Kind::Struct => {
                let names: Vec<_> =
                    field.children.iter().take(CHILDREN_NAMED).map(|child| child.text()).collect();
                let more = if field.children.len() > CHILDREN_NAMED { ", …" } else { "" };
                write!(f, "struct{{{}{more}}}", names.join(", "))
            }
            Kind::List => f.write_str("list"),
            Kind::Map => f.write_str("map"),
            Kind::Boolean => f.write_str("boolean"),
            Kind::Integer { bits } => write!(f, "int{bits}"),
            Kind::Float => f.write_str("float"),
            Kind::Other(name) => f.write_str(name),
            Kind::Binary => f.write_str("binary"),
            Kind::Text => f.write_str("string"),
            Kind::FixedBinary(bytes) => write!(f, "binary of {bytes} bytes"),
            Kind::Uuid => f.write_str("uuid"),
            Kind::Null => f.write_str("null"),
        };
        match self.list_item() {
            Some(item) => {
                f.write_str("list of ")?;
                single(item, f)
            }
            None => single(self, f),
        }
    }
}

/// One element as it is stored.
struct Element {
    range: Range<usize>,
    name: Bytes,
    physical: Option<u64>,
    length: u64,
    repetition: Option<u64>,
    children: u64,
    converted: Option<u64>,
    /// The member of the `LogicalType` union.
    logical: Option<i16>,
    integer_bits: Option<u8>,
}

const REPEATED: u64 = 2;

impl Element {
    fn read(compact: &mut Compact<&[u8]>, footer: &Bytes) -> io::Result<Self> {
        let start = compact.consumed as usize;
        let mut name = None;
        let mut numbers = [None; 7];
        let (mut logical, mut integer_bits) = (None, None);
        let mut id = 0;
        while let Some(field) = compact.field(&mut id)? {
            match (id, field) {
                (1..=3 | 5..=6, I32) => {
                    // some writers store a negative length for none
                    let number = u64::try_from(compact.integer()?).unwrap_or_default();
                    if numbers[id as usize].replace(number).is_some() {
                        return Err(malformed("a schema element has a field twice"));
                    }
                }
                (4, BINARY) => {
                    let bytes = compact.varint()?;
                    let from = compact.consumed as usize;
                    compact.pass(bytes)?;
                    name = Some(footer.slice(from..compact.consumed as usize));
                }
                (10, STRUCT) => (logical, integer_bits) = logical_type(compact)?,
                (1..=10, _) if !matches!((id, field), (7..=9, I32)) => {
                    return Err(malformed("a field of a schema element is of another type"));
                }
                _ => compact.skip(field, 1)?,
            }
        }
        let [_, physical, length, repetition, _, children, converted] = numbers;
        Ok(Self {
            range: start..compact.consumed as usize,
            name: name.ok_or_else(|| malformed("a schema element has no name"))?,
            physical,
            length: length.unwrap_or_default(),
            repetition,
            children: children.unwrap_or_default(),
            converted,
            logical,
            integer_bits,
        })
    }

    fn kind(&self, children: &[Field]) -> Kind {
        // values of `ConvertedType`
        const UTF8: u64 = 0;
        const MAP: u64 = 1;
        const MAP_KEY_VALUE: u64 = 2;
        const LIST: u64 = 3;
        const ENUM: u64 = 4;
        const DECIMAL: u64 = 5;
        const JSON: u64 = 19;
        if !children.is_empty() {
            return match (self.logical, self.converted) {
                (Some(2), _) | (None, Some(MAP | MAP_KEY_VALUE)) => Kind::Map,
                (Some(3), _) | (None, Some(LIST)) if matches!(children, [child] if child.repeats()) => {
                    Kind::List
                }
                _ => Kind::Struct,
            };
        }
        match (self.physical, self.logical, self.converted) {
            (None, ..) => Kind::Struct,
            (_, Some(11), _) => Kind::Null,
            (_, Some(5), _) | (_, None, Some(DECIMAL)) => Kind::Other("decimal"),
            (_, Some(6), _) | (_, None, Some(6)) => Kind::Other("date"),
            (_, Some(7), _) | (_, None, Some(7 | 8)) => Kind::Other("time"),
            (_, Some(8), _) | (_, None, Some(9 | 10)) => Kind::Other("timestamp"),
            (Some(0), ..) => Kind::Boolean,
            (Some(1), _, converted) => {
                Kind::Integer { bits: self.integer_bits.unwrap_or(bits(converted, 32)) }
            }
            (Some(2), _, converted) => {
                Kind::Integer { bits: self.integer_bits.unwrap_or(bits(converted, 64)) }
            }
            (Some(3), ..) => Kind::Other("timestamp"),
            (Some(4 | 5), ..) => Kind::Float,
            (Some(6), Some(1 | 4 | 12), _) | (Some(6), None, Some(UTF8 | ENUM | JSON)) => Kind::Text,
            (Some(6), ..) => Kind::Binary,
            (Some(7), Some(14), _) => Kind::Uuid,
            (Some(7), Some(15), _) => Kind::Float,
            (Some(7), _, Some(21)) => Kind::Other("interval"),
            (Some(7), ..) => Kind::FixedBinary(self.length),
            _ => Kind::Other("of an unknown type"),
        }
    }
}

/// Bits of an integer by its `ConvertedType`: `UINT_8` to `UINT_64`, then `INT_8` to `INT_64`.
fn bits(converted: Option<u64>, physical: u8) -> u8 {
    match converted {
        Some(of @ 11..=18) => 8 << ((of - 11) % 4),
        _ => physical,
    }
}

/// The member of the `LogicalType` union and, for an integer, its bits.
fn logical_type(compact: &mut Compact<&[u8]>) -> io::Result<(Option<i16>, Option<u8>)> {
    const INTEGER: i16 = 10;
    let (mut member, mut integer_bits) = (None, None);
    let mut id = 0;
    while let Some(field) = compact.field(&mut id)? {
        if member.replace(id).is_some() {
            return Err(malformed("a logical type is two at once"));
        }
        if (id, field) == (INTEGER, STRUCT) {
            let mut inner = 0;
            while let Some(field) = compact.field(&mut inner)? {
                match (inner, field) {
                    (1, super::thrift::BYTE) => integer_bits = Some(compact.byte()?),
                    _ => compact.skip(field, 3)?,
                }
            }
        } else {
            compact.skip(field, 2)?;
        }
    }
    Ok((member, integer_bits))
}
