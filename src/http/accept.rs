//! The accept loop: HTTP/1 only, a cap on connections, deadlines, a bounded stop.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::{GracefulConnection, GracefulShutdown};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout_at};
use warp::http::Request;
use warp::reply::Response;
use warp::{Filter, Rejection, Reply};

use super::Config;
use super::deadline::{Deadlines, Phase};

/// Largest head of a request, in bytes.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Longest pause after a failed accept (too many open files, say).
const ACCEPT_PAUSE_MAX: Duration = Duration::from_secs(1);

/// A bound address that does not serve yet.
pub struct Listener {
    socket: TcpListener,
    config: Config,
}

impl Listener {
    /// # Errors
    /// When the address cannot be bound.
    pub async fn bind(config: Config) -> std::io::Result<Self> {
        Ok(Self { socket: TcpListener::bind(config.listen).await?, config })
    }

    /// The address that was bound: the port is real even if 0 was asked for.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Serves until `stop` completes, then lets requests in progress end until the deadline
    /// that `stop` returns. Returns how many connections had to be cut off then.
    pub async fn serve<F>(self, routes: F, stop: impl Future<Output = Instant>) -> usize
    where
        F: Filter<Error = Rejection> + Clone + Send + Sync + 'static,
        F::Extract: Reply,
    {
        let service = TowerToHyperService::new(warp::service(routes));
        let permits = Arc::new(Semaphore::new(self.config.max_connections));
        let graceful = GracefulShutdown::new();
        let mut pause = Duration::ZERO;
        tokio::pin!(stop);
        let deadline = loop {
            let accepted = tokio::select! {
                deadline = &mut stop => break deadline,
                accepted = self.accept(&permits) => accepted,
            };
            match accepted {
                Ok((stream, permit)) => {
                    pause = Duration::ZERO;
                    let connection = graceful.watch(self.connection(stream, service.clone()));
                    tokio::spawn(async move {
                        // A broken connection is the client's affair; whatever was accepted on
                        // it goes on without it.
                        if let Err(error) = connection.await {
                            tracing::debug!(%error, "connection ended");
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    pause = (pause * 2).clamp(Duration::from_millis(10), ACCEPT_PAUSE_MAX);
                    tracing::warn!(%error, pause_ms = pause.as_millis(), "cannot accept a connection");
                    sleep(pause).await;
                }
            }
        };
        drop(self.socket);
        let open = graceful.count();
        if timeout_at(deadline, graceful.shutdown()).await.is_ok() { 0 } else { open }
    }

    async fn accept(
        &self,
        permits: &Arc<Semaphore>,
    ) -> std::io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
        let permit = Arc::clone(permits).acquire_owned().await.expect("the semaphore is never closed");
        let (stream, _) = self.socket.accept().await?;
        stream.set_nodelay(true)?;
        Ok((stream, permit))
    }

    fn connection<S>(
        &self,
        stream: TcpStream,
        service: S,
    ) -> impl GracefulConnection<Error = hyper::Error> + Send + use<S>
    where
        S: Service<Request<Incoming>, Response = Response, Error = Infallible> + Send + 'static,
        S::Future: Send + 'static,
    {
        let phase = Phase::default();
        let socket =
            Deadlines::new(stream, phase.clone(), self.config.header_timeout, self.config.idle_timeout);
        let service = service_fn(move |request| {
            phase.served();
            let answer = service.call(request);
            let phase = phase.clone();
            async move {
                let answer = answer.await;
                phase.idle();
                answer
            }
        });
        http1::Builder::new()
            .max_buf_size(HEAD_BYTES_MAX)
            .header_read_timeout(None)
            // A client that hangs up right after sending has delivered all the same.
            .half_close(true)
            .serve_connection(TokioIo::new(socket), service)
    }
}
