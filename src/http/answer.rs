//! Answers: `202`, or a short `application/problem+json` (RFC 9457) that tells an attacker nothing.

use warp::http::{HeaderValue, StatusCode, header};
use warp::reply::Response;

/// Seconds after which a full or closed spool may be tried again.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("10");

/// Every refusal there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    BadRequest,
    Unauthorized,
    NotFound,
    MethodNotAllowed,
    RequestTimeout,
    TooLarge,
    EncodedBody,
    Unavailable,
}

pub(super) fn accepted(status: StatusCode) -> Response {
    let mut answer = Response::default();
    *answer.status_mut() = status;
    answer
}

impl Refusal {
    fn parts(self) -> (StatusCode, &'static str) {
        match self {
            Self::BadRequest => {
                (StatusCode::BAD_REQUEST, r#"{"type":"about:blank","title":"Bad Request","status":400}"#)
            }
            Self::Unauthorized => {
                (StatusCode::UNAUTHORIZED, r#"{"type":"about:blank","title":"Unauthorized","status":401}"#)
            }
            Self::NotFound => {
                (StatusCode::NOT_FOUND, r#"{"type":"about:blank","title":"Not Found","status":404}"#)
            }
            Self::MethodNotAllowed => (
                StatusCode::METHOD_NOT_ALLOWED,
                r#"{"type":"about:blank","title":"Method Not Allowed","status":405}"#,
            ),
            Self::RequestTimeout => (
                StatusCode::REQUEST_TIMEOUT,
                r#"{"type":"about:blank","title":"Request Timeout","status":408}"#,
            ),
            Self::TooLarge => (
                StatusCode::PAYLOAD_TOO_LARGE,
                r#"{"type":"about:blank","title":"Content Too Large","status":413}"#,
            ),
            Self::EncodedBody => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                r#"{"type":"about:blank","title":"Unsupported Media Type","status":415,"detail":"send the body without Content-Encoding"}"#,
            ),
            Self::Unavailable => (
                StatusCode::SERVICE_UNAVAILABLE,
                r#"{"type":"about:blank","title":"Service Unavailable","status":503}"#,
            ),
        }
    }

    pub(super) fn into_response(self) -> Response {
        let (status, body) = self.parts();
        let mut answer = Response::new(body.into());
        *answer.status_mut() = status;
        let headers = answer.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        match self {
            Self::MethodNotAllowed => {
                headers.insert(header::ALLOW, HeaderValue::from_static("POST"));
            }
            Self::Unavailable => {
                headers.insert(header::RETRY_AFTER, RETRY_AFTER);
            }
            // What is left of such a request on the connection cannot be trusted, or not waited for.
            Self::BadRequest | Self::RequestTimeout | Self::TooLarge => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Self::Unauthorized | Self::NotFound | Self::EncodedBody => {}
        }
        answer
    }
}
