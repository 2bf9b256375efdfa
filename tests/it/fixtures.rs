//! Request -> event, event -> schemas, and both under bodies that nobody has written down.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use hookbus::envelope::Event;
use hookbus::source::{Check, Delivery, Presented, Source, provider};
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use warp::http::HeaderMap;

use crate::support::{Case, GENERIC, Schemas, cases, files_below, read_json, root};

/// 2025-09-04T18:38:00.214Z, the time at which every recorded request was accepted.
const ACCEPTED_MS: i64 = 1_757_011_080_214;

static SCHEMAS: LazyLock<Schemas> = LazyLock::new(Schemas::new);
static CASES: LazyLock<Vec<Case>> = LazyLock::new(cases);

fn source(provider_name: &str) -> Source {
    let name = if provider_name == "cloud66" { "c66" } else { "prod" };
    Source::new(name, provider(provider_name).expect("a provider"), Check::Nothing, None)
}

/// The whole way of a body: verified, spooled, read back, normalised.
fn normalise(provider_name: &str, body: &[u8]) -> Event {
    let source = source(provider_name);
    let presented =
        Presented { headers: &HeaderMap::new(), path_token: None, body: Bytes::copy_from_slice(body) };
    let verified = source.verify(presented, ACCEPTED_MS).expect("nothing is checked");
    let delivery = Delivery::decode(verified.encode()).expect("what was encoded decodes");
    assert_eq!(delivery.body, body, "the body is kept byte for byte");
    source.normalise(&delivery)
}

#[track_caller]
fn value_of(event: &Event) -> Value {
    serde_json::from_slice(&event.json).expect("an event is JSON")
}

