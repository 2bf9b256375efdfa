//! CDHosting (cdhosting.host, webhooks of API v1).
//!
//! Body `{id, type, created_at, data}`; HMAC-SHA256 in hex over the raw body, in a header whose
//! name is not documented. Retries a failed delivery after 1 min, 5 min, 30 min, 2 h and 24 h
//! with the same `id`, then disables the webhook. Only the `data` of `server.*` is documented.

use std::borrow::Cow;

use serde::Deserialize;

use super::Provider;
use super::normalise::{Kind, Mapped, Resource, rfc3339_utc};
use crate::envelope::{Outcome, Severity};
use crate::json::{Cleaner, Members, begin_member};
use crate::subject::EventType;

pub(super) struct CdHosting;

const CATALOGUE: &[Kind] = &[
    server("server.created", "created", Some(Outcome::Success), Severity::Info),
    server("server.started", "started", Some(Outcome::Success), Severity::Info),
    server("server.stopped", "stopped", None, Severity::Info),
    server("server.rebooted", "rebooted", Some(Outcome::Success), Severity::Info),
    server("server.error", "error", Some(Outcome::Failure), Severity::Error),
    server("server.backup.completed", "backup", Some(Outcome::Success), Severity::Info),
    billing("billing.payment.succeeded", "payment", Some(Outcome::Success), Severity::Info),
    billing("billing.payment.failed", "payment", Some(Outcome::Failure), Severity::Error),
    billing("billing.subscription.cancelled", "subscription.cancelled", None, Severity::Warning),
];

const fn server(
    event_type: &'static str,
    action: &'static str,
    outcome: Option<Outcome>,
    severity: Severity,
) -> Kind {
    Kind { event_type, action, outcome, severity, needs_resource_id: true }
}

/// The data of billing events is not documented, so no id can be demanded of it.
const fn billing(
    event_type: &'static str,
    action: &'static str,
    outcome: Option<Outcome>,
    severity: Severity,
) -> Kind {
    Kind { event_type, action, outcome, severity, needs_resource_id: false }
}

impl Provider for CdHosting {
    fn name(&self) -> &'static str {
        "cdhosting"
    }

    fn type_prefix(&self) -> &'static str {
        "host.cdhosting"
    }

    fn catalogue(&self) -> &'static [Kind] {
        CATALOGUE
    }

    fn signs(&self) -> bool {
        true
    }

    fn redacted(&self) -> &'static [&'static str] {
        &[]
    }

    fn event_id<'a>(&self, body: &'a [u8]) -> Option<Cow<'a, str>> {
        #[derive(Deserialize)]
        struct Identified<'a> {
            #[serde(borrow)]
            id: Cow<'a, str>,
        }
        serde_json::from_slice::<Identified<'_>>(body).ok().map(|body| body.id)
    }

    fn event_type<'a>(&self, body: &Members<'a>) -> Option<Cow<'a, str>> {
        body.text("type")
    }

    fn map(&self, body: &Members<'_>, event_type: &EventType, cleaner: &Cleaner) -> Mapped {
        let nested = body.object("data");
        let data = nested.as_ref();
        let second = event_type.as_str().split('.').nth(1).unwrap_or_default();
        let (kind, id_fields): (&'static str, &[&str]) = match (event_type.family(), second) {
            ("server", _) => ("server", &["server_id"]),
            ("billing", "payment") => ("payment", &["payment_id", "id"]),
            ("billing", "subscription") => ("subscription", &["subscription_id", "id"]),
            _ if data.is_some_and(|data| data.contains("server_id")) => ("server", &["server_id"]),
            _ => ("", &[]),
        };
        let found = data.and_then(|data| id_fields.iter().find_map(|field| Some((*field, data.id(field)?))));
        let name = data.filter(|_| kind == "server").and_then(|data| data.text("name"));
        let time = body.text("created_at").and_then(|text| rfc3339_utc(&text));

        let mut details = "{".to_owned();
        if let Some(data) = data {
            cleaner.write_members(data, &mut details, |field| {
                Some(field) != found.as_ref().map(|(field, _)| *field) && !(field == "name" && name.is_some())
            });
        }
        // A field of the body that `data` has as well is kept beside it.
        let twice = |field: &str| {
            !matches!(field, "id" | "type" | "created_at" | "data")
                && data.is_some_and(|data| data.contains(field))
        };
        cleaner.write_members(body, &mut details, |field| match field {
            "id" | "type" => false,
            "created_at" => time.is_none(),
            "data" => data.is_none(),
            _ => !twice(field),
        });
        for (field, value) in body.iter().filter(|(field, _)| twice(field)) {
            begin_member(&mut details, &format!("provider_{field}"));
            cleaner.write_value(value, &mut details, 0);
        }
        details.push('}');
        Mapped {
            time,
            resource: Resource {
                kind,
                id: found.map(|(_, id)| id),
                name: name.map(Cow::into_owned),
                ..Resource::default()
            },
            related: "[]".to_owned(),
            details,
        }
    }
}
