//! Which segments there are, where each sink's synced cursor is, and so what may be freed.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Offset;
use super::segment::SegmentHeader;

/// A segment as the catalog knows it.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub(crate) path: PathBuf,
    /// `None`: the header is damaged, and with it the salt; no record of it can be read.
    pub(crate) header: Option<SegmentHeader>,
    pub(crate) first: Offset,
    /// One past the last synced record.
    pub(crate) end: Offset,
    /// Synced length of the file in bytes.
    pub(crate) len: u64,
    pub(crate) created_ms: u64,
    /// `None`: this is the active segment.
    pub(crate) sealed_ms: Option<u64>,
    /// Moved to quarantine instead of removed when it is freed.
    pub(crate) damaged: bool,
}

/// A sidecar on disk; it outlives its segment.
#[derive(Clone, Debug)]
pub(crate) struct KeptIds {
    pub(crate) path: PathBuf,
    pub(crate) first: Offset,
    pub(crate) sealed_ms: u64,
}

/// What lies at an offset.
#[derive(Debug)]
pub(crate) enum Place {
    In(Segment),
    /// No segment holds it; the next data, or the durable end, is here.
    Gap(Offset),
    /// Not durable yet.
    End,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    /// Ascending by first offset; only the last may be active.
    pub(crate) segments: VecDeque<Segment>,
    /// Ascending by first offset.
    pub(crate) ids: VecDeque<KeptIds>,
    /// Synced cursor of every sink, configured or not.
    pub(crate) cursors: Vec<(String, Offset)>,
    pub(crate) durable_end: Offset,
}

impl State {
    /// Everything below is confirmed by every sink. Without any sink nothing ever is.
    pub(crate) fn confirmed(&self) -> Offset {
        self.cursors.iter().map(|(_, offset)| *offset).min().unwrap_or(0)
    }

    fn place(&self, offset: Offset) -> Place {
        if offset >= self.durable_end {
            return Place::End;
        }
        let after = self.segments.partition_point(|segment| segment.end <= offset);
        match self.segments.get(after) {
            Some(segment) if segment.first <= offset => Place::In(segment.clone()),
            Some(segment) => Place::Gap(segment.first.min(self.durable_end)),
            None => Place::Gap(self.durable_end),
        }
    }

    /// How many segments at the front may be freed. Always a prefix, so that a clock that jumps
    /// cannot tear a hole between what is kept.
    fn freeable(&self, now_ms: u64, retention_ms: u64) -> usize {
        let confirmed = self.confirmed();
        let free = |segment: &&Segment| {
            let kept = segment.sealed_ms.is_none_or(|sealed| now_ms.saturating_sub(sealed) < retention_ms);
            segment.end <= confirmed && !kept
        };
        self.segments.iter().take_while(free).count()
    }

    /// How many sidecars at the front are past the window and have lost their segment. The newest
    /// sidecar always stays: it remembers where offsets go on.
    fn expired_ids(&self, now_ms: u64, window_ms: u64) -> usize {
        let oldest = self.segments.front().map_or(Offset::MAX, |segment| segment.first);
        let expired = |ids: &&KeptIds| ids.first < oldest && now_ms.saturating_sub(ids.sealed_ms) > window_ms;
        let most = self.ids.len().saturating_sub(1);
        self.ids.iter().take(most).take_while(expired).count()
    }

    /// The active segment, if it has records and all of them are confirmed.
    pub(crate) fn confirmed_active(&self) -> Option<&Segment> {
        let confirmed = self.confirmed();
        self.segments
            .back()
            .filter(|last| last.sealed_ms.is_none() && last.first < last.end && last.end <= confirmed)
    }
}

/// The one list that the writer extends and the readers shrink. Locked for moments only, never
/// during I/O.
#[derive(Debug, Default)]
pub(crate) struct Catalog(Mutex<State>);

impl Catalog {
    pub(crate) fn new(state: State) -> Self {
        Self(Mutex::new(state))
    }

    /// No code panics halfway through a change, so a poisoned lock holds a whole state.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn place(&self, offset: Offset) -> Place {
        self.lock().place(offset)
    }

    /// Takes what may be freed out of the catalog; the caller removes the files.
    pub(crate) fn take_freeable(&self, now_ms: u64, retention_ms: u64) -> Vec<Segment> {
        let mut state = self.lock();
        let count = state.freeable(now_ms, retention_ms);
        state.segments.drain(..count).collect()
    }

    /// Takes the sidecars that nobody needs any more out of the catalog.
    pub(crate) fn take_expired_ids(&self, now_ms: u64, window_ms: u64) -> Vec<KeptIds> {
        let mut state = self.lock();
        let count = state.expired_ids(now_ms, window_ms);
        state.ids.drain(..count).collect()
    }

    pub(crate) fn has_freeable(&self, now_ms: u64, retention_ms: u64) -> bool {
        self.lock().freeable(now_ms, retention_ms) > 0
    }

    /// Records a cursor that has been synced.
    pub(crate) fn set_cursor(&self, sink: &str, offset: Offset) {
        let mut state = self.lock();
        if let Some((_, cursor)) = state.cursors.iter_mut().find(|(name, _)| name == sink) {
            *cursor = offset;
        }
    }
}
