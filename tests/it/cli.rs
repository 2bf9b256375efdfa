//! The real binary, from the outside: exit codes, outputs, signals.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{read_json, root, wait_for};

fn hookbus() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hookbus"));
    command.stdin(Stdio::null());
    command
}

#[track_caller]
fn run(args: &[&str]) -> Output {
    hookbus().args(args).output().unwrap()
}

/// Runs to an end with this exit code; returns standard output and standard error.
#[track_caller]
fn check(args: &[&str], code: i32) -> (String, String) {
    let output = run(args);
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(code), "{args:?}\n{out}\n{err}");
    (out, err)
}

#[test]
fn help_names_every_command_and_option() {
    let (out, _) = check(&["--help"], 0);
    let commands = ["serve", "demo", "check", "send", "spool", "dead-letters", "schemas", "completions"];
    for command in commands {
        assert!(out.contains(&format!("\n  {command} ")), "{command} in\n{out}");
    }
    let helps: [(&[&str], &[&str]); 14] = [
        (&["serve"], &["--config <FILE>", "--log-format", "--log <FILTER>"]),
        (&["demo"], &["--json", "--events <EVENTS>"]),
        (&["check"], &["--config <FILE>"]),
        (
            &["send"],
            &[
                "--url",
                "--provider",
                "--event",
                "--secret-file",
                "--header",
                "--count",
                "--rate",
                "--connections",
                "--bad-signature",
                "--minute-ms",
            ],
        ),
        (&["spool"], &["ls", "verify", "cat"]),
        (&["spool", "ls"], &["<DIR>"]),
        (&["spool", "verify"], &["<DIR>"]),
        (&["spool", "cat"], &["<DIR>", "--from", "--limit", "--no-body"]),
        (&["dead-letters"], &["ls", "show", "replay"]),
        (&["dead-letters", "ls"], &["--dir", "--sink"]),
        (&["dead-letters", "show"], &["--dir", "--sink", "<OFFSET>"]),
        (&["dead-letters", "replay"], &["--dir", "--sink", "--all", "[OFFSETS]"]),
        (&["schemas"], &["[TYPE]", "--out"]),
        (&["completions"], &["bash", "zsh", "fish"]),
    ];
    for (command, names) in helps {
        let (out, err) = check(&[command, &["--help"]].concat(), 0);
        assert_eq!(err, "", "help is a result");
        for name in names {
            assert!(out.contains(name), "`{name}` of {command:?} in\n{out}");
        }
    }
}

#[test]
fn the_version_is_the_packages() {
    let (out, _) = check(&["--version"], 0);
    assert!(out.starts_with(concat!("hookbus ", env!("CARGO_PKG_VERSION"))), "{out}");
}

#[test]
fn what_is_not_understood_is_explained_on_standard_error() {
    for args in [&["no-such-command"][..], &["serve"], &["demo", "--events", "3"], &["send", "--count", "0"]]
    {
        let (out, err) = check(args, 2);
        assert_eq!(out, "");
        assert!(err.contains("Usage:") || err.contains("--help"), "{err}");
    }
    let (out, err) = check(&[], 2);
    assert!(format!("{out}{err}").contains("Usage:"));
}

#[test]
fn completions_are_a_script_that_bash_can_read() {
    let (out, _) = check(&["completions", "bash"], 0);
    assert!(out.contains("_hookbus()"), "{out}");
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("hookbus.bash");
    fs::write(&script, out).unwrap();
    assert!(Command::new("bash").arg("-n").arg(&script).status().unwrap().success());
}

#[test]
fn schemas_are_listed_printed_and_written_out() {
    let (out, _) = check(&["schemas"], 0);
    let names: Vec<&str> = out.lines().collect();
    assert_eq!(names.len(), 33, "envelope, defs, generic, index and 29 types: {out}");
    let file = |name: &str| fs::read_to_string(root().join(format!("schemas/v1/{name}.json"))).unwrap();
    for wanted in ["stack.redeploy.ok", "cloud66/stack.redeploy.ok"] {
        assert_eq!(check(&["schemas", wanted], 0).0, file("cloud66/stack.redeploy.ok"));
    }
    assert_eq!(check(&["schemas", "envelope"], 0).0, file("envelope"));
    let (_, err) = check(&["schemas", "server.stopped"], 64);
    assert!(err.contains("cdhosting/server.stopped, cloud66/server.stopped"), "{err}");
    let (out, err) = check(&["schemas", "no.such.type"], 64);
    assert!(out.is_empty() && err.contains("no.such.type"));
    let dir = tempfile::tempdir().unwrap();
    check(&["schemas", "--out", dir.path().to_str().unwrap()], 0);
    for name in names {
        assert_eq!(fs::read_to_string(dir.path().join(format!("{name}.json"))).unwrap(), file(name));
    }
}

