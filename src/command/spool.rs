//! `hookbus spool`: looks into a spool.

use super::Outcome;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// placeholder
    Ls,
}

pub(super) fn run(_: &Command) -> Outcome {
    Ok(std::process::ExitCode::SUCCESS)
}
