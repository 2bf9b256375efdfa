//! The publishing loop with a sink that fails by script, on a real spool.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use hookbus::dead_letter::DeadLetters;
use hookbus::dispatch::{DispatchError, Dispatcher, Parts, Progress};
use hookbus::metrics::{Metrics, SinkMetrics};
use hookbus::sink::{Busy, KeyOrder, Message, Outcome, Outcomes, PublishError, Sink, SinkStatus};
use hookbus::source::{Check, Presented, Source, provider};
use hookbus::spool::{Appended, DiskStorage, Entry, IdKey, Spool, WriterHandle};
use hookbus::subject::{Naming, Template};
use serde_json::json;
use tokio::sync::watch;
use warp::http::HeaderMap;

use crate::sim;
use crate::support::wait_for;

/// What becomes of one hand-over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Take,
    Transient,
    Permanent,
    Busy,
    /// No outcome until [`Book::release`].
    Hold,
}

use Verdict::{Hold, Permanent, Take, Transient};

/// Decides by event and by how often it was handed over before.
type Script = Box<dyn FnMut(&str, u32) -> Verdict + Send>;

/// What the fake broker saw.
#[derive(Default)]
struct Book {
    outcomes: Option<Arc<Outcomes>>,
    /// Event and key of all that was confirmed, in order.
    confirmed: Vec<(String, String)>,
    attempts: BTreeMap<String, u32>,
    held: Vec<(u64, String, String)>,
    /// Most of one key under way at one time.
    most_of_a_key: usize,
}

impl Book {
    /// The held ones are confirmed, the newest first: outcomes come in any order.
    fn release(&mut self) {
        let held: Vec<_> = self.held.drain(..).rev().collect();
        for (token, event, key) in held {
            self.confirmed.push((event, key));
            self.outcomes.as_ref().unwrap().push(Outcome { token, result: Ok(()) });
        }
    }

    fn events(&self) -> Vec<&str> {
        self.confirmed.iter().map(|(event, _)| event.as_str()).collect()
    }
}

struct FakeSink {
    book: Arc<Mutex<Book>>,
    script: Script,
    order: KeyOrder,
    outcomes: Arc<Outcomes>,
}

impl Sink for FakeSink {
    fn submit(&mut self, token: u64, message: &Message) -> Result<(), Busy> {
        let mut book = self.book.lock().unwrap();
        let (event, key) = (message.event_id.clone(), message.key.clone());
        let before = *book.attempts.get(&event).unwrap_or(&0);
        let verdict = (self.script)(&event, before);
        *book.attempts.entry(event.clone()).or_default() += 1;
        let result = match verdict {
            Verdict::Busy => {
                // A queue that is full empties with an outcome, or says that it has room.
                if book.held.is_empty() {
                    self.outcomes.room();
                }
                book.release();
                return Err(Busy);
            }
            Hold => {
                let same = book.held.iter().filter(|(.., other)| *other == key).count() + 1;
                book.most_of_a_key = book.most_of_a_key.max(same);
                book.held.push((token, event, key));
                return Ok(());
            }
            Take => {
                book.confirmed.push((event, key));
                Ok(())
            }
            Transient => Err(PublishError::Transient("not now".to_owned())),
            Permanent => Err(PublishError::Permanent("never".to_owned())),
        };
        self.outcomes.push(Outcome { token, result });
        Ok(())
    }

    fn key_order(&self) -> KeyOrder {
        self.order
    }

    fn status(&self) -> Arc<SinkStatus> {
        Arc::default()
    }

    fn close(self: Box<Self>, _: Instant) -> BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }
}

fn source() -> Arc<Source> {
    Arc::new(Source::new("prod", provider("cdhosting").unwrap(), Check::Nothing, None))
}

/// The n-th delivery about a server; its event id is `prod:<n>`.
fn entry(number: usize, server: &str) -> Entry {
    let body = json!({ "id": number.to_string(), "type": "server.started", "data": { "server_id": server } });
    let presented = Presented { headers: &HeaderMap::new(), path_token: None, body: body.to_string().into() };
    let verified = source().verify(presented, 1_757_011_080_214).unwrap();
    Entry { key: IdKey(verified.key()), payload: verified.encode() }
}

fn event(number: usize) -> String {
    format!("prod:{number}")
}

/// A spool, and a dispatcher that runs on it.
struct Running {
    appender: hookbus::spool::Appender,
    writer: WriterHandle,
    book: Arc<Mutex<Book>>,
    progress: Arc<Progress>,
    metrics: SinkMetrics,
    letters: DeadLetters,
    stop: watch::Sender<Option<Instant>>,
    thread: JoinHandle<Result<usize, DispatchError>>,
    runtime: tokio::runtime::Runtime,
}

const SINK: &str = "nats";

