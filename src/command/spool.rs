//! `hookbus spool`: looks into a spool. Reads only, takes no lock: a bridge may be running on it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::json;

use super::output::{self, grouped};
use super::{EX_USAGE, Failure, Outcome};
use crate::source::Delivery;
use crate::spool::inspect::{self, HeaderState, SegmentInfo};
use crate::spool::{DiskStorage, Offset, ReadItem, Record, Storage};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List segments, cursors with their backlog, remembered ids, quarantined bytes
    Ls {
        /// The spool's directory
        dir: PathBuf,
    },
    /// Check every byte: checksums, gaps, a torn tail told apart from damage; exit 1 on damage
    Verify {
        /// The spool's directory
        dir: PathBuf,
    },
    /// Print the deliveries, one JSON object per line
    Cat {
        /// The spool's directory
        dir: PathBuf,
        /// From this offset on
        #[arg(long, value_name = "OFFSET", default_value_t = 0)]
        from: Offset,
        /// At most so many
        #[arg(long, value_name = "N")]
        limit: Option<u64>,
        /// Leave out the bodies, which may hold personal data and secrets
        #[arg(long)]
        no_body: bool,
    },
}

pub(super) fn run(command: &Command) -> Outcome {
    let (Command::Ls { dir } | Command::Verify { dir } | Command::Cat { dir, .. }) = command;
    if !dir.join("spool.id").exists() {
        let text = format!("{} is not a spool's directory: no file spool.id in it", dir.display());
        return Err(Failure::with_code(EX_USAGE, text));
    }
    match command {
        Command::Ls { dir } => list(dir),
        Command::Verify { dir } => verify(dir),
        Command::Cat { dir, from, limit, no_body } => cat(dir, *from, limit.unwrap_or(u64::MAX), *no_body),
    }
}

fn list(dir: &Path) -> Outcome {
    let listing = inspect::list(&DiskStorage, dir).map_err(|error| Failure::of(&error))?;
    output::line("SEGMENT                   FIRST        END       BYTES  CREATED               STATE");
    for segment in &listing.segments {
        output::line(&format!(
            "{:<24} {:>6} {:>10} {:>11}  {:<20}  {}",
            name(&segment.path),
            segment.first,
            segment.end.map_or_else(|| "-".to_owned(), |end| end.to_string()),
            grouped(segment.bytes),
            segment.created_ms.map_or_else(|| "-".to_owned(), time),
            state(segment)
        ));
    }
    for cursor in &listing.cursors {
        let offset = cursor.offset.map_or_else(|| "unreadable".to_owned(), |offset| offset.to_string());
        output::line(&format!("cursor      {:<20} {offset}", cursor.sink));
    }
    let ids: u64 = listing.ids.iter().map(|file| u64::from(file.ids)).sum();
    output::line(&format!("remembered  {} ids in {} files", grouped(ids), listing.ids.len()));
    for (file, bytes) in &listing.quarantine {
        output::line(&format!("quarantine  {file}  {} bytes", grouped(*bytes)));
    }
    Ok(ExitCode::SUCCESS)
}

fn state(segment: &SegmentInfo) -> String {
    match (&segment.state, segment.sealed_ms) {
        (HeaderState::Good, Some(sealed)) => format!("sealed {}", time(sealed)),
        (HeaderState::Good, None) => "active".to_owned(),
        (other, _) => format!("{other:?}").to_lowercase(),
    }
}

fn verify(dir: &Path) -> Outcome {
    let found = inspect::verify(&DiskStorage, dir).map_err(|error| Failure::of(&error))?;
    output::line(&format!(
        "{} records in {} segments, {} bytes read",
        grouped(found.records),
        found.segments,
        grouped(found.bytes)
    ));
    if found.unfinished_tail > 0 {
        output::line(&format!(
            "unfinished tail of {} bytes: never answered, set aside at the next start",
            grouped(found.unfinished_tail)
        ));
    }
    for damage in &found.damage {
        output::line(&format!(
            "DAMAGE offsets {} to {} lost in {} at byte {} ({} bytes): {}",
            damage.first,
            damage.end.saturating_sub(1),
            name(&damage.path),
            damage.position,
            grouped(damage.bytes),
            damage.reason
        ));
    }
    for (first, end) in &found.gaps {
        output::line(&format!("GAP    offsets {first} to {} are in no segment", end.saturating_sub(1)));
    }
    for sink in &found.cursors_ahead {
        output::line(&format!("CURSOR of {sink} is beyond the last record"));
    }
    for path in &found.unknown {
        output::line(&format!("UNKNOWN {} has a format that this program does not read", path.display()));
    }
    output::line(if found.is_sound() { "sound" } else { "NOT SOUND" });
    Ok(if found.is_sound() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn cat(dir: &Path, from: Offset, limit: u64, no_body: bool) -> Outcome {
    let storage: Arc<dyn Storage> = Arc::new(DiskStorage);
    let records = inspect::records(&storage, dir, from).map_err(|error| Failure::of(&error))?;
    let mut left = limit;
    for item in records {
        if left == 0 {
            break;
        }
        left -= 1;
        let line = match item.map_err(|error| Failure::of(&error))? {
            ReadItem::Record(record) => show(&record, no_body),
            ReadItem::Lost { first, end, reason, .. } => json!({ "lost": [first, end], "reason": reason }),
        };
        output::line(&line.to_string());
    }
    Ok(ExitCode::SUCCESS)
}

fn show(record: &Record, no_body: bool) -> serde_json::Value {
    let delivery = match Delivery::decode(record.payload.clone()) {
        Ok(delivery) => delivery,
        Err(error) => {
            return json!({ "offset": record.offset, "unreadable": error.to_string(),
                "record_base64": BASE64.encode(&record.payload) });
        }
    };
    let headers: serde_json::Map<String, serde_json::Value> = delivery
        .headers
        .iter()
        .map(|(name, value)| (name.clone(), String::from_utf8_lossy(value).into()))
        .collect();
    let mut line = json!({
        "offset": record.offset,
        "source": &*delivery.source,
        "event_id": delivery.event_id,
        "received": time(u64::try_from(delivery.received_ms).unwrap_or(0)),
        "headers": headers,
        "body_bytes": delivery.body.len(),
    });
    if !no_body && let Some(object) = line.as_object_mut() {
        match std::str::from_utf8(&delivery.body) {
            Ok(text) => object.insert("body".to_owned(), text.into()),
            Err(_) => object.insert("body_base64".to_owned(), BASE64.encode(&delivery.body).into()),
        };
    }
    line
}

fn name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn time(unix_ms: u64) -> String {
    let parsed = i64::try_from(unix_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    parsed.map_or_else(|| unix_ms.to_string(), |time| format!("{time:.0}"))
}
