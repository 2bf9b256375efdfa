//! What the tests are made of: real brokers, the real binary, the providers, and an oracle.
//!
//! Nothing here uses the crate under test: names, signatures and ids are worked out a second
//! time, so that a mistake has to be made twice to go unseen.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::string_slice,
    clippy::let_underscore_must_use,
    reason = "each test binary uses a part of the kit; a test may stop at the first surprise, and speaks on stderr"
)]

pub(crate) mod bridge;
pub(crate) mod fixtures;
pub(crate) mod http;
#[cfg(feature = "kafka")]
pub(crate) mod kafka;
#[cfg(feature = "nats")]
pub(crate) mod nats;
pub(crate) mod oracle;
pub(crate) mod port;
pub(crate) mod process;
pub(crate) mod provider;
pub(crate) mod provision;
pub(crate) mod proxy;
pub(crate) mod seen;

use std::fmt::Display;
use std::time::Duration;

use tokio::time::Instant;

pub(crate) use seen::Seen;

/// How long anything may take that ought to take a second: generous, for a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Asks until the answer is `Ok`; at the deadline fails with what was awaited and with the last
/// `Err`, which should say how far things had come.
pub(crate) async fn eventually<T, E: Display>(
    deadline: Duration,
    what: &str,
    mut ask: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let begun = Instant::now();
    let mut pause = Duration::from_millis(5);
    let mut problem = "it has not answered yet".to_owned();
    loop {
        match tokio::time::timeout(deadline.saturating_sub(begun.elapsed()), ask()).await {
            Ok(Ok(value)) => return value,
            Ok(Err(answer)) => problem = answer.to_string(),
            Err(_) => {}
        }
        assert!(begun.elapsed() < deadline, "after {deadline:?} still waiting until {what}: {problem}");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}

/// A fresh directory on the disk that cargo builds on: `/tmp` may be memory, which the bridge
/// refuses to spool on.
pub(crate) fn scratch_dir() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("cargo's own directory takes another one")
}

/// Runs what blocks beside the runtime; its panic is ours.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