impl Running {
    fn start(dir: &Path, order: KeyOrder, script: impl FnMut(&str, u32) -> Verdict + Send + 'static) -> Self {
        // So long that only a stop stores the cursor.
        let config =
            hookbus::spool::Config { cursor_interval: Duration::from_secs(3600), ..sim::config(dir) };
        let Spool { appender, mut readers, writer, status, .. } =
            Spool::open(config, &sim::sinks(), Arc::new(DiskStorage)).unwrap();
        let outcomes = Outcomes::new();
        let book = Arc::new(Mutex::new(Book { outcomes: Some(Arc::clone(&outcomes)), ..Book::default() }));
        let metrics = Metrics::new().sink(SINK);
        let source = source();
        let letters = DeadLetters::of(dir, SINK);
        let parts = Parts {
            name: SINK.to_owned(),
            template: Template::parse("events.{event_type}", Naming::Nats).unwrap(),
            in_flight_max: 100,
            retry: Duration::from_millis(1)..=Duration::from_millis(5),
            sink: Box::new(FakeSink {
                book: Arc::clone(&book),
                script: Box::new(script),
                order,
                outcomes: Arc::clone(&outcomes),
            }),
            outcomes,
            reader: readers.remove(0),
            spool: status,
            sources: Arc::new(HashMap::from([(Arc::clone(source.name()), source)])),
            dead_letters: letters.clone(),
            metrics: metrics.clone(),
        };
        let dispatcher = Dispatcher::new(parts);
        let progress = dispatcher.progress();
        let (stop, stopped) = watch::channel(None);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            runtime.block_on(dispatcher.run(stopped))
        });
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        Self { appender, writer, book, progress, metrics, letters, stop, thread, runtime }
    }

    /// Appends these, and returns once they are durable.
    fn append(&self, deliveries: impl IntoIterator<Item = (usize, String)>) {
        for (number, server) in deliveries {
            let appended = self.runtime.block_on(self.appender.append(entry(number, &server))).unwrap();
            assert!(matches!(appended, Appended::New(_)), "{number}: {appended:?}");
        }
    }

    fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        self.book.lock().unwrap()
    }

    fn wait_for_cursor(&self, cursor: u64) {
        wait_for(&format!("the cursor is at {cursor}"), || (self.progress.cursor() == cursor).then_some(()));
    }

    fn wait_for_confirmed(&self, count: usize) {
        wait_for(&format!("{count} are confirmed"), || (self.book().confirmed.len() == count).then_some(()));
    }

    /// Stops the dispatcher, then the spool; returns how many were still under way.
    fn stop(self) -> usize {
        self.stop.send(Some(Instant::now())).unwrap();
        let under_way = self.thread.join().unwrap().unwrap();
        drop(self.appender);
        self.writer.join().unwrap();
        under_way
    }
}

/// `count` deliveries about `servers` servers in turn.
fn in_turn(count: usize, servers: usize) -> impl Iterator<Item = (usize, String)> {
    (0..count).map(move |number| (number, format!("srv_{}", number % servers)))
}

/// Everything of [`in_turn`] once, and of each server in its order; servers may overtake each other.
#[track_caller]
fn check_order(book: &Book, count: usize, servers: usize) {
    for of in 0..servers {
        let of = format!("srv_{of}");
        let confirmed = book.confirmed.iter().filter(|(_, key)| *key == of).map(|(event, _)| event.clone());
        let expected = in_turn(count, servers).filter(|(_, key)| *key == of).map(|(number, _)| event(number));
        assert_eq!(confirmed.collect::<Vec<_>>(), expected.collect::<Vec<_>>(), "{of}");
    }
    assert_eq!(book.confirmed.len(), count);
}

#[test]
fn everything_is_published_in_order_under_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path(), KeyOrder::Pipelined, |_, _| Take);
    running.append(in_turn(30, 3));
    running.wait_for_cursor(30);
    check_order(&running.book(), 30, 3);
    assert_eq!(running.metrics.published.get(), 30);
    assert_eq!(running.stop(), 0);
}

#[test]
fn transient_failures_are_tried_again_and_keep_the_order_of_their_key() {
    let dir = tempfile::tempdir().unwrap();
    // Every third event fails, up to four times.
    let script = |event: &str, before: u32| {
        let number: u32 = event.strip_prefix("prod:").unwrap().parse().unwrap();
        if number.is_multiple_of(3) && before < 1 + number % 4 { Transient } else { Take }
    };
    let running = Running::start(dir.path(), KeyOrder::OneInFlight, script);
    running.append(in_turn(60, 4));
    running.wait_for_cursor(60);
    check_order(&running.book(), 60, 4);
    let retries = (0..60).filter(|number| number % 3 == 0).map(|number| 1 + number % 4).sum::<u64>();
    assert_eq!(running.metrics.retries.get(), retries);
    assert!(running.letters.list().unwrap().is_empty(), "time cures a transient failure");
    running.stop();
}

