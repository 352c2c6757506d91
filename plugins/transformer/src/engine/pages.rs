//! How many pages of keys and values there may be, and those that prompts share.
//!
//! A sequence sets aside all pages it can come to need before it begins, so none
//! ever stands still for want of one. A page that is full goes by what its
//! tokens and all tokens before them are; a prompt that begins with the same
//! tokens takes it over. Full pages are never written again, so nobody sees
//! another's changes; nothing is computed differently for it, so nobody's
//! numbers change either.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use crate::kernels::{PAGE, Page};

/// The engine's pages.
#[derive(Debug)]
pub(super) struct Pages {
    capacity: usize,
    /// Set aside by sequences, beside the shared ones.
    reserved: usize,
    is_sharing: bool,
    shared: HashMap<Key, Shared>,
    /// Counts prompts.
    clock: u64,
    /// The last name given to a shared page.
    named: Name,
}

/// What a sequence has of them.
#[derive(Debug, Default)]
pub(super) struct Lease {
    /// Pages set aside.
    reserved: usize,
    /// Its first pages that are shared.
    shared: usize,
    /// The last of those.
    last: Name,
    /// When it began, by the clock.
    begun: u64,
}

/// Which shared page; 0 is before the first.
type Name = u64;

/// What a page holds: these tokens, after what another page holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    after: Name,
    tokens: [u32; PAGE],
}

#[derive(Debug)]
struct Shared {
    name: Name,
    page: Arc<Page>,
    /// When a sequence that has it last began; never after that of the page before.
    used: u64,
    /// How many pages are before it.
    depth: usize,
}

impl Pages {
    /// At most `capacity` pages, the full ones shared if `is_sharing`.
    pub(super) fn new(capacity: usize, is_sharing: bool) -> Self {
        Self {
            capacity,
            reserved: 0,
            is_sharing,
            shared: HashMap::new(),
            clock: 0,
            named: 0,
        }
    }

    /// Pages that can be had, those set aside, and those kept for prompts to come.
    pub(super) fn counts(&self) -> (usize, usize, usize) {
        (self.capacity, self.reserved, self.shared.len())
    }

    /// Sets aside pages for a sequence that begins with `prompt` and comes to
    /// have `positions`, and gives those of them that are there already: never
    /// all of the prompt's, since its last token is to be seen for what follows.
    /// `None` when there is no room now.
    pub(super) fn lease(
        &mut self,
        prompt: &[u32],
        positions: usize,
    ) -> Option<(Lease, Vec<Arc<Page>>)> {
        self.clock += 1;
        let (last, found) = self.find(&prompt[..prompt.len() - 1]);
        let reserved = positions.div_ceil(PAGE) - found.len();
        while self.reserved + self.shared.len() + reserved > self.capacity {
            self.forget_one()?;
        }
        self.reserved += reserved;
        let lease = Lease {
            reserved,
            shared: found.len(),
            last,
            begun: self.clock,
        };
        Some((lease, found))
    }

    /// Shares a sequence's pages that became full; `tokens` and `pages` are the
    /// sequence's from the first on, and `seen` of the tokens are in the pages.
    pub(super) fn share(
        &mut self,
        lease: &mut Lease,
        tokens: &[u32],
        pages: &mut [Arc<Page>],
        seen: usize,
    ) {
        if !self.is_sharing {
            return;
        }
        let full = tokens[..seen].as_chunks().0.iter().zip(pages);
        for (tokens, page) in full.skip(lease.shared) {
            let key = Key {
                after: lease.last,
                tokens: *tokens,
            };
            match self.shared.entry(key) {
                // another sequence was quicker: the numbers are the same
                Entry::Occupied(mut there) => {
                    let there = there.get_mut();
                    there.used = there.used.max(lease.begun);
                    *page = Arc::clone(&there.page);
                    lease.last = there.name;
                }
                Entry::Vacant(place) => {
                    self.named += 1;
                    lease.last = self.named;
                    place.insert(Shared {
                        name: lease.last,
                        page: Arc::clone(page),
                        used: lease.begun,
                        depth: lease.shared,
                    });
                }
            }
            lease.shared += 1;
            lease.reserved -= 1;
            self.reserved -= 1;
        }
    }

