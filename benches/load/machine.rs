//! What the kernel says of the machine and of a process.

use std::fs;
use std::time::Duration;

/// Clock ticks a second in /proc: 100 on every Linux that this runs on.
const TICKS: u64 = 100;

/// CPU time of a process since this was made.
pub(crate) struct Cpu {
    id: u32,
    began: u64,
}

impl Cpu {
    pub(crate) fn of(id: u32) -> Self {
        Self { id, began: ticks(id) }
    }

    pub(crate) fn spent(&self) -> Duration {
        Duration::from_millis((ticks(self.id) - self.began) * 1000 / TICKS)
    }
}

/// User and system time; fields 14 and 15 of `/proc/PID/stat`, counted behind the name.
fn ticks(id: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

pub(crate) fn rss_kib(id: u32) -> u64 {
    status(id, "VmRSS:")
}

pub(crate) fn peak_rss_kib(id: u32) -> u64 {
    status(id, "VmHWM:")
}

fn status(id: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

pub(crate) fn describe() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpus.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split_once(": "));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!(
        "{} cores, {}, Linux {}",
        std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        model.map_or("unknown CPU", |(_, model)| model),
        kernel.trim()
    )
}
