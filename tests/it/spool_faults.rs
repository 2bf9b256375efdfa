//! Refusals, damage and restarts, one sentence each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hookbus::spool::{
    AppendError, Appended, Config, DiskStorage, ReadItem, RecoveryError, Spool, Storage, inspect,
};

use crate::sim::{Sim, append, close, config, entry, key, open, read_all, read_records, sinks};

const DEADLINE: Duration = Duration::from_secs(20);

fn open_with(sim: &Sim, config: Config) -> Spool {
    Spool::open(config, &sinks(), Arc::new(sim.clone())).unwrap()
}

fn confirm_all(spool: &mut Spool) {
    let reader = &mut spool.readers[0];
    read_all(reader);
    reader.confirm(u64::MAX);
    reader.store().unwrap();
}

/// Appends until it is taken: what was refused as full must be taken once there is room.
async fn append_when_there_is_room(spool: &Spool, number: u64) -> u64 {
    let accepted = async {
        loop {
            match spool.appender.append(entry(number)).await {
                Ok(Appended::New(offset)) => return offset,
                Err(AppendError::Full) => tokio::task::yield_now().await,
                other => panic!("{other:?}"),
            }
        }
    };
    tokio::time::timeout(DEADLINE, accepted).await.expect("there is room again")
}

#[tokio::test]
async fn a_failed_sync_poisons_for_ever() {
    let sim = Sim::default();
    let mut spool = open(&sim);
    append(&spool, 0).await;
    sim.fail_sync_of(".seg");
    assert_eq!(spool.appender.append(entry(1)).await, Err(AppendError::Poisoned));
    assert_eq!(spool.appender.append(entry(2)).await, Err(AppendError::Poisoned));
    assert!(spool.writer.ended().await.is_err());
    assert_eq!(spool.status.poisoned(), Some("syncing records: sync failed"));
    assert!(!spool.status.accepting());
    // What was durable before can still be delivered.
    assert_eq!(read_records(&mut spool.readers[0]).len(), 1);
    spool.readers[0].confirm(1);
    spool.readers[0].store().unwrap();
    assert!(!spool.readers[0].wait().await);
    assert!(spool.writer.join().is_err());
}

#[tokio::test]
async fn a_full_disk_is_cut_back_and_accepts_again() {
    let sim = Sim::default();
    let mut spool = open(&sim);
    append(&spool, 0).await;
    sim.set_capacity(Some(sim.used() + 20));
    assert_eq!(spool.appender.append(entry(12)).await, Err(AppendError::Full));
    assert!(!spool.status.accepting());
    assert!(open(&sim.copy()).recovery.torn_tail.is_none(), "nothing of it is left");
    // A repeat needs no room.
    assert_eq!(spool.appender.append(entry(0)).await, Ok(Appended::Repeat));
    // Dispatching goes on: the cursor overwrites in place.
    confirm_all(&mut spool);
    sim.set_capacity(None);
    // The refused record was forgotten again: it is no repeat.
    assert_eq!(append(&spool, 12).await, 1);
    assert!(spool.status.accepting());
    close(spool);
    let mut spool = open(&sim);
    assert!(spool.recovery.torn_tail.is_none());
    let records = read_records(&mut spool.readers[0]);
    assert_eq!(records.iter().map(|record| record.key).collect::<Vec<_>>(), [key(12)]);
}

#[tokio::test]
async fn no_room_for_a_new_segment_refuses_and_leaves_nothing_behind() {
    let sim = Sim::default();
    let spool = open(&sim);
    sim.set_capacity(Some(sim.used() + 30));
    assert_eq!(spool.appender.append(entry(0)).await, Err(AppendError::Full));
    assert!(sim.files(".seg").is_empty());
    sim.set_capacity(None);
    assert_eq!(append(&spool, 0).await, 0);
}