#[test]
fn every_recorded_request_becomes_its_expected_event() {
    let wrong: Vec<String> = CASES
        .iter()
        .filter_map(|case| {
            let found = value_of(&normalise(&case.provider, &case.body));
            (found != case.expected)
                .then(|| format!("{}: expected {:#}\nfound {found:#}", case.name, case.expected))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_goes_along_with_an_event_agrees_with_its_envelope() {
    for case in CASES.iter() {
        let event = normalise(&case.provider, &case.body);
        let name = &case.name;
        assert_eq!(event.id, case.expected["id"], "{name}");
        assert_eq!(event.key, case.expected["partitionkey"], "{name}");
        assert_eq!(event.event_type.as_str(), case.expected["data"]["event_type"], "{name}");
        assert_eq!(event.ordered, case.expected.get("subject").is_some(), "{name}");
        let generic = case.expected["dataschema"] == GENERIC;
        assert_eq!(event.catalogued, !generic, "{name}");
    }
}

#[test]
fn every_catalogued_event_type_has_a_case() {
    for name in ["cloud66", "cdhosting"] {
        let covered: BTreeSet<&str> = CASES
            .iter()
            .filter(|case| case.provider == name)
            .filter_map(|case| case.expected["data"]["event_type"].as_str())
            .collect();
        for kind in provider(name).expect("a provider").catalogue() {
            assert!(covered.contains(kind.event_type), "no case of {name} {}", kind.event_type);
        }
    }
}

#[test]
fn every_expected_event_meets_its_schemas_by_two_validators() {
    for case in CASES.iter() {
        // Said to miss its schema, an event is held to what we add alone.
        if case.expected.get("schemavalid").is_some() {
            SCHEMAS.check_ours(&case.name, &case.expected);
        } else {
            SCHEMAS.check_event(&case.name, &case.expected);
        }
    }
}

#[test]
fn every_expected_event_is_a_cloud_event_by_the_projects_own_sdk_and_schema() {
    let schema = read_json(&root().join("tests/fixtures/cloudevents-1.0.schema.json"));
    let validator = jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
    for Case { name, expected, .. } in CASES.iter() {
        let objections: Vec<String> =
            validator.iter_errors(expected).map(|error| error.to_string()).collect();
        assert!(objections.is_empty(), "{name}: {objections:#?}");
        let event: cloudevents::Event = serde_json::from_value(expected.clone())
            .unwrap_or_else(|error| panic!("{name}: no CloudEvent: {error}"));
        // What the SDK understood is what we said, extensions and data included.
        let back = serde_json::to_value(&event).unwrap();
        for (member, value) in expected.as_object().unwrap() {
            let same = match member.as_str() {
                "time" => instant(&back[member]) == instant(value),
                _ => back[member] == *value,
            };
            assert!(same, "{name}: {member}: {value} became {}", back[member]);
        }
    }
    let without_id = json!({ "specversion": "1.0", "source": "/a", "type": "b" });
    assert!(serde_json::from_value::<cloudevents::Event>(without_id.clone()).is_err());
    assert!(!validator.is_valid(&without_id), "the oracles can say no");
}

fn instant(value: &Value) -> jiff::Timestamp {
    value.as_str().unwrap().parse().unwrap()
}

#[test]
fn every_valid_example_meets_the_schemas_and_no_invalid_one_does() {
    let (mut valid, mut invalid) = (0, 0);
    for path in files_below(&root().join("schemas/v1/examples"), "json") {
        let example = read_json(&path);
        let what = path.display();
        match path.parent().unwrap().file_name().unwrap().to_str().unwrap() {
            "valid" => {
                valid += 1;
                let (reference, second) = SCHEMAS.event_objections(&example);
                assert!(reference.is_empty(), "{what}: jsonschema: {reference:#?}");
                assert!(second.is_empty(), "{what}: boon: {second:#?}");
            }
            "invalid" => {
                invalid += 1;
                assert!(example["why"].as_str().is_some_and(|why| !why.is_empty()), "{what}: says not why");
                let (reference, second) = SCHEMAS.event_objections(&example["event"]);
                assert!(!reference.is_empty(), "{what}: jsonschema objects to nothing");
                assert!(!second.is_empty(), "{what}: boon objects to nothing");
            }
            other => panic!("{what}: neither valid nor invalid but {other}"),
        }
    }
    assert!(valid >= 29 && invalid >= 29, "{valid} valid and {invalid} invalid examples");
}

/// What must hold of every event, whatever the body was.
#[track_caller]
fn check_any(provider_name: &str, body: &[u8]) -> Value {
    let event = normalise(provider_name, body);
    let value = value_of(&event);
    SCHEMAS.check_ours(&String::from_utf8_lossy(body), &value);
    assert!(!event.key.is_empty());
    assert!(serde_json::from_value::<cloudevents::Event>(value.clone()).is_ok(), "no CloudEvent: {value:#}");
    let again = normalise(provider_name, body);
    assert_eq!((&event.id, &event.json), (&again.id, &again.json), "same body, same event");
    value
}

/// Names that mean something to one of the providers, and some that mean nothing.
fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => prop::sample::select(vec![
            "uid", "name", "stack", "server", "servers", "timestamp", "event_type", "event", "type", "id",
            "data", "server_id", "created_at", "created_at_iso", "updated_at_iso", "status", "redeploy_hook",
            "deploy_context", "backup", "git", "environment", "application_address", "payment_id",
            "subscription_id", "detail", "metadata", "\u{0}", "", "body_base64", "problem",
        ]).prop_map(str::to_owned),
        1 => "[a-z_]{0,12}",
        1 => any::<String>(),
    ]
}

fn text() -> impl Strategy<Value = String> {
    let types = CASES.iter().filter_map(|case| case.expected["data"]["event_type"].as_str());
    prop_oneof![
        4 => prop::sample::select(types.map(str::to_owned).collect::<Vec<_>>()),
        2 => prop::sample::select(vec![
            "2025-09-04T18:38:00Z", "2025-09-04T18:38:00+02:00", "2025-09-04 18:38", "-9999-01-01T00:00:00Z",
            "9999-12-31T23:59:60Z", "$JS.API", "a..b", ">", "*", "unmapped", "stack.\u{0}", "a.b_c",
        ]).prop_map(str::to_owned),
        2 => any::<String>(),
        1 => "[a-z]{300}",
    ]
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        1 => Just(Value::Null),
        1 => any::<bool>().prop_map(Value::from),
        1 => any::<i64>().prop_map(Value::from),
        1 => any::<u64>().prop_map(Value::from),
        1 => any::<f64>().prop_map(Value::from),
        5 => text().prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 48, 6, |inner| {
        prop_oneof![
            1 => prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            3 => prop::collection::vec((name(), inner), 0..8).prop_map(|members| {
                Value::Object(members.into_iter().collect())
            }),
        ]
    })
}

fn json_object() -> impl Strategy<Value = Value> {
    prop::collection::vec((name(), json_value()), 0..10)
        .prop_map(|members| Value::Object(members.into_iter().collect()))
}

fn provider_name() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["cloud66", "cdhosting"])
}

