//! Whether an object of an input cannot be read, or its store fails.
//!
//! Comes in: the error of a read and what the listing said. Goes out: words for the object's own row, or nothing.

use std::io;

use crate::items::ObjectRef;

use super::own_trouble::is_about_credentials;
use super::stores::StoreKind;

/// What is wrong with this object alone, in words; `None` when it is the store that fails.
///
/// What a listing has found is taken to be there: if its bucket or folder is gone by now, or a bucket
/// denies it, then the others are as lost, and a run that went on would write a row of that for each.
pub(crate) fn object_fault(
    error: &object_store::Error,
    object: &ObjectRef,
    kind: Option<StoreKind>,
) -> Option<String> {
    let said = |what: &str| Some(what.to_owned());
    let listed = object.size_bytes.is_some();
    match error {
        object_store::Error::NotFound { .. } if is_bucket_gone(error) => return None,
        object_store::Error::NotFound { .. } if listed && is_folder_gone(object, kind) => return None,
        object_store::Error::NotFound { .. } => return said("not found"),
        object_store::Error::PermissionDenied { .. } if listed && kind == Some(StoreKind::Bucket) => {
            return None;
        }
        object_store::Error::PermissionDenied { .. } if is_about_credentials(error) => return None,
        object_store::Error::PermissionDenied { .. } => return said("permission denied"),
        object_store::Error::Precondition { .. } => return said("replaced since it was listed"),
        _ => {}
    }
    // the local store wraps what the operating system said
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return match error.kind() {
                io::ErrorKind::PermissionDenied => said("permission denied"),
                io::ErrorKind::NotADirectory => said("not found"),
                io::ErrorKind::InvalidInput => said(&error.to_string()),
                io::ErrorKind::InvalidFilename => said("the name is too long or not valid"),
                _ => None,
            };
        }
        cause = error.source();
    }
    None
}

/// Whether the answer says so: Google's and Amazon's word for it, and Azure's.
fn is_bucket_gone(error: &object_store::Error) -> bool {
    let answer = error.to_string();
    ["NoSuchBucket", "ContainerNotFound"].iter().any(|code| answer.contains(code))
}

fn is_folder_gone(object: &ObjectRef, kind: Option<StoreKind>) -> bool {
    let folder = std::path::Path::new(&object.uri).parent();
    kind == Some(StoreKind::Local) && folder.is_some_and(|folder| !folder.is_dir())
}

#[cfg(test)]
mod tests {
    use super::super::own_trouble::CODES_OF_STORE;
    use super::*;

    #[test]
    fn wrong_credentials_are_the_stores_trouble_and_not_the_objects() {
        for code in CODES_OF_STORE {
            let source = format!("403 {code}").into();
            let denied = object_store::Error::PermissionDenied { path: "a".to_owned(), source };
            let object = ObjectRef { uri: "s3://b/a".to_owned(), size_bytes: None, version: None };
            assert_eq!(object_fault(&denied, &object, Some(StoreKind::Bucket)), None, "{code}");
        }
    }
}
