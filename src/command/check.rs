//! `hookbus check`: every mistake of a configuration at once.

use std::path::Path;
use std::process::ExitCode;

use super::{EX_USAGE, Failure, Outcome, output};
use crate::config::{Config, ConfigError};

pub(super) fn run(path: &Path) -> Outcome {
    let config = load(path)?;
    let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    output::line(&format!(
        "{}: good: {}, {}",
        path.display(),
        count(config.sources.len(), "source"),
        count(config.sinks.len(), "sink")
    ));
    Ok(ExitCode::SUCCESS)
}

/// Reads a configuration; the failure holds every mistake.
pub(super) fn load(path: &Path) -> Result<Config, Failure> {
    Config::load(path).map_err(|error| {
        let mut failure = Failure::of(&error);
        failure.code = EX_USAGE;
        if let ConfigError::Mistakes { mistakes, .. } = &error {
            for mistake in mistakes {
                failure.text.push_str(&format!("\n  {mistake}"));
            }
        }
        failure
    })
}