/// One change to a recorded body.
#[derive(Debug, Clone)]
enum Change {
    /// The n-th member, in order of the text, takes this value.
    Replace(usize, Value),
    Remove(usize),
    /// Another member beside the n-th.
    Add(usize, String, Value),
    /// The n-th member is put into an object, or list, of its own.
    Wrap(usize, bool),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (any::<usize>(), json_value()).prop_map(|(at, value)| Change::Replace(at, value)),
        any::<usize>().prop_map(Change::Remove),
        (any::<usize>(), name(), json_value()).prop_map(|(at, name, value)| Change::Add(at, name, value)),
        (any::<usize>(), any::<bool>()).prop_map(|(at, list)| Change::Wrap(at, list)),
    ]
}

/// Every member of every object, as the path to its object and its name.
fn members(value: &Value, path: &str, found: &mut Vec<(String, String)>) {
    let escaped = |name: &str| name.replace('~', "~0").replace('/', "~1");
    match value {
        Value::Object(object) => {
            for (name, value) in object {
                found.push((path.to_owned(), name.clone()));
                members(value, &format!("{path}/{}", escaped(name)), found);
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                members(item, &format!("{path}/{index}"), found);
            }
        }
        _ => {}
    }
}

fn apply(body: &mut Value, change: Change) {
    let mut places = Vec::new();
    members(body, "", &mut places);
    if places.is_empty() {
        return;
    }
    let (Change::Replace(at, _) | Change::Remove(at) | Change::Add(at, ..) | Change::Wrap(at, _)) = &change;
    let (path, name) = &places[at % places.len()];
    let object = body.pointer_mut(path).and_then(Value::as_object_mut).expect("an object");
    match change {
        Change::Replace(_, value) => drop(object.insert(name.clone(), value)),
        Change::Remove(_) => drop(object.remove(name)),
        Change::Add(_, name, value) => drop(object.insert(name, value)),
        Change::Wrap(_, list) => {
            let value = object.remove(name).expect("the member");
            let wrapped = if list { json!([value]) } else { json!({ name: value }) };
            object.insert(name.clone(), wrapped);
        }
    }
}

