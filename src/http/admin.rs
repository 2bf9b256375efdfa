//! What operators and probes ask: `/livez`, `/readyz`, `/metrics`.

use std::sync::Arc;

use serde::Serialize;
use warp::Filter;
use warp::http::{HeaderValue, StatusCode, header};
use warp::reply::Response;

use super::answer::Refusal;

/// Two facts, kept apart: whether deliveries are made durable, and whether events leave. Only the
/// first decides readiness: an unreachable broker must not take the bridge out of service, since
/// accepting is the very thing it is there for then.
#[derive(Debug, Clone, Serialize)]
pub struct Readiness {
    pub accepting: bool,
    pub publishing: bool,
    pub sinks: Vec<SinkReadiness>,
}

#[derive(Debug, Clone, Serialize)]
pub struct SinkReadiness {
    pub name: String,
    pub publishing: bool,
}

/// `readiness` and `metrics` are asked once per request.
pub fn routes<R, M>(
    readiness: R,
    metrics: M,
) -> impl Filter<Extract = (Response,), Error = warp::Rejection> + Clone + Send + Sync + 'static
where
    R: Fn() -> Readiness + Send + Sync + 'static,
    M: Fn() -> String + Send + Sync + 'static,
{
    let parts = Arc::new((readiness, metrics));
    warp::get().or(warp::head()).unify().and(warp::path::full()).map(move |path: warp::path::FullPath| {
        let (readiness, metrics) = &*parts;
        match path.as_str() {
            "/livez" => text("text/plain; charset=utf-8", "ok\n".to_owned()),
            "/readyz" => ready(&readiness()),
            "/metrics" => text("application/openmetrics-text; version=1.0.0; charset=utf-8", metrics()),
            _ => Refusal::NotFound.into_response(),
        }
    })
}

fn ready(readiness: &Readiness) -> Response {
    let body = serde_json::to_string(readiness).expect("flags and names serialise");
    let mut answer = text("application/json", body);
    if !readiness.accepting {
        *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    answer
}

fn text(content_type: &'static str, body: String) -> Response {
    let mut answer = Response::new(body.into());
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}
