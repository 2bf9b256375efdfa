//! `hookbus send`: plays a provider.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use secrecy::SecretString;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, sleep_until};
use warp::http::HeaderName;

use super::output::{self, grouped};
use super::{EX_USAGE, Failure, Outcome, runtime};
use crate::simulate::{Answer, Client, Payloads, retries};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where to deliver: http://HOST:PORT/hooks/SOURCE, with /TOKEN for Cloud 66
    #[arg(long)]
    url: String,
    /// Whose payloads: cloud66 or cdhosting
    #[arg(long)]
    provider: String,
    /// One event type; without it, all of the provider's in turn
    #[arg(long, value_name = "TYPE")]
    event: Option<String>,
    /// File with the secret that signs (CDHosting)
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// Header that carries the signature
    #[arg(long, value_name = "NAME", default_value = "X-Webhook-Signature")]
    header: HeaderName,
    /// How many deliveries
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    count: u64,
    /// Deliveries a second; without it, as fast as they are answered
    #[arg(long, value_name = "PER_SECOND", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: Option<u32>,
    /// Deliveries under way at one time
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    connections: u32,
    /// Percentage of deliveries sent with a forged signature; they are expected to be refused
    #[arg(long, value_name = "PCT", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
    bad_signature: u8,
    /// A minute of the provider's retry ladder lasts so many milliseconds here; 60000 is real time
    #[arg(long, value_name = "MS", default_value_t = 10)]
    minute_ms: u64,
}

pub(super) fn run(args: &Args) -> Outcome {
    let usage = |text: String| Failure::with_code(EX_USAGE, text);
    let payloads =
        Payloads::new(&args.provider, args.event.as_deref()).map_err(|error| usage(error.to_string()))?;
    let signing = read_secret(args)?;
    let client = Client::new(&args.url, signing).map_err(|error| usage(error.to_string()))?;
    let tally = runtime()?.block_on(deliver_all(args, payloads, client));
    output::print(&tally.report());
    Ok(if tally.lost == 0 && tally.forged_accepted == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn read_secret(args: &Args) -> Result<Option<(HeaderName, SecretString)>, Failure> {
    let Some(path) = &args.secret_file else {
        if args.bad_signature > 0 {
            return Err(Failure::with_code(
                EX_USAGE,
                "--bad-signature needs --secret-file: nothing is signed without it",
            ));
        }
        return Ok(None);
    };
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::with_code(EX_USAGE, format!("cannot read {}: {error}", path.display())))?;
    Ok(Some((args.header.clone(), SecretString::from(text.trim_end_matches(['\n', '\r'])))))
}

/// How a delivery ended, after the provider's own retries.
struct Sent {
    answers: Vec<Answer>,
    forged: bool,
}

async fn deliver_all(args: &Args, payloads: Payloads, client: Client) -> Tally {
    let began = Instant::now();
    let slots = Arc::new(Semaphore::new(usize::try_from(args.connections).unwrap_or(1)));
    let mut tally = Tally::default();
    let mut under_way: JoinSet<Sent> = JoinSet::new();
    let mut progress = interval(Duration::from_secs(1));
    progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
    progress.tick().await;
    let mut next = 0;
    while next < args.count || !under_way.is_empty() {
        let due =
            args.rate.map(|rate| began + Duration::from_secs(1).mul_f64(next_f64(next) / f64::from(rate)));
        let ready = async {
            if let Some(due) = due {
                sleep_until(due.into()).await;
            }
            Arc::clone(&slots).acquire_owned().await
        };
        tokio::select! {
            permit = ready, if next < args.count => {
                let (client, payloads) = (client.clone(), payloads.clone());
                let forged = next % 100 < u64::from(args.bad_signature);
                let ladder = if forged { &[] } else { retries(&args.provider) };
                let (n, minute) = (next, Duration::from_millis(args.minute_ms));
                under_way.spawn(async move {
                    let _permit = permit;
                    let body = payloads.nth(n).body;
                    let mut answers = vec![client.deliver(&body, forged).await];
                    for wait in ladder {
                        if answers.last().is_some_and(Answer::is_accepted) {
                            break;
                        }
                        sleep(minute.mul_f64(wait.as_secs_f64() / 60.0)).await;
                        answers.push(client.deliver(&body, forged).await);
                    }
                    Sent { answers, forged }
                });
                next += 1;
            }
            Some(sent) = under_way.join_next() => {
                if let Ok(sent) = sent {
                    tally.add(sent);
                }
            }
            _ = progress.tick() => output::note(&tally.progress(args.count, began.elapsed())),
        }
    }
    tally.took = began.elapsed();
    tally
}

#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
fn next_f64(n: u64) -> f64 {
    n as f64
}

#[derive(Default)]
struct Tally {
    deliveries: u64,
    accepted: u64,
    retried: u64,
    /// Not forged, and refused to the end of the ladder.
    lost: u64,
    forged: u64,
    forged_accepted: u64,
    by_status: BTreeMap<String, u64>,
    first_failure: Option<String>,
    latencies: Vec<Duration>,
    took: Duration,
}

impl Tally {
    fn add(&mut self, sent: Sent) {
        self.deliveries += 1;
        self.retried += u64::try_from(sent.answers.len().saturating_sub(1)).unwrap_or(0);
        let accepted = sent.answers.last().is_some_and(Answer::is_accepted);
        match (sent.forged, accepted) {
            (false, true) => self.accepted += 1,
            (false, false) => self.lost += 1,
            (true, accepted) => {
                self.forged += 1;
                self.forged_accepted += u64::from(accepted);
            }
        }
        for answer in sent.answers {
            let status =
                answer.status.map_or_else(|| "no answer".to_owned(), |status| status.as_u16().to_string());
            *self.by_status.entry(status).or_default() += 1;
            self.latencies.push(answer.took);
            if self.first_failure.is_none() {
                self.first_failure = answer.failure;
            }
        }
    }

    fn progress(&self, count: u64, elapsed: Duration) -> String {
        let rate = next_f64(self.deliveries) / elapsed.as_secs_f64().max(0.001);
        format!(
            "{} of {} delivered, {rate:.0}/s, {} retries, {} lost",
            grouped(self.deliveries),
            grouped(count),
            grouped(self.retried),
            grouped(self.lost)
        )
    }

    fn report(&self) -> String {
        let mut latencies = self.latencies.clone();
        latencies.sort_unstable();
        let at = |percent: usize| {
            let index = (latencies.len() * percent / 100).min(latencies.len().saturating_sub(1));
            latencies.get(index).copied().unwrap_or_default()
        };
        let mut out = format!(
            "deliveries {}  accepted {}  lost {}  retries {}  in {:.2?} ({:.0}/s)\n",
            grouped(self.deliveries),
            grouped(self.accepted),
            grouped(self.lost),
            grouped(self.retried),
            self.took,
            next_f64(self.deliveries) / self.took.as_secs_f64().max(0.001),
        );
        if self.forged > 0 {
            out.push_str(&format!(
                "forged {}  of them accepted {}\n",
                grouped(self.forged),
                self.forged_accepted
            ));
        }
        for (status, count) in &self.by_status {
            out.push_str(&format!("  {status:<9} {:>12}\n", grouped(*count)));
        }
        out.push_str(&format!(
            "latency   p50 {:.2?}  p90 {:.2?}  p99 {:.2?}  max {:.2?}\n",
            at(50),
            at(90),
            at(99),
            latencies.last().copied().unwrap_or_default()
        ));
        if let Some(failure) = &self.first_failure {
            out.push_str(&format!("first failure: {failure}\n"));
        }
        out
    }
}
