//! Cloud 66 (developers.cloud66.com, v3 webhooks).
//!
//! Signs nothing, sends no event id, never retries. The same family of events comes in two
//! shapes: the stack's fields at the top level, or nested under `stack`; both are read for every
//! event and give the same data. `timestamp` is when the event was sent: our `time`.

use std::borrow::Cow;

use super::Provider;
use super::normalise::{Kind, Mapped, Resource, rfc3339_of_seconds};
use crate::envelope::{Outcome, Severity};
use crate::json::{Cleaner, Members, begin_member, text_member};
use crate::subject::EventType;

pub(super) struct Cloud66;

/// Fields that make up a stack; where they stand at the top level, this list tells them from the
/// event's own fields. From the documented payloads.
const STACK_FIELDS: &[&str] = &[
    "uid",
    "name",
    "account_id",
    "git",
    "git_branch",
    "environment",
    "cloud",
    "fqdn",
    "language",
    "framework",
    "status",
    "health",
    "last_activity",
    "last_activity_iso",
    "maintenance_mode",
    "has_loadbalancer",
    "created_at",
    "created_at_iso",
    "updated_at",
    "updated_at_iso",
    "deploy_directory",
    "cloud_status",
    "backend",
    "version",
    "revision",
    "is_busy",
    "account_name",
    "is_cluster",
    "is_inside_cluster",
    "cluster_name",
    "application_address",
    "configstore_namespace",
    "namespaces",
    "considerations",
    "redeploy_hook",
];

/// Fields of a stack that only a stack has: they tell a flat stack from a flat server.
const STACK_MARKS: &[&str] =
    &["git", "environment", "cloud", "framework", "application_address", "redeploy_hook"];

const SERVER_FIELDS: &[&str] =
    &["uid", "server", "status", "created_at", "created_at_iso", "updated_at", "updated_at_iso"];

/// Fields that become the resource itself.
const RESOURCE_FIELDS: &[&str] = &["uid", "name", "environment", "application_address"];

const CATALOGUE: &[Kind] = &[
    failure("application.health_check.failed", "health_check"),
    plain("application.integration.configured", "integration.configured"),
    plain("application.integration.removed", "integration.removed"),
    failure("application.update.failed", "update"),
    info("application.update.pending", "update", Outcome::Pending),
    info("application.update.started", "update", Outcome::Started),
    info("application.update.succeeded", "update", Outcome::Success),
    failure("backup.verification.failed", "verification"),
    failure("managed_backup.fail", "managed_backup"),
    info("server.backon", "backon", Outcome::Success),
    failure("server.ip.change.fail", "ip.change"),
    failure("server.stopped", "stopped"),
    info("stack.created", "created", Outcome::Success),
    info("stack.deploy.started", "deploy", Outcome::Started),
    failure("stack.provision.fail", "provision"),
    info("stack.provision.ok", "provision", Outcome::Success),
    failure("stack.redeploy.fail", "redeploy"),
    failure("stack.redeploy.hook.fail", "redeploy.hook"),
    info("stack.redeploy.ok", "redeploy", Outcome::Success),
    plain("stack.stackscore.changed", "stackscore.changed"),
];

const fn failure(event_type: &'static str, action: &'static str) -> Kind {
    let (outcome, severity) = (Some(Outcome::Failure), Severity::Error);
    Kind { event_type, action, outcome, severity, needs_resource_id: true }
}

const fn info(event_type: &'static str, action: &'static str, outcome: Outcome) -> Kind {
    Kind { event_type, action, outcome: Some(outcome), severity: Severity::Info, needs_resource_id: true }
}

const fn plain(event_type: &'static str, action: &'static str) -> Kind {
    Kind { event_type, action, outcome: None, severity: Severity::Info, needs_resource_id: true }
}

