//! A child process: its output kept, its signals, its end with ours.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// Lines of output shown when a test fails.
const SHOWN_LINES: usize = 80;

/// Everything that the incarnations of one program have said.
#[derive(Debug, Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    pub(crate) fn lines(&self) -> Vec<String> {
        self.0.lock().expect("no holder panics").clone()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.lock().expect("no holder panics").len()
    }

    pub(crate) fn tail(&self) -> String {
        let lines = self.lines();
        lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n")
    }

    /// Takes lines until the stream ends, which is when the last holder of its other end exits.
    fn follow(&self, stream: impl Read + Send + 'static) {
        let lines = Arc::clone(&self.0);
        std::thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                lines.lock().expect("no holder panics").push(String::from_utf8_lossy(&line).into_owned());
            }
        });
    }
}

pub(crate) struct Process {
    name: String,
    child: Child,
    log: Log,
}

impl Process {
    /// Starts `command`; its output goes to `log`. `hint` says what to do if there is no such program.
    pub(crate) fn spawn(name: &str, mut command: Command, log: &Log, hint: &str) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| {
            panic!("cannot start {name} ({}): {error}; {hint}", command.get_program().display());
        });
        log.follow(child.stdout.take().expect("piped"));
        log.follow(child.stderr.take().expect("piped"));
        Self { name: name.to_owned(), child, log: log.clone() }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn has_exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("the child is ours")
    }

    /// Sends a signal, unless the process is gone: its number may be another's by then.
    pub(crate) fn signal(&mut self, signal: Signal) {
        if self.has_exited().is_none() {
            kill_process(self.pid(), signal).expect("the child is ours and not yet waited for");
        }
    }

    /// SIGKILL; returns when the process is gone. Works on a stopped process too.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("the child is ours");
        self.child.wait().expect("the child is ours");
    }

    /// Waits for its own end.
    pub(crate) async fn exit(&mut self, deadline: Duration) -> ExitStatus {
        let what = format!("{} exits", self.name);
        crate::kit::eventually(deadline, &what, async || self.has_exited().ok_or("it still runs")).await
    }

    fn pid(&self) -> Pid {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("the kernel's own number")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- last output of {} ---\n{}\n--- end ---", self.name, self.log.tail());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
