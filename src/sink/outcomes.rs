//! Where a sink reports how its messages ended. One wake-up per batch, not per message.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::PublishError;

/// How one message ended.
#[derive(Debug)]
pub struct Outcome {
    pub token: u64,
    pub result: Result<(), PublishError>,
}

#[derive(Debug, Default)]
pub struct Outcomes {
    pending: Mutex<Vec<Outcome>>,
    /// A failure is among the pending. See [`Outcomes::has_failures`].
    failed: AtomicBool,
    /// The sink has room again, whatever is pending.
    room: AtomicBool,
    wake: Notify,
}

impl Outcomes {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Called from a client's threads.
    pub fn push(&self, outcome: Outcome) {
        self.push_many(std::iter::once(outcome));
    }

    pub fn push_many(&self, outcomes: impl IntoIterator<Item = Outcome>) {
        let mut pending = self.lock();
        let first_new = pending.len();
        pending.extend(outcomes);
        if pending.iter().skip(first_new).any(|outcome| outcome.result.is_err()) {
            self.failed.store(true, Ordering::Release);
        }
        let wake = first_new == 0 && !pending.is_empty();
        drop(pending);
        if wake {
            self.wake.notify_one();
        }
    }

    /// A failure waits to be drained. A sink that keeps the order of a key itself takes nothing
    /// until the dispatcher has seen it: what is handed over now might belong behind it.
    pub fn has_failures(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Called by a sink that answered `Busy` and would take messages now.
    pub fn room(&self) {
        self.room.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// Completes when there is something to [`Outcomes::drain`], or room again. Cancel safe; for
    /// one waiter.
    pub async fn wait(&self) {
        while !self.room.swap(false, Ordering::AcqRel) && self.lock().is_empty() {
            self.wake.notified().await;
        }
    }

    /// Moves all that has come into `into`.
    pub fn drain(&self, into: &mut Vec<Outcome>) {
        let mut pending = self.lock();
        self.failed.store(false, Ordering::Release);
        into.append(&mut pending);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Outcome>> {
        // A panic while holding it leaves a list that is still a list.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_shows_until_it_is_drained() {
        let outcomes = Outcomes::new();
        outcomes.push(Outcome { token: 1, result: Ok(()) });
        assert!(!outcomes.has_failures());
        outcomes.push(Outcome { token: 2, result: Err(PublishError::Transient("x".to_owned())) });
        assert!(outcomes.has_failures());
        let mut drained = Vec::new();
        outcomes.drain(&mut drained);
        assert_eq!(drained.iter().map(|outcome| outcome.token).collect::<Vec<_>>(), [1, 2]);
        assert!(!outcomes.has_failures());
    }

    #[tokio::test]
    async fn room_wakes_the_waiter_once() {
        let outcomes = Outcomes::new();
        outcomes.room();
        outcomes.wait().await;
        let again = tokio::time::timeout(std::time::Duration::from_millis(20), outcomes.wait()).await;
        assert!(again.is_err());
    }
}
