//! Stop at every operation, lose what was not synced, start again: every answered append is there,
//! none is invented, and no cursor is ahead of what was confirmed.

use std::collections::BTreeMap;
use std::sync::Arc;

use hookbus::spool::{Appended, ReadItem, Spool};

use crate::sim::{Cut, Sim, config, entry, read_all, sinks};

/// What the outside knows when the power goes.
#[derive(Debug, Default)]
struct Known {
    /// Offset and number of every append that was answered.
    answered: BTreeMap<u64, u64>,
    confirmed: u64,
}

/// Appends in batches, delivers half of it, reopens in the middle; ends early when the disk stops.
async fn script(sim: &Sim) -> Known {
    let mut known = Known::default();
    let mut number = 0;
    for _ in 0..2 {
        let opened = Spool::open(config("/spool"), &sinks(), Arc::new(sim.clone()));
        let Ok(mut spool) = opened else { return known };
        for round in 0..4 {
            let mut tasks = tokio::task::JoinSet::new();
            for _ in 0..5 {
                let (appender, this) = (spool.appender.clone(), number);
                tasks.spawn(async move { (this, appender.append(entry(this)).await) });
                number += 1;
            }
            for (number, appended) in tasks.join_all().await {
                if let Ok(Appended::New(offset)) = appended {
                    assert_eq!(known.answered.insert(offset, number), None, "offset used twice");
                }
            }
            if round % 2 == 1 {
                let reader = &mut spool.readers[0];
                let Ok(items) = reader.read(10_000) else {
                    return known;
                };
                known.confirmed += items.len() as u64 / 2 + 1;
                known.confirmed = known.confirmed.min(reader.position());
                reader.confirm(known.confirmed);
                if reader.store().is_err() {
                    break;
                }
            }
        }
        let Spool { appender, writer, readers, .. } = spool;
        drop((appender, readers));
        if writer.join().is_err() {
            return known;
        }
    }
    known
}

/// What is wrong after a restart, if anything.
async fn judge(sim: &Sim, known: &Known) -> Result<(), String> {
    let opened = Spool::open(config("/spool"), &sinks(), Arc::new(sim.clone()));
    let mut spool = opened.map_err(|error| format!("does not open: {error:?}"))?;
    let reader = &mut spool.readers[0];
    let cursor = reader.cursor();
    if cursor > known.confirmed {
        return Err(format!("cursor {cursor} is ahead of {}", known.confirmed));
    }
    let mut found = BTreeMap::new();
    for item in read_all(reader) {
        match item {
            ReadItem::Record(record) => drop(found.insert(record.offset, record)),
            // A hole that was never answered for is reported too, to be on the safe side.
            ReadItem::Lost { first, end, .. } => {
                if known.answered.range(first..end).next().is_some() {
                    return Err(format!("lost {first}..{end}"));
                }
            }
        }
    }
    for (offset, number) in known.answered.range(cursor..) {
        let Some(record) = found.get(offset) else {
            return Err(format!("{offset} is not there"));
        };
        if record.payload != entry(*number).payload {
            return Err(format!("{offset} is not what was answered"));
        }
    }
    for (offset, record) in &found {
        let invented = !(0..40).any(|number| entry(number).payload == record.payload);
        if invented {
            return Err(format!("{offset} is invented"));
        }
    }
    // Offsets go on, and the spool is of use.
    let number = 1_000;
    match spool.appender.append(entry(number)).await {
        Ok(Appended::New(offset)) if !known.answered.contains_key(&offset) => {}
        other => return Err(format!("append after the restart: {other:?}")),
    }
    if read_all(&mut spool.readers[0]).is_empty() {
        return Err("the new record cannot be read".into());
    }
    let Spool { appender, writer, readers, .. } = spool;
    drop((appender, readers));
    writer.join().map_err(|error| error.to_string())
}

const CUTS: [Cut; 6] = [Cut::Drop, Cut::Keep, Cut::Tear(1), Cut::Tear(2), Cut::Tear(3), Cut::Tear(4)];

/// Runs the script stopped at every operation; the number of cuts, and what went wrong.
async fn all_cuts(disk: impl Fn() -> Sim, in_recovery: bool) -> (usize, Vec<String>) {
    let (mut cuts, mut wrong) = (0, Vec::new());
    for stop in 0.. {
        let sim = disk().stop_at(stop);
        let known = script(&sim).await;
        for cut in CUTS {
            let after = sim.after(cut);
            let mut images = vec![after];
            if in_recovery {
                // The power goes again while it recovers.
                for again in [0, 1, 2, 3, 5, 8] {
                    let second = images[0].copy().stop_at(again);
                    drop(Spool::open(config("/spool"), &sinks(), Arc::new(second.clone())));
                    images.push(second.after(cut));
                }
            }
            for image in images {
                cuts += 1;
                if let Err(error) = judge(&image, &known).await {
                    wrong.push(format!("stop {stop}, {cut:?}: {error}"));
                }
            }
        }
        if !sim.stopped() {
            assert_eq!(known.answered.len(), 40, "the script must complete");
            return (cuts, wrong);
        }
    }
    unreachable!()
}

#[tokio::test]
async fn answered_append_survives_a_power_cut_at_every_operation() {
    let (cuts, wrong) = all_cuts(Sim::default, false).await;
    assert_eq!(wrong, Vec::<String>::new());
    assert!(cuts > 500, "{cuts} cuts");
}

#[tokio::test]
async fn answered_append_survives_a_second_cut_during_recovery() {
    let (cuts, wrong) = all_cuts(Sim::default, true).await;
    assert_eq!(wrong, Vec::<String>::new());
    assert!(cuts > 3000, "{cuts} cuts");
}

#[tokio::test]
async fn what_is_read_after_a_kill_survives_a_power_cut() {
    for stop in 0.. {
        let sim = Sim::default().stop_at(stop);
        script(&sim).await;
        let killed = sim.killed();
        let open = |sim: &Sim| Spool::open(config("/spool"), &sinks(), Arc::new(sim.clone()));
        let before = read_all(&mut open(&killed).unwrap().readers[0]);
        let after = read_all(&mut open(&killed.after(Cut::Drop)).unwrap().readers[0]);
        assert_eq!(before, after, "stop {stop}");
        if !sim.stopped() {
            return;
        }
    }
}

#[tokio::test]
async fn a_disk_that_lies_about_syncs_shows_loss() {
    let (cuts, wrong) = all_cuts(|| Sim::default().lying(), false).await;
    assert!(wrong.len() > cuts / 10, "the harness sees nothing: {} of {cuts}", wrong.len());
}
