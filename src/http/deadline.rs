//! Deadlines of one connection while it is not being served: for the head of a request, and for
//! the idle time between requests.
//!
//! hyper has one timer for both (`header_read_timeout`); they must differ here, since a head that
//! dribbles in is an attack after seconds, while an idle connection is normal for a minute.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

const IDLE: u8 = 0;
const HEAD: u8 = 1;
const SERVED: u8 = 2;

/// What a connection is doing; shared between its socket and its service.
#[derive(Debug, Clone, Default)]
pub(super) struct Phase(Arc<AtomicU8>);

impl Phase {
    /// The head is complete; from here on the handler keeps its own deadline.
    pub(super) fn served(&self) {
        self.0.store(SERVED, Ordering::Relaxed);
    }

    pub(super) fn idle(&self) {
        self.0.store(IDLE, Ordering::Relaxed);
    }
}

/// A socket whose reads fail once a deadline has passed.
pub(super) struct Deadlines<S> {
    socket: S,
    phase: Phase,
    header_timeout: Duration,
    idle_timeout: Duration,
    timer: Pin<Box<Sleep>>,
    /// The phase for which the timer runs.
    armed: u8,
}

impl<S> Deadlines<S> {
    pub(super) fn new(socket: S, phase: Phase, header_timeout: Duration, idle_timeout: Duration) -> Self {
        // A new connection owes its first byte as soon as a head its last one.
        let timer = Box::pin(sleep(header_timeout));
        Self { socket, phase, header_timeout, idle_timeout, timer, armed: IDLE }
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let phase = self.phase.0.load(Ordering::Relaxed);
        if self.armed != phase {
            self.armed = phase;
            let timeout = if phase == HEAD { self.header_timeout } else { self.idle_timeout };
            self.timer.as_mut().reset(Instant::now() + timeout);
        }
        if self.timer.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        if phase != SERVED {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        // hyper need not ask again once the request has been served, so the timer must: an idle
        // connection is closed after one to two idle time-outs.
        self.timer.as_mut().reset(Instant::now() + self.idle_timeout);
        self.timer.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Deadlines<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.socket).poll_read(cx, buf) {
            Poll::Pending => self.poll_deadline(cx),
            Poll::Ready(result) => {
                // Only from idle: a body's bytes are the handler's to time.
                let began =
                    self.phase.0.compare_exchange(IDLE, HEAD, Ordering::Relaxed, Ordering::Relaxed).is_ok();
                if began {
                    // Whatever the timer ran for is over.
                    self.armed = SERVED;
                }
                Poll::Ready(result)
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Deadlines<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }
}
