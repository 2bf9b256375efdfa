//! The publishing loop of one sink: read, normalise, publish within a window, confirm in order,
//! back off, dead-letter.
//!
//! Each dispatcher runs on a thread of its own: it reads from the disk and syncs its cursor,
//! which block, and none of that may hold up the threads that answer providers.

mod window;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::{sleep, sleep_until};
use tokio_retry::strategy::{ExponentialBackoff, jitter};

use crate::dead_letter::{DeadLetter, DeadLetters};
use crate::metrics::{SinkMetrics, SinkSnapshot};
use crate::sink::{Message, Outcome, Outcomes, PublishError, Sink, SinkStatus};
use crate::source::{Delivery, Source};
use crate::spool::{self, Offset, ReadItem, Reader, Record};
use crate::subject::{Route, Template};
use window::{Token, Window};

/// Bytes read from the spool at one time.
const READ_BYTES: usize = 256 * 1024;
/// Bytes of events in the window; reading pauses above it.
const WINDOW_BYTES: usize = 16 * 1024 * 1024;
/// When few records are under way, new ones wait this long for company: a wake-up, a read and a
/// write to the broker then serve several. Providers wait for none of it.
const LINGER: Duration = Duration::from_millis(2);
const SHALLOW: usize = 64;
/// How often dead letters to be replayed are looked for, and health is refreshed.
const TICK: Duration = Duration::from_secs(1);
/// Without a confirmation for so long, with a backlog, the sink counts as not publishing.
const STALLED_AFTER: Duration = Duration::from_secs(10);

/// What a dispatcher needs.
pub struct Parts {
    pub name: String,
    pub template: Template,
    pub in_flight_max: usize,
    pub retry: RangeInclusive<Duration>,
    pub sink: Box<dyn Sink>,
    pub outcomes: Arc<Outcomes>,
    pub reader: Reader,
    pub spool: Arc<spool::Status>,
    pub sources: Arc<HashMap<Arc<str>, Arc<Source>>>,
    pub dead_letters: DeadLetters,
    pub metrics: SinkMetrics,
}

/// What others may know of a dispatcher.
#[derive(Debug)]
pub struct Progress {
    pub name: String,
    spool: Arc<spool::Status>,
    sink: Arc<SinkStatus>,
    cursor: AtomicU64,
    in_flight: AtomicU64,
    /// Unix milliseconds at which the oldest unconfirmed record was accepted; 0 for none.
    oldest_ms: AtomicI64,
    stalled: AtomicBool,
}

impl Progress {
    pub fn snapshot(&self) -> SinkSnapshot {
        let backlog = self.spool.durable_end().saturating_sub(self.cursor.load(Ordering::Relaxed));
        let oldest_ms = self.oldest_ms.load(Ordering::Relaxed);
        let age_ms = if backlog == 0 || oldest_ms == 0 { 0 } else { (unix_ms() - oldest_ms).max(0) };
        SinkSnapshot {
            backlog,
            in_flight: self.in_flight.load(Ordering::Relaxed),
            oldest_seconds: Duration::from_millis(u64::try_from(age_ms).unwrap_or(0)).as_secs_f64(),
            publishing: !self.stalled.load(Ordering::Relaxed) && (backlog == 0 || self.sink.connected()),
        }
    }

    /// All below is confirmed.
    pub fn cursor(&self) -> Offset {
        self.cursor.load(Ordering::Relaxed)
    }
}

/// When to stop, and by when at the latest.
pub type Stop = watch::Receiver<Option<Instant>>;

/// Why a dispatcher ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum DispatchError {
    #[error("cannot store the cursor of sink {sink}")]
    Cursor { sink: String, source: std::io::Error },
    #[error("cannot read the spool for sink {sink}")]
    Read { sink: String, source: spool::ReadError },
}

/// What goes through the window.
struct Parcel {
    /// Or why this program can make no message of the record.
    content: Result<Content, String>,
    origin: Origin,
}

struct Content {
    message: Message,
    accepted_ms: i64,
    /// Keeps its place among the events of its key.
    ordered: bool,
}

impl Parcel {
    fn message(&self) -> Option<&Message> {
        self.content.as_ref().ok().map(|content| &content.message)
    }

    fn accepted_ms(&self) -> i64 {
        self.content.as_ref().map_or(0, |content| content.accepted_ms)
    }

    fn bytes(&self) -> usize {
        self.message().map_or(0, |message| message.payload.len())
    }

