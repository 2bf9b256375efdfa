//! Logs: text for a terminal, JSON for a collector. Never a body, a signature or a secret.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

use super::{EX_USAGE, Failure, LogFormat};

pub(super) fn start(format: LogFormat, filter: &str) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        Failure::with_code(EX_USAGE, format!("--log: {error}; try info or hookbus=debug"))
    })?;
    let terminal = std::io::stderr().is_terminal();
    let json = format == LogFormat::Json || (format == LogFormat::Auto && !terminal);
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(terminal);
    if json {
        builder.json().flatten_event(true).with_current_span(false).init();
    } else {
        builder.with_target(false).init();
    }
    Ok(())
}
