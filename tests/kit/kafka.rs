//! A real Kafka broker (KRaft, one node), and a plain consumer of it.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers as _, Message as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard};

use super::process::{Log, Process};
use super::seen::{Position, Seen};
use super::{PATIENCE, blocking, eventually, port, provision, scratch_dir};

/// One Java machine at a time: two would starve each other, and the tests, on a small machine.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// For quick starts of a program that lives for seconds.
const JAVA: [&str; 5] =
    ["-Xmx512m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto", "-Dlog4j2.level=WARN"];
/// Any will do; it is the same for all, as each has its own directory.
const CLUSTER: &str = "aG9va2J1cy10ZXN0cy1raQ";

/// Which transactions a consumer looks into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isolation {
    Committed,
    Uncommitted,
}

pub(crate) struct Kafka {
    // Before the directory and the guard: what runs ends first.
    process: Option<Process>,
    port: u16,
    class_path: String,
    dir: TempDir,
    log: Log,
    _turn: MutexGuard<'static, ()>,
}

impl Kafka {
    /// Waits for its turn, then starts a broker with an empty, formatted directory.
    pub(crate) async fn start() -> Self {
        let mut kafka = Self::down().await;
        kafka.restart().await;
        kafka
    }

    /// A broker that does not run yet, but whose address is known; `restart` starts it.
    pub(crate) async fn down() -> Self {
        Self::advertised_on(None).await
    }

    /// As `down`, but clients are told to come to another port: that of a proxy.
    pub(crate) async fn advertised_on(advertised: Option<u16>) -> Self {
        let turn = ONE_AT_A_TIME.lock().await;
        let dir = scratch_dir();
        let (port, controller) = (port::free(), port::free());
        let advertised = advertised.unwrap_or(port);
        let properties = format!(
            "process.roles=broker,controller\n\
             node.id=1\n\
             controller.quorum.voters=1@127.0.0.1:{controller}\n\
             listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n\
             advertised.listeners=PLAINTEXT://127.0.0.1:{advertised}\n\
             controller.listener.names=CONTROLLER\n\
             inter.broker.listener.name=PLAINTEXT\n\
             log.dirs={}\n\
             auto.create.topics.enable=false\n\
             offsets.topic.replication.factor=1\n\
             offsets.topic.num.partitions=1\n\
             transaction.state.log.replication.factor=1\n\
             transaction.state.log.num.partitions=1\n\
             transaction.state.log.min.isr=1\n\
             share.coordinator.state.topic.replication.factor=1\n\
             share.coordinator.state.topic.min.isr=1\n\
             group.initial.rebalance.delay.ms=0\n\
             broker.heartbeat.interval.ms=500\n\
             broker.session.timeout.ms=3000\n",
            dir.path().join("log").display()
        );
        fs::write(dir.path().join("server.properties"), properties).expect("a fresh folder");
        let install = || {
            let class_path = provision::kafka_class_path();
            let mut version = Command::new("java");
            version.arg("-version");
            provision::run(version, provision::JAVA_HINT);
            class_path
        };
        let class_path = blocking(install).await;
        let kafka = Self { process: None, port, class_path, dir, log: Log::default(), _turn: turn };
        let mut format = kafka.java("kafka.tools.StorageTool");
        format.args(["format", "-t", CLUSTER, "-c"]).arg(kafka.dir.path().join("server.properties"));
        blocking(move || provision::run(format, provision::JAVA_HINT)).await;
        kafka
    }

    pub(crate) fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Starts it again on the same port and directory; returns when it answers.
    pub(crate) async fn restart(&mut self) {
        assert!(self.process.is_none(), "kill it before you restart it");
        let mut command = self.java("kafka.Kafka");
        command.arg(self.dir.path().join("server.properties"));
        let process = self.process.insert(Process::spawn("kafka", command, &self.log, provision::JAVA_HINT));
        let (port, log) = (self.port, &self.log);
        eventually(PATIENCE, "kafka answers", async || {
            if let Some(status) = process.has_exited() {
                return Err(format!("it exited with {status}:\n{}", log.tail()));
            }
            // A client of its own would log each refused connection while Java starts.
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.map_err(|e| e.to_string())
        })
        .await;
        let bootstrap = self.bootstrap();
        blocking(move || {
            let metadata = consumer(&bootstrap, Isolation::Committed).fetch_metadata(None, PATIENCE);
            let brokers = metadata.expect("kafka answers").brokers().len();
            assert_eq!(brokers, 1, "the broker has registered itself");
        })
        .await;
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.process.take().expect("it runs").kill();
    }