    /// What must stay in order with what: equal lanes. An event that is about no resource has a
    /// lane of its own, and need not wait for others that have none either.
    fn lane(&self) -> &str {
        match &self.content {
            Ok(content) if content.ordered => &content.message.key,
            Ok(content) => &content.message.event_id,
            Err(_) => "",
        }
    }
}

enum Origin {
    /// Kept so that a dead letter holds what was accepted.
    Spool(Record),
    /// A dead letter on its way once more.
    Replay(Box<DeadLetter>),
}

pub struct Dispatcher {
    parts: Parts,
    window: Window<Parcel>,
    /// Replays have a window of their own, so that none ever holds up the cursor.
    replays: Window<Parcel>,
    progress: Arc<Progress>,
    hasher: RandomState,
    last_confirmed: Instant,
    /// Kept to be filled again.
    outcomes: Vec<Outcome>,
}

/// Tokens of replays carry this bit; those of the spool never reach it.
const REPLAY_BIT: Token = 1 << 63;

impl Dispatcher {
    pub fn new(parts: Parts) -> Self {
        let cursor = parts.reader.cursor();
        let order = parts.sink.key_order();
        let progress = Arc::new(Progress {
            name: parts.name.clone(),
            spool: Arc::clone(&parts.spool),
            sink: parts.sink.status(),
            cursor: AtomicU64::new(cursor),
            in_flight: AtomicU64::new(0),
            oldest_ms: AtomicI64::new(0),
            stalled: AtomicBool::new(false),
        });
        Self {
            window: Window::new(order, cursor),
            replays: Window::new(order, 0),
            progress,
            hasher: RandomState::new(),
            last_confirmed: Instant::now(),
            outcomes: Vec::new(),
            parts,
        }
    }

