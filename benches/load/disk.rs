//! The disk's own limit: append 4 KiB, fdatasync, again.

use std::fs::File;
use std::io::Write as _;
use std::time::{Duration, Instant};

pub(crate) fn measure(lasts: Duration) -> String {
    let dir = crate::kit::scratch_dir();
    let mut file = File::create(dir.path().join("syncs")).unwrap();
    let block = [7_u8; 4096];
    let began = Instant::now();
    let mut took = Vec::new();
    while began.elapsed() < lasts {
        let before = Instant::now();
        file.write_all(&block).unwrap();
        file.sync_data().unwrap();
        took.push(before.elapsed());
    }
    took.sort_unstable();
    let at = |part: usize| took[took.len() * part / 100].as_secs_f64() * 1e3;
    let rate = took.len() as f64 / began.elapsed().as_secs_f64();
    format!("{rate:.0}/s, p50 {:.2} ms, p99 {:.2} ms", at(50), at(99))
}
