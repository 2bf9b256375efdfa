//! The real binary, as an operator runs it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::watch;

use super::http::{Client, get};
use super::process::{Log, Process};
use super::{PATIENCE, eventually, provider, scratch_dir};

/// How the bridge is configured; what is not said is as in the README's first example.
pub(crate) struct Builder {
    sinks: Vec<String>,
    max_bytes: String,
    spool: String,
    http: String,
    rest: String,
    args: Vec<String>,
}

pub(crate) struct Bridge {
    // Before the directory: what runs in it ends first.
    process: Option<Process>,
    /// Where deliveries go; `None` while it is down.
    address: watch::Sender<Option<SocketAddr>>,
    admin: Option<SocketAddr>,
    args: Vec<String>,
    log: Log,
    dir: TempDir,
}

impl Builder {
    /// A NATS sink named `bus` on the stream `HOOKS`.
    pub(crate) fn nats(self, url: &str) -> Self {
        self.sink(format!(
            "{{ name: bus, kind: nats, servers: [\"{url}\"], stream: {{ name: HOOKS, create: true }}, \
             subject: \"events.{{provider}}.{{event_type}}\" }}"
        ))
    }

    /// A Kafka sink named `lake`, one topic per provider.
    pub(crate) fn kafka(self, bootstrap: &str) -> Self {
        self.sink(format!(
            "{{ name: lake, kind: kafka, brokers: [\"{bootstrap}\"], topic: \"events.{{provider}}\", \
             create_topics: {{ partitions: 3, replication_factor: 1 }} }}"
        ))
    }

    /// One item of `sinks:`, as YAML in one line.
    pub(crate) fn sink(mut self, yaml: impl Into<String>) -> Self {
        self.sinks.push(yaml.into());
        self
    }

    /// `spool.max_bytes`.
    pub(crate) fn max_bytes(mut self, bytes: &str) -> Self {
        bytes.clone_into(&mut self.max_bytes);
        self
    }

    /// Further keys of `spool:`, such as `segment_bytes: 64KiB`.
    pub(crate) fn spool(mut self, keys: &str) -> Self {
        write!(self.spool, ", {keys}").expect("writing to a String cannot fail");
        self
    }

    /// Further keys of `http:`.
    pub(crate) fn http(mut self, keys: &str) -> Self {
        write!(self.http, ", {keys}").expect("writing to a String cannot fail");
        self
    }

    /// Further lines of the file.
    pub(crate) fn lines(mut self, yaml: &str) -> Self {
        writeln!(self.rest, "{yaml}").expect("writing to a String cannot fail");
        self
    }

    /// Further arguments of the command.
    pub(crate) fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    /// Writes the file, starts the bridge, and returns when it is ready.
    pub(crate) async fn start(self) -> Bridge {
        let dir = scratch_dir();
        let at = |name: &str| dir.path().join(name).display().to_string();
        fs::write(at("signature.secret"), provider::SECRET).expect("a fresh folder");
        fs::write(at("path.token"), provider::PATH_TOKEN).expect("a fresh folder");
        let Self { sinks, max_bytes, spool, http, rest, args } = self;
        let sinks: String = sinks.iter().map(|sink| format!("  - {sink}\n")).collect();
        // `allow_volatile`: these tests end processes, never the machine's power.
        let config = format!(
            "http: {{ listen: \"127.0.0.1:0\"{http} }}\n\
             admin: {{ listen: \"127.0.0.1:0\" }}\n\
             spool: {{ dir: \"{spool_dir}\", max_bytes: {max_bytes}, allow_volatile: true{spool} }}\n\
             sources:\n\
             \x20 - name: {prod}\n    provider: cdhosting\n    signature: {{ header: {header} }}\n\
             \x20   secrets: [ {{ file: \"{secret}\" }} ]\n\
             \x20 - name: {c66}\n    provider: cloud66\n    path_token: {{ file: \"{token}\" }}\n\
             sinks:\n{sinks}{rest}",
            spool_dir = at("spool"),
            prod = provider::CDHOSTING,
            c66 = provider::CLOUD66,
            header = provider::SIGNATURE_HEADER,
            secret = at("signature.secret"),
            token = at("path.token"),
        );
        fs::write(at("hookbus.yaml"), config).expect("a fresh folder");
        let address = watch::Sender::new(None);
        let mut bridge = Bridge { process: None, address, admin: None, args, log: Log::default(), dir };
        bridge.restart().await;
        bridge
    }
}

impl Bridge {
    pub(crate) fn builder() -> Builder {
        Builder {
            sinks: Vec::new(),
            max_bytes: "1GiB".to_owned(),
            spool: String::new(),
            http: String::new(),
            rest: String::new(),
            args: Vec::new(),
        }
    }

