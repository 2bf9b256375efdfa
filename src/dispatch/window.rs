//! The in-flight window of one sink: which records are under way, and which may go next.
//!
//! Pure bookkeeping, no input or output. It keeps three promises: the cursor never passes a
//! record that is not confirmed; per key, records go out in the order in which they were
//! accepted, also through retries; and a record that fails holds up its own key only.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::time::Instant;

use crate::sink::KeyOrder;
use crate::spool::Offset;

/// Number of a slot, counted from the start of the process; never reused.
pub(super) type Token = u64;
/// Hash of an ordering key. Two keys that share one are merely ordered among each other.
pub(super) type Key = u64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Waits for its turn in its key's lane.
    Waiting,
    InFlight {
        since: Instant,
    },
    Confirmed,
}

#[derive(Debug)]
struct Slot<T> {
    /// Where the cursor moves once this slot is confirmed: offset + 1, or the end of a lost
    /// stretch.
    end: Offset,
    key: Key,
    state: State,
    attempts: u32,
    bytes: usize,
    /// `None` once confirmed: its memory is needed no more.
    item: Option<T>,
}

/// The records of one key that are not confirmed.
#[derive(Debug, Default)]
struct Lane {
    /// Not under way, in order of acceptance.
    waiting: VecDeque<Token>,
    in_flight: usize,
    /// The first of `waiting` failed and may not be tried before this.
    not_before: Option<Instant>,
    /// Stands in [`Window::due`].
    queued: bool,
}

#[derive(Debug)]
pub(super) struct Window<T> {
    order: KeyOrder,
    cursor: Offset,
    /// Token of the first slot.
    base: Token,
    slots: VecDeque<Slot<T>>,
    lanes: HashMap<Key, Lane>,
    /// Lanes whose first waiting record may be due.
    due: VecDeque<Key>,
    /// Lanes to look at again at a time.
    later: BinaryHeap<Reverse<(Instant, Key)>>,
    in_flight: usize,
    bytes: usize,
}

impl<T> Window<T> {
    pub(super) fn new(order: KeyOrder, cursor: Offset) -> Self {
        Self {
            order,
            cursor,
            base: 0,
            slots: VecDeque::new(),
            lanes: HashMap::new(),
            due: VecDeque::new(),
            later: BinaryHeap::new(),
            in_flight: 0,
            bytes: 0,
        }
    }