/// Gives every `redeploy_hook` that is a string a value of its own that occurs nowhere else, and
/// makes sure that there is one.
fn plant_hooks(value: &mut Value, hooks: &mut Vec<String>) {
    let new = |hooks: &mut Vec<String>| {
        let hook = format!("https://hooks.example.com/{:04}-b0a9c8d7e6f5", hooks.len());
        hooks.push(hook.clone());
        Value::from(hook)
    };
    match value {
        Value::Object(object) => {
            for (name, value) in object.iter_mut() {
                if name == "redeploy_hook" && value.is_string() {
                    *value = new(hooks);
                } else {
                    plant_hooks(value, hooks);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| plant_hooks(item, hooks)),
        _ => {}
    }
}

/// The text of a value in which every member of the objects stands twice: parsers differ over
/// which one counts, and neither may leak.
fn doubled(value: &Value) -> String {
    match value {
        Value::Object(object) => {
            let members = object.iter().map(|(name, value)| format!("{}:{}", json!(name), doubled(value)));
            let members: Vec<String> = members.collect();
            format!("{{{}}}", [members.clone(), members].concat().join(","))
        }
        Value::Array(items) => {
            format!("[{}]", items.iter().map(doubled).collect::<Vec<_>>().join(","))
        }
        other => other.to_string(),
    }
}

#[track_caller]
fn check_no_hook(body: &str, hooks: &[String]) {
    let event = normalise("cloud66", body.as_bytes());
    let text = std::str::from_utf8(&event.json).unwrap();
    for hook in hooks {
        // Without its slashes it is found under every way of escaping.
        let secret = hook.rsplit('/').next().unwrap();
        assert!(!text.contains(secret), "{hook} got out of {body}\nas {text}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_become_a_valid_event(provider in provider_name(), body in any::<Vec<u8>>()) {
        check_any(provider, &body);
    }

    #[test]
    fn any_text_becomes_a_valid_event(provider in provider_name(), body in "[\\[\\]{}\",:0-9a-z\\\\. -]{0,60}") {
        check_any(provider, body.as_bytes());
    }

    #[test]
    fn any_json_becomes_a_valid_event(provider in provider_name(), body in json_value()) {
        check_any(provider, body.to_string().as_bytes());
    }

    #[test]
    fn any_object_becomes_a_valid_event(provider in provider_name(), body in json_object()) {
        check_any(provider, body.to_string().as_bytes());
    }

    #[test]
    fn a_changed_body_becomes_a_valid_event(
        case in prop::sample::select(CASES.clone()),
        changes in prop::collection::vec(change(), 1..6),
        cut in prop::option::weighted(0.1, any::<usize>()),
    ) {
        let mut body: Value = serde_json::from_slice(&case.body).unwrap_or_else(|_| json!({}));
        for change in changes {
            apply(&mut body, change);
        }
        let mut text = body.to_string().into_bytes();
        if let Some(cut) = cut {
            text.truncate(cut % (text.len() + 1));
        }
        check_any(&case.provider, &text);
    }

    #[test]
    fn a_redeploy_hook_never_gets_out(
        case in prop::sample::select(CASES.clone()),
        changes in prop::collection::vec(change(), 0..6),
        extra in json_object(),
    ) {
        let mut body: Value = serde_json::from_slice(&case.body).unwrap_or_else(|_| json!({}));
        if let Value::Object(object) = &mut body {
            object.insert("redeploy_hook".to_owned(), json!("x"));
            object.insert("extra".to_owned(), extra);
        }
        for change in changes {
            apply(&mut body, change);
        }
        let mut hooks = Vec::new();
        plant_hooks(&mut body, &mut hooks);
        check_no_hook(&body.to_string(), &hooks);
        check_no_hook(&doubled(&body), &hooks);
        check_no_hook(&body.to_string().replace("redeploy_hook", "redeploy\\u005fhook"), &hooks);
    }
}

#[test]
fn a_redeploy_hook_does_not_get_out_however_deep_it_lies() {
    for depth in [1, 10, 63, 64, 65, 100, 120, 126, 127, 128, 200] {
        let secret = "https://hooks.example.com/deep-b0a9c8d7e6f5".to_owned();
        let mut body = json!({ "redeploy_hook": &secret });
        for level in 0..depth {
            body = if level % 2 == 0 { json!({ "a": body }) } else { json!([body]) };
        }
        let body = json!({ "event_type": "stack.created", "uid": "stack-1", "deep": body }).to_string();
        let value = check_any("cloud66", body.as_bytes());
        // Deeper than the parser goes, a body is not JSON to us and is kept whole, as its bytes.
        if value["data"].get("body_base64").is_none() {
            check_no_hook(&body, &[secret]);
        } else {
            assert!(depth > 120, "{depth} levels are JSON");
        }
    }
}

/// An event meets its schema or says that it does not.
#[track_caller]
fn check_honest(provider_name: &str, body: &Value) {
    let value = check_any(provider_name, body.to_string().as_bytes());
    if value.get("schemavalid").is_none() {
        SCHEMAS.check_event(provider_name, &value);
    }
}

#[test]
fn an_event_without_the_id_of_its_resource_says_that_it_misses_its_schema() {
    let body = json!({ "event_type": "stack.created" });
    check_honest("cloud66", &body);
    let value = check_any("cloud66", body.to_string().as_bytes());
    assert_eq!(value["schemavalid"], false);
}

#[test]
fn equal_bodies_of_two_sources_are_two_events() {
    let ids: BTreeSet<String> = ["one", "two"]
        .into_iter()
        .flat_map(|name| {
            ["cloud66", "cdhosting"].map(|of| {
                let source = Source::new(name, provider(of).unwrap(), Check::Nothing, None);
                let body = Bytes::from_static(br#"{"no":"id"}"#);
                let presented = Presented { headers: &HeaderMap::new(), path_token: None, body };
                source.verify(presented, ACCEPTED_MS).unwrap().event_id().to_owned()
            })
        })
        .collect();
    // The name tells sources apart, whatever their provider.
    assert_eq!(ids.len(), 2, "{ids:?}");
}

#[test]
fn what_the_operator_redacts_is_blank_and_what_he_allows_is_not() {
    let body = json!({
        "event_type": "stack.created", "uid": "stack-1", "redeploy_hook": "https://a", "git": "secret-repo"
    });
    let with = |redact: Option<Vec<String>>| {
        let source = Arc::new(Source::new("c66", provider("cloud66").unwrap(), Check::Nothing, redact));
        let presented =
            Presented { headers: &HeaderMap::new(), path_token: None, body: body.to_string().into() };
        let verified = source.verify(presented, ACCEPTED_MS).unwrap();
        let event = source.normalise(&Delivery::decode(verified.encode()).unwrap());
        String::from_utf8(event.json.to_vec()).unwrap()
    };
    let by_default = with(None);
    assert!(!by_default.contains("https://a") && by_default.contains("secret-repo"));
    let other = with(Some(vec!["git".to_owned()]));
    assert!(other.contains("https://a") && !other.contains("secret-repo"));
    let nothing: Map<String, Value> = serde_json::from_str(&with(Some(Vec::new()))).unwrap();
    assert!(!Value::Object(nothing).to_string().contains("[redacted]"));
}