    /// SIGSTOP: frozen, with its sockets open.
    pub(crate) fn stop(&mut self) {
        self.process.as_mut().expect("it runs").signal(Signal::STOP);
    }

    /// SIGCONT.
    pub(crate) fn cont(&mut self) {
        self.process.as_mut().expect("it runs").signal(Signal::CONT);
    }

    /// The topics of its users, by name.
    pub(crate) async fn topics(&self) -> Vec<String> {
        let bootstrap = self.bootstrap();
        blocking(move || {
            let metadata = consumer(&bootstrap, Isolation::Committed).fetch_metadata(None, PATIENCE);
            let metadata = metadata.expect("kafka lists its topics");
            let names = metadata.topics().iter().map(|topic| topic.name().to_owned());
            let mut names: Vec<String> = names.filter(|name| !name.starts_with("__")).collect();
            names.sort_unstable();
            names
        })
        .await
    }

    /// Everything that these topics hold now, each partition in its order; nothing for a topic that
    /// does not exist.
    pub(crate) async fn read(&self, topics: &[&str], isolation: Isolation) -> Vec<Seen> {
        let bootstrap = self.bootstrap();
        let topics: Vec<String> = topics.iter().map(|topic| (*topic).to_owned()).collect();
        blocking(move || {
            let consumer = consumer(&bootstrap, isolation);
            topics.iter().flat_map(|topic| read_topic(&consumer, topic)).collect()
        })
        .await
    }

    /// Everything in every topic.
    pub(crate) async fn read_all(&self) -> Vec<Seen> {
        let topics = self.topics().await;
        let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
        self.read(&topics, Isolation::Committed).await
    }

    fn java(&self, class: &str) -> Command {
        let mut command = Command::new("java");
        command.args(JAVA).arg("-cp").arg(&self.class_path).arg(class).current_dir(self.dir.path());
        command
    }
}

fn consumer(bootstrap: &str, isolation: Isolation) -> BaseConsumer {
    ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        // Demanded by the library; no group is ever joined.
        .set("group.id", "kit")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("allow.auto.create.topics", "false")
        .set("auto.offset.reset", "error")
        .set(
            "isolation.level",
            match isolation {
                Isolation::Committed => "read_committed",
                Isolation::Uncommitted => "read_uncommitted",
            },
        )
        .create()
        .expect("these settings are valid")
}

/// Reads until each partition has said that it has no more: with transactions the last offset may
/// be a marker that no consumer sees.
fn read_topic(consumer: &BaseConsumer, topic: &str) -> Vec<Seen> {
    let begun = std::time::Instant::now();
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE).expect("kafka describes a topic");
    let partitions: Vec<i32> = metadata
        .topics()
        .iter()
        .flat_map(|topic| topic.partitions())
        .map(|partition| partition.id())
        .collect();
    let mut assignment = TopicPartitionList::new();
    for partition in &partitions {
        assignment.add_partition_offset(topic, *partition, Offset::Beginning).expect("a valid offset");
    }
    consumer.assign(&assignment).expect("the partitions exist");

    let mut seen = Vec::new();
    let mut unfinished = partitions;
    while !unfinished.is_empty() {
        assert!(
            begun.elapsed() < PATIENCE,
            "{topic}: partitions {unfinished:?} have no end after {PATIENCE:?}"
        );
        match consumer.poll(Duration::from_millis(500)) {
            None => {}
            Some(Err(KafkaError::PartitionEOF(partition))) => unfinished.retain(|other| *other != partition),
            Some(Err(error)) => panic!("cannot read {topic}: {error}"),
            Some(Ok(message)) => {
                let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
                let headers: BTreeMap<String, String> = headers
                    .map(|header| (header.key.to_owned(), text(header.value.unwrap_or_default())))
                    .collect();
                seen.push(Seen {
                    destination: message.topic().to_owned(),
                    key: message.key().map(text),
                    headers,
                    payload: message.payload().unwrap_or_default().to_vec(),
                    position: Position {
                        partition: message.partition(),
                        offset: u64::try_from(message.offset()).expect("a stored message has an offset"),
                    },
                });
            }
        }
    }
    seen
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
