//! Looks after the topics that the producer found missing, off every other thread: makes them
//! where the operator wants that, and has the producer ask again. librdkafka may otherwise hold a
//! topic for missing long after it was made.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::RDKafkaErrorCode;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_retry::strategy::{ExponentialBackoff, jitter};

use super::TopicSpec;
use super::kafka::{Shared, log};

/// How long one question to the cluster may take.
const ASK_WITHIN: Duration = Duration::from_secs(10);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

pub(super) struct Topics {
    create: Option<TopicSpec>,
    shared: Weak<Shared>,
    admin: Option<AdminClient<Quiet>>,
    /// Not found usable yet, and when to look again.
    missing: HashMap<String, Missing>,
}

struct Missing {
    at: Instant,
    waits: ExponentialBackoff,
}

struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }
}

impl Topics {
    pub(super) fn new(create: Option<TopicSpec>, shared: Weak<Shared>) -> Self {
        Self { create, shared, admin: None, missing: HashMap::new() }
    }

    /// Until the sink is gone.
    pub(super) async fn run(mut self, mut asked: mpsc::Receiver<String>) {
        loop {
            let next = self.missing.iter().min_by_key(|(_, missing)| missing.at);
            let next = next.map(|(topic, missing)| (topic.clone(), missing.at));
            tokio::select! {
                topic = asked.recv() => {
                    let Some(topic) = topic else { return };
                    self.missing.entry(topic).or_insert_with(|| Missing {
                        at: Instant::now(),
                        waits: ExponentialBackoff::from_millis(2).factor(50).max_delay(LONGEST_WAIT),
                    });
                }
                topic = due(next) => {
                    let Some(shared) = self.shared.upgrade() else { return };
                    self.look_at(&shared, topic).await;
                }
            }
        }
    }

    async fn look_at(&mut self, shared: &Arc<Shared>, topic: String) {
        match self.look(shared, &topic).await {
            Ok(usable) => {
                shared.status().set_connected(true);
                if usable {
                    self.missing.remove(&topic);
                } else {
                    self.again(&topic);
                }
            }
            Err(problem) => {
                if shared.status().last_error().as_ref() != Some(&problem) {
                    tracing::warn!(topic, problem, "topic not usable: its events wait on disk");
                    shared.status().set_error(problem);
                }
                self.again(&topic);
            }
        }
    }

    fn again(&mut self, topic: &str) {
        if let Some(missing) = self.missing.get_mut(topic) {
            let wait = missing.waits.next().unwrap_or(LONGEST_WAIT);
            missing.at = Instant::now() + jitter(wait);
        }
    }

    /// False for a topic that was made just now: the producer has to learn of it, by another look.
    async fn look(&mut self, shared: &Arc<Shared>, topic: &str) -> Result<bool, String> {
        let (asks, name) = (Arc::clone(shared), topic.to_owned());
        let asked = tokio::task::spawn_blocking(move || asks.refresh(&name, ASK_WITHIN));
        match asked.await.map_err(|error| error.to_string())?? {
            Some(replicas) => {
                if replicas < 3 {
                    tracing::warn!(topic, replicas, "fewer than 3 replicas: a lost broker can lose events");
                }
                self.warn_of_min_insync(shared, topic).await;
                Ok(true)
            }
            None => match self.create {
                Some(spec) => {
                    self.make(shared, spec, topic).await?;
                    Ok(false)
                }
                None => Err(format!("topic {topic} does not exist: make it, or set create_topics: true")),
            },
        }
    }

    fn admin(&mut self, shared: &Shared) -> Result<&AdminClient<Quiet>, String> {
        if self.admin.is_none() {
            let mut config = shared.client().clone();
            // It produces nothing, and needs no producer id.
            config.set("enable.idempotence", "false").set("enable.gapless.guarantee", "false");
            self.admin = Some(config.create_with_context(Quiet).map_err(|error| error.to_string())?);
        }
        self.admin.as_ref().ok_or_else(|| "no admin client".to_owned())
    }

    async fn make(&mut self, shared: &Shared, spec: TopicSpec, topic: &str) -> Result<(), String> {
        let new = NewTopic::new(topic, spec.partitions, TopicReplication::Fixed(spec.replication));
        let made = self.admin(shared)?.create_topics([&new], &options()).await;
        for result in made.map_err(|error| error.to_string())? {
            match result {
                Ok(_) => tracing::info!(topic, partitions = spec.partitions, "topic created"),
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((_, code)) => return Err(format!("cannot create topic {topic}: {code}")),
            }
        }
        Ok(())
    }

    /// What the acks of this topic are worth. Without permission to ask, nothing is said.
    async fn warn_of_min_insync(&mut self, shared: &Shared, topic: &str) {
        let Ok(admin) = self.admin(shared) else { return };
        let described = admin.describe_configs([&ResourceSpecifier::Topic(topic)], &options()).await;
        let found =
            described.into_iter().flatten().flatten().find_map(|resource| {
                resource.get("min.insync.replicas")?.value.as_ref()?.parse::<u32>().ok()
            });
        if let Some(min_insync) = found.filter(|min| *min < 2) {
            tracing::warn!(topic, min_insync, "min.insync.replicas below 2: an ack may rest on one broker");
        }
    }
}

fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(ASK_WITHIN)).request_timeout(Some(ASK_WITHIN))
}

async fn due(next: Option<(String, Instant)>) -> String {
    match next {
        Some((topic, at)) => {
            sleep_until(at).await;
            topic
        }
        None => std::future::pending().await,
    }
}
