//! `hookbus demo`: the main job with nothing installed.
//!
//! The bridge that runs here is the one that `serve` runs. Only the broker differs: librdkafka's
//! own mock cluster, in this process, which can be taken down and brought back.

use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print nothing but one JSON object with the counts
    #[arg(long)]
    json: bool,
    /// How many deliveries
    #[arg(long, default_value_t = 3_000, value_parser = clap::value_parser!(u64).range(58..=1_000_000))]
    events: u64,
}

#[cfg(not(feature = "kafka"))]
pub(super) fn run(_: &Args) -> super::Outcome {
    Err(super::Failure::new("the demo needs the in-process Kafka: build with the feature `kafka`"))
}

#[cfg(feature = "kafka")]
pub(super) fn run(args: &Args) -> super::Outcome {
    let demo = super::runtime()?.block_on(story::tell(args))?;
    Ok(if demo.lost == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(feature = "kafka")]
mod story {
    use std::collections::{BTreeSet, HashMap, HashSet};
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::time::{Duration, Instant};

    use secrecy::SecretString;
    use serde::Serialize;
    use serde_json::{Value, json};
    use tokio::sync::oneshot;
    use tokio::task::JoinSet;
    use tokio::time::sleep_until;
    use warp::http::HeaderName;

    use super::super::Failure;
    use super::super::output::{self, grouped};
    use super::Args;
    use crate::bridge::{self, Addresses};
    use crate::config::Config;
    use crate::schemas::FILES;
    use crate::simulate::{Client, Payload, Payloads};
    use crate::sink::embedded::{Consumed, EmbeddedKafka};

    /// How long everything may take to arrive once the broker is back.
    const ARRIVAL: Duration = Duration::from_secs(60);
    /// How long the broker stays down at least.
    const OUTAGE: Duration = Duration::from_secs(1);
    const SIGNATURE: &str = "x-webhook-signature";
    const CONCURRENCY: usize = 32;

    /// The last line of `--json`.
    #[derive(Debug, Default, Serialize)]
    pub(super) struct Summary {
        pub sent: u64,
        pub accepted: u64,
        pub delivered: u64,
        pub lost: u64,
        pub repeated: u64,
        pub dead_lettered: u64,
        pub event_types: usize,
        pub outage_ms: u128,
    }

    pub(super) async fn tell(args: &Args) -> Result<Summary, Failure> {
        let say = |text: String| {
            if !args.json {
                output::line(&text);
            }
        };
        let dir = Workdir::new()?;
        let kafka =
            EmbeddedKafka::start(&["events.cdhosting", "events.cloud66"]).map_err(|e| Failure::of(&e))?;
        say(format!("kafka     in this process at {}", kafka.bootstrap()));

        let config = configuration(&dir.0, &kafka.bootstrap())?;
        let (started, addresses) = oneshot::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let bridge = tokio::spawn(bridge::run(
            config,
            move |addresses| {
                // Nobody waits any more only if the demo has failed already.
                let _unheard = started.send(addresses);
            },
            async move { drop(stopped.await) },
        ));
        let Ok(addresses) = addresses.await else {
            let ended = bridge.await.map_err(|error| Failure::of(&error))?;
            return Err(
                ended.map_or_else(|error| Failure::of(&error), |()| Failure::new("the bridge ended at once"))
            );
        };
        say(format!("bridge    accepts at http://{}", addresses.http));

        let mut senders = Senders::new(addresses, args.events)?;
        let third = args.events / 3;
        let up = senders.send(third).await;
        say(format!("deliver   {} accepted of {} sent, broker up", grouped(up.1), grouped(up.0)));

        kafka.down().map_err(|e| Failure::of(&e))?;
        let outage = Instant::now();
        say("outage    broker taken down".to_owned());
        let down = senders.send(third).await;
        say(format!("deliver   {} accepted of {} sent, broker down", grouped(down.1), grouped(down.0)));
        // Long enough for the bridge to see the broker gone, however fast the deliveries went.
        sleep_until((outage + OUTAGE).into()).await;
        kafka.up().map_err(|e| Failure::of(&e))?;
        let outage_ms = outage.elapsed().as_millis();
        say(format!("outage    broker back after {outage_ms} ms"));

        let rest = senders.send(args.events - 2 * third).await;
        say(format!("deliver   {} accepted of {} sent, broker up", grouped(rest.1), grouped(rest.0)));

        let accepted = senders.accepted;
        let expected = accepted.len();
        let consumer = kafka.consumer();
        let consumed = tokio::task::spawn_blocking(move || consumer.read_until(expected, ARRIVAL))
            .await
            .map_err(|error| Failure::of(&error))?
            .map_err(|error| Failure::of(&error))?;
        let mut summary = check(&consumed, &accepted, &say)?;
        summary.sent = args.events;
        summary.outage_ms = outage_ms;
        summary.dead_lettered = count_dead_letters(&dir.0);
        say(format!(
            "read back {} events of {} types by a plain consumer, each valid against its schema",
            grouped(summary.delivered),
            summary.event_types
        ));

        let _unheard = stop.send(());
        let ended = bridge.await.map_err(|error| Failure::of(&error))?;
        ended.map_err(|error| Failure::of(&error))?;
        say(format!(
            "sent {}  accepted {}  delivered {}  lost {}  repeated {}",
            grouped(summary.sent),
            grouped(summary.accepted),
            grouped(summary.delivered),
            grouped(summary.lost),
            grouped(summary.repeated)
        ));
        if args.json {
            output::line(&serde_json::to_string(&summary).map_err(|error| Failure::of(&error))?);
        }
        Ok(summary)
    }

    /// A directory that goes when the demo does.
    struct Workdir(PathBuf);

    impl Workdir {
        fn new() -> Result<Self, Failure> {
            let dir = std::env::temp_dir().join(format!("hookbus-demo-{}", std::process::id()));
            fs::create_dir_all(&dir)
                .map_err(|error| Failure::new(format!("cannot make {}: {error}", dir.display())))?;
            Ok(Self(dir))
        }
    }

    impl Drop for Workdir {
        fn drop(&mut self) {
            // What cannot be removed from a temporary directory is the system's to clean.
            drop(fs::remove_dir_all(&self.0));
        }
    }

    const SECRET: &str = "demo-secret-of-cdhosting-0123456789";
    const TOKEN: &str = "demo-token-of-cloud66-0123456789abcdef";

    fn configuration(dir: &Path, bootstrap: &str) -> Result<Config, Failure> {
        let file = |name: &str, text: &str| {
            let path = dir.join(name);
            fs::write(&path, text)
                .map(|()| path.clone())
                .map_err(|error| Failure::new(format!("cannot write {}: {error}", path.display())))
        };
        let document = json!({
            "http": { "listen": "127.0.0.1:0" },
            "admin": { "listen": "127.0.0.1:0" },
            // A demo may run where temporary files live in memory.
            "spool": { "dir": dir.join("spool"), "max_bytes": "1GiB", "allow_volatile": true },
            "shutdown_grace": "5s",
            "sources": [
                {
                    "name": "prod", "provider": "cdhosting",
                    "signature": { "header": SIGNATURE }, "secrets": [{ "file": file("secret", SECRET)? }],
                },
                { "name": "c66", "provider": "cloud66", "path_token": { "file": file("token", TOKEN)? } },
            ],
            "sinks": [{
                "name": "lake", "kind": "kafka", "brokers": [bootstrap], "topic": "events.{provider}",
                "options": { "reconnect.backoff.max.ms": 200 },
            }],
        });
        Config::from_value(&document).map_err(|mistakes| {
            let text: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
            Failure::new(format!("the demo's own configuration is wrong: {}", text.join("; ")))
        })
    }

    /// Both providers, taking turns so that every event type comes by in each phase.
    struct Senders {
        cloud66: (Client, Payloads),
        cdhosting: (Client, Payloads),
        next: u64,
        /// Event ids that were answered 2xx.
        accepted: HashSet<String>,
    }

    impl Senders {
        fn new(addresses: Addresses, _: u64) -> Result<Self, Failure> {
            let client = |path: String, signing| {
                Client::new(&format!("http://{}/hooks/{path}", addresses.http), signing)
                    .map_err(|e| Failure::of(&e))
            };
            let payloads = |provider| Payloads::new(provider, None).map_err(|error| Failure::of(&error));
            let signing = (HeaderName::from_static(SIGNATURE), SecretString::from(SECRET));
            Ok(Self {
                cloud66: (client(format!("c66/{TOKEN}"), None)?, payloads("cloud66")?),
                cdhosting: (client("prod".to_owned(), Some(signing))?, payloads("cdhosting")?),
                next: 0,
                accepted: HashSet::new(),
            })
        }

        /// Sends `count` deliveries. Returns how many were sent and how many accepted.
        async fn send(&mut self, count: u64) -> (u64, u64) {
            let before = self.accepted.len();
            let mut under_way: JoinSet<(bool, String)> = JoinSet::new();
            for _ in 0..count {
                if under_way.len() >= CONCURRENCY
                    && let Some(Ok(done)) = under_way.join_next().await
                {
                    self.note(done);
                }
                let n = self.next;
                self.next += 1;
                let ((client, payloads), source) =
                    if n.is_multiple_of(3) { (&self.cdhosting, "prod") } else { (&self.cloud66, "c66") };
                let (client, Payload { body, .. }) = (client.clone(), payloads.nth(n / 3 * 2 + n % 3));
                under_way.spawn(async move {
                    let id = expected_id(source, &body);
                    (client.deliver(&body, false).await.is_accepted(), id)
                });
            }
            while let Some(done) = under_way.join_next().await {
                if let Ok(done) = done {
                    self.note(done);
                }
            }
            let accepted = u64::try_from(self.accepted.len() - before).unwrap_or(u64::MAX);
            (count, accepted)
        }

        fn note(&mut self, (accepted, id): (bool, String)) {
            if accepted {
                self.accepted.insert(id);
            }
        }
    }

    /// The id under which a body is promised to arrive, worked out apart from the bridge.
    fn expected_id(source: &str, body: &[u8]) -> String {
        use sha2::{Digest, Sha256};
        let parsed: Value = serde_json::from_slice(body).unwrap_or_default();
        if let Some(id) = parsed.get("id").and_then(Value::as_str).filter(|_| source == "prod") {
            return format!("{source}:{id}");
        }
        let digest = Sha256::new().chain_update(source).chain_update(b"\0").chain_update(body).finalize();
        format!("{source}:{}", hex::encode(digest).get(..32).unwrap_or_default())
    }

    fn check(
        consumed: &[Consumed],
        accepted: &HashSet<String>,
        say: &impl Fn(String),
    ) -> Result<Summary, Failure> {
        let mut validator = Validator::new()?;
        let mut seen = HashSet::new();
        let mut event_types = BTreeSet::new();
        let mut repeated = 0;
        for event in consumed {
            let value: Value = serde_json::from_slice(&event.payload)
                .map_err(|error| Failure::new(format!("an event is not JSON: {error}")))?;
            validator.check(&value)?;
            let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
            event_types.insert(text("type"));
            if !seen.insert(text("id")) {
                repeated += 1;
            }
        }
        let lost: Vec<_> = accepted.difference(&seen).collect();
        for id in lost.iter().take(10) {
            say(format!("LOST      {id}"));
        }
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        Ok(Summary {
            accepted: count(accepted.len()),
            delivered: count(seen.len()),
            lost: count(lost.len()),
            repeated,
            event_types: event_types.len(),
            ..Summary::default()
        })
    }

    /// The envelope's schema and those of the data, compiled once.
    struct Validator {
        schemas: boon::Schemas,
        compiled: HashMap<String, boon::SchemaIndex>,
        compiler: boon::Compiler,
    }

    impl Validator {
        fn new() -> Result<Self, Failure> {
            let mut compiler = boon::Compiler::new();
            compiler.enable_format_assertions();
            for (name, text) in FILES.iter().filter(|(name, _)| *name != "index") {
                let wrong = |problem: String| Failure::new(format!("schema {name}: {problem}"));
                let schema: Value = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
                let id = schema.get("$id").and_then(Value::as_str).unwrap_or_default().to_owned();
                compiler.add_resource(&id, schema).map_err(|error| wrong(error.to_string()))?;
            }
            Ok(Self { schemas: boon::Schemas::new(), compiled: HashMap::new(), compiler })
        }

        fn check(&mut self, event: &Value) -> Result<(), Failure> {
            let schema = event.get("dataschema").and_then(Value::as_str).unwrap_or_default().to_owned();
            self.validate("urn:hookbus:schema:v1:envelope", event)?;
            self.validate(&schema, event.get("data").unwrap_or(&Value::Null))
        }

        fn validate(&mut self, id: &str, value: &Value) -> Result<(), Failure> {
            let index = match self.compiled.get(id) {
                Some(index) => *index,
                None => {
                    let index = self
                        .compiler
                        .compile(id, &mut self.schemas)
                        .map_err(|error| Failure::new(format!("schema {id}: {error}")))?;
                    self.compiled.insert(id.to_owned(), index);
                    index
                }
            };
            self.schemas
                .validate(value, index)
                .map_err(|error| Failure::new(format!("an event misses its schema {id}: {error}")))
        }
    }

    fn count_dead_letters(dir: &Path) -> u64 {
        let letters = crate::dead_letter::DeadLetters::of(&dir.join("spool"), "lake");
        letters.list().map_or(0, |offsets| u64::try_from(offsets.len()).unwrap_or(u64::MAX))
    }
}
