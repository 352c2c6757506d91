//! When keys were last used: noted in memory, written for many keys at once.

use std::collections::HashMap;

use parking_lot::Mutex;
use time::OffsetDateTime;

/// What is not written yet, by the keys' numbers.
#[derive(Debug, Default)]
pub struct Uses(Mutex<HashMap<i64, OffsetDateTime>>);

impl Uses {
    /// Notes that a key is used.
    pub fn note(&self, key_id: i64, now: OffsetDateTime) {
        let mut uses = self.0.lock();
        uses.insert(key_id, now);
    }

    /// Notes what was not written after all.
    pub fn put_back(&self, unwritten: HashMap<i64, OffsetDateTime>) {
        let mut uses = self.0.lock();
        for (key_id, at) in unwritten {
            uses.entry(key_id).or_insert(at);
        }
    }

    /// Takes out what is to be written.
    pub fn take(&self) -> HashMap<i64, OffsetDateTime> {
        std::mem::take(&mut *self.0.lock())
    }
}