#[test]
fn a_failing_event_holds_up_its_own_key_only() {
    let dir = tempfile::tempdir().unwrap();
    let mended = Arc::new(Mutex::new(false));
    let works = Arc::clone(&mended);
    let script = move |event: &str, _| {
        if event == "prod:0" && !*works.lock().unwrap() { Transient } else { Take }
    };
    let running = Running::start(dir.path(), KeyOrder::OneInFlight, script);
    running.append(in_turn(20, 2));
    running.wait_for_confirmed(10);
    wait_for("it is tried again and again", || (running.book().attempts["prod:0"] > 10).then_some(()));
    assert!(running.book().confirmed.iter().all(|(_, key)| key == "srv_1"), "the other key went on");
    assert_eq!(running.progress.cursor(), 0, "the cursor passes nothing that is not confirmed");
    *mended.lock().unwrap() = true;
    running.wait_for_cursor(20);
    assert_eq!(running.book().confirmed.len(), 20);
    running.stop();
}

#[test]
fn a_permanent_failure_becomes_a_dead_letter_and_holds_up_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let running =
        Running::start(
            dir.path(),
            KeyOrder::Pipelined,
            |event, _| if event == "prod:3" { Permanent } else { Take },
        );
    running.append(in_turn(8, 1));
    running.wait_for_cursor(8);
    let expected: Vec<String> = (0..8).filter(|number| *number != 3).map(event).collect();
    assert_eq!(running.book().events(), expected);
    assert_eq!(running.letters.list().unwrap(), [3]);
    let letter = running.letters.load(3).unwrap();
    assert_eq!((letter.sink.as_str(), letter.offset, letter.reason.as_str()), (SINK, 3, "never"));
    assert_eq!((letter.event_id.as_str(), letter.event_type.as_str()), ("prod:3", "server.started"));
    assert_eq!(letter.destination, "events.server.started");
    assert_eq!(letter.record().unwrap(), entry(3, "srv_0").payload, "it holds what was accepted");
    assert_eq!(running.metrics.dead_letters.get(), 1);
    running.stop();
}

#[test]
fn the_cursor_never_passes_what_is_not_confirmed() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path(), KeyOrder::Pipelined, |event, _| {
        if matches!(event, "prod:3" | "prod:7") { Hold } else { Take }
    });
    running.append(in_turn(12, 12));
    running.wait_for_confirmed(10);
    running.wait_for_cursor(3);
    let snapshot = running.progress.snapshot();
    assert_eq!((snapshot.backlog, snapshot.in_flight), (9, 2));
    assert!(snapshot.oldest_seconds > 0.0);
    running.book().release();
    running.wait_for_cursor(12);
    assert_eq!(running.progress.snapshot().backlog, 0);
    running.stop();
}

#[test]
fn only_one_of_a_key_is_under_way_where_the_sink_keeps_no_order() {
    for (order, most) in [(KeyOrder::OneInFlight, 1), (KeyOrder::Pipelined, 5)] {
        let dir = tempfile::tempdir().unwrap();
        let running = Running::start(dir.path(), order, |_, _| Hold);
        running.append(in_turn(10, 2));
        for _ in 0..10 {
            if running.progress.cursor() == 10 {
                break;
            }
            wait_for("as many as may be are under way", || {
                let mut book = running.book();
                let rest = (10 - book.confirmed.len()).min(2 * most);
                (book.held.len() == rest).then(|| book.release())
            });
        }
        running.wait_for_cursor(10);
        assert_eq!(running.book().most_of_a_key, most, "{order:?}");
        running.stop();
    }
}

#[test]
fn a_busy_sink_is_offered_the_same_event_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut calls = 0_u32;
    // Room for three at a time.
    let script = move |_: &str, _| {
        calls += 1;
        if calls.is_multiple_of(4) { Verdict::Busy } else { Hold }
    };
    let running = Running::start(dir.path(), KeyOrder::Pipelined, script);
    running.append(in_turn(41, 41));
    wait_for("all are handed over", || {
        let mut book = running.book();
        let all = book.confirmed.len() + book.held.len() == 41;
        all.then(|| book.release())
    });
    running.wait_for_cursor(41);
    let mut events = running.book().events().iter().map(|event| (*event).to_owned()).collect::<Vec<_>>();
    events.sort_unstable();
    events.dedup();
    assert_eq!((events.len(), running.book().confirmed.len()), (41, 41), "each once");
    assert_eq!(running.metrics.retries.get(), 0, "nothing failed");
    running.stop();
}