    pub fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }

    /// Publishes until told to stop; then lets what is under way end until the deadline, and
    /// stores the cursor. Returns how many records were still under way.
    ///
    /// # Errors
    /// When the spool cannot be read or the cursor cannot be stored: both are the disk's word
    /// that it is not to be trusted.
    pub async fn run(mut self, mut stop: Stop) -> Result<usize, DispatchError> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut exhausted, mut ended) = (false, false);
        while stop.borrow_and_update().is_none() {
            if !exhausted && self.has_room() {
                exhausted = !self.fill()?;
            }
            self.publish();
            self.store_if_due()?;
            let retry_at = [self.window.next_time(), self.replays.next_time()].into_iter().flatten().min();
            let room = self.has_room();
            if room && !exhausted {
                // More to read: only look whether something came in.
                self.settle();
                tokio::task::yield_now().await;
                continue;
            }
            tokio::select! {
                () = self.parts.outcomes.wait() => self.settle(),
                more = self.parts.reader.wait(), if room && !ended => {
                    exhausted = !more;
                    ended = !more;
                    if more && self.window.len() < SHALLOW {
                        sleep(LINGER).await;
                    }
                }
                () = until(retry_at) => {}
                _ = tick.tick() => self.tick(),
                _ = stop.changed() => {}
            }
        }
        let deadline = stop.borrow().unwrap_or_else(Instant::now);
        self.finish(deadline).await
    }

    async fn finish(mut self, deadline: Instant) -> Result<usize, DispatchError> {
        while self.window.in_flight() + self.replays.in_flight() > 0 {
            tokio::select! {
                () = self.parts.outcomes.wait() => self.settle(),
                () = sleep_until(deadline.into()) => break,
            }
        }
        let under_way = self.window.in_flight();
        self.parts.reader.confirm(self.window.cursor());
        self.store()?;
        self.parts.sink.close(deadline).await;
        Ok(under_way)
    }

    fn has_room(&self) -> bool {
        self.window.len() < self.parts.in_flight_max && self.window.bytes() < WINDOW_BYTES
    }

    /// Reads the next records into the window. False if there are none.
    fn fill(&mut self) -> Result<bool, DispatchError> {
        let items = self
            .parts
            .reader
            .read(READ_BYTES)
            .map_err(|source| DispatchError::Read { sink: self.parts.name.clone(), source })?;
        let found = !items.is_empty();
        for item in items {
            match item {
                ReadItem::Record(record) => self.admit(record),
                ReadItem::Lost { first, end, reason, quarantined } => {
                    tracing::error!(
                        sink = self.parts.name,
                        first,
                        end,
                        reason,
                        ?quarantined,
                        "records lost to corruption: the cursor passes them"
                    );
                    self.window.push_nothing(end);
                }
            }
        }
        Ok(found)
    }

    fn admit(&mut self, record: Record) {
        let end = record.offset + 1;
        let parcel = Parcel { content: self.content(&record.payload), origin: Origin::Spool(record) };
        self.window.push(end, self.hasher.hash_one(parcel.lane()), parcel.bytes(), parcel);
    }

    /// From a spooled delivery to the message for this sink.
    fn content(&self, payload: &Bytes) -> Result<Content, String> {
        let delivery = Delivery::decode(payload.clone()).map_err(|error| error.to_string())?;
        let source = self
            .parts
            .sources
            .get(&delivery.source)
            .ok_or_else(|| format!("source `{}` is configured no more", delivery.source))?;
        let event = source.normalise(&delivery);
        let route = Route {
            provider: source.provider().name(),
            source: source.name(),
            event_type: &event.event_type,
            catalogued: event.catalogued,
        };
        let message = Message {
            destination: self.parts.template.render(route).into(),
            key: event.key,
            event_id: event.id,
            event_type: event.event_type.as_str().to_owned(),
            payload: event.json,
        };
        Ok(Content { message, accepted_ms: delivery.received_ms, ordered: event.ordered })
    }

    /// Hands everything that is due to the sink.
    fn publish(&mut self) {
        let now = Instant::now();
        let mut unreadable = Vec::new();
        for (window, bit) in [(&mut self.window, 0), (&mut self.replays, REPLAY_BIT)] {
            while let Some((token, parcel)) = window.next_due(now) {
                match &parcel.content {
                    Ok(content) => {
                        if self.parts.sink.submit(token | bit, &content.message).is_err() {
                            // Busy: the next outcome makes room.
                            break;
                        }
                    }
                    // Nothing of ours to publish in it; kept whole, so that a mended program can.
                    Err(reason) => unreadable.push((token | bit, reason.clone())),
                }
                window.sent(token, now);
            }
        }
        for (token, reason) in unreadable {
            self.give_up(token, reason);
        }
        self.report();
    }

    /// Takes in what the sink reported.
    fn settle(&mut self) {
        let mut outcomes = std::mem::take(&mut self.outcomes);
        self.parts.outcomes.drain(&mut outcomes);
        for Outcome { token, result } in outcomes.drain(..) {
            match result {
                Ok(()) => self.confirmed(token),
                Err(PublishError::Transient(reason)) => self.try_again(token, &reason),
                Err(PublishError::Permanent(reason)) => self.give_up(token, reason),
            }
        }
        self.outcomes = outcomes;
        self.parts.reader.confirm(self.window.cursor());
        self.report();
    }

    fn confirmed(&mut self, token: Token) {
        let now = Instant::now();
        self.last_confirmed = now;
        let Some((parcel, since)) = self.window_of(token).confirm(token & !REPLAY_BIT) else { return };
        self.parts.metrics.published.inc();
        self.parts.metrics.latency.observe(now.duration_since(since).as_secs_f64());
        if let Origin::Replay(letter) = parcel.origin
            && let Err(error) = self.parts.dead_letters.replayed(letter.offset)
        {
            tracing::warn!(sink = self.parts.name, offset = letter.offset, %error, "replayed dead letter stays");
        }
    }

    fn try_again(&mut self, token: Token, reason: &str) {
        self.parts.metrics.retries.inc();
        let (first, longest) = (*self.parts.retry.start(), *self.parts.retry.end());
        let mut wait = Duration::ZERO;
        self.window_of(token).failed(token & !REPLAY_BIT, |attempts| {
            wait = back_off(first, longest, attempts);
            Instant::now() + wait
        });
        tracing::debug!(
            sink = self.parts.name,
            reason,
            wait_ms = wait.as_millis(),
            "publish failed, trying again"
        );
    }

    fn give_up(&mut self, token: Token, reason: String) {
        let window = if token & REPLAY_BIT == 0 { &self.window } else { &self.replays };
        let Some(parcel) = window.item(token & !REPLAY_BIT) else { return };
        let letter = match &parcel.origin {
            Origin::Spool(record) => self.letter(record.offset, reason, parcel.message(), &record.payload),
            Origin::Replay(letter) => DeadLetter { reason, ..(**letter).clone() },
        };
        if self.bury(&letter) {
            let replay = token & REPLAY_BIT != 0;
            let _dead = self.window_of(token).confirm(token & !REPLAY_BIT);
            if replay && let Err(error) = self.parts.dead_letters.replayed(letter.offset) {
                tracing::warn!(sink = self.parts.name, offset = letter.offset, %error, "replayed dead letter stays");
            }
        } else {
            // Without a durable letter the record may not count as dealt with.
            self.try_again(token, "its dead letter could not be stored");
        }
    }

    fn letter(
        &self,
        offset: Offset,
        reason: String,
        message: Option<&Message>,
        payload: &[u8],
    ) -> DeadLetter {
        let (event_id, event_type, destination) =
            message.map_or(("", "", ""), |m| (m.event_id.as_str(), m.event_type.as_str(), &*m.destination));
        let died = Timestamp::now().to_string();
        DeadLetter::new(&self.parts.name, offset, reason, event_id, event_type, destination, died, payload)
    }

    /// Keeps a dead letter; false if the disk refused.
    fn bury(&self, letter: &DeadLetter) -> bool {
        let (sink, offset) = (&self.parts.name, letter.offset);
        match self.parts.dead_letters.store(letter) {
            Ok(()) => {
                self.parts.metrics.dead_letters.inc();
                let (id, reason) = (&letter.event_id, &letter.reason);
                tracing::error!(sink, offset, id, reason, "event kept as a dead letter");
                true
            }
            Err(error) => {
                tracing::error!(sink, offset, %error, "cannot store a dead letter");
                false
            }
        }
    }

    fn window_of(&mut self, token: Token) -> &mut Window<Parcel> {
        if token & REPLAY_BIT == 0 { &mut self.window } else { &mut self.replays }
    }

    fn tick(&mut self) {
        let caught_up = self.window.len() == 0;
        if caught_up {
            self.last_confirmed = Instant::now();
        }
        let stalled = self.last_confirmed.elapsed() > STALLED_AFTER;
        if stalled != self.progress.stalled.swap(stalled, Ordering::Relaxed) {
            let last_error = self.progress.sink.last_error();
            if stalled {
                tracing::warn!(sink = self.parts.name, ?last_error, "no confirmations: events wait on disk");
            } else {
                tracing::info!(sink = self.parts.name, "publishing again");
            }
        }
        if self.replays.len() == 0 {
            self.load_replays();
        }
    }

    fn load_replays(&mut self) {
        let letters = match self.parts.dead_letters.replays() {
            Ok(letters) => letters,
            Err(error) => {
                tracing::warn!(sink = self.parts.name, %error, "cannot read dead letters to be replayed");
                return;
            }
        };
        for letter in letters.into_iter().take(self.parts.in_flight_max) {
            // Without a usable record it comes straight back, with the reason.
            let content =
                letter.record().map_err(|error| error.to_string()).and_then(|record| self.content(&record));
            let parcel = Parcel { content, origin: Origin::Replay(Box::new(letter)) };
            self.replays.push(0, self.hasher.hash_one(parcel.lane()), parcel.bytes(), parcel);
        }
    }

    fn report(&self) {
        let relaxed = Ordering::Relaxed;
        self.progress.cursor.store(self.window.cursor(), relaxed);
        let in_flight = u64::try_from(self.window.in_flight()).unwrap_or(u64::MAX);
        self.progress.in_flight.store(in_flight, relaxed);
        self.progress.oldest_ms.store(self.window.oldest().map_or(0, Parcel::accepted_ms), relaxed);
    }

    fn store_if_due(&mut self) -> Result<(), DispatchError> {
        if self.parts.reader.store_due() { self.store() } else { Ok(()) }
    }

    fn store(&mut self) -> Result<(), DispatchError> {
        self.parts
            .reader
            .store()
            .map_err(|source| DispatchError::Cursor { sink: self.parts.name.clone(), source })?;
        Ok(())
    }
}

/// The wait after the n-th try: doubles from `first` up to `longest`, with full jitter.
fn back_off(first: Duration, longest: Duration, attempts: u32) -> Duration {
    let nth = usize::try_from(attempts.saturating_sub(1).min(40)).unwrap_or(0);
    let first_ms = u64::try_from(first.as_millis()).unwrap_or(1).max(1);
    ExponentialBackoff::from_millis(2)
        .factor(first_ms.div_ceil(2))
        .max_delay(longest)
        .map(jitter)
        .nth(nth)
        .unwrap_or(longest)
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep(time.saturating_duration_since(Instant::now())).await,
        None => std::future::pending().await,
    }
}

fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
