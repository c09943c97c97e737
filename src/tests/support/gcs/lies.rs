//! A bucket whose listings are behind, and whose answers get lost.

use std::collections::BTreeMap;

use super::{Gcs, HttpAnswer, HttpRequest, State, Stored, error};

/// What the listings of a bucket show: what it held some listings ago.
#[derive(Default)]
pub(super) struct OldListing {
    pub shown: BTreeMap<(String, String), Stored>,
    /// Listings until what they show is brought up to date, and how many there are in between.
    left: u64,
    each: u64,
}

impl Gcs {
    /// From now on listings of the bucket show what it holds now; after so many of them what it holds then, and so
    /// on. Objects are read by name as they are.
    pub fn set_old_listings(&self, bucket: &str, listings: u64) {
        let mut state = self.state();
        let old = OldListing { shown: state.objects.clone(), left: listings, each: listings };
        state.old_listings.insert(bucket.to_owned(), old);
    }

    /// From now on listings are up to date.
    pub fn set_new_listings(&self) {
        self.state().old_listings.clear();
    }

    /// From now on every object whose name contains `name` is stored when it is to be created, and the answer is that the
    /// server is busy; whoever repeats the request is told that the object is there.
    pub fn lose_answers(&self, name: &str) {
        self.state().lost_answers = Some(name.to_owned());
    }
}

impl State {
    /// A listing is asked for.
    pub(super) fn age_listing(&mut self, bucket: &str) {
        let Some(old) = self.old_listings.get_mut(bucket) else { return };
        if old.left == 0 {
            (old.shown, old.left) = (self.objects.clone(), old.each);
        }
        old.left -= 1;
    }

    /// What is sent in the place of `answer`.
    pub(super) fn lost(&self, request: &HttpRequest, answer: HttpAnswer) -> HttpAnswer {
        let is_lost = self.lost_answers.as_ref().is_some_and(|name| request.path.contains(name));
        let creates = request.header("x-goog-if-generation-match") == Some("0");
        if is_lost && creates && answer.status == 200 {
            return error(503, "ServiceUnavailable");
        }
        answer
    }
}
