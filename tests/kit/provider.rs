//! Plays the providers: makes bodies, signs them, sends them, and keeps the books.

use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use hyper::Method;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::http::{Answer, Client};
use super::{PATIENCE, eventually, scratch_dir};

/// Name, in the bridge's configuration, of the source that CDHosting sends to.
pub(crate) const CDHOSTING: &str = "prod";
/// The one that Cloud 66 sends to.
pub(crate) const CLOUD66: &str = "c66";
pub(crate) const SIGNATURE_HEADER: &str = "X-Webhook-Signature";
pub(crate) const SECRET: &str = "6c1f0e4b7f0a4c5f8e3d2b1a09f8e7d6";
pub(crate) const PATH_TOKEN: &str = "0b9a8f7e6d5c4b3a2f1e0d9c8b7a6f5e";

/// One webhook delivery, ready to be sent as often as one likes.
#[derive(Debug, Clone)]
pub(crate) struct Delivery {
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Bytes,
    /// The event id that consumers must find.
    pub(crate) id: String,
    /// The ordering key that consumers must find.
    pub(crate) key: String,
}

impl Delivery {
    /// A CDHosting body as it is, signed.
    pub(crate) fn cdhosting(body: Vec<u8>) -> Self {
        let parsed: Value = serde_json::from_slice(&body).unwrap_or_default();
        // Ids that could not stand in a header are replaced as if there were none.
        let own_id = parsed["id"]
            .as_str()
            .filter(|id| (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic()));
        let id = own_id.map_or_else(|| derived_id(CDHOSTING, &body), |id| format!("{CDHOSTING}:{id}"));
        let headers = vec![
            ("content-type".to_owned(), "application/json".to_owned()),
            (SIGNATURE_HEADER.to_owned(), signature(SECRET, &body)),
        ];
        let key = parsed["data"]["server_id"].as_str().unwrap_or_default().to_owned();
        Self { path: format!("/hooks/{CDHOSTING}"), headers, body: body.into(), id, key }
    }

    /// A Cloud 66 body as it is; the token in the path is all that speaks for it.
    pub(crate) fn cloud66(body: Vec<u8>) -> Self {
        let parsed: Value = serde_json::from_slice(&body).unwrap_or_default();
        let id = derived_id(CLOUD66, &body);
        let key = parsed["stack"]["uid"].as_str().or(parsed["uid"].as_str()).unwrap_or_default().to_owned();
        let headers = vec![("content-type".to_owned(), "application/json".to_owned())];
        Self { path: format!("/hooks/{CLOUD66}/{PATH_TOKEN}"), headers, body: body.into(), id, key }
    }

    /// The `sequence`-th event of a server: no two are equal.
    pub(crate) fn of_server(server: &str, sequence: u64) -> Self {
        let body = json!({
            "id": format!("evt_{server}_{sequence}"),
            "type": if sequence.is_multiple_of(2) { "server.started" } else { "server.stopped" },
            "created_at": "2024-01-15T10:30:00Z",
            "data": { "server_id": server, "name": "web-01", "status": "running", "sequence": sequence },
        });
        Self::cdhosting(body.to_string().into_bytes())
    }

    /// The `sequence`-th event of a stack: no two are equal.
    pub(crate) fn of_stack(stack: &str, sequence: u64) -> Self {
        let body = json!({
            "event_type": if sequence.is_multiple_of(2) { "stack.redeploy.ok" } else { "stack.redeploy.fail" },
            "timestamp": 1_757_011_079 + sequence,
            "stack": { "uid": stack, "name": "my-production-app", "environment": "production" },
            "deploy_context": { "uid": format!("dc-{sequence}"), "triggered_via": "webhook" },
        });
        Self::cloud66(body.to_string().into_bytes())
    }

    pub(crate) async fn send(&self, client: &mut Client) -> Result<Answer, String> {
        client.send(Method::POST, &self.path, &self.headers, self.body.clone()).await
    }

    /// Sends once; anything but an acceptance fails the test.
    pub(crate) async fn must_be_accepted(&self, client: &mut Client) {
        let answer = self.send(client).await.expect("the bridge answers");
        assert_eq!(answer.status, 202, "{}: {}", self.id, answer.text());
    }
}

/// HMAC-SHA256 over the raw body, in lower-case hex.
pub(crate) fn signature(secret: &str, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
    mac.update(body);
    hex::encode(mac.finalize().into_bytes())
}

/// The id of an event whose provider gave it none.
fn derived_id(source: &str, body: &[u8]) -> String {
    let digest = Sha256::new().chain_update(source).chain_update(b"\0").chain_update(body).finalize();
    format!("{source}:{}", &hex::encode(digest)[..32])
}

/// What a provider knows of one delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) id: String,
    pub(crate) key: String,
    /// Rises with each delivery of the key.
    pub(crate) sequence: u64,
    pub(crate) acked: bool,
}

/// The books: what was sent, and what of it was answered 2xx. An acknowledgement is written to a
/// file of our own and synced before the sender goes on.
pub(crate) struct Ledger {
    file: Mutex<File>,
    entries: Mutex<Vec<Entry>>,
    acked: AtomicU64,
    _dir: TempDir,
}

impl Ledger {
    pub(crate) fn new() -> Self {
        let dir = scratch_dir();
        let path: PathBuf = dir.path().join("acknowledged");
        let file = Mutex::new(File::create(path).expect("a fresh folder"));
        Self { file, entries: Mutex::default(), acked: AtomicU64::new(0), _dir: dir }
    }