#[cfg(feature = "kafka")]
#[test]
fn the_demo_ends_with_one_line_of_counts() {
    let (out, _) = check(&["demo", "--json", "--events", "100"], 0);
    assert_eq!(out.lines().count(), 1, "{out}");
    let counts: serde_json::Map<String, Value> = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    let mut keys: Vec<&str> = counts.keys().map(String::as_str).collect();
    keys.sort_unstable();
    let expected =
        ["accepted", "dead_lettered", "delivered", "event_types", "lost", "outage_ms", "repeated", "sent"];
    assert_eq!(keys, expected);
    for (key, count) in [
        ("sent", 100),
        ("accepted", 100),
        ("delivered", 100),
        ("lost", 0),
        ("dead_lettered", 0),
        ("event_types", 29),
    ] {
        assert_eq!(counts[key], count, "{key} in {out}");
    }
    assert!(counts["outage_ms"].as_u64().unwrap() >= 1000, "{out}");
}

#[test]
fn send_to_a_closed_port_counts_its_failures() {
    let url = "http://127.0.0.1:1/hooks/c66/token";
    let args = ["send", "--url", url, "--provider", "cloud66", "--count", "5"];
    let (out, _) = check(&args, 1);
    assert!(out.starts_with("deliveries 5  accepted 0  lost 5  retries 0 "), "{out}");
    assert!(out.contains("no answer") && out.contains("first failure: "), "{out}");
    // CDHosting tries five times more, on its ladder in fast motion.
    let args = ["send", "--url", url, "--provider", "cdhosting", "--count", "2", "--minute-ms", "0"];
    let (out, _) = check(&args, 1);
    assert!(out.starts_with("deliveries 2  accepted 0  lost 2  retries 10 "), "{out}");
    for wrong in [
        &["send", "--url", "ftp://a/b", "--provider", "cloud66"][..],
        &["send", "--url", "https://a/b", "--provider", "cloud66"],
        &["send", "--url", url, "--provider", "github"],
        &["send", "--url", url, "--provider", "cloud66", "--event", "no.such.type"],
        &["send", "--url", url, "--provider", "cdhosting", "--bad-signature", "10"],
        &["send", "--url", url, "--provider", "cdhosting", "--secret-file", "/nowhere/at/all"],
    ] {
        let (out, err) = check(wrong, 64);
        assert!(out.is_empty() && err.starts_with("hookbus: "), "{err}");
    }
}

const TOKEN: &str = "a-long-random-token-0123456789";

/// A directory with a configuration whose broker is down.
fn configuration(extra: &Value) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("token"), TOKEN).unwrap();
    let mut document = json!({
        "http": { "listen": "127.0.0.1:0" },
        "admin": { "listen": "127.0.0.1:0" },
        "spool": { "dir": dir.path().join("spool"), "max_bytes": "64MiB", "allow_volatile": true },
        "shutdown_grace": "2s",
        "sources": [
            { "name": "c66", "provider": "cloud66", "path_token": { "file": dir.path().join("token") } },
        ],
        "sinks": [{
            "name": "bus", "kind": "nats", "servers": ["nats://127.0.0.1:1"],
            "stream": { "name": "HOOKS" }, "subject": "events.{event_type}",
        }],
    });
    document.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    let path = dir.path().join("hookbus.yaml");
    // JSON is YAML.
    fs::write(&path, document.to_string()).unwrap();
    (dir, path)
}

/// `hookbus serve`, killed at the end of its test whatever happens.
struct Served {
    child: Child,
    log: PathBuf,
    address: String,
}

