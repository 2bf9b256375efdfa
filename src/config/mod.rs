//! What the operator wrote -> a [`Config`] that cannot be wrong.
//!
//! The only reader of settings from files and environment. Everything is read and checked before
//! any part starts, and all mistakes are reported at once, each with its key path.

mod reader;
mod sinks;
mod sources;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

pub use reader::Mistake;
use reader::{Mistakes, Section};
pub use sinks::{Broker, SinkConfig};
pub use sources::SourceConfig;

use crate::{http, spool};

const MIB: u64 = 1024 * 1024;
const GIB: u64 = 1024 * MIB;
/// What a record holds besides the body: names, id, headers. Bounded by their own limits.
const RECORD_OVERHEAD: u64 = 4096;

/// Every setting, checked.
#[derive(Debug)]
pub struct Config {
    pub http: http::Config,
    pub admin: SocketAddr,
    pub spool: spool::Config,
    /// Spooling onto a file system that forgets is allowed.
    pub allow_volatile: bool,
    pub sources: Vec<SourceConfig>,
    pub sinks: Vec<SinkConfig>,
    /// How long a stop may wait for handlers and for what is in flight.
    pub shutdown_grace: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} is not valid YAML: {problem}", path.display())]
    Syntax { path: PathBuf, problem: String },
    #[error("{} mistake(s) in {}", mistakes.len(), path.display())]
    Mistakes { path: PathBuf, mistakes: Vec<Mistake> },
}

impl Config {
    /// # Errors
    /// With every mistake of the file at once.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let document: Value = serde_saphyr::from_str(&text)
            .map_err(|error| ConfigError::Syntax { path: path.to_owned(), problem: error.to_string() })?;
        Self::from_value(&document)
            .map_err(|mistakes| ConfigError::Mistakes { path: path.to_owned(), mistakes })
    }

    /// # Errors
    /// With every mistake at once.
    pub fn from_value(document: &Value) -> Result<Self, Vec<Mistake>> {
        let mistakes = Mistakes::default();
        let config = Section::of(String::new(), document, &mistakes).and_then(read);
        let mistakes = mistakes.into_vec();
        match config {
            Some(config) if mistakes.is_empty() => Ok(config),
            _ => Err(mistakes),
        }
    }
}

fn read(root: Section<'_>) -> Option<Config> {
    let http = read_http(&root);
    let admin = root.section("admin").map_or(Some(SocketAddr::from(([127, 0, 0, 1], 9090))), |section| {
        let listen = listen(&section, "127.0.0.1:9090");
        section.finish();
        listen
    });
    let max_body = http.as_ref().map_or(MIB, |http| http.max_body);
    let spool = read_spool(&root, max_body);
    let sources = sources::read(&root);
    let sinks = sinks::read(&root, &sources, max_body);
    let shutdown_grace = root.duration(
        "shutdown_grace",
        Duration::from_secs(25),
        Duration::from_secs(1)..=Duration::from_secs(3600),
    );
    root.finish();
    let (spool, allow_volatile) = spool?;
    Some(Config { http: http?, admin: admin?, spool, allow_volatile, sources, sinks, shutdown_grace })
}

fn listen(section: &Section<'_>, example: &str) -> Option<SocketAddr> {
    let text = section.require_text("listen", &format!("for example listen: \"{example}\""))?;
    let parsed = text.parse();
    if parsed.is_err() {
        section.mistake_with_hint(
            "listen",
            format!("`{text}` is not an address and port"),
            format!("for example \"{example}\""),
        );
    }
    parsed.ok()
}

fn read_http(root: &Section<'_>) -> Option<http::Config> {
    root.require("http", "for example http: { listen: \"0.0.0.0:8080\" }")?;
    let section = root.section("http")?;
    let seconds = Duration::from_secs;
    let limits = Duration::from_millis(100)..=seconds(600);
    let config = listen(&section, "0.0.0.0:8080").map(|listen| http::Config {
        listen,
        max_body: section.bytes("max_body", MIB, 1024..=64 * MIB),
        header_timeout: section.duration("header_timeout", seconds(10), limits.clone()),
        body_timeout: section.duration("body_timeout", seconds(20), limits.clone()),
        idle_timeout: section.duration("idle_timeout", seconds(75), limits),
        max_connections: usize_of(section.number("max_connections", 4096, 1..=1_000_000)),
        body_memory: section.bytes("body_memory", 64 * MIB, MIB..=64 * GIB),
    });
    section.finish();
    let config = config?;
    if config.body_memory < config.max_body {
        root.mistake("http.body_memory", "smaller than max_body: the largest body could never be read");
    }
    Some(config)
}

fn read_spool(root: &Section<'_>, max_body: u64) -> Option<(spool::Config, bool)> {
    root.require("spool", "for example spool: { dir: /var/lib/hookbus, max_bytes: 10GiB }")?;
    let section = root.section("spool")?;
    let seconds = Duration::from_secs;
    let dir =
        section.require_text("dir", "a directory on a disk that keeps what is synced").map(PathBuf::from);
    let max_bytes = section.bytes("max_bytes", 10 * GIB, 4 * MIB..=1024 * 1024 * GIB);
    // Freeing works by whole segments: a small spool needs small ones.
    let segment_default = (max_bytes / 16).clamp(MIB, 64 * MIB);
    let segment_bytes = section.bytes("segment_bytes", segment_default, 64 * 1024..=GIB);
    let max_record_bytes = max_body + RECORD_OVERHEAD;
    if max_bytes < 2 * segment_bytes {
        section
            .mistake("max_bytes", format!("{max_bytes} bytes is less than two segments of {segment_bytes}"));
    }
    let allow_volatile = section.flag("allow_volatile", false);
    let config = dir.map(|dir| spool::Config {
        dir,
        max_bytes,
        segment_bytes,
        max_record_bytes: u32::try_from(max_record_bytes).unwrap_or(u32::MAX),
        commit_window: section.duration(
            "commit_window",
            Duration::from_millis(1),
            Duration::ZERO..=seconds(1),
        ),
        cursor_interval: section.duration(
            "cursor_interval",
            Duration::from_millis(200),
            Duration::from_millis(1)..=seconds(60),
        ),
        seal_age: Duration::from_secs(600),
        retention: section.duration("retention", Duration::ZERO, Duration::ZERO..=seconds(366 * 86_400)),
        repeats_window: section.duration(
            "repeats_window",
            seconds(48 * 3600),
            Duration::ZERO..=seconds(366 * 86_400),
        ),
        repeats_max: usize_of(section.number("repeats_max", 1_000_000, 0..=1_000_000_000)),
    });
    section.finish();
    config.map(|config| (config, allow_volatile))
}

fn usize_of(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// Names of sources and sinks: they stand in URLs, subjects, file names and metric labels.
fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
}

/// Reads the `name` of a list item and checks that it stands once.
fn unique_name(section: &Section<'_>, seen: &mut Vec<String>) -> Option<String> {
    let name = section.require_text("name", "lower-case letters, digits, `-` and `_`")?;
    if !is_name(name) {
        section.mistake_with_hint(
            "name",
            format!("`{name}` cannot be a name"),
            "1 to 64 lower-case letters, digits, `-` and `_`, beginning with a letter or digit",
        );
        return None;
    }
    if seen.iter().any(|other| other == name) {
        section.mistake("name", format!("`{name}` stands twice"));
        return None;
    }
    seen.push(name.to_owned());
    Some(name.to_owned())
}
