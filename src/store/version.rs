//! Versions of objects: entity tags, dates, and the metadata of files.
//!
//! Input: the metadata of an object in a listing, a look-up or an answer. Output: its version, the condition of a
//! request for that version, and whether an answer is of that version.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::time::UNIX_EPOCH;

use chrono::SecondsFormat;
use object_store::ObjectMeta;

use super::location::StoreKind;

/// Check that an answer is of the object that was seen before, as far as its size and version are known.
///
/// # Errors
/// [`object_store::Error::Precondition`] for another version, as from a store that was given the version as a condition;
/// [`object_store::Error::Generic`] for the same version with another size, which is a wrong answer.
pub(crate) fn check_unchanged(
    kind: StoreKind,
    answer: &ObjectMeta,
    size_bytes: Option<u64>,
    version: Option<&str>,
) -> object_store::Result<()> {
    let changed = |what: String| {
        let path = answer.location.to_string();
        Err(object_store::Error::Precondition { path, source: what.into() })
    };
    if let Some(size) = size_bytes
        && size != answer.size
    {
        let is_same = version.is_some_and(|version| match kind {
            StoreKind::Http => answer.e_tag.as_ref().is_some_and(|tag| is_same_tag(version, tag)),
            // the version was a condition of the request
            StoreKind::Bucket | StoreKind::Local => strong_tag(version).is_some(),
        });
        let what = format!("it was {size} bytes and is {}", answer.size);
        return if is_same {
            Err(object_store::Error::Generic { store: "read", source: what.into() })
        } else {
            changed(what)
        };
    }
    // buckets and disks evaluate conditions themselves, and a bucket may write a version differently in its listing
    let Some(version) = version.filter(|version| kind == StoreKind::Http || strong_tag(version).is_none())
    else {
        return Ok(());
    };
    let stated = if version.starts_with(DATED) { dated(answer) } else { answer.e_tag.clone() };
    match stated {
        Some(stated) if !is_same_tag(version, &stated) => {
            changed(format!("its version was {version} and is {stated}"))
        }
        _ => Ok(()),
    }
}

/// The start of a version that is a date.
const DATED: &str = "W/\"modified ";

/// The date of an object's last modification as a tag; `None` if its server states none.
fn dated(meta: &ObjectMeta) -> Option<String> {
    let date = meta.last_modified;
    (date.timestamp() != 0).then(|| format!("{DATED}{}\"", date.to_rfc3339_opts(SecondsFormat::Secs, true)))
}

/// The version of an object: its entity tag, or on a web server without tags its date.
pub(crate) fn version_of(kind: StoreKind, meta: &ObjectMeta) -> Option<String> {
    let tag = meta.e_tag.clone().map(quoted_tag);
    if kind == StoreKind::Http { tag.or_else(|| dated(meta)) } else { tag }
}

/// Weak comparison of entity tags (RFC 9110, 8.8.3.2).
fn is_same_tag(one: &str, other: &str) -> bool {
    let opaque = |tag: &str| tag.strip_prefix("W/").unwrap_or(tag).trim_matches('"').to_owned();
    opaque(one) == opaque(other)
}

/// `If-Match` compares strongly and never holds for a weak tag.
pub(super) fn strong_tag(tag: &str) -> Option<String> {
    (!tag.starts_with("W/")).then(|| tag.to_owned())
}

/// The condition that an object still has the known `version`, if that can be a condition.
///
/// # Errors
/// [`object_store::Error::NotSupported`] for a tag that no header can hold: the answer might be of another version.
pub(crate) fn condition(version: Option<&str>) -> object_store::Result<Option<String>> {
    let tag = version.and_then(strong_tag);
    match &tag {
        Some(tag) if http::HeaderValue::from_str(tag).is_err() => {
            let message =
                format!("its entity tag {tag:?} cannot be sent in a request, so it cannot be read as listed");
            Err(object_store::Error::NotSupported { source: message.into() })
        }
        _ => Ok(tag),
    }
}

/// Some servers list a tag without the quotes that it has in headers (RFC 9110, 8.8.3). With quotes, a version is the
/// same wherever it comes from.
fn quoted_tag(tag: String) -> String {
    if tag.ends_with('"') { tag } else { format!("\"{tag}\"") }
}

