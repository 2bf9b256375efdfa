//! The checks a source can be given, over raw bytes and in constant time.
//!
//! The only user of `hmac`. Rules: signatures are decoded strictly before they are compared;
//! every configured secret and every presented candidate is tried, without an early exit; both
//! are bounded; what cannot be decoded is a failed check, never an error of ours.

use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;
use warp::http::{HeaderMap, HeaderName, HeaderValue};

use super::Presented;

/// Shorter secrets are refused when the configuration is read.
pub const MIN_SECRET_BYTES: usize = 16;
/// Candidate signatures looked at in one request.
const CANDIDATES_MAX: usize = 8;
/// Hex digits of an HMAC-SHA256.
const HEX_DIGITS: usize = 64;

/// How a source knows its provider.
#[derive(Debug)]
pub enum Check {
    /// HMAC-SHA256, hex, over the raw body, in a header.
    Signature { header: HeaderChoice, secrets: Vec<SecretString> },
    /// A long random token in the path, for providers that sign nothing.
    PathToken { tokens: Vec<SecretString> },
    /// `verification: none`, written out by the operator.
    Nothing,
}

/// Which header carries the signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderChoice {
    Named(HeaderName),
    /// Any header whose value has the right form. Safe, since only a valid signature passes;
    /// meant for providers that do not document the header's name.
    Any,
}

/// Why a check failed. The caller learns none of this; metrics and the log do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    #[error("no signature in the request")]
    SignatureMissing,
    #[error("signature does not match")]
    SignatureWrong,
    #[error("no token in the path")]
    TokenMissing,
    #[error("token does not match")]
    TokenWrong,
    #[error("no such source")]
    UnknownSource,
}

impl VerifyError {
    /// Metric label.
    pub fn reason(self) -> &'static str {
        match self {
            Self::SignatureMissing => "signature_missing",
            Self::SignatureWrong => "signature_wrong",
            Self::TokenMissing => "token_missing",
            Self::TokenWrong => "token_wrong",
            Self::UnknownSource => "unknown_source",
        }
    }
}

impl Check {
    /// # Errors
    /// Unless the request passes.
    pub fn pass(&self, presented: &Presented<'_>) -> Result<(), VerifyError> {
        match self {
            Self::Signature { header, secrets } => check_signature(header, secrets, presented),
            Self::PathToken { tokens } => check_token(tokens, presented.path_token),
            Self::Nothing => Ok(()),
        }
    }
}

fn check_signature(
    header: &HeaderChoice,
    secrets: &[SecretString],
    presented: &Presented<'_>,
) -> Result<(), VerifyError> {
    let (mut seen, mut matched) = (false, false);
    for candidate in candidates(header, presented.headers).take(CANDIDATES_MAX) {
        seen = true;
        let Some(signature) = decode(candidate) else { continue };
        for secret in secrets {
            // `|=` and not `||`: no early exit.
            matched |= mac(secret, &presented.body).verify_slice(&signature).is_ok();
        }
    }
    match (seen, matched) {
        (_, true) => Ok(()),
        (true, false) => Err(VerifyError::SignatureWrong),
        (false, false) => Err(VerifyError::SignatureMissing),
    }
}

/// The header values that may be a signature. With a named header each of its values counts,
/// well-formed or not, so that a malformed one is told apart from a missing one.
fn candidates<'a>(
    header: &'a HeaderChoice,
    headers: &'a HeaderMap,
) -> Box<dyn Iterator<Item = &'a HeaderValue> + 'a> {
    match header {
        HeaderChoice::Named(name) => Box::new(headers.get_all(name).iter()),
        HeaderChoice::Any => Box::new(headers.values().filter(|value| decode(value).is_some())),
    }
}

/// 64 hex digits of either case, optionally after `sha256=`.
fn decode(value: &HeaderValue) -> Option<[u8; 32]> {
    let text = value.as_bytes();
    let digits = text.strip_prefix(b"sha256=").unwrap_or(text);
    if digits.len() != HEX_DIGITS {
        return None;
    }
    let mut signature = [0; 32];
    hex::decode_to_slice(digits, &mut signature).ok()?;
    Some(signature)
}

fn mac(secret: &SecretString, message: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose_secret().as_bytes())
        .expect("HMAC takes keys of any length");
    mac.update(message);
    mac
}

