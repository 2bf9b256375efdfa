//! Where a sink reports how its messages ended. One wake-up per batch, not per message.

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
    filled: Notify,
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
        let was_empty = pending.is_empty();
        pending.extend(outcomes);
        let wake = was_empty && !pending.is_empty();
        drop(pending);
        if wake {
            self.filled.notify_one();
        }
    }

    /// Completes when there is something to [`Outcomes::drain`]. Cancel safe; for one waiter.
    pub async fn wait(&self) {
        while self.lock().is_empty() {
            self.filled.notified().await;
        }
    }

    /// Moves all that has come into `into`.
    pub fn drain(&self, into: &mut Vec<Outcome>) {
        into.append(&mut self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Outcome>> {
        // A panic while holding it leaves a list that is still a list.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
