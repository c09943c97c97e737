//! The coders of a descriptor, as far as sluice supports them.

use std::collections::HashMap;
use std::sync::Arc;

use crate::beam::{proto::pipeline, urns};

/// The most coders that one coder may consist of, itself included. Ours consist of five. It ends coders that contain
/// themselves, and bounds how deep values nest.
const MAX_CODERS: usize = 100;

/// How values are encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Coder {
    Bytes,
    String,
    Varint,
    Kv(Arc<Coder>, Arc<Coder>),
    Iterable(Arc<Coder>),
    LengthPrefix(Arc<Coder>),
    Nullable(Arc<Coder>),
    Window(Window),
}

/// How windows are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Window {
    /// The only window of a bounded input. It takes no bytes.
    Global,
    /// Its end in the format of timestamps, and its span in ms as a varint.
    Interval,
}

/// How the elements of a data stream are encoded: `beam:coder:windowed_value:v1`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ElementCoder {
    pub value: Arc<Coder>,
    pub window: Window,
}

/// A coder of a descriptor cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CoderError {
    #[error("the descriptor has no coder {id}")]
    Missing { id: String },
    #[error("coder {id} is {urn}, which sluice does not support")]
    Unsupported { id: String, urn: String },
    #[error("coder {id} is {urn}, which sluice supports only as the coder of {place}")]
    Misplaced { id: String, urn: String, place: &'static str },
    #[error("coder {id} is {urn} and has {found} components, expected {expected}")]
    Components { id: String, urn: String, found: usize, expected: usize },
    #[error("coder {id} consists of more than {MAX_CODERS} coders, or contains itself")]
    TooLarge { id: String },
}

/// The coders of a descriptor by id.
type Coders = HashMap<String, pipeline::Coder>;

impl Coder {
    /// The coder `id` of `coders`. Coders that it does not consist of are not looked at.
    pub fn resolve(coders: &Coders, id: &str) -> Result<Self, CoderError> {
        let mut left = MAX_CODERS;
        resolve(coders, id, &mut left).map_err(|error| match error {
            CoderError::TooLarge { .. } => CoderError::TooLarge { id: id.to_owned() },
            other => other,
        })
    }

    /// Its URN.
    pub fn urn(&self) -> &'static str {
        match self {
            Self::Bytes => urns::BYTES,
            Self::String => urns::STRING,
            Self::Varint => urns::VARINT,
            Self::Kv(..) => urns::KV,
            Self::Iterable(_) => urns::ITERABLE,
            Self::LengthPrefix(_) => urns::LENGTH_PREFIX,
            Self::Nullable(_) => urns::NULLABLE,
            Self::Window(Window::Global) => urns::GLOBAL_WINDOW,
            Self::Window(Window::Interval) => urns::INTERVAL_WINDOW,
        }
    }

    /// Whether none of its values takes a byte.
    pub fn takes_no_bytes(&self) -> bool {
        match self {
            Self::Window(Window::Global) => true,
            Self::Kv(key, value) => key.takes_no_bytes() && value.takes_no_bytes(),
            _ => false,
        }
    }
}

impl ElementCoder {
    /// The coder `id` of `coders`, which a port of the data channel names.
    pub fn resolve(coders: &Coders, id: &str) -> Result<Self, CoderError> {
        let (urn, coder) = find(coders, id)?;
        if urn != urns::WINDOWED_VALUE {
            return Err(CoderError::Unsupported {
                id: format!("{id} of a data stream"),
                urn: urn.to_owned(),
            });
        }
        let [value, window] = components(id, urn, coder)?;
        let window = match Coder::resolve(coders, window)? {
            Coder::Window(window) => window,
            other => {
                let id = format!("{window} of windows");
                return Err(CoderError::Unsupported { id, urn: other.urn().to_owned() });
            }
        };
        Ok(Self { value: Arc::new(Coder::resolve(coders, value)?), window })
    }
}

fn resolve(coders: &Coders, id: &str, left: &mut usize) -> Result<Coder, CoderError> {
    *left = left.checked_sub(1).ok_or_else(|| CoderError::TooLarge { id: id.to_owned() })?;
    let (urn, coder) = find(coders, id)?;
    let mut component = |id: &str| resolve(coders, id, left).map(Arc::new);
    let resolved = match urn {
        urns::BYTES => Coder::Bytes,
        urns::STRING => Coder::String,
        urns::VARINT => Coder::Varint,
        urns::GLOBAL_WINDOW => Coder::Window(Window::Global),
        urns::INTERVAL_WINDOW => Coder::Window(Window::Interval),
        urns::KV => {
            let [key, value] = components(id, urn, coder)?;
            Coder::Kv(component(key)?, component(value)?)
        }
        // they differ only in that a state-backed one may continue in the runner's state
        urns::ITERABLE | urns::STATE_BACKED_ITERABLE => {
            let [item] = components(id, urn, coder)?;
            Coder::Iterable(component(item)?)
        }
        urns::LENGTH_PREFIX => {
            let [inner] = components(id, urn, coder)?;
            Coder::LengthPrefix(component(inner)?)
        }
        urns::NULLABLE => {
            let [inner] = components(id, urn, coder)?;
            Coder::Nullable(component(inner)?)
        }
        urns::WINDOWED_VALUE => {
            return Err(CoderError::Misplaced {
                id: id.to_owned(),
                urn: urn.to_owned(),
                place: "a data stream",
            });
        }
        _ => return Err(CoderError::Unsupported { id: id.to_owned(), urn: urn.to_owned() }),
    };
    Ok(resolved)
}

/// The URN of coder `id`, and the coder.
fn find<'a>(coders: &'a Coders, id: &str) -> Result<(&'a str, &'a pipeline::Coder), CoderError> {
    let coder = coders.get(id).ok_or_else(|| CoderError::Missing { id: id.to_owned() })?;
    let urn = coder.spec.as_ref().map_or("without a URN", |spec| &spec.urn);
    Ok((urn, coder))
}

/// The ids of the coder's `N` components.
fn components<'a, const N: usize>(
    id: &str,
    urn: &str,
    coder: &'a pipeline::Coder,
) -> Result<&'a [String; N], CoderError> {
    let ids = &coder.component_coder_ids;
    ids.as_slice().try_into().map_err(|_| CoderError::Components {
        id: id.to_owned(),
        urn: urn.to_owned(),
        found: ids.len(),
        expected: N,
    })
}
