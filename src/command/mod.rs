//! The commands, one file each, and what they share: arguments, exit codes, the two outputs.
//! Results go to standard output, progress and logs to standard error.

mod check;
mod dead_letters;
mod demo;
mod log;
mod output;
mod schemas;
mod send;
mod serve;
mod spool;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};

/// Exit code of a configuration that cannot be used (`EX_USAGE`).
pub(crate) const EX_USAGE: u8 = 64;
/// Exit code when the spool is in use by another process (`EX_TEMPFAIL`).
pub(crate) const EX_TEMPFAIL: u8 = 75;

const ABOUT: &str = "Webhooks in, events on Kafka or NATS out, nothing accepted ever lost.";

const LONG_ABOUT: &str = "\
Webhooks in, events on Kafka or NATS out, nothing accepted ever lost.

hookbus takes a provider's webhook over HTTP, verifies it, syncs it to its own disk, answers 202,
and publishes it as a CloudEvent under a subject or topic made from the event type. While a broker
is down, deliveries go on being accepted; what was accepted is published when it is back.

Try it with nothing installed:
  hookbus demo

Run it:
  hookbus check --config hookbus.yaml
  hookbus serve --config hookbus.yaml
  hookbus send  --url http://127.0.0.1:8080/hooks/c66/TOKEN --provider cloud66 --count 100";

/// Version and, where git told it at build time, the commit.
const VERSION: &str = env!("HOOKBUS_VERSION");

#[derive(Debug, Parser)]
#[command(name = "hookbus", version = VERSION, about = ABOUT, long_about = LONG_ABOUT)]
#[command(propagate_version = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// How logs are written to standard error
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Auto)]
    log_format: LogFormat,
    /// What is logged: a level, or directives such as `warn,hookbus=debug`; `serve` logs `info`
    /// by itself, every other command `warn`
    #[arg(long, global = true, value_name = "FILTER")]
    log: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// Text on a terminal, JSON elsewhere
    Auto,
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the bridge; SIGTERM and SIGINT stop it in order
    Serve(ConfigArg),
    /// Show the main job with nothing installed: an in-process Kafka, taken down in the middle
    Demo(demo::Args),
    /// Report every mistake of a configuration, each with its place and a hint
    Check(ConfigArg),
    /// Play a provider: real payloads, right signatures, its own retries in fast motion
    Send(send::Args),
    /// Look into a spool, also while a bridge runs on it; never writes
    #[command(subcommand)]
    Spool(spool::Command),
    /// What no broker would take, with its reason; put it back on its way
    #[command(subcommand)]
    DeadLetters(dead_letters::Command),
    /// Print the published JSON Schemas, or write them out
    Schemas(schemas::Args),
    /// Print a completion script for your shell
    Completions {
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, clap::Args)]
struct ConfigArg {
    /// The configuration, YAML
    #[arg(long, short, value_name = "FILE")]
    config: PathBuf,
}

/// A command's end that is not its result: what to say, and the exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    text: String,
}

impl Failure {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self { code: 1, text: text.into() }
    }

    pub(crate) fn with_code(code: u8, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }

    /// With every cause, outermost first.
    pub(crate) fn of(error: &dyn std::error::Error) -> Self {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        Self::new(text)
    }
}

/// What a command ends with.
pub(crate) type Outcome = Result<ExitCode, Failure>;

/// Runs the command of the process's arguments.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let quiet = if matches!(cli.command, Command::Serve(_)) { "info" } else { "warn" };
    let filter = cli.log.as_deref().unwrap_or(quiet);
    let result = log::start(cli.log_format, filter).and_then(|()| match cli.command {
        Command::Serve(args) => serve::run(&args.config),
        Command::Demo(args) => demo::run(&args),
        Command::Check(args) => check::run(&args.config),
        Command::Send(args) => send::run(&args),
        Command::Spool(command) => spool::run(&command),
        Command::DeadLetters(command) => dead_letters::run(&command),
        Command::Schemas(args) => schemas::run(&args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "hookbus", &mut script);
            output::print(&String::from_utf8_lossy(&script));
            Ok(ExitCode::SUCCESS)
        }
    });
    result.unwrap_or_else(|failure| {
        output::note(&format!("hookbus: {}", failure.text));
        ExitCode::from(failure.code)
    })
}

/// A runtime for commands that speak over the network.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("cannot start the runtime: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_consistent() {
        Cli::command().debug_assert();
    }
}
