//! Free ports for servers that must come back on the port they had.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Mutex;

/// Below the range from which the kernel takes the ports of outgoing connections: else a client
/// that keeps calling a server that is down would some day be given that very port, and talk to
/// itself.
const FIRST: u16 = 15_000;
const COUNT: u16 = 15_000;

static HANDED_OUT: Mutex<Option<HashSet<u16>>> = Mutex::new(None);

/// A port of the loopback on which nobody listens, and that this process has not handed out yet.
pub(crate) fn free() -> u16 {
    let mut guard = HANDED_OUT.lock().expect("no holder panics");
    let handed_out = guard.get_or_insert_default();
    // Not from the start each time: other test processes look for ports too.
    let random = RandomState::new().hash_one(std::process::id());
    let start = u16::try_from(random % u64::from(COUNT)).expect("below COUNT");
    let port = (0..COUNT)
        .map(|step| FIRST + (start + step) % COUNT)
        .find(|port| !handed_out.contains(port) && TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .expect("one of 15000 ports is free");
    handed_out.insert(port);
    port
}
