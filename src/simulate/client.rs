//! A plain HTTP client for deliveries.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use secrecy::SecretString;
use tokio::time::timeout;
use warp::http::{HeaderName, Request, StatusCode, Uri};

use crate::source::sign;

/// A provider that waits longer than this counts the delivery as failed (Cloud 66: 30 s).
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("`{0}` is not a URL of the form http://HOST:PORT/hooks/SOURCE[/TOKEN]")]
    Url(String),
    #[error("{0}: this client speaks plain http only; point it at the bridge itself, behind the TLS proxy")]
    Https(Uri),
}

/// How one delivery was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// `None`: no answer came at all.
    pub status: Option<StatusCode>,
    pub took: Duration,
    /// Why no answer came.
    pub failure: Option<String>,
}

impl Answer {
    pub fn is_accepted(&self) -> bool {
        self.status.is_some_and(|status| status.is_success())
    }
}

/// Sends deliveries to one URL; connections are kept and used again.
#[derive(Debug, Clone)]
pub struct Client {
    http: hyper_util::client::legacy::Client<HttpConnector, Full<Bytes>>,
    url: Uri,
    signing: Option<(HeaderName, SecretString)>,
}

impl Client {
    /// # Errors
    /// When `url` is not one this client can send to.
    pub fn new(url: &str, signing: Option<(HeaderName, SecretString)>) -> Result<Self, ClientError> {
        let parsed: Uri = url.parse().map_err(|_| ClientError::Url(url.to_owned()))?;
        match parsed.scheme_str() {
            Some("http") if parsed.host().is_some() => {}
            Some("https") => return Err(ClientError::Https(parsed)),
            _ => return Err(ClientError::Url(url.to_owned())),
        }
        let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build_http();
        Ok(Self { http, url: parsed, signing })
    }

    /// Delivers one body; with `forge`, under a signature that is well-formed and wrong.
    pub async fn deliver(&self, body: &Bytes, forge: bool) -> Answer {
        let mut request = Request::post(self.url.clone()).header("content-type", "application/json");
        if let Some((header, secret)) = &self.signing {
            let mut signature = sign(secret, body);
            if forge {
                signature = signature.chars().rev().collect();
            }
            request = request.header(header.clone(), signature);
        }
        let request = request.body(Full::new(body.clone())).expect("every part was checked before");
        let began = Instant::now();
        let answer = timeout(ANSWER_WITHIN, self.http.request(request)).await;
        let took = began.elapsed();
        match answer {
            Ok(Ok(response)) => {
                let status = response.status();
                // Read to the end, so that the connection can be used again.
                drop(http_body_util::BodyExt::collect(response.into_body()).await);
                Answer { status: Some(status), took, failure: None }
            }
            Ok(Err(error)) => {
                let cause =
                    std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
                Answer { status: None, took, failure: Some(cause) }
            }
            Err(_) => {
                Answer { status: None, took, failure: Some(format!("no answer within {ANSWER_WITHIN:?}")) }
            }
        }
    }
}