impl Provider for Cloud66 {
    fn name(&self) -> &'static str {
        "cloud66"
    }

    fn type_prefix(&self) -> &'static str {
        "com.cloud66"
    }

    fn catalogue(&self) -> &'static [Kind] {
        CATALOGUE
    }

    fn signs(&self) -> bool {
        false
    }

    /// A URL that deploys the stack without any further credentials.
    fn redacted(&self) -> &'static [&'static str] {
        &["redeploy_hook"]
    }

    fn event_id<'a>(&self, _: &'a [u8]) -> Option<Cow<'a, str>> {
        None
    }

    fn event_type<'a>(&self, body: &Members<'a>) -> Option<Cow<'a, str>> {
        body.text("event_type")
    }

    fn map(&self, body: &Members<'_>, event_type: &EventType, cleaner: &Cleaner) -> Mapped {
        let subject = Subject::of(body, event_type);
        let mut related = Related::new(cleaner);
        related.push("deployment", body.object("deploy_context"), "uid");
        if let Some(backup) = body.object("backup") {
            let server = backup.id("server_uid");
            related.push("backup", Some(backup), "id");
            related.push_id("server", server);
        }
        Mapped {
            time: body.get("timestamp").and_then(rfc3339_of_seconds),
            resource: subject.resource(body),
            details: subject.details(body, cleaner, &related),
            related: related.finish(),
        }
    }
}

/// Whom the event is about, and in which of the known shapes it says so.
enum Subject<'a> {
    NestedStack(Members<'a>),
    FlatStack,
    StackUid(String),
    FlatServer,
    ServerUid(String),
    ServerObject(Members<'a>),
    Unknown,
}

impl<'a> Subject<'a> {
    fn of(body: &Members<'a>, event_type: &EventType) -> Self {
        if let Some(stack) = body.object("stack") {
            return Self::NestedStack(stack);
        }
        let server = body.id("server");
        if event_type.family() == "server" || (server.is_some() && server == body.id("uid")) {
            if body.contains("uid") {
                return Self::FlatServer;
            }
        } else if body.contains("uid") || STACK_MARKS.iter().any(|mark| body.contains(mark)) {
            return Self::FlatStack;
        }
        if let Some(uid) = body.id("stack") {
            return Self::StackUid(uid);
        }
        match (body.object("server"), server) {
            (Some(server), _) => Self::ServerObject(server),
            (None, Some(uid)) => Self::ServerUid(uid),
            (None, None) => Self::Unknown,
        }
    }

    fn resource(&self, body: &Members<'_>) -> Resource {
        let stack = |members: &Members<'_>| Resource {
            kind: "stack",
            id: members.id("uid"),
            name: owned(members.text("name")),
            environment: owned(members.text("environment")),
            address: owned(members.text("application_address").or_else(|| members.text("fqdn"))),
        };
        match self {
            Self::NestedStack(members) => stack(members),
            Self::FlatStack => stack(body),
            Self::StackUid(uid) => Resource { kind: "stack", id: Some(uid.clone()), ..Resource::default() },
            Self::FlatServer => Resource { kind: "server", id: body.id("uid"), ..Resource::default() },
            Self::ServerUid(uid) => Resource { kind: "server", id: Some(uid.clone()), ..Resource::default() },
            Self::ServerObject(server) => Resource {
                kind: "server",
                id: server.id("uid"),
                name: owned(server.text("name")),
                ..Resource::default()
            },
            Self::Unknown => Resource::default(),
        }
    }

    /// Every field that did not become an attribute, the resource, or a related object: the
    /// resource's own under its kind, the event's beside it.
    fn details(&self, body: &Members<'_>, cleaner: &Cleaner, related: &Related<'_>) -> String {
        let mut out = String::with_capacity(1024);
        out.push('{');
        let own: &[&str] = match self {
            Self::NestedStack(stack) => {
                part(&mut out, "stack", stack, cleaner, |name| !is_resource_text(stack, name));
                &["stack"]
            }
            Self::FlatStack => {
                part(&mut out, "stack", body, cleaner, |name| {
                    STACK_FIELDS.contains(&name) && !is_resource_text(body, name)
                });
                STACK_FIELDS
            }
            Self::FlatServer => {
                let named_twice = body.id("server") == body.id("uid");
                part(&mut out, "server", body, cleaner, |name| {
                    SERVER_FIELDS.contains(&name) && name != "uid" && !(name == "server" && named_twice)
                });
                SERVER_FIELDS
            }
            Self::ServerObject(server) => {
                part(&mut out, "server", server, cleaner, |name| name != "uid" && name != "name");
                &["server"]
            }
            Self::StackUid(_) => &["stack"],
            Self::ServerUid(_) => &["server"],
            Self::Unknown => &[],
        };
        // A scalar of the name under which the resource's fields stand already.
        let twice = match self {
            Self::FlatStack => body.get("stack").map(|value| ("stack", value)),
            _ => None,
        };
        if let Some((name, value)) = twice {
            begin_member(&mut out, &format!("provider_{name}"));
            cleaner.write_value(value, &mut out, 0);
        }
        cleaner.write_members(body, &mut out, |name| {
            !own.contains(&name)
                && twice.is_none_or(|(taken, _)| taken != name)
                && name != "event_type"
                && !(name == "timestamp" && body.get(name).and_then(rfc3339_of_seconds).is_some())
                && !related.took(name)
        });
        out.push('}');
        out
    }
}

