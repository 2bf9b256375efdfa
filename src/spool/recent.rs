//! The remembered ids: which records we already have, for recognising repeats.
//!
//! A ring of keys in order of arrival and a hash table of positions in it. Per id: 16 bytes in the
//! ring and 5 in the table, each times up to 2 for the spare room of a growing container (the table
//! up to 16/7): 21 to 44 bytes. A million ids cost about 21 to 44 MB, the default of 200,000 under 9.

use std::collections::VecDeque;
use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};

use super::IdKey;

/// Bounded first-in first-out set of ids, owned by the writer thread.
#[derive(Debug)]
pub(crate) struct Recent {
    ring: VecDeque<IdKey>,
    /// Position of the front of the ring; positions wrap at 2^32, and the ring is always shorter.
    front: u32,
    table: HashTable<u32>,
    hasher: DefaultHashBuilder,
    max: usize,
    /// Ids of sealed segments still in the ring, oldest first: how many, and when sealed.
    sealed: VecDeque<(usize, u64)>,
    /// Ids at the back of the ring that belong to the active segment.
    active: usize,
}

impl Recent {
    /// Remembers up to `max` ids.
    pub(crate) fn new(max: usize) -> Self {
        Self {
            ring: VecDeque::new(),
            front: 0,
            table: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
            max: max.min(1 << 30),
            sealed: VecDeque::new(),
            active: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.ring.len()
    }

    /// How many ids arrived after `key` did (0: it is the newest); `None` if it is not remembered.
    pub(crate) fn age(&self, key: IdKey) -> Option<usize> {
        let hash = self.hasher.hash_one(key.0);
        let position = self.table.find(hash, |position| self.at(*position) == Some(key))?;
        let index = position.wrapping_sub(self.front) as usize;
        Some(self.ring.len() - 1 - index)
    }

    fn at(&self, position: u32) -> Option<IdKey> {
        self.ring.get(position.wrapping_sub(self.front) as usize).copied()
    }

    /// Remembers an id of the active segment; forgets the oldest if there are too many.
    pub(crate) fn insert(&mut self, key: IdKey) {
        if self.max == 0 || self.age(key).is_some() {
            return;
        }
        if self.ring.len() >= self.max {
            self.forget_oldest(1);
        }
        let length = u32::try_from(self.ring.len()).expect("bounded by 2^30 in new");
        let position = self.front.wrapping_add(length);
        self.ring.push_back(key);
        self.active += 1;
        let Self { ring, front, table, hasher, .. } = self;
        let hash = hasher.hash_one(key.0);
        table.insert_unique(hash, position, |position| {
            let key = ring.get(position.wrapping_sub(*front) as usize);
            key.map_or(0, |key| hasher.hash_one(key.0))
        });
    }

    /// Takes back the newest `count` ids: their batch was not written.
    pub(crate) fn take_back(&mut self, count: usize) {
        for _ in 0..count.min(self.active) {
            if let Some(key) = self.ring.back().copied() {
                self.unlist(key);
                self.ring.pop_back();
                self.active -= 1;
            }
        }
    }

    /// The ids of the active segment that are still remembered, oldest first.
    pub(crate) fn active_ids(&self) -> Vec<IdKey> {
        self.ring.iter().skip(self.ring.len() - self.active).copied().collect()
    }

    /// The active segment was sealed at `sealed_ms`: its ids become one generation.
    pub(crate) fn seal(&mut self, sealed_ms: u64) {
        self.sealed.push_back((self.active, sealed_ms));
        self.active = 0;
    }

    /// Forgets the generations sealed more than `window_ms` before `now_ms`.
    pub(crate) fn expire(&mut self, now_ms: u64, window_ms: u64) {
        while let Some((count, sealed_ms)) = self.sealed.front().copied() {
            if now_ms.saturating_sub(sealed_ms) <= window_ms {
                break;
            }
            self.forget_oldest(count);
            if self.sealed.front().is_some_and(|(count, _)| *count == 0) {
                self.sealed.pop_front();
            }
        }
    }

    fn forget_oldest(&mut self, count: usize) {
        for _ in 0..count {
            let Some(key) = self.ring.front().copied() else {
                return;
            };
            self.unlist(key);
            self.ring.pop_front();
            self.front = self.front.wrapping_add(1);
            while self.sealed.front().is_some_and(|(count, _)| *count == 0) {
                self.sealed.pop_front();
            }
            match self.sealed.front_mut() {
                Some((count, _)) => *count -= 1,
                None => self.active = self.active.saturating_sub(1),
            }
        }
    }

    fn unlist(&mut self, key: IdKey) {
        let Self { ring, front, table, hasher, .. } = self;
        let hash = hasher.hash_one(key.0);
        let same = |position: &u32| ring.get(position.wrapping_sub(*front) as usize) == Some(&key);
        if let Ok(entry) = table.find_entry(hash, same) {
            entry.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u8) -> IdKey {
        IdKey([number; 16])
    }

    #[test]
    fn forgets_in_order_of_arrival_and_takes_back_the_newest() {
        let mut recent = Recent::new(3);
        for number in 0..5 {
            recent.insert(key(number));
        }
        assert_eq!([0, 1, 2, 3, 4].map(|n| recent.age(key(n))), [None, None, Some(2), Some(1), Some(0)]);
        recent.take_back(1);
        assert_eq!((recent.age(key(4)), recent.age(key(3)), recent.len()), (None, Some(0), 2));
        recent.insert(key(4));
        assert_eq!(recent.active_ids(), [key(2), key(3), key(4)]);
    }

    #[test]
    fn forgets_a_generation_when_its_window_is_over() {
        let mut recent = Recent::new(100);
        recent.insert(key(1));
        recent.seal(1_000);
        recent.insert(key(2));
        recent.seal(2_000);
        recent.insert(key(3));
        recent.expire(2_500, 1_000);
        assert_eq!([1, 2, 3].map(|n| recent.age(key(n)).is_some()), [false, true, true]);
        recent.expire(9_000, 1_000);
        assert_eq!(recent.active_ids(), [key(3)]);
        assert_eq!(recent.len(), 1);
    }

    #[test]
    fn positions_may_wrap() {
        let mut recent = Recent::new(4);
        recent.front = u32::MAX - 1;
        for number in 0..9 {
            recent.insert(key(number));
        }
        assert_eq!(recent.len(), 4);
        assert!((5..9).all(|number| recent.age(key(number)).is_some()));
    }
}