    /// Takes back what a sequence set aside.
    pub(super) fn release(&mut self, lease: &Lease) {
        self.reserved -= lease.reserved;
    }

    /// The shared pages that these tokens begin with, and the last one's name.
    fn find(&mut self, tokens: &[u32]) -> (Name, Vec<Arc<Page>>) {
        let (mut after, mut found) = (0, Vec::new());
        for tokens in tokens.as_chunks().0 {
            let key = Key {
                after,
                tokens: *tokens,
            };
            let Some(shared) = self.shared.get_mut(&key) else {
                break;
            };
            shared.used = self.clock;
            after = shared.name;
            found.push(Arc::clone(&shared.page));
        }
        (after, found)
    }

    /// Drops the shared page that was not used for the longest time, the last of
    /// a chain first. `None` when sequences have all of them.
    fn forget_one(&mut self) -> Option<()> {
        let unused = self
            .shared
            .iter()
            .filter(|(_, shared)| Arc::strong_count(&shared.page) == 1);
        let (key, _) = unused.min_by_key(|(_, shared)| (shared.used, Reverse(shared.depth)))?;
        let key = key.clone();
        self.shared.remove(&key);
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{Layout, Memory};

    fn page() -> Arc<Page> {
        let layout = Layout {
            layers: 1,
            heads: 1,
            width: 4,
            is_half: false,
        };
        Arc::new(Page::new(layout, &Memory::default()))
    }

    /// A sequence that begins with `prompt` and stays until all of it is seen.
    fn run(pages: &mut Pages, prompt: &[u32]) -> Option<usize> {
        let (mut lease, found) = pages.lease(prompt, prompt.len())?;
        let count = found.len();
        let mut own = found;
        own.resize_with(prompt.len().div_ceil(PAGE), page);
        pages.share(&mut lease, prompt, &mut own, prompt.len());
        pages.release(&lease);
        Some(count)
    }

    #[test]
    fn no_more_than_the_capacity_is_ever_had() {
        let mut pages = Pages::new(4, true);
        for n in 0..20 {
            assert_eq!(run(&mut pages, &[n; 40]), Some(0));
            let (capacity, reserved, shared) = pages.counts();
            assert!(reserved == 0 && shared <= capacity, "{shared}");
        }
        assert_eq!(run(&mut pages, &[1; 100]), None);
        let (lease, _) = pages.lease(&[1], 48).unwrap();
        assert!(pages.lease(&[2], 48).is_none());
        pages.release(&lease);
        assert!(pages.lease(&[2], 48).is_some());
    }

    #[test]
    fn what_is_in_use_stays_and_of_a_chain_the_end_goes_first() {
        let mut pages = Pages::new(6, true);
        assert_eq!(run(&mut pages, &[1; 49]), Some(0));
        let (lease, held) = pages.lease(&[1; 33], 33).unwrap();
        assert_eq!(held.len(), 2);
        // 3 shared and 1 set aside: the third of the chain has to go
        assert_eq!(run(&mut pages, &[2; 48]), Some(0));
        assert_eq!(run(&mut pages, &[1; 49]), Some(2));
        pages.release(&lease);
    }

    #[test]
    fn of_two_equal_pages_one_is_kept() {
        let mut pages = Pages::new(10, true);
        let prompt = [5; 20];
        let (mut first, _) = pages.lease(&prompt, 20).unwrap();
        let (mut second, _) = pages.lease(&prompt, 20).unwrap();
        let (mut ours, mut theirs) = ([page(), page()], [page(), page()]);
        pages.share(&mut first, &prompt, &mut ours, 20);
        pages.share(&mut second, &prompt, &mut theirs, 20);
        assert!(Arc::ptr_eq(&ours[0], &theirs[0]) && !Arc::ptr_eq(&ours[1], &theirs[1]));
        assert_eq!(pages.counts(), (10, 2, 1));
        pages.release(&first);
        pages.release(&second);
        assert_eq!(pages.counts(), (10, 0, 1));
    }

    #[test]
    fn nothing_is_shared_when_that_is_off() {
        let mut pages = Pages::new(10, false);
        assert_eq!(run(&mut pages, &[1; 40]), Some(0));
        assert_eq!(run(&mut pages, &[1; 40]), Some(0));
        assert_eq!(pages.counts(), (10, 0, 0));
    }
}
