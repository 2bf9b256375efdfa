//! Judges a run: what the providers' books say against what a consumer saw.
//!
//! - Every acknowledged event is there.
//! - The acknowledged events of a key appear first in the order in which they were acknowledged.
//! - A repeat equals the first, byte for byte, in the same place.
//! - Nothing is there that was never sent, and all is under the key that it was sent for.
//!
//! An event that was sent and not acknowledged may be there or not: nobody was promised it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use super::provider::Entry;
use super::seen::Seen;

/// Faults shown of each kind; the counts are of all.
const SHOWN: usize = 5;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Figures {
    pub(crate) sent: usize,
    pub(crate) acked: usize,
    /// Messages at the broker.
    pub(crate) seen: usize,
    /// Events among them.
    pub(crate) distinct: usize,
    pub(crate) repeats: usize,
    /// Acknowledged and not there.
    pub(crate) lost: usize,
    /// Acknowledged events that appear behind a later one of their key.
    pub(crate) disordered: usize,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sent, acked, seen, distinct, repeats, lost, disordered } = self;
        write!(
            f,
            "sent {sent}, acknowledged {acked}, read back {seen} ({distinct} distinct, {repeats} repeats), \
             lost {lost}, out of order {disordered}"
        )
    }
}

#[derive(Debug)]
pub(crate) struct Verdict {
    pub(crate) figures: Figures,
    /// Everything that breaks a rule; empty for a good run.
    pub(crate) faults: Vec<String>,
}

/// Judges, and returns what was found.
pub(crate) fn judge(ledger: &[Entry], seen: &[Seen]) -> Verdict {
    let sent: HashMap<&str, &Entry> = ledger.iter().map(|entry| (entry.id.as_str(), entry)).collect();
    assert_eq!(sent.len(), ledger.len(), "the senders used an id twice: this ledger decides nothing");
    let mut faults = Faults::default();

    let mut first_seen: HashMap<String, &Seen> = HashMap::new();
    let mut latest_of_key: HashMap<&str, u64> = HashMap::new();
    let mut figures = Figures { sent: ledger.len(), seen: seen.len(), ..Figures::default() };
    for message in seen {
        let place = format!("{} {:?}", message.destination, message.position);
        let Some(id) = message.id() else {
            faults.add("no event", place);
            continue;
        };
        let Some(entry) = sent.get(id.as_str()) else {
            faults.add("never sent", format!("{id} at {place}"));
            continue;
        };
        let keys = [message.attribute("partitionkey"), message.key.clone()];
        if keys[0].is_none() || keys.iter().flatten().any(|key| *key != entry.key) {
            faults.add("wrong key", format!("{id} at {place}: {keys:?}, sent for {}", entry.key));
        }
        if let Some(first) = first_seen.get(&id) {
            figures.repeats += 1;
            if (&first.payload, &first.key, &first.destination)
                != (&message.payload, &message.key, &message.destination)
            {
                faults.add("repeat differs", format!("{id} at {place}"));
            }
            continue;
        }
        first_seen.insert(id, message);
        if entry.acked {
            let latest = latest_of_key.entry(&entry.key).or_insert(entry.sequence);
            if entry.sequence < *latest {
                figures.disordered += 1;
                faults.add("out of order", format!("{} at {place}: after number {latest}", entry.id));
            }
            *latest = entry.sequence.max(*latest);
        }
    }

    for entry in ledger.iter().filter(|entry| entry.acked) {
        figures.acked += 1;
        if !first_seen.contains_key(&entry.id) {
            figures.lost += 1;
            faults.add("lost", format!("{} number {} of {}", entry.id, entry.sequence, entry.key));
        }
    }
    figures.distinct = first_seen.len();
    Verdict { figures, faults: faults.into_lines() }
}

/// Judges and prints the figures; any fault, or a run without any acknowledgement, fails the test.
pub(crate) fn check(what: &str, ledger: &[Entry], seen: &[Seen]) -> Figures {
    let Verdict { figures, faults } = judge(ledger, seen);
    eprintln!("{what}: {figures}");
    assert!(faults.is_empty(), "{what}:\n{}", faults.join("\n"));
    assert!(figures.acked > 0, "{what}: nothing was acknowledged, so nothing was shown");
    figures
}

/// What is acknowledged and not among what was seen.
pub(crate) fn missing<'a>(ledger: &'a [Entry], seen: &[Seen]) -> Vec<&'a str> {
    let seen: HashSet<String> = seen.iter().filter_map(Seen::id).collect();
    let acked = ledger.iter().filter(|entry| entry.acked);
    acked.map(|entry| entry.id.as_str()).filter(|id| !seen.contains(*id)).collect()
}

#[derive(Default)]
struct Faults(BTreeMap<&'static str, Vec<String>>);

impl Faults {
    fn add(&mut self, kind: &'static str, example: String) {
        self.0.entry(kind).or_default().push(example);
    }

    fn into_lines(self) -> Vec<String> {
        let line = |(kind, examples): (&str, Vec<String>)| {
            let shown = examples.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("; ");
            format!("{kind}, {} times: {shown}", examples.len())
        };
        self.0.into_iter().map(line).collect()
    }
}
