//! One delivery from its request to its answer: receive, verify, spool, answer.
//!
//! The handler waits for the disk and for nothing else. If the client hangs up meanwhile, the
//! append goes on without it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Buf;
use futures_util::Stream;
use warp::Filter;
use warp::http::{HeaderMap, Method, StatusCode, header};
use warp::path::FullPath;
use warp::reply::Response;

use super::Config;
use super::answer::{Refusal, accepted};
use super::body::{Bodies, BodyError};
use crate::config::SourceConfig;
use crate::metrics::{Metrics, SourceMetrics};
use crate::source::{Check, Presented, Source, Verified, VerifyError, decoy};
use crate::spool::{AppendError, Appended, Appender, Entry, IdKey};

const HOOKS: &str = "/hooks/";

struct Known {
    source: Arc<Source>,
    accepted: StatusCode,
    metrics: SourceMetrics,
}

/// What all requests share.
pub struct Intake {
    sources: HashMap<Arc<str>, Known>,
    /// What an unknown source is checked against, so that it takes the same time.
    decoy: Check,
    unknown: SourceMetrics,
    bodies: Bodies,
    appender: Appender,
}

impl Intake {
    pub fn new(config: &Config, sources: Vec<SourceConfig>, appender: Appender, metrics: &Metrics) -> Self {
        let sources = sources
            .into_iter()
            .map(|SourceConfig { source, accepted }| {
                let metrics = metrics.source(source.name());
                (Arc::clone(source.name()), Known { source, accepted, metrics })
            })
            .collect();
        Self {
            sources,
            decoy: decoy(),
            unknown: metrics.source("unknown"),
            bodies: Bodies::new(config.max_body, config.body_timeout, config.body_memory),
            appender,
        }
    }

    async fn handle<B: Buf, E>(
        &self,
        method: Method,
        path: FullPath,
        headers: HeaderMap,
        stream: impl Stream<Item = Result<B, E>>,
    ) -> Response {
        let Some(rest) = path.as_str().strip_prefix(HOOKS) else {
            return Refusal::NotFound.into_response();
        };
        let (name, token) = match rest.split_once('/') {
            Some((name, token)) => (name, Some(token).filter(|token| !token.is_empty())),
            None => (rest, None),
        };
        let known = self.sources.get(name);
        let metrics = known.map_or(&self.unknown, |known| &known.metrics);
        let refuse = |reason: &'static str, refusal: Refusal| {
            metrics.refused(reason);
            refusal.into_response()
        };
        if method != Method::POST {
            return refuse("method", Refusal::MethodNotAllowed);
        }
        if let Err((reason, refusal)) = check_framing(&headers) {
            return refuse(reason, refusal);
        }
        let (body, _memory) = match self.bodies.read(announced(&headers), stream).await {
            Ok(body) => body,
            Err(error) => {
                let (reason, refusal) = explain(error);
                return refuse(reason, refusal);
            }
        };
        let presented = Presented { headers: &headers, path_token: token, body };
        let Some(known) = known else {
            let _never = self.decoy.pass(&presented).is_ok();
            return refuse(VerifyError::UnknownSource.reason(), Refusal::Unauthorized);
        };
        let verified = match known.source.verify(presented, unix_ms()) {
            Ok(verified) => verified,
            Err(error) => {
                tracing::debug!(source = name, %error, headers = ?headers.keys(), "delivery refused");
                return refuse(error.reason(), Refusal::Unauthorized);
            }
        };
        match self.appender.append(entry(&verified)).await {
            Ok(Appended::New(offset)) => {
                tracing::trace!(source = name, id = verified.event_id(), offset, "delivery accepted");
                known.metrics.accepted();
                accepted(known.accepted)
            }
            Ok(Appended::Repeat) => {
                known.metrics.repeated();
                accepted(known.accepted)
            }
            Err(error) => {
                tracing::debug!(source = name, %error, "delivery not stored");
                refuse(append_reason(&error), Refusal::Unavailable)
            }
        }
    }
}

/// The one place where something is handed to the spool: only what passed its check gets here.
fn entry(verified: &Verified) -> Entry {
    Entry { key: IdKey(verified.key()), payload: verified.encode() }
}

/// What must hold of the headers before the body is read.
fn check_framing(headers: &HeaderMap) -> Result<(), (&'static str, Refusal)> {
    // Both at once is how requests are smuggled past a proxy.
    if headers.contains_key(header::CONTENT_LENGTH) && headers.contains_key(header::TRANSFER_ENCODING) {
        return Err(("framing", Refusal::BadRequest));
    }
    let encoded = headers
        .get_all(header::CONTENT_ENCODING)
        .iter()
        .any(|value| !value.as_bytes().eq_ignore_ascii_case(b"identity") && !value.is_empty());
    if encoded {
        return Err(("encoded", Refusal::EncodedBody));
    }
    Ok(())
}

fn announced(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn explain(error: BodyError) -> (&'static str, Refusal) {
    match error {
        BodyError::TooLarge => ("too_large", Refusal::TooLarge),
        BodyError::TooSlow => ("too_slow", Refusal::RequestTimeout),
        BodyError::NoMemory => ("no_memory", Refusal::Unavailable),
        BodyError::Broken => ("broken_off", Refusal::BadRequest),
    }
}

fn append_reason(error: &AppendError) -> &'static str {
    match error {
        AppendError::Full => "spool_full",
        AppendError::TooLarge { .. } | AppendError::Empty => "record_size",
        AppendError::Poisoned => "spool_failed",
        AppendError::Closed => "stopping",
    }
}

/// Wall clock for people and for the envelope; nothing is ordered by it.
fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// All routes of the listener for providers. One filter and one handler: warp's rejections mean
/// "try the next route", which is no way to say what is wrong with a delivery.
pub fn routes(
    intake: Arc<Intake>,
) -> impl Filter<Extract = (Response,), Error = warp::Rejection> + Clone + Send + Sync + 'static {
    warp::method().and(warp::path::full()).and(warp::header::headers_cloned()).and(warp::body::stream()).then(
        move |method, path, headers, stream| {
            let intake = Arc::clone(&intake);
            async move { intake.handle(method, path, headers, stream).await }
        },
    )
}
