//! The `sources:` list.

use std::sync::Arc;

use secrecy::SecretString;
use warp::http::{HeaderName, StatusCode};

use super::reader::Section;
use super::unique_name;
use crate::source::{self, Check, HeaderChoice, MIN_SECRET_BYTES, PROVIDERS, Provider, Source};

/// Secrets valid at the same time; two are enough to rotate.
const SECRETS_MAX: usize = 8;

pub struct SourceConfig {
    pub source: Arc<Source>,
    /// Answer to an accepted delivery.
    pub accepted: StatusCode,
}

impl std::fmt::Debug for SourceConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SourceConfig").field("name", self.source.name()).finish_non_exhaustive()
    }
}

pub(super) fn read(root: &Section<'_>) -> Vec<SourceConfig> {
    let sections = root.sections("sources", false);
    if sections.is_empty() {
        root.mistake_with_hint(
            "sources",
            "no source: nothing could be accepted",
            "name at least one provider",
        );
    }
    let mut names = Vec::new();
    sections.into_iter().filter_map(|section| read_one(section, &mut names)).collect()
}

fn read_one(section: Section<'_>, names: &mut Vec<String>) -> Option<SourceConfig> {
    let name = unique_name(&section, names);
    let provider = read_provider(&section);
    let check = read_check(&section, provider);
    let redact = section.contains("redact").then(|| section.texts("redact"));
    let status = section.number("accepted_status", 202, 200..=299);
    section.finish();
    let accepted = u16::try_from(status).ok().and_then(|code| StatusCode::from_u16(code).ok())?;
    let source = Arc::new(Source::new(&name?, provider?, check?, redact));
    Some(SourceConfig { source, accepted })
}

fn read_provider(section: &Section<'_>) -> Option<&'static dyn Provider> {
    let known = || PROVIDERS.iter().map(|p| p.name()).collect::<Vec<_>>().join(", ");
    let written = section.require_text("provider", &format!("one of: {}", known()))?;
    let provider = source::provider(written);
    if provider.is_none() {
        section.mistake_with_hint(
            "provider",
            format!("unknown provider `{written}`"),
            format!("one of: {}", known()),
        );
    }
    provider
}

/// Exactly one check must be written out: verification has no default.
fn read_check(section: &Section<'_>, provider: Option<&'static dyn Provider>) -> Option<Check> {
    let signature = read_signature(section);
    let token = section.contains("path_token").then(|| {
        let tokens = secrets(section, "path_token");
        Check::PathToken { tokens }
    });
    let nothing = section.text("verification").and_then(|word| match word {
        "none" => Some(Check::Nothing),
        other => {
            let hint = "the only value is none; a check is configured by `signature` or `path_token`";
            section.mistake_with_hint("verification", format!("unknown value `{other}`"), hint);
            None
        }
    });

    let signs = provider.is_none_or(Provider::signs);
    if !signs && signature.is_some() {
        section.mistake_with_hint(
            "signature",
            "this provider signs nothing",
            "use path_token: { file: PATH } and give the provider the URL /hooks/<source>/<token>",
        );
        return None;
    }
    let mut checks: Vec<Check> = [signature, token, nothing].into_iter().flatten().collect();
    let check = checks.pop();
    if !checks.is_empty() {
        section.mistake(
            "verification",
            "more than one check: give one of signature, path_token, verification: none",
        );
        return None;
    }
    if check.is_none() && !section.contains("verification") {
        let hint = if signs {
            "add signature: { header: NAME } and secrets: [ { file: PATH } ]; without any check, write verification: none"
        } else {
            "add path_token: { file: PATH }; without any check, write verification: none"
        };
        section.mistake_with_hint("verification", "no check configured", hint);
    }
    check
}

fn read_signature(section: &Section<'_>) -> Option<Check> {
    let given = section.contains("signature");
    let with_secrets = section.contains("secrets");
    if !given {
        if with_secrets {
            let hint = "add signature: { header: X-Webhook-Signature }, or header: \"*\" if you do not know its name";
            section.mistake_with_hint("signature", "missing beside `secrets`", hint);
        }
        return None;
    }
    let signature = section.section("signature")?;
    let header =
        signature.require_text("header", "the header's name, or \"*\" to try each of the right form");
    let choice = header.and_then(|name| match name {
        "*" => Some(HeaderChoice::Any),
        name => {
            let parsed = HeaderName::try_from(name).ok().map(HeaderChoice::Named);
            if parsed.is_none() {
                signature.mistake("header", format!("`{name}` is not a header name"));
            }
            parsed
        }
    });
    signature.finish();
    if !with_secrets {
        section.mistake_with_hint(
            "secrets",
            "missing",
            "secrets: [ { file: PATH } ]; list two while you rotate",
        );
    }
    let secrets = secrets(section, "secrets");
    Some(Check::Signature { header: choice?, secrets })
}

fn secrets(section: &Section<'_>, key: &'static str) -> Vec<SecretString> {
    let items = section.sections(key, true);
    if items.len() > SECRETS_MAX {
        section.mistake(key, format!("{} secrets; at most {SECRETS_MAX} are tried", items.len()));
    }
    if items.is_empty() && section.contains(key) {
        section.mistake(key, "an empty list would refuse every delivery");
    }
    items.into_iter().filter_map(|item| item.secret(MIN_SECRET_BYTES)).collect()
}
