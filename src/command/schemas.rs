//! `hookbus schemas`: the published contract.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use super::{EX_USAGE, Failure, Outcome, output};
use crate::schemas::FILES;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// An event type (`stack.redeploy.ok`), a file (`cloud66/stack.redeploy.ok`), `envelope`,
    /// `defs`, `generic` or `index`; without it, what there is
    #[arg(value_name = "TYPE")]
    wanted: Option<String>,
    /// Write all schemas into this directory, laid out as in `schemas/v1/`
    #[arg(long, value_name = "DIR", conflicts_with = "wanted")]
    out: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> Outcome {
    if let Some(dir) = &args.out {
        for (name, text) in FILES {
            let path = dir.join(format!("{name}.json"));
            let written =
                path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&path, text));
            written.map_err(|error| Failure::new(format!("cannot write {}: {error}", path.display())))?;
        }
        output::line(&format!("{} files written to {}", FILES.len(), dir.display()));
        return Ok(ExitCode::SUCCESS);
    }
    let Some(wanted) = &args.wanted else {
        for (name, _) in FILES {
            output::line(name);
        }
        return Ok(ExitCode::SUCCESS);
    };
    let suffix = format!("/{wanted}");
    let found: Vec<_> = FILES.iter().filter(|(name, _)| name == wanted || name.ends_with(&suffix)).collect();
    match found.as_slice() {
        [(_, text)] => output::print(text),
        [] => {
            let text = format!("no schema of `{wanted}`; `hookbus schemas` lists what there is");
            return Err(Failure::with_code(EX_USAGE, text));
        }
        several => {
            let names: Vec<_> = several.iter().map(|(name, _)| *name).collect();
            let text = format!("`{wanted}` is a type of several providers: {}", names.join(", "));
            return Err(Failure::with_code(EX_USAGE, text));
        }
    }
    Ok(ExitCode::SUCCESS)
}
