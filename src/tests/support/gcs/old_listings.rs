//! Buckets whose listings are out of date, and whose answers are lost.

use std::collections::BTreeMap;

use super::{Gcs, HttpAnswer, HttpRequest, State, Stored, error};

/// The outdated state that listings of a bucket show.
#[derive(Default)]
pub(super) struct OldListing {
    pub shown: BTreeMap<(String, String), Stored>,
    /// Listings until the next update.
    left: u64,
    /// Listings between two updates.
    each: u64,
}

impl Gcs {
    /// From now on, listings of the bucket show its state at this moment, which is updated only after every `listings`
    /// listings. Reads by name are always up to date.
    pub fn set_old_listings(&self, bucket: &str, listings: u64) {
        let mut state = self.state();
        let old = OldListing { shown: state.objects.clone(), left: listings, each: listings };
        state.old_listings.insert(bucket.to_owned(), old);
    }

    /// From now on, listings are up to date.
    pub fn set_new_listings(&self) {
        self.state().old_listings.clear();
    }

    /// From now on, the creation of an object whose name contains `name` is carried out but answered with 503. A
    /// repeated request gets the answer that the object exists.
    pub fn lose_answers(&self, name: &str) {
        self.state().lost_answers = Some(name.to_owned());
    }
}

impl State {
    /// Count a listing, and update the state that it shows if that is due.
    pub(super) fn age_listing(&mut self, bucket: &str) {
        let Some(old) = self.old_listings.get_mut(bucket) else { return };
        if old.left == 0 {
            (old.shown, old.left) = (self.objects.clone(), old.each);
        }
        old.left -= 1;
    }

    /// The answer that is sent instead of `answer`.
    pub(super) fn lost(&self, request: &HttpRequest, answer: HttpAnswer) -> HttpAnswer {
        let is_lost = self.lost_answers.as_ref().is_some_and(|name| request.path.contains(name));
        let creates = request.header("x-goog-if-generation-match") == Some("0");
        if is_lost && creates && answer.status == 200 {
            return error(503, "ServiceUnavailable");
        }
        answer
    }
}