impl Served {
    fn start(dir: &Path, config: &Path) -> Self {
        let log = dir.join("log");
        let mut child = hookbus()
            .args(["serve", "--log-format", "json", "-c"])
            .arg(config)
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let address = wait_for("it listens", || {
            assert_eq!(child.try_wait().unwrap(), None, "{}", fs::read_to_string(&log).unwrap());
            lines(&log).iter().find_map(|line| {
                let listening = line["fields"]["message"] == "listening" || line["message"] == "listening";
                let address = line["fields"]["addr"].as_str().or(line["addr"].as_str())?;
                listening.then(|| address.to_owned())
            })
        });
        Self { child, log, address }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn wait(&mut self) -> Option<i32> {
        wait_for("it ends", || self.child.try_wait().unwrap()).code()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The whole lines of a log in JSON so far.
fn lines(path: &Path) -> Vec<Value> {
    let file = BufReader::new(fs::File::open(path).unwrap());
    let lines = file.lines().map_while(Result::ok);
    lines.filter_map(|line| serde_json::from_str(&line).ok()).collect()
}

#[test]
fn a_signal_stops_it_in_order_and_soon() {
    for signal in [Signal::TERM, Signal::INT] {
        let (dir, config) = configuration(&json!({}));
        let mut served = Served::start(dir.path(), &config);
        let url = format!("http://{}/hooks/c66/{TOKEN}", served.address);
        check(&["send", "--url", &url, "--provider", "cloud66", "--count", "40"], 0);
        let begun = Instant::now();
        served.signal(signal);
        assert_eq!(served.wait(), Some(0));
        assert!(begun.elapsed() < Duration::from_secs(8), "{:?} for a grace of 2 s", begun.elapsed());
        let log = fs::read_to_string(&served.log).unwrap();
        assert!(log.contains("\"stopped\""), "{log}");
        assert!(!log.contains(TOKEN), "the log holds no secret: {log}");

        // What it took lies on the disk, whole.
        let spool = dir.path().join("spool");
        let spool = spool.to_str().unwrap();
        check(&["spool", "verify", spool], 0);
        let (out, _) = check(&["spool", "cat", spool], 0);
        assert_eq!(out.lines().count(), 40);
    }
}

#[test]
fn what_was_answered_survives_a_kill() {
    let (dir, config) = configuration(&json!({}));
    let mut served = Served::start(dir.path(), &config);
    let url = format!("http://{}/hooks/c66/{TOKEN}", served.address);
    check(&["send", "--url", &url, "--provider", "cloud66", "--count", "40"], 0);
    served.signal(Signal::KILL);
    assert_eq!(served.wait(), None);
    let mut served = Served::start(dir.path(), &config);
    let (out, _) = check(&["spool", "cat", dir.path().join("spool").to_str().unwrap()], 0);
    assert_eq!(out.lines().count(), 40);
    served.signal(Signal::TERM);
    assert_eq!(served.wait(), Some(0));
}

#[test]
fn a_second_bridge_on_the_same_spool_is_told_so() {
    let (dir, config) = configuration(&json!({}));
    let mut served = Served::start(dir.path(), &config);
    let (_, err) = check(&["serve", "-c", config.to_str().unwrap()], 75);
    assert!(err.contains("spool"), "{err}");
    served.signal(Signal::TERM);
    assert_eq!(served.wait(), Some(0));
    // Its lock goes with it.
    let mut third = Served::start(dir.path(), &config);
    third.signal(Signal::TERM);
    assert_eq!(third.wait(), Some(0));
}

#[test]
fn a_port_in_use_is_an_error_that_names_its_key() {
    let (dir, config) = configuration(&json!({}));
    let served = Served::start(dir.path(), &config);
    let (_other, config) = configuration(&json!({ "http": { "listen": served.address } }));
    let (_, err) = check(&["serve", "-c", config.to_str().unwrap()], 1);
    assert!(err.contains("http.listen") && err.contains(&served.address), "{err}");
}

#[test]
fn verification_none_is_said_loudly() {
    let (dir, config) = configuration(&json!({
        "sources": [{ "name": "open", "provider": "cloud66", "verification": "none" }],
    }));
    let served = Served::start(dir.path(), &config);
    let warned = lines(&served.log)
        .iter()
        .any(|line| line["level"] == "WARN" && line.to_string().contains("verification: none"));
    assert!(warned, "{:#?}", lines(&served.log));
}

#[test]
fn looking_into_what_is_no_spool_is_a_mistake_of_the_caller() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    for args in [&["spool", "ls", dir][..], &["spool", "verify", dir], &["spool", "cat", dir]] {
        check(args, 64);
    }
    check(&["dead-letters", "ls", "--dir", "/nowhere/at/all"], 64);
    check(&["dead-letters", "show", "--dir", dir, "3"], 64);
    check(&["serve", "-c", "/nowhere/at/all"], 64);
}

#[test]
fn a_reader_that_goes_away_ends_the_program_quietly() {
    let mut child = hookbus().arg("schemas").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}

#[test]
fn the_index_agrees_with_the_schemas() {
    let index = read_json(&root().join("schemas/v1/index.json"));
    let entries = index.as_array().unwrap();
    let unmapped = entries.iter().filter(|entry| entry["event_type"] == "unmapped").count();
    assert_eq!((entries.len(), unmapped), (31, 2), "29 types, and of each provider what has none");
    for entry in entries {
        let schema = read_json(&root().join("schemas/v1").join(entry["file"].as_str().unwrap()));
        assert_eq!(schema["$id"], entry["schema"]);
    }
}