/// A resource field of a kind we could take over; one of another kind (`name: 7`) stays.
fn is_resource_text(members: &Members<'_>, name: &str) -> bool {
    RESOURCE_FIELDS.contains(&name)
        && if name == "uid" { members.id(name).is_some() } else { members.text(name).is_some() }
}

fn part(out: &mut String, name: &str, members: &Members<'_>, cleaner: &Cleaner, keep: impl Fn(&str) -> bool) {
    begin_member(out, name);
    out.push('{');
    cleaner.write_members(members, out, keep);
    out.push('}');
}

fn owned(text: Option<Cow<'_, str>>) -> Option<String> {
    text.map(Cow::into_owned)
}

/// The JSON array of related objects, as it grows.
struct Related<'c> {
    cleaner: &'c Cleaner,
    out: String,
    took: Vec<&'static str>,
}

impl<'c> Related<'c> {
    fn new(cleaner: &'c Cleaner) -> Self {
        Self { cleaner, out: "[".to_owned(), took: Vec::new() }
    }

    /// Adds an object with all its fields. Its id is `id_field` where present, else `id`; a
    /// provider's own `kind` or `id` that ours hides is kept as `provider_...`. Without any id
    /// the object is not taken and stays among the details.
    fn push(&mut self, kind: &'static str, members: Option<Members<'_>>, id_field: &str) {
        let Some(members) = members else { return };
        let Some(id) = members.id(id_field).or_else(|| members.id("id")) else { return };
        let used = if members.id(id_field).is_some() { id_field } else { "id" };
        self.begin(kind, &id);
        for hidden in ["kind", "id"] {
            if hidden != used
                && let Some(value) = members.get(hidden)
            {
                begin_member(&mut self.out, &format!("provider_{hidden}"));
                self.cleaner.write_value(value, &mut self.out, 0);
            }
        }
        self.cleaner
            .write_members(&members, &mut self.out, |name| name != used && name != "kind" && name != "id");
        self.out.push('}');
        self.took.push(if kind == "deployment" { "deploy_context" } else { kind });
    }

    fn push_id(&mut self, kind: &'static str, id: Option<String>) {
        if let Some(id) = id {
            self.begin(kind, &id);
            self.out.push('}');
        }
    }

    fn begin(&mut self, kind: &str, id: &str) {
        if !self.out.ends_with('[') {
            self.out.push(',');
        }
        self.out.push('{');
        text_member(&mut self.out, "kind", kind);
        text_member(&mut self.out, "id", id);
    }

    fn took(&self, name: &str) -> bool {
        self.took.contains(&name)
    }

    fn finish(mut self) -> String {
        self.out.push(']');
        self.out
    }
}