#[test]
fn a_sink_that_has_room_again_is_asked_without_an_outcome() {
    let dir = tempfile::tempdir().unwrap();
    // Busy for as long as nothing at all is under way: no outcome can ever wake the dispatcher.
    let running =
        Running::start(
            dir.path(),
            KeyOrder::Pipelined,
            |_, before| {
                if before < 3 { Verdict::Busy } else { Take }
            },
        );
    running.append(in_turn(5, 5));
    running.wait_for_cursor(5);
    assert_eq!(running.book().confirmed.len(), 5);
    running.stop();
}

#[test]
fn a_replayed_dead_letter_is_published_and_gone() {
    let dir = tempfile::tempdir().unwrap();
    let mended = Arc::new(Mutex::new(false));
    let works = Arc::clone(&mended);
    let script = move |event: &str, _| {
        if event == "prod:1" && !*works.lock().unwrap() { Permanent } else { Take }
    };
    let running = Running::start(dir.path(), KeyOrder::OneInFlight, script);
    running.append(in_turn(3, 1));
    running.wait_for_cursor(3);
    assert_eq!(running.letters.list().unwrap(), [1]);

    // Replayed too soon, it comes back with a letter.
    running.letters.replay(1).unwrap();
    wait_for("it is dead once more", || {
        let settled =
            running.letters.replays().unwrap().is_empty() && running.metrics.dead_letters.get() == 2;
        settled.then_some(())
    });
    assert_eq!(running.letters.list().unwrap(), [1]);

    *mended.lock().unwrap() = true;
    running.letters.replay(1).unwrap();
    wait_for("it is published", || (running.book().events().last() == Some(&"prod:1")).then_some(()));
    wait_for("its letter is gone", || running.letters.replays().unwrap().is_empty().then_some(()));
    assert!(running.letters.list().unwrap().is_empty());
    assert_eq!(running.book().confirmed.len(), 3);
    assert_eq!(running.progress.cursor(), 3, "a replay moves no cursor");
    running.stop();
}

#[test]
fn what_no_program_of_ours_wrote_becomes_a_dead_letter() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path(), KeyOrder::Pipelined, |_, _| Take);
    let other = Arc::new(Source::new("gone", provider("cdhosting").unwrap(), Check::Nothing, None));
    let presented = Presented { headers: &HeaderMap::new(), path_token: None, body: Bytes::new() };
    let of_no_source = other.verify(presented, 0).unwrap();
    for (key, payload) in [(1, Bytes::from_static(b"\xffnonsense")), (2, of_no_source.encode())] {
        let entry = Entry { key: IdKey([key; 16]), payload };
        running.runtime.block_on(running.appender.append(entry)).unwrap();
    }
    running.append(in_turn(1, 1));
    running.wait_for_cursor(3);
    assert_eq!(running.letters.list().unwrap(), [0, 1]);
    assert_eq!(running.letters.load(0).unwrap().record().unwrap(), &b"\xffnonsense"[..]);
    let reason = running.letters.load(1).unwrap().reason;
    assert!(reason.contains("`gone`"), "{reason}");
    assert_eq!(running.book().events(), ["prod:0"]);
    running.stop();
}

#[test]
fn after_a_stop_the_next_start_goes_on_where_the_cursor_is() {
    let dir = tempfile::tempdir().unwrap();
    let script = |event: &str, _| {
        let number: usize = event.strip_prefix("prod:").unwrap().parse().unwrap();
        if number < 10 || number == 15 { Take } else { Hold }
    };
    let running = Running::start(dir.path(), KeyOrder::Pipelined, script);
    running.append(in_turn(20, 20));
    running.wait_for_confirmed(11);
    running.wait_for_cursor(10);
    wait_for("the rest is under way", || (running.book().held.len() == 9).then_some(()));
    assert_eq!(running.stop(), 9);

    let running = Running::start(dir.path(), KeyOrder::Pipelined, |_, _| Take);
    running.append([(20, "srv_20".to_owned())]);
    running.wait_for_cursor(21);
    // What was confirmed behind a gap comes twice, which is allowed; nothing is missing.
    let expected: Vec<String> = (10..21).map(event).collect();
    assert_eq!(running.book().events(), expected);
    assert_eq!(running.stop(), 0);

    let running = Running::start(dir.path(), KeyOrder::Pipelined, |_, _| Take);
    assert_eq!(running.progress.cursor(), 21);
    assert_eq!(running.stop(), 0);
}

#[test]
fn a_stop_waits_for_what_is_under_way_until_the_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path(), KeyOrder::Pipelined, |_, _| Hold);
    running.append(in_turn(5, 5));
    wait_for("all are under way", || (running.book().held.len() == 5).then_some(()));
    running.stop.send(Some(Instant::now() + Duration::from_secs(60))).unwrap();
    running.book().release();
    assert_eq!(running.thread.join().unwrap().unwrap(), 0, "all of it ended");
}
