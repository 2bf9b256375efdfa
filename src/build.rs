//! Puts the commit into `hookbus --version`, where there is a git to ask.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=.git/HEAD");
    println!("cargo::rerun-if-changed=.git/refs");
    let version = env!("CARGO_PKG_VERSION");
    let commit = Command::new("git")
        .args(["rev-parse", "--short=12", "HEAD"])
        .output()
        .ok()
        .filter(|out| out.status.success())
        .and_then(|out| String::from_utf8(out.stdout).ok());
    match commit {
        Some(commit) => println!("cargo::rustc-env=HOOKBUS_VERSION={version} ({})", commit.trim()),
        None => println!("cargo::rustc-env=HOOKBUS_VERSION={version}"),
    }
}
