//! `hookbus serve`: runs the bridge until a signal.

use std::path::Path;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

use super::{EX_TEMPFAIL, EX_USAGE, Failure, Outcome, check, runtime};
use crate::bridge::{self, BridgeError};
use crate::spool::RecoveryError;

pub(super) fn run(path: &Path) -> Outcome {
    let config = check::load(path)?;
    for configured in &config.sources {
        if !configured.source.is_verified() {
            tracing::warn!(
                source = %configured.source.name(),
                "verification: none: whoever can reach this source can publish through it"
            );
        }
    }
    tracing::info!(version = super::VERSION, config = %path.display(), "starting");
    let runtime = runtime()?;
    let result = runtime.block_on(async {
        let stop =
            stop_signal().map_err(|error| Failure::new(format!("cannot listen for signals: {error}")))?;
        bridge::run(config, |_| {}, stop).await.map_err(|error| explain(&error))
    });
    // Everything that matters has been stopped in order. What is left may be a question to a broker
    // that will never answer; the grace period is not to be spent on it.
    runtime.shutdown_background();
    result.map(|()| ExitCode::SUCCESS)
}

/// SIGTERM is how service managers stop a process, SIGINT how people do.
fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal = name, "told to stop");
    })
}

fn explain(error: &BridgeError) -> Failure {
    let mut failure = Failure::of(error);
    match error {
        BridgeError::Recovery(RecoveryError::Locked { .. }) => failure.code = EX_TEMPFAIL,
        BridgeError::Volatile { .. } => {
            failure.code = EX_USAGE;
            failure.text.push_str(
                "\n    hint: mount a disk there, or write spool.allow_volatile: true to accept the loss at a reboot",
            );
        }
        BridgeError::Listen { .. } => {
            failure.text.push_str(
                "\n    hint: is another process listening there? ports below 1024 need a privilege",
            );
        }
        _ => {}
    }
    failure
}
