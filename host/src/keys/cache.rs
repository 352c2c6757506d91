//! Keys in memory, so that a request does not read the database to learn whose
//! it is. What was read serves until any key changes in this process, which the
//! store counts, and for [`FRESH`] at the longest: by then a change is noticed that
//! was not counted, since somebody else made it, or its client left while it was
//! being written.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::store::keys::Found;

/// How long a key is taken for what it was when it was read.
const FRESH: Duration = Duration::from_secs(10);
/// Texts to keep of keys that there are.
const KNOWN: usize = 10_000;
/// Texts to keep that no key has.
const UNKNOWN: usize = 1_000;

/// What the public parts of texts led to.
#[derive(Debug, Default)]
pub struct Cache {
    known: Mutex<HashMap<String, Read<Arc<Found>>>>,
    // apart, so that a flood of keys that nobody has drives out none in use
    unknown: Mutex<HashMap<String, Read<()>>>,
}

/// Something read from the database.
#[derive(Clone, Debug)]
struct Read<T> {
    what: T,
    /// The store's count of changes before it was read.
    changes: u64,
    at: Instant,
}

impl<T> Read<T> {
    fn serves(&self, changes: u64, now: Instant) -> bool {
        self.changes == changes && now.duration_since(self.at) < FRESH
    }
}

impl Cache {
    /// What the text was found to be, if that is known at this count of
    /// changes: a key, or none.
    pub fn get(&self, public_id: &str, changes: u64) -> Option<Option<Arc<Found>>> {
        let now = Instant::now();
        let known = self.known.lock();
        if let Some(read) = known
            .get(public_id)
            .filter(|read| read.serves(changes, now))
        {
            return Some(Some(Arc::clone(&read.what)));
        }
        drop(known);
        let unknown = self.unknown.lock();
        let read = unknown.get(public_id)?;
        read.serves(changes, now).then_some(None)
    }

    /// Whether the text was a key's when it was read last.
    pub fn knows(&self, public_id: &str) -> bool {
        let known = self.known.lock();
        known.contains_key(public_id)
    }

    /// Keeps what was read of a text. `changes` is the store's count from before
    /// the reading: a change while it was read makes it useless, not wrong.
    pub fn put(&self, public_id: &str, found: Option<Arc<Found>>, changes: u64) {
        match found {
            Some(found) => insert(&self.known, KNOWN, public_id, found, changes),
            None => insert(&self.unknown, UNKNOWN, public_id, (), changes),
        }
    }
}

fn insert<T>(
    texts: &Mutex<HashMap<String, Read<T>>>,
    most: usize,
    public_id: &str,
    what: T,
    changes: u64,
) {
    let mut texts = texts.lock();
    if texts.len() >= most && !texts.contains_key(public_id) {
        // any one: to find out which is used least would cost more than to read it again
        if let Some(one) = texts.keys().next().cloned() {
            texts.remove(&one);
        }
    }
    let read = Read {
        what,
        changes,
        at: Instant::now(),
    };
    texts.insert(public_id.to_owned(), read);
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;
    use crate::store::customers::CustomerLimits;
    use crate::store::keys::{Key, KeyLimits};

    fn found(id: i64) -> Arc<Found> {
        let key = Key {
            id,
            customer_id: 1,
            name: "K".to_owned(),
            public_id: id.to_string(),
            rate_limit: 1,
            limits: KeyLimits::default(),
            customer_limits: CustomerLimits::default(),
            allowed_models: vec![],
            scopes: vec![],
            allowed_networks: None,
            is_active: true,
            created_at: OffsetDateTime::UNIX_EPOCH,
            expires_at: None,
            last_used_at: None,
            replaced: None,
        };
        Arc::new(Found {
            key: Arc::new(key),
            hash: vec![],
            is_replaced: false,
        })
    }

    fn id(found: Option<Option<Arc<Found>>>) -> Option<Option<i64>> {
        found.map(|found| found.map(|found| found.key.id))
    }

    #[test]
    fn what_was_read_serves_until_a_key_changes() {
        let cache = Cache::default();
        assert_eq!(id(cache.get("a", 0)), None);
        cache.put("a", Some(found(1)), 0);
        cache.put("b", None, 0);
        assert_eq!(id(cache.get("a", 0)), Some(Some(1)));
        assert_eq!(id(cache.get("b", 0)), Some(None));
        // read before a change, kept after it
        assert_eq!(id(cache.get("a", 1)), None);
        assert_eq!(id(cache.get("b", 1)), None);
        cache.put("a", Some(found(2)), 1);
        assert_eq!(id(cache.get("a", 1)), Some(Some(2)));
    }

    #[test]
    fn what_was_read_serves_for_a_while() {
        let at = Instant::now();
        let read = Read {
            what: (),
            changes: 0,
            at,
        };
        assert!(read.serves(0, at + FRESH - Duration::from_millis(1)));
        assert!(!read.serves(0, at + FRESH));
    }

    #[test]
    fn a_key_more_than_there_is_room_for_takes_the_place_of_one() {
        let cache = Cache::default();
        for id in 0..=i64::try_from(KNOWN).expect("few") {
            cache.put(&id.to_string(), Some(found(id)), 0);
        }
        let known = (0..=KNOWN).filter(|id| cache.knows(&id.to_string()));
        assert_eq!(known.count(), KNOWN);
        assert!(cache.knows(&KNOWN.to_string()));
    }

    #[test]
    fn a_flood_of_texts_that_no_key_has_takes_no_more_than_its_room() {
        let cache = Cache::default();
        cache.put("mine", Some(found(1)), 0);
        for text in 0..10 * UNKNOWN {
            cache.put(&text.to_string(), None, 0);
        }
        let unknown = cache.unknown.lock().len();
        assert!(unknown <= UNKNOWN, "{unknown}");
        assert_eq!(id(cache.get("mine", 0)), Some(Some(1)));
    }
}