    /// The program under test.
    pub(crate) fn program() -> &'static Path {
        Path::new(env!("CARGO_BIN_EXE_hookbus"))
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.dir.path().join("hookbus.yaml")
    }

    pub(crate) fn spool(&self) -> PathBuf {
        self.dir.path().join("spool")
    }

    /// Where deliveries go now.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address.borrow().expect("the bridge runs")
    }

    /// Where deliveries go, followed over restarts: each comes with a new port.
    pub(crate) fn addresses(&self) -> watch::Receiver<Option<SocketAddr>> {
        self.address.subscribe()
    }

    pub(crate) fn admin(&self) -> SocketAddr {
        self.admin.expect("the bridge runs")
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(self.address())
    }

    /// Everything that it has logged, over all its restarts.
    pub(crate) fn log(&self) -> Vec<String> {
        self.log.lines()
    }

    /// Starts it on the same configuration and spool; returns when it is ready.
    pub(crate) async fn restart(&mut self) {
        assert!(self.process.is_none(), "end it before you restart it");
        let before = self.log.len();
        let mut command = Command::new(Self::program());
        command.args(["serve", "--log-format", "json", "--config"]).arg(self.config()).args(&self.args);
        let process = self.process.insert(Process::spawn("hookbus", command, &self.log, "cargo builds it"));
        let log = &self.log;
        let (address, admin) = eventually(PATIENCE, "the bridge says where it listens", async || {
            let lines = log.lines();
            let announced = |message| lines[before..].iter().find_map(|line| address_in(line, message));
            if let (Some(address), Some(admin)) = (announced("listening"), announced("admin listening")) {
                return Ok((address, admin));
            }
            match process.has_exited() {
                Some(status) => panic!("hookbus exited at start with {status}:\n{}", log.tail()),
                None => Err("not said yet"),
            }
        })
        .await;
        self.admin = Some(admin);
        self.wait_ready().await;
        self.address.send_replace(Some(address));
    }

    pub(crate) async fn wait_ready(&self) {
        let admin = self.admin();
        eventually(PATIENCE, "the bridge is ready", async || match get(admin, "/readyz").await {
            Ok(answer) if answer.status == 200 => Ok(()),
            Ok(answer) => Err(format!("/readyz says {}: {}", answer.status, answer.text())),
            Err(error) => Err(error),
        })
        .await;
    }

    /// SIGKILL.
    pub(crate) fn kill9(&mut self) {
        self.process.take().expect("it runs").kill();
        self.address.send_replace(None);
    }

    /// SIGTERM; returns how it exited. Until then senders go on sending to it.
    pub(crate) async fn sigterm(&mut self, deadline: Duration) -> ExitStatus {
        let mut process = self.process.take().expect("it runs");
        process.signal(Signal::TERM);
        let status = process.exit(deadline).await;
        self.address.send_replace(None);
        status
    }

    /// SIGSTOP: frozen, with its sockets open.
    pub(crate) fn stop(&mut self) {
        self.process.as_mut().expect("it runs").signal(Signal::STOP);
    }

    /// SIGCONT.
    pub(crate) fn cont(&mut self) {
        self.process.as_mut().expect("it runs").signal(Signal::CONT);
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.as_ref().expect("it runs").id()
    }

    /// Every sample of `/metrics`, by its name and labels as they are written: `a_total{b="c"}`.
    pub(crate) async fn metrics(&self) -> BTreeMap<String, f64> {
        let answer = get(self.admin(), "/metrics").await.expect("the bridge answers");
        assert_eq!(answer.status, 200, "/metrics: {}", answer.text());
        parse_metrics(&answer.text())
    }

    /// The sum over all samples of one metric, which must have some.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let metrics = self.metrics().await;
        let of_name = metrics.iter().filter(|(sample, _)| sample.split('{').next() == Some(name));
        let values: Vec<f64> = of_name.map(|(_, value)| *value).collect();
        assert!(!values.is_empty(), "no metric {name}");
        values.iter().sum()
    }
}

fn parse_metrics(text: &str) -> BTreeMap<String, f64> {
    let samples = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    samples
        .map(|line| {
            // Label values may hold spaces; what follows the labels does not. A third word is a time.
            let (head, tail) = match line.rfind('}') {
                Some(end) => line.split_at(end + 1),
                None => line.split_at(line.find(' ').unwrap_or(line.len())),
            };
            let value = tail.split_whitespace().next().and_then(|value| value.parse().ok());
            (head.to_owned(), value.unwrap_or_else(|| panic!("not a sample: {line}")))
        })
        .collect()
}

/// `addr` of a JSON log line with this message, whether its fields stand at the top or nested.
fn address_in(line: &str, message: &str) -> Option<SocketAddr> {
    let line: Value = serde_json::from_str(line).ok()?;
    let fields = line.get("fields").unwrap_or(&line);
    (fields.get("message")? == message).then_some(())?;
    fields.get("addr")?.as_str()?.parse().ok()
}

#[test]
fn metrics_are_read_by_name_and_labels() {
    let text = "# TYPE a counter\na_total{b=\"c d\",e=\"{}\"} 3\nf 0.5 1700000000\n# EOF\n";
    let metrics = parse_metrics(text);
    assert_eq!(metrics["a_total{b=\"c d\",e=\"{}\"}"], 3.0);
    assert_eq!(metrics["f"], 0.5);
}