#[tokio::test]
async fn a_full_spool_accepts_again_after_delivery() {
    let sim = Sim::default();
    // Also with one segment only, which nothing but its delivery can seal.
    for segment_bytes in [600, 1 << 20] {
        let dir = format!("/spool-{segment_bytes}");
        let mut spool = open_with(&sim, Config { max_bytes: 1500, segment_bytes, ..config(dir) });
        let mut number = 0;
        let refused = loop {
            match spool.appender.append(entry(number)).await {
                Ok(_) => number += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(refused, AppendError::Full);
        assert!(!spool.status.accepting());
        assert!(spool.status.bytes() <= 1500);
        confirm_all(&mut spool);
        assert_eq!(append_when_there_is_room(&spool, number).await, number);
        assert_eq!(read_records(&mut spool.readers[0]).len(), 1);
    }
}

#[tokio::test]
async fn too_large_and_empty_records_are_refused() {
    let spool = open(&Sim::default());
    let with = |len: usize| hookbus::spool::Entry { key: key(1), payload: vec![1; len].into() };
    let refused = spool.appender.append(with(100_001)).await;
    assert_eq!(refused, Err(AppendError::TooLarge { len: 100_001, limit: 100_000 }));
    assert_eq!(spool.appender.append(with(0)).await, Err(AppendError::Empty));
    // Larger than a segment is no reason to refuse.
    assert_eq!(spool.appender.append(with(100_000)).await, Ok(Appended::New(0)));
}

#[tokio::test]
async fn works_on_a_real_disk_and_locks_it() {
    let dir = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Storage> = Arc::new(DiskStorage);
    let config = config(dir.path().join("spool"));
    let open = || Spool::open(config.clone(), &sinks(), Arc::clone(&disk));
    let mut spool = open().unwrap();
    for number in 0..50 {
        assert_eq!(append(&spool, number).await, number);
    }
    assert!(matches!(open(), Err(RecoveryError::Locked { .. })));
    assert!(spool.readers[0].wait().await);
    assert_eq!(read_records(&mut spool.readers[0]).len(), 50);
    spool.readers[0].confirm(31);
    assert!(spool.readers[0].store_due());
    spool.readers[0].store().unwrap();

    let seen = inspect::list(&*disk, &config.dir).unwrap();
    assert_eq!(seen.segments.len(), spool.status.segments());
    assert_eq!(seen.cursors[0].offset, Some(31));
    let checked = inspect::verify(&*disk, &config.dir).unwrap();
    assert!(checked.is_sound(), "{checked:?}");
    assert_eq!(checked.unfinished_tail, 0);
    let records = inspect::records(&disk, &config.dir, 40).unwrap();
    assert_eq!(records.map(Result::unwrap).count(), 10);

    close(spool);
    let mut spool = open().unwrap();
    assert_eq!(spool.readers[0].cursor(), 31);
    assert_eq!(read_records(&mut spool.readers[0]).len(), 19);
}

#[tokio::test]
async fn a_repeat_is_recognised_across_restarts_and_after_its_segment_was_freed() {
    let sim = Sim::default();
    let mut spool = open(&sim);
    for number in 0..40 {
        append(&spool, number).await;
    }
    confirm_all(&mut spool);
    assert_eq!(spool.status.segments(), 1, "all but the active segment are freed");
    for _ in 0..2 {
        for number in 0..40 {
            assert_eq!(spool.appender.append(entry(number)).await, Ok(Appended::Repeat));
        }
        assert_eq!(spool.status.repeats(), 40);
        close(spool);
        spool = open(&sim);
        assert_eq!(spool.status.remembered_ids(), 40);
    }
    close(spool);
    // Fewer are remembered if fewer are to be: the newest.
    let spool = open_with(&sim, Config { repeats_max: 5, ..config("/spool") });
    assert_eq!(spool.appender.append(entry(36)).await, Ok(Appended::Repeat));
    assert_eq!(spool.appender.append(entry(30)).await, Ok(Appended::New(40)));
}

#[tokio::test]
async fn a_repeat_in_the_same_batch_waits_for_its_first() {
    let spool = open(&Sim::default());
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..64 {
        let appender = spool.appender.clone();
        tasks.spawn(async move { appender.append(entry(1)).await.unwrap() });
    }
    let answers = tasks.join_all().await;
    assert_eq!(answers.iter().filter(|answer| **answer == Appended::New(0)).count(), 1);
    assert_eq!(answers.iter().filter(|answer| **answer == Appended::Repeat).count(), 63);
    assert_eq!(spool.status.durable_end(), 1);
}

#[tokio::test]
async fn offsets_are_never_reused_after_everything_was_freed() {
    let sim = Sim::default();
    let by_age = || Config { seal_age: Duration::ZERO, ..config("/spool") };
    let mut spool = open_with(&sim, by_age());
    for number in 0..20 {
        append(&spool, number).await;
    }
    confirm_all(&mut spool);
    let freed = async {
        while spool.status.segments() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, freed).await.expect("the active segment is sealed and freed");
    assert!(sim.files(".seg").is_empty());
    close(spool);
    // By the cursor, by a sidecar alone, by the cursor alone.
    for remove in ["-", ".cursor", ".ids"] {
        let sim = sim.copy();
        sim.files(remove).iter().for_each(|path| sim.remove(path));
        let mut spool = open(&sim);
        assert_eq!(spool.recovery.durable_end, 20, "without {remove}");
        assert_eq!(append(&spool, 100).await, 20, "without {remove}");
        assert_eq!(read_records(&mut spool.readers[0]).len(), 1, "without {remove}");
    }
}

#[tokio::test]
async fn opening_reads_no_sealed_segment() {
    let sim = Sim::default();
    let spool = open_with(&sim, Config { segment_bytes: 4000, ..config("/spool") });
    for number in 0..1000 {
        append(&spool, number).await;
    }
    let segments = spool.status.segments();
    assert!(segments > 15, "{segments}");
    close(spool);
    sim.take_reads();
    let mut spool = open_with(&sim, Config { repeats_max: 0, ..config("/spool") });
    let (bytes, _) = sim.take_reads();
    assert_eq!(spool.recovery.scanned, 1);
    assert!(bytes < 4_000 + segments * 200 + 1000, "{bytes} bytes read for {segments} segments");
    assert_eq!(read_records(&mut spool.readers[0]).len(), 1000);
}

#[tokio::test]
async fn a_segment_without_its_sidecar_is_read_again() {
    let sim = Sim::default();
    let spool = open(&sim);
    for number in 0..40 {
        append(&spool, number).await;
    }
    close(spool);
    let sidecars = sim.files(".ids");
    sim.remove(&sidecars[0]);
    let mut rotten = sim.contents(&sidecars[1]);
    rotten[30] ^= 4;
    sim.tamper(&sidecars[1], rotten);
    let mut spool = open(&sim);
    assert_eq!(spool.recovery.scanned, 3);
    assert_eq!(read_records(&mut spool.readers[0]).len(), 40);
    assert_eq!(spool.appender.append(entry(0)).await, Ok(Appended::Repeat));
    close(spool);
    assert_eq!(open(&sim).recovery.scanned, 1, "its sidecar was written anew");
}

#[tokio::test]
async fn an_unconfigured_sink_keeps_its_segments() {
    let sim = Sim::default();
    let two = ["nats".to_owned(), "kafka".to_owned()];
    let mut spool = Spool::open(config("/spool"), &two, Arc::new(sim.clone())).unwrap();
    for number in 0..40 {
        append(&spool, number).await;
    }
    spool.readers[1].confirm(5);
    confirm_all(&mut spool);
    let segments = spool.status.segments();
    close(spool);
    let spool = open(&sim);
    assert_eq!(spool.recovery.orphan_cursors, [("kafka".to_owned(), 0)]);
    assert_eq!(spool.status.segments(), segments);
    assert!(spool.status.oldest_undelivered_ms().is_some());
}

#[tokio::test]
async fn a_lost_cursor_repeats_and_a_cursor_ahead_is_told() {
    let sim = Sim::default();
    let mut spool = open(&sim);
    for number in 0..40 {
        append(&spool, number).await;
    }
    read_all(&mut spool.readers[0]);
    spool.readers[0].confirm(5);
    spool.readers[0].store().unwrap();
    close(spool);
    let cursor = sim.files(".cursor").remove(0);

    let rotten = sim.copy();
    rotten.tamper(&cursor, vec![0; 8192]);
    let mut spool = open(&rotten);
    assert_eq!(spool.recovery.cursors_reset, sinks());
    assert_eq!(read_records(&mut spool.readers[0]).len() as u64, 40 - spool.readers[0].cursor());
    close(spool);

    let last = sim.files(".seg").pop().unwrap();
    sim.remove(&last);
    let mut spool = open(&sim);
    read_all(&mut spool.readers[0]);
    spool.readers[0].confirm(u64::MAX);
    spool.readers[0].store().unwrap();
    close(spool);
    // Take away what was confirmed, and every trace of it but the cursor.
    for suffix in [".seg", ".ids"] {
        sim.files(suffix).iter().for_each(|path| sim.remove(path));
    }
    let spool = open(&sim);
    assert_eq!(spool.recovery.cursors_ahead.len(), 1);
    assert_eq!(append(&spool, 99).await, spool.recovery.cursors_ahead[0].1);
}

#[tokio::test]
async fn an_unknown_format_is_refused() {
    let sim = Sim::default();
    let spool = open(&sim);
    append(&spool, 0).await;
    close(spool);
    let path = sim.files(".seg").remove(0);
    let mut bytes = sim.contents(&path);
    bytes[8] = 2;
    let masked = crc32c::crc32c(&bytes[..60]).rotate_right(15).wrapping_add(0xa282_ead8);
    bytes[60..64].copy_from_slice(&masked.to_le_bytes());
    sim.tamper(&path, bytes);
    let opened = Spool::open(config("/spool"), &sinks(), Arc::new(sim.clone()));
    assert!(matches!(opened, Err(RecoveryError::UnknownFormat { format: 2, .. })), "{opened:?}");
}

/// A closed spool with a sealed segment and an active one, each record in a batch of its own.
async fn small_spool() -> Sim {
    let sim = Sim::default();
    let spool = open(&sim);
    for number in 0..12 {
        append(&spool, number).await;
    }
    close(spool);
    assert_eq!((sim.files(".seg").len(), sim.files(".ids").len()), (2, 1));
    sim
}

/// What opening and reading a damaged spool tells.
struct Outcome {
    found: BTreeMap<u64, Vec<u8>>,
    lost: u64,
    told: bool,
}

#[track_caller]
fn open_damaged(sim: &Sim) -> Outcome {
    let mut spool = open(sim);
    let report = spool.recovery.clone();
    let mut found = BTreeMap::new();
    let mut lost = 0;
    for item in read_all(&mut spool.readers[0]) {
        match item {
            ReadItem::Record(record) => {
                assert_eq!(record.payload, entry(record.offset).payload, "invented");
                assert_eq!(record.key, key(record.offset), "invented");
                assert!(found.insert(record.offset, record.payload.to_vec()).is_none(), "twice");
            }
            ReadItem::Lost { first, end, .. } => lost += end - first,
        }
    }
    let told = lost > 0 || report.torn_tail.is_some() || !report.set_aside.is_empty();
    close(spool);
    // Recovery has nothing left to do, and the readers say the same again.
    let again = open(sim);
    assert!(again.recovery.torn_tail.is_none() && again.recovery.set_aside.is_empty());
    assert_eq!(again.recovery.durable_end, report.durable_end);
    Outcome { found, lost, told }
}

#[tokio::test]
async fn a_last_segment_truncated_at_any_length_loses_no_whole_record() {
    let sim = small_spool().await;
    let last = sim.files(".seg").remove(1);
    let bytes = sim.contents(&last);
    let first = last.file_stem().unwrap().to_string_lossy().parse::<u64>().unwrap();
    // Where the segment's header and then each of its records ends.
    let mut ends = vec![64];
    ends.extend((first..12).map(|number| 48 + entry(number).payload.len()));
    let ends: Vec<usize> = ends
        .into_iter()
        .scan(0, |end, len| {
            Some({
                *end += len;
                *end
            })
        })
        .collect();
    assert_eq!(ends.last(), Some(&bytes.len()));
    for len in 0..bytes.len() {
        let cut = sim.copy();
        cut.tamper(&last, bytes[..len].to_vec());
        let outcome = open_damaged(&cut);
        let whole = ends.iter().skip(1).filter(|end| **end <= len).count() as u64;
        assert!(outcome.found.keys().copied().eq(0..first + whole), "cut to {len} bytes");
        // Between two records of batches that no later record or cursor speaks of, a cut is the one
        // damage that nothing on the disk can tell.
        assert_eq!(outcome.told, !ends.contains(&len), "cut to {len} bytes");
    }
}

#[tokio::test]
async fn a_cut_between_two_records_is_told_by_the_cursor_file() {
    let sim = Sim::default();
    let mut spool = open(&sim);
    for number in 0..4 {
        append(&spool, number).await;
    }
    read_all(&mut spool.readers[0]);
    spool.readers[0].confirm(1);
    spool.readers[0].store().unwrap();
    close(spool);
    let path = sim.files(".seg").remove(0);
    let len = 64 + (0..2).map(|number| 48 + entry(number).payload.len()).sum::<usize>();
    sim.tamper(&path, sim.contents(&path)[..len].to_vec());
    let mut spool = open(&sim);
    assert_eq!(spool.recovery.missing_end, Some(2..4));
    let items = read_all(&mut spool.readers[0]);
    assert!(matches!(items[..], [ReadItem::Record(_), ReadItem::Lost { first: 2, end: 4, .. }]));
    assert_eq!(append(&spool, 9).await, 4);
    assert_eq!(read_records(&mut spool.readers[0]).len(), 1);
}

#[tokio::test]
async fn a_flipped_bit_loses_at_most_its_record_and_never_silently() {
    let sim = small_spool().await;
    for (which, path) in sim.files(".seg").into_iter().enumerate() {
        let bytes = sim.contents(&path);
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let damaged = sim.copy();
            damaged.tamper(&path, flipped);
            let outcome = open_damaged(&damaged);
            let missing = 12 - outcome.found.len();
            assert!(missing > 0 && outcome.told, "bit {bit} of segment {which} passed unseen");
            // A damaged segment header hides the salt, and so all of the segment.
            assert!(bit < 64 * 8 || missing == 1, "bit {bit} of segment {which}: {missing} lost");
            let copies =
                damaged.files("").iter().filter(|path| path.starts_with("/spool/quarantine")).count();
            assert!(bit < 64 * 8 || copies == 1, "bit {bit} of segment {which}: {copies} copies");
            assert!(outcome.lost >= missing as u64 || which == 1);
        }
    }
}

#[tokio::test]
async fn a_wait_ends_with_the_batch_that_it_waits_for() {
    let Spool { appender, mut readers, writer, .. } = open(&Sim::default());
    let mut reader = readers.remove(0);
    let waiting = tokio::spawn(async move {
        assert!(reader.wait().await);
        let count = read_records(&mut reader).len();
        (count, reader.wait().await)
    });
    appender.append(entry(0)).await.unwrap();
    drop(appender);
    assert_eq!(tokio::time::timeout(DEADLINE, waiting).await.unwrap().unwrap(), (1, false));
    writer.join().unwrap();
}