/// The version that `LocalFileSystem` derives from a file's inode, time and size, without another look-up.
pub(crate) fn local_version(metadata: &Metadata) -> String {
    let since_1970 = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let micros = since_1970.unwrap_or_default().as_micros();
    format!("\"{:x}-{micros:x}-{:x}\"", metadata.ino(), metadata.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::DateTime;

    #[test]
    fn a_tag_is_quoted_wherever_it_comes_from() {
        for tag in ["x", "\"x\""] {
            assert_eq!(quoted_tag(tag.to_owned()), "\"x\"");
        }
        assert_eq!(quoted_tag("W/\"x\"".to_owned()), "W/\"x\"");
    }

    #[test]
    fn an_answer_of_another_size_or_version_is_refused() {
        let answer = |size: u64, tag: Option<&str>| ObjectMeta {
            location: "a".into(),
            last_modified: Default::default(),
            size,
            e_tag: tag.map(str::to_owned),
            version: None,
        };
        let check = |answer: &ObjectMeta, version: Option<&str>| {
            check_unchanged(StoreKind::Http, answer, Some(5), version).is_ok()
        };
        assert!(check(&answer(5, None), Some("\"x\"")));
        assert!(check(&answer(5, Some("W/\"x\"")), Some("\"x\"")));
        assert!(check(&answer(5, Some("\"y\"")), None));
        assert!(!check(&answer(5, Some("W/\"y\"")), Some("W/\"x\"")));
        assert!(!check(&answer(6, Some("\"x\"")), Some("\"x\"")));
        let checked = |kind, answer, version| check_unchanged(kind, &answer, Some(5), version);
        for (kind, version) in [(StoreKind::Http, "\"x\""), (StoreKind::Bucket, "\"x\"")] {
            let wrong = checked(kind, answer(4, Some("\"x\"")), Some(version));
            assert!(matches!(wrong, Err(object_store::Error::Generic { .. })), "the request is repeated");
            let changed = checked(kind, answer(4, Some("\"y\"")), None);
            assert!(matches!(changed, Err(object_store::Error::Precondition { .. })));
        }
        assert!(check_unchanged(StoreKind::Http, &answer(6, None), None, None).is_ok());
        // without a tag only the date counts
        let on = |seconds: i64| ObjectMeta {
            last_modified: DateTime::from_timestamp(seconds, 0).expect("a date"),
            ..answer(5, None)
        };
        let version = version_of(StoreKind::Http, &on(1_000_000_000));
        assert_eq!(version.as_deref(), Some("W/\"modified 2001-09-09T01:46:40Z\""));
        assert!(check(&on(1_000_000_000), version.as_deref()));
        assert!(check(&on(0), version.as_deref()));
        assert!(!check(&on(1_000_000_001), version.as_deref()));
        assert!(check(&on(1_000_000_001), Some("\"x\"")));
        assert_eq!(strong_tag(&version.expect("dated")), None, "no server accepts a date as a tag");
        // the store compares the versions, unless the version cannot be a condition
        assert!(check_unchanged(StoreKind::Bucket, &answer(5, Some("y")), Some(5), Some("W/\"x\"")).is_err());
        assert!(check_unchanged(StoreKind::Bucket, &answer(5, Some("y")), Some(5), Some("x")).is_ok());
    }

    #[test]
    fn weak_tags_are_not_conditions() {
        assert_eq!(condition(Some("W/\"x\"")).expect("none"), None);
        assert_eq!(condition(Some("\"x\"")).expect("a condition"), Some("\"x\"".to_owned()));
        assert_eq!(condition(None).expect("none"), None);
    }

    #[test]
    fn a_tag_that_no_header_can_hold_is_the_objects_fault() {
        for tag in ["\"a\nb\"", "\"\0\"", "\"\u{7f}\""] {
            let error = condition(Some(tag)).expect_err("not sent");
            let fault = super::super::object_errors::unusable_object(&error).expect("of the object");
            assert!(fault.contains("cannot be sent") && !fault.contains('\n'), "{fault}");
        }
    }
}
