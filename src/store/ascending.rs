//! Verifies the order in which a store lists its keys.
//!
//! Input: the keys of one listing, one after another. Output: an error for a key that does not ascend, and for
//! every other key whether it is a folder marker.

/// Verifies that keys ascend, so that none is listed twice, wherever the store's page tokens lead.
///
/// Stores list in the order of bytes, or, if they have folders, folder by folder, as if a slash sorted before every
/// other character. A listing keeps one of these orders from start to end.
#[derive(Debug)]
pub(crate) struct Ascending {
    last: Option<String>,
    by_bytes: bool,
    by_folders: bool,
}

impl Default for Ascending {
    fn default() -> Self {
        Self { last: None, by_bytes: true, by_folders: true }
    }
}

impl Ascending {
    /// Accept the next key; `bytes` is the size of its object. Returns whether the key is a folder marker.
    ///
    /// `object_store` strips the slash at the end of a key. Consoles show a folder by an empty object `a/`, which is
    /// listed after `a` and `a-b` and is called `a` here.
    ///
    /// # Errors
    /// Why the key is refused.
    pub fn accept(&mut self, key: &str, bytes: u64) -> Result<bool, String> {
        let slashed = format!("{key}/");
        let (accepted, is_marker) = match self.orders(key) {
            (false, false) => (self.orders(&slashed), true),
            orders => (orders, false),
        };
        match accepted {
            (false, false) => return Err(self.refusal(key)),
            _ if is_marker && bytes > 0 => {
                let what = self.refusal(key);
                return Err(format!("{what}; or it is {slashed:?}, which cannot be addressed"));
            }
            (by_bytes, by_folders) => (self.by_bytes, self.by_folders) = (by_bytes, by_folders),
        }
        self.last = Some(if is_marker { slashed } else { key.to_owned() });
        Ok(is_marker)
    }

    /// Whether `key` may come next, by bytes and by folders.
    fn orders(&self, key: &str) -> (bool, bool) {
        let Some(last) = &self.last else { return (true, true) };
        (self.by_bytes && last.as_str() < key, self.by_folders && last.split('/').lt(key.split('/')))
    }

    fn refusal(&self, key: &str) -> String {
        match &self.last {
            Some(last) if last.trim_end_matches('/') != key => {
                format!("it lists {key:?} after {last:?}, and keys must ascend")
            }
            _ => format!("it lists {key:?} twice"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_ascend_by_bytes_or_by_folders_and_never_repeat() {
        let accepted = |keys: &[&str]| {
            let mut order = Ascending::default();
            keys.iter().try_for_each(|key| order.accept(key, 1).map(drop)).is_ok()
        };
        assert!(accepted(&["a", "a-b/c", "a/b", "b"]));
        assert!(accepted(&["a", "a/b", "a-b/c", "b"]), "folder by folder");
        for keys in [&["a", "a"][..], &["b", "a"], &["a-b/c", "a/b", "a-b/d"], &["a/b", "a-b/c", "a/c"]] {
            assert!(!accepted(keys), "{keys:?}");
        }
    }

    #[test]
    fn folder_markers_differ_from_repeated_keys() {
        let markers = |keys: &[(&str, u64)]| {
            let mut order = Ascending::default();
            keys.iter().map(|&(key, bytes)| order.accept(key, bytes)).collect::<Result<Vec<_>, _>>()
        };
        // `a/` is listed after `a` and after keys that sort between the two
        assert_eq!(markers(&[("a", 7), ("a", 0), ("a/b", 7)]), Ok(vec![false, true, false]));
        assert_eq!(markers(&[("a", 0), ("a", 0), ("a/b", 7)]), Ok(vec![false, true, false]));
        assert_eq!(markers(&[("a-b", 7), ("a", 0), ("a/b", 7)]), Ok(vec![false, true, false]));
        assert_eq!(markers(&[("a", 7), ("a-b/c", 7), ("a", 0)]), Ok(vec![false, false, true]));
        for keys in [
            &[("a", 7), ("a", 0), ("a", 0)][..],
            &[("a-b", 7), ("a", 0), ("a", 0)],
            &[("a/b", 7), ("a", 0)],
            &[("b", 7), ("a", 0)],
        ] {
            assert!(markers(keys).is_err(), "{keys:?}");
        }
        // an object with content may be `a` again, or `a/`
        let refused = markers(&[("a", 7), ("a", 1)]).expect_err("bytes");
        assert!(refused.contains("\"a\" twice") && refused.contains("\"a/\""), "{refused}");
    }
}
