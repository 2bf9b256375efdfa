//! `hookbus dead-letters`: what no broker would take.

use std::path::PathBuf;
use std::process::ExitCode;

use super::{EX_USAGE, Failure, Outcome, output};
use crate::dead_letter::DeadLetters;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List the letters: sink, offset, event id, event type, when, reason
    Ls {
        #[command(flatten)]
        place: Place,
    },
    /// Print one letter, and the delivery in it
    Show {
        #[command(flatten)]
        place: Place,
        /// The letter's offset, as `ls` prints it
        offset: u64,
    },
    /// Put letters back on their way: a running bridge takes them within a second, a stopped one
    /// when it starts
    Replay {
        #[command(flatten)]
        place: Place,
        /// Which ones
        #[arg(required_unless_present = "all")]
        offsets: Vec<u64>,
        /// All of them
        #[arg(long, conflicts_with = "offsets")]
        all: bool,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct Place {
    /// The spool's directory
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// The sink; needed only where several have letters
    #[arg(long, value_name = "NAME")]
    sink: Option<String>,
}

pub(super) fn run(command: &Command) -> Outcome {
    match command {
        Command::Ls { place } => list(place),
        Command::Show { place, offset } => {
            let (_, letters) = place.one()?;
            let letter = letters.load(*offset).map_err(|error| no_letter(*offset, &error))?;
            output::line(&serde_json::to_string_pretty(&letter).map_err(|error| Failure::of(&error))?);
            let record = letter.record().map_err(|error| Failure::of(&error))?;
            if let Ok(delivery) = crate::source::Delivery::decode(record) {
                output::line(&format!("-- body from source {}:", delivery.source));
                output::line(&String::from_utf8_lossy(&delivery.body));
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Replay { place, offsets, all } => {
            let (sink, letters) = place.one()?;
            let offsets =
                if *all { letters.list().map_err(|error| Failure::of(&error))? } else { offsets.clone() };
            for offset in &offsets {
                letters.replay(*offset).map_err(|error| no_letter(*offset, &error))?;
            }
            output::line(&format!("{} letter(s) of sink {sink} put back on their way", offsets.len()));
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn list(place: &Place) -> Outcome {
    let mut count = 0;
    for sink in place.sinks()? {
        let letters = DeadLetters::of(&place.dir, &sink);
        for offset in letters.list().map_err(|error| Failure::of(&error))? {
            count += 1;
            match letters.load(offset) {
                Ok(letter) => output::line(&format!(
                    "{sink}\t{offset}\t{}\t{}\t{}\t{}",
                    letter.event_id, letter.event_type, letter.died, letter.reason
                )),
                Err(error) => output::line(&format!("{sink}\t{offset}\tunreadable: {error}")),
            }
        }
    }
    output::note(&format!("{count} dead letter(s)"));
    Ok(ExitCode::SUCCESS)
}

fn no_letter(offset: u64, error: &std::io::Error) -> Failure {
    if error.kind() == std::io::ErrorKind::NotFound {
        let text = format!("no dead letter of offset {offset}; `hookbus dead-letters ls` lists them");
        return Failure::with_code(EX_USAGE, text);
    }
    Failure::new(format!("dead letter {offset}: {error}"))
}

impl Place {
    fn sinks(&self) -> Result<Vec<String>, Failure> {
        if !self.dir.is_dir() {
            let text = format!("{} is not a spool's directory", self.dir.display());
            return Err(Failure::with_code(EX_USAGE, text));
        }
        match &self.sink {
            Some(sink) => Ok(vec![sink.clone()]),
            None => DeadLetters::sinks(&self.dir).map_err(|error| Failure::of(&error)),
        }
    }

    /// The one sink that is meant.
    fn one(&self) -> Result<(String, DeadLetters), Failure> {
        let sinks = self.sinks()?;
        match sinks.as_slice() {
            [sink] => Ok((sink.clone(), DeadLetters::of(&self.dir, sink))),
            [] => Err(Failure::with_code(EX_USAGE, "no sink of this spool has dead letters")),
            several => {
                Err(Failure::with_code(EX_USAGE, format!("say --sink: one of {}", several.join(", "))))
            }
        }
    }
}