/// The signature of `body` in lower-case hex, as CDHosting's own sample computes it.
pub fn sign(secret: &SecretString, body: &[u8]) -> String {
    hex::encode(mac(secret, body).finalize().into_bytes())
}

fn check_token(tokens: &[SecretString], presented: Option<&str>) -> Result<(), VerifyError> {
    let presented = presented.ok_or(VerifyError::TokenMissing)?;
    // Comparing MACs of both sides takes the same time whatever differs, lengths included.
    let mut matched = false;
    for token in tokens {
        let expected = mac(token, token.expose_secret().as_bytes()).finalize().into_bytes();
        matched |= mac(token, presented.as_bytes()).verify_slice(&expected).is_ok();
    }
    matched.then_some(()).ok_or(VerifyError::TokenWrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    // GitHub's documented vector: HMAC-SHA256 in hex over the raw body.
    const SECRET: &str = "It's a Secret to Everybody";
    const BODY: &[u8] = b"Hello, World!";
    const SIGNATURE: &str = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";

    #[track_caller]
    fn check(values: &[&str], body: &'static [u8], expected: Result<(), VerifyError>) {
        let secrets = vec![SecretString::from("an old secret, still valid"), SecretString::from(SECRET)];
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("x-signature", HeaderValue::from_str(value).expect("test value"));
        }
        let presented = Presented { headers: &headers, path_token: None, body: Bytes::from_static(body) };
        let named = HeaderChoice::Named(HeaderName::from_static("x-signature"));
        assert_eq!(Check::Signature { header: named, secrets }.pass(&presented), expected, "{values:?}");
    }

    #[test]
    fn only_the_right_signature_passes() {
        check(&[SIGNATURE], BODY, Ok(()));
        check(&[&SIGNATURE.to_uppercase()], BODY, Ok(()));
        check(&[&format!("sha256={SIGNATURE}")], BODY, Ok(()));
        check(&["nonsense", SIGNATURE], BODY, Ok(()));
        check(&[], BODY, Err(VerifyError::SignatureMissing));
        let zeros = "0".repeat(64);
        for wrong in [
            "",
            "7571",
            SIGNATURE.trim_end_matches("17"),
            &format!("{SIGNATURE}00"),
            &SIGNATURE.replace('7', "g"),
            &zeros,
        ] {
            check(&[wrong], BODY, Err(VerifyError::SignatureWrong));
        }
        check(&[SIGNATURE], b"Hello, World?", Err(VerifyError::SignatureWrong));
        check(&[SIGNATURE], b"", Err(VerifyError::SignatureWrong));
    }

    #[test]
    fn candidates_are_bounded() {
        let mut many = vec!["00"; CANDIDATES_MAX];
        many.push(SIGNATURE);
        check(&many, BODY, Err(VerifyError::SignatureWrong));
    }

    #[test]
    fn any_header_of_the_right_form_is_tried() {
        let mut headers = HeaderMap::new();
        headers.insert("x-request-id", HeaderValue::from_static("abc"));
        let secrets = || vec![SecretString::from(SECRET)];
        let pass = |headers: &HeaderMap| {
            let presented = Presented { headers, path_token: None, body: Bytes::from_static(BODY) };
            Check::Signature { header: HeaderChoice::Any, secrets: secrets() }.pass(&presented)
        };
        assert_eq!(pass(&headers), Err(VerifyError::SignatureMissing));
        headers.insert("x-whatever-it-is-called", HeaderValue::from_static(SIGNATURE));
        assert_eq!(pass(&headers), Ok(()));
    }

    #[test]
    fn tokens_match_whole_or_not_at_all() {
        let check = Check::PathToken { tokens: vec![SecretString::from("0123456789abcdef")] };
        let pass = |token| {
            check.pass(&Presented { headers: &HeaderMap::new(), path_token: token, body: Bytes::new() })
        };
        assert_eq!(pass(Some("0123456789abcdef")), Ok(()));
        assert_eq!(pass(Some("0123456789abcde")), Err(VerifyError::TokenWrong));
        assert_eq!(pass(Some("")), Err(VerifyError::TokenWrong));
        assert_eq!(pass(None), Err(VerifyError::TokenMissing));
    }
}
