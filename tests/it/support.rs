//! What several modules share: waiting for a condition, the schemas as two validators see them, the
//! recorded cases.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How long anything may take that ought to take a moment: generous, for a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Asks until there is an answer; fails with `what` when [`PATIENCE`] is at its end.
#[track_caller]
pub(crate) fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "in vain for {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below `dir` whose name ends in `.<extension>`, in order.
pub(crate) fn files_below(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display())) {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_below(&path, extension));
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

pub(crate) fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap())
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A recorded request and the event that must come of it.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    /// `<provider>/<case>`.
    pub(crate) name: String,
    pub(crate) provider: String,
    pub(crate) body: Vec<u8>,
    pub(crate) expected: Value,
}

/// Every case of `tests/fixtures/<provider>/<case>/`.
pub(crate) fn cases() -> Vec<Case> {
    let fixtures = root().join("tests/fixtures");
    let mut cases = Vec::new();
    for expected in files_below(&fixtures, "json") {
        if expected.file_name().is_none_or(|name| name != "expected.json") {
            continue;
        }
        let dir = expected.parent().unwrap();
        let name = dir.strip_prefix(&fixtures).unwrap().to_str().unwrap().to_owned();
        let binary = dir.join("request.bin");
        let request = if binary.exists() { binary } else { dir.join("request.json") };
        cases.push(Case {
            provider: name.split('/').next().unwrap().to_owned(),
            body: fs::read(&request).unwrap_or_else(|error| panic!("{}: {error}", request.display())),
            expected: read_json(&expected),
            name,
        });
    }
    assert!(cases.len() >= 29, "only {} cases found", cases.len());
    cases
}

/// The published schemas, read by two programs that share no code.
pub(crate) struct Schemas {
    reference: BTreeMap<String, jsonschema::Validator>,
    second: boon::Schemas,
    second_index: BTreeMap<String, boon::SchemaIndex>,
}

const ENVELOPE: &str = "urn:hookbus:schema:v1:envelope";
pub(crate) const GENERIC: &str = "urn:hookbus:schema:v1:generic";

impl Schemas {
    pub(crate) fn new() -> Self {
        let dir = root().join("schemas/v1");
        let mut schemas = BTreeMap::new();
        for path in files_below(&dir, "json") {
            if !path.starts_with(dir.join("examples")) && !path.ends_with("index.json") {
                let schema = read_json(&path);
                schemas.insert(schema["$id"].as_str().expect("an $id").to_owned(), schema);
            }
        }
        let registry = schemas
            .iter()
            .fold(jsonschema::Registry::new(), |registry, (id, schema)| {
                registry.add(id, schema).unwrap_or_else(|error| panic!("{id}: {error}"))
            })
            .prepare()
            .expect("every reference leads to one of the files");
        let mut compiler = boon::Compiler::new();
        compiler.enable_format_assertions();
        for (id, schema) in &schemas {
            compiler.add_resource(id, schema.clone()).unwrap();
        }
        let (mut reference, mut second, mut second_index) =
            (BTreeMap::new(), boon::Schemas::new(), BTreeMap::new());
        for (id, schema) in &schemas {
            let validator = jsonschema::options()
                .with_registry(&registry)
                .should_validate_formats(true)
                .build(schema)
                .unwrap_or_else(|error| panic!("{id}: {error}"));
            reference.insert(id.clone(), validator);
            second_index.insert(id.clone(), compiler.compile(id, &mut second).unwrap());
        }
        Self { reference, second, second_index }
    }

    /// Every objection of either validator to one value under one schema.
    fn objections(&self, id: &str, value: &Value) -> (Vec<String>, Vec<String>) {
        let Some(reference) = self.reference.get(id) else {
            let none = vec![format!("there is no schema {id}")];
            return (none.clone(), none);
        };
        let reference =
            reference.iter_errors(value).map(|error| format!("{id}: {}: {error}", error.instance_path()));
        let second = self.second.validate(value, self.second_index[id]).err();
        (reference.collect(), second.iter().map(|error| format!("{error:#}")).collect())
    }

    /// Every objection to an event: to its envelope, and to its data under the schema it names.
    pub(crate) fn event_objections(&self, event: &Value) -> (Vec<String>, Vec<String>) {
        let (mut reference, mut second) = self.objections(ENVELOPE, event);
        let data_schema = event["dataschema"].as_str().unwrap_or("(none)");
        let of_data = self.objections(data_schema, &event["data"]);
        reference.extend(of_data.0);
        second.extend(of_data.1);
        (reference, second)
    }

    /// Fails unless both validators accept the event and its data.
    #[track_caller]
    pub(crate) fn check_event(&self, what: &str, event: &Value) {
        check_none(what, event, self.event_objections(event));
    }

    /// Fails unless both validators accept all that we add to what the provider sent.
    #[track_caller]
    pub(crate) fn check_ours(&self, what: &str, event: &Value) {
        let mut ours = event.clone();
        let details = std::mem::replace(&mut ours["data"]["details"], json!({}));
        let related = std::mem::replace(&mut ours["data"]["related"], json!([]));
        check_none(what, event, self.objections(ENVELOPE, &ours));
        assert!(details.is_object() && related.is_array(), "{what}: {event:#}");
    }
}

#[track_caller]
fn check_none(what: &str, event: &Value, (reference, second): (Vec<String>, Vec<String>)) {
    assert!(reference.is_empty(), "{what}: jsonschema: {reference:#?}\n{event:#}");
    assert!(second.is_empty(), "{what}: boon: {second:#?}\n{event:#}");
}
