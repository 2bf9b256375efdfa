//! Random appends, reopenings, reads and confirmations against a plain vector.

use std::sync::Arc;

use hookbus::spool::{Appended, Spool};
use proptest::prelude::*;

use crate::sim::{Sim, close, config, entry, read_records, sinks};

#[derive(Clone, Debug)]
enum Step {
    /// Append these numbers at once; some will be repeats.
    Append(Vec<u64>),
    Read,
    /// Confirm this many of the records that were read.
    Confirm(u64),
    Store,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop::collection::vec(0..60_u64, 1..12).prop_map(Step::Append),
        3 => Just(Step::Read),
        3 => (0..20_u64).prop_map(Step::Confirm),
        2 => Just(Step::Store),
        1 => Just(Step::Reopen),
    ]
}

async fn run(steps: Vec<Step>) {
    let sim = Sim::default();
    let open = || Spool::open(config("/spool"), &sinks(), Arc::new(sim.clone())).unwrap();
    let mut spool = open();
    // The number of every record, by offset.
    let mut model: Vec<u64> = Vec::new();
    let (mut read, mut confirmed, mut stored) = (0, 0, 0);
    for step in steps {
        match step {
            Step::Append(numbers) => {
                let mut tasks = tokio::task::JoinSet::new();
                for number in numbers {
                    let appender = spool.appender.clone();
                    tasks.spawn(async move { (number, appender.append(entry(number)).await) });
                }
                let mut new = Vec::new();
                for (number, appended) in tasks.join_all().await {
                    match appended.unwrap() {
                        Appended::New(offset) => {
                            assert!(!model.contains(&number));
                            new.push((offset, number));
                        }
                        Appended::Repeat => {
                            let known = model.contains(&number);
                            // Or its first is in this very step.
                            new.push((u64::MAX, if known { u64::MAX } else { number }));
                        }
                    }
                }
                new.sort_unstable();
                for (offset, number) in new {
                    if offset == u64::MAX {
                        assert!(number == u64::MAX || model.contains(&number));
                    } else {
                        assert_eq!(offset, model.len() as u64);
                        model.push(number);
                    }
                }
            }
            Step::Read => {
                for record in read_records(&mut spool.readers[0]) {
                    let number = model[usize::try_from(record.offset).unwrap()];
                    assert_eq!(record.offset, read);
                    assert_eq!((record.key, &record.payload), (entry(number).key, &entry(number).payload));
                    read += 1;
                }
                assert_eq!(read, model.len() as u64);
            }
            Step::Confirm(count) => {
                confirmed = read.min(confirmed + count);
                spool.readers[0].confirm(confirmed);
                assert_eq!(spool.readers[0].cursor(), confirmed);
            }
            Step::Store => {
                spool.readers[0].store().unwrap();
                stored = confirmed;
            }
            Step::Reopen => {
                close(spool);
                spool = open();
                (read, confirmed) = (stored, stored);
                assert_eq!(spool.readers[0].cursor(), stored);
                assert_eq!(spool.status.durable_end(), model.len() as u64);
                assert!(spool.recovery.damage.is_empty() && spool.recovery.torn_tail.is_none());
            }
        }
    }
    close(spool);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn behaves_like_a_vector(steps in prop::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(run(steps));
    }
}