    /// Before the first attempt. Returns the entry's number.
    pub(crate) fn sent(&self, delivery: &Delivery, sequence: u64) -> usize {
        let mut entries = self.entries.lock().expect("no holder panics");
        entries.push(Entry { id: delivery.id.clone(), key: delivery.key.clone(), sequence, acked: false });
        entries.len() - 1
    }

    /// After the 2xx.
    pub(crate) fn acked(&self, number: usize) {
        let line = {
            let mut entries = self.entries.lock().expect("no holder panics");
            entries[number].acked = true;
            format!("{} {} {}\n", entries[number].id, entries[number].key, entries[number].sequence)
        };
        let mut file = self.file.lock().expect("no holder panics");
        file.write_all(line.as_bytes()).and_then(|()| file.sync_data()).expect("the ledger can be written");
        self.acked.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn entries(&self) -> Vec<Entry> {
        self.entries.lock().expect("no holder panics").clone()
    }

    pub(crate) fn acked_count(&self) -> u64 {
        self.acked.load(Ordering::SeqCst)
    }
}

/// What a sender does when it has no answer, or one that is not 2xx.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Temper {
    /// CDHosting: sends the same delivery again until it is accepted.
    Repeats,
    /// Cloud 66: goes on to the next event; what became of this one nobody knows.
    GivesUp,
}

/// Senders at work. Each owns keys of its own and has one delivery under way at a time, so that the
/// order of a key's events is the order of its sequence numbers.
pub(crate) struct Load {
    pub(crate) ledger: Arc<Ledger>,
    enough: Arc<AtomicBool>,
    senders: JoinSet<()>,
}

impl Load {
    /// Half of the senders play CDHosting, half Cloud 66. They send to whatever address `bridge`
    /// holds, and wait while it holds none.
    pub(crate) fn start(
        senders: usize,
        bridge: watch::Receiver<Option<SocketAddr>>,
        ledger: Arc<Ledger>,
    ) -> Self {
        static RUNS: AtomicU64 = AtomicU64::new(0);
        let run = RUNS.fetch_add(1, Ordering::SeqCst);
        let enough = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for sender in 0..senders {
            let (bridge, ledger, enough) = (bridge.clone(), Arc::clone(&ledger), Arc::clone(&enough));
            tasks.spawn(async move {
                if sender % 2 == 0 {
                    let make = |n: u64| Delivery::of_server(&format!("srv-{run}-{sender}-{}", n % 2), n);
                    send_all(Temper::Repeats, make, bridge, &ledger, &enough).await;
                } else {
                    let make = |n: u64| Delivery::of_stack(&format!("stack-{run}-{sender}-{}", n % 2), n);
                    send_all(Temper::GivesUp, make, bridge, &ledger, &enough).await;
                }
            });
        }
        Self { ledger, enough, senders: tasks }
    }

    /// Waits until `more` further deliveries are acknowledged.
    pub(crate) async fn acked_more(&self, more: u64) {
        let goal = self.ledger.acked_count() + more;
        eventually(PATIENCE, "the senders have enough acknowledgements", async || {
            let count = self.ledger.acked_count();
            if count >= goal { Ok(()) } else { Err(format!("{count} of {goal}")) }
        })
        .await;
    }

    /// Lets each sender finish what it has under way.
    pub(crate) async fn finish(mut self) {
        self.enough.store(true, Ordering::SeqCst);
        while let Some(ended) = self.senders.join_next().await {
            ended.expect("a sender does not panic");
        }
    }
}

async fn send_all(
    temper: Temper,
    make: impl Fn(u64) -> Delivery,
    mut bridge: watch::Receiver<Option<SocketAddr>>,
    ledger: &Ledger,
    enough: &AtomicBool,
) {
    let mut client: Option<Client> = None;
    let mut sequence = 0;
    while !enough.load(Ordering::SeqCst) {
        let delivery = make(sequence);
        let number = ledger.sent(&delivery, sequence);
        sequence += 1;
        loop {
            let Some(to) = address(&mut bridge, enough).await else { return };
            let client = match &mut client {
                Some(client) if client.to() == to => client,
                stale => stale.insert(Client::new(to)),
            };
            match delivery.send(client).await {
                Ok(answer) if answer.is_accepted() => {
                    ledger.acked(number);
                    break;
                }
                Ok(answer) => assert!(
                    matches!(answer.status, 503 | 408),
                    "{} was answered {}: {}",
                    delivery.id,
                    answer.status,
                    answer.text()
                ),
                Err(_) => {}
            }
            // Refused or cut off: not at once again.
            tokio::time::sleep(Duration::from_millis(20)).await;
            if temper == Temper::GivesUp || enough.load(Ordering::SeqCst) {
                break;
            }
        }
    }
}

/// The bridge's address, as soon as it has one; `None` when there is nothing more to send.
async fn address(
    bridge: &mut watch::Receiver<Option<SocketAddr>>,
    enough: &AtomicBool,
) -> Option<SocketAddr> {
    loop {
        if enough.load(Ordering::SeqCst) {
            return None;
        }
        let changed = tokio::time::timeout(Duration::from_millis(50), bridge.wait_for(Option::is_some)).await;
        match changed {
            Ok(Ok(address)) => return *address,
            Ok(Err(_)) => return None,
            Err(_) => {}
        }
    }
}