    /// All below is confirmed.
    pub(super) fn cursor(&self) -> Offset {
        self.cursor
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Bytes of all items that are not confirmed.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// The oldest record that is not confirmed.
    pub(super) fn oldest(&self) -> Option<&T> {
        self.slots.front().and_then(|slot| slot.item.as_ref())
    }

    pub(super) fn push(&mut self, end: Offset, key: Key, bytes: usize, item: T) {
        let token = self.base + u64::try_from(self.slots.len()).expect("a length fits 64 bits");
        let slot = Slot { end, key, state: State::Waiting, attempts: 0, bytes, item: Some(item) };
        self.slots.push_back(slot);
        self.bytes += bytes;
        self.lanes.entry(key).or_default().waiting.push_back(token);
        self.queue(key);
    }

    /// A stretch that has nothing to publish: the cursor passes it in its turn.
    pub(super) fn push_nothing(&mut self, end: Offset) {
        let slot = Slot { end, key: 0, state: State::Confirmed, attempts: 0, bytes: 0, item: None };
        self.slots.push_back(slot);
        self.advance();
    }

    /// The next record that may be published now. Call [`Window::sent`] if it was; if not, it is
    /// offered again.
    pub(super) fn next_due(&mut self, now: Instant) -> Option<(Token, &T)> {
        self.wake(now);
        loop {
            let key = *self.due.front()?;
            let lane = self.lanes.get_mut(&key);
            let token = lane.as_ref().and_then(|lane| {
                let blocked = lane.not_before.is_some_and(|time| time > now)
                    || (self.order == KeyOrder::OneInFlight && lane.in_flight > 0);
                if blocked { None } else { lane.waiting.front().copied() }
            });
            if let Some(token) = token {
                // A loop cannot hand out a borrow that it might take again: look it up by number.
                return self.item(token).map(|item| (token, item));
            }
            self.due.pop_front();
            if let Some(lane) = lane {
                lane.queued = false;
            }
        }
    }

    /// The sink took what [`Window::next_due`] offered.
    pub(super) fn sent(&mut self, token: Token, now: Instant) {
        let Some(slot) = self.slot_mut(token) else { return };
        slot.state = State::InFlight { since: now };
        slot.attempts += 1;
        let key = slot.key;
        self.in_flight += 1;
        if let Some(lane) = self.lanes.get_mut(&key) {
            lane.waiting.pop_front();
            lane.in_flight += 1;
            lane.not_before = None;
        }
    }

    /// Confirmed by the broker, or kept as a dead letter. Returns the item and since when it had
    /// been under way.
    pub(super) fn confirm(&mut self, token: Token) -> Option<(T, Instant)> {
        let slot = self.slot_mut(token)?;
        let State::InFlight { since } = slot.state else { return None };
        slot.state = State::Confirmed;
        let (item, key, bytes) = (slot.item.take()?, slot.key, slot.bytes);
        self.bytes -= bytes;
        self.landed(key);
        self.advance();
        Some((item, since))
    }

    /// Failed for now; `not_before` is asked with the number of tries so far.
    pub(super) fn failed(&mut self, token: Token, not_before: impl FnOnce(u32) -> Instant) {
        let Some(slot) = self.slot_mut(token) else { return };
        if !matches!(slot.state, State::InFlight { .. }) {
            return;
        }
        slot.state = State::Waiting;
        let (key, time) = (slot.key, not_before(slot.attempts));
        if let Some(lane) = self.lanes.get_mut(&key) {
            // Several of a lane may fail, in any order; they go again in theirs.
            let place = lane.waiting.partition_point(|other| *other < token);
            lane.waiting.insert(place, token);
            lane.not_before = Some(lane.not_before.map_or(time, |other| other.max(time)));
        }
        self.later.push(Reverse((time, key)));
        self.landed(key);
    }

    /// The item of a record that is not confirmed.
    pub(super) fn item(&self, token: Token) -> Option<&T> {
        self.slot(token).and_then(|slot| slot.item.as_ref())
    }

    /// When [`Window::next_due`] may have something that it does not have now, as far as time
    /// alone decides.
    pub(super) fn next_time(&self) -> Option<Instant> {
        self.later.peek().map(|Reverse((time, _))| *time)
    }

    fn wake(&mut self, now: Instant) {
        while let Some(Reverse((time, key))) = self.later.peek().copied() {
            if time > now {
                return;
            }
            self.later.pop();
            self.queue(key);
        }
    }

    /// One record of this key is under way no more.
    fn landed(&mut self, key: Key) {
        self.in_flight -= 1;
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        lane.in_flight -= 1;
        if !lane.waiting.is_empty() {
            self.queue(key);
        } else if lane.in_flight == 0 && !lane.queued {
            self.lanes.remove(&key);
        }
    }

    fn queue(&mut self, key: Key) {
        if let Some(lane) = self.lanes.get_mut(&key)
            && !lane.queued
        {
            lane.queued = true;
            self.due.push_back(key);
        }
    }

    /// Moves the cursor over the contiguous confirmed prefix.
    fn advance(&mut self) {
        while let Some(slot) = self.slots.pop_front_if(|slot| slot.state == State::Confirmed) {
            self.cursor = slot.end;
            self.base += 1;
        }
    }

    fn slot(&self, token: Token) -> Option<&Slot<T>> {
        self.slots.get(usize::try_from(token.checked_sub(self.base)?).ok()?)
    }

    fn slot_mut(&mut self, token: Token) -> Option<&mut Slot<T>> {
        self.slots.get_mut(usize::try_from(token.checked_sub(self.base)?).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn window(order: KeyOrder, keys: &[Key]) -> Window<usize> {
        let mut window = Window::new(order, 100);
        for (index, key) in keys.iter().enumerate() {
            window.push(101 + u64::try_from(index).unwrap(), *key, 1, index);
        }
        window
    }

    fn send_all(window: &mut Window<usize>, now: Instant) -> Vec<usize> {
        let mut sent = Vec::new();
        while let Some((token, item)) = window.next_due(now) {
            sent.push(*item);
            window.sent(token, now);
        }
        sent
    }

    #[test]
    fn cursor_moves_over_the_contiguous_confirmed_prefix_only() {
        let now = Instant::now();
        let mut window = window(KeyOrder::Pipelined, &[1, 2, 3]);
        assert_eq!(send_all(&mut window, now), [0, 1, 2]);
        window.confirm(1);
        window.confirm(2);
        assert_eq!(window.cursor(), 100);
        window.confirm(0);
        assert_eq!(window.cursor(), 103);
        assert_eq!((window.len(), window.bytes(), window.in_flight()), (0, 0, 0));
        window.push_nothing(110);
        assert_eq!(window.cursor(), 110);
    }

    #[test]
    fn one_in_flight_per_key_lets_other_keys_go() {
        let now = Instant::now();
        let mut window = window(KeyOrder::OneInFlight, &[1, 1, 2, 1]);
        assert_eq!(send_all(&mut window, now), [0, 2]);
        window.confirm(0);
        assert_eq!(send_all(&mut window, now), [1]);
        window.confirm(1);
        assert_eq!(send_all(&mut window, now), [3]);
    }

    #[test]
    fn what_fails_goes_again_before_the_rest_of_its_key() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let mut window = window(KeyOrder::Pipelined, &[1, 1, 1, 2]);
        assert_eq!(send_all(&mut window, now), [0, 1, 2, 3]);
        for token in [2, 0, 1] {
            window.failed(token, |_| later);
        }
        window.push(105, 1, 1, 4);
        window.push(106, 2, 1, 5);
        assert_eq!(send_all(&mut window, now), [5], "another key goes on");
        assert_eq!(window.next_time(), Some(later));
        assert_eq!(send_all(&mut window, later), [0, 1, 2, 4]);
        for token in 0..6 {
            assert!(window.confirm(token).is_some());
            assert!(window.confirm(token).is_none(), "an ack counts once");
        }
        assert_eq!(window.cursor(), 106);
        assert!(window.lanes.is_empty() && window.due.is_empty(), "nothing is left behind");
    }
}
