//! `tests/fixtures/<provider>/<case>/`: a recorded request and the envelope that must come of it.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

#[derive(Debug, Clone)]
pub(crate) struct Fixture {
    /// `cloud66` or `cdhosting`: the folder's name.
    pub(crate) provider: String,
    pub(crate) case: String,
    /// The request's body, byte for byte.
    pub(crate) body: Vec<u8>,
    pub(crate) expected: Value,
}

/// Every case of every provider, in the order of their names.
pub(crate) fn all() -> Vec<Fixture> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut fixtures = Vec::new();
    for provider in folders(&root) {
        fixtures.extend(folders(&provider).iter().map(|case| {
            Fixture {
                provider: name(&provider),
                case: name(case),
                body: read_body(case),
                expected: serde_json::from_slice(&read(&case.join("expected.json")))
                    .unwrap_or_else(|error| panic!("{}: expected.json: {error}", case.display())),
            }
        }));
    }
    assert!(!fixtures.is_empty(), "no fixtures under {}", root.display());
    fixtures
}

/// The body of one case, as a JSON value.
pub(crate) fn request(provider: &str, case: &str) -> Value {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(provider).join(case);
    serde_json::from_slice(&read_body(&folder))
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
}

/// `request.bin` where the body is no JSON text that an editor would leave alone.
fn read_body(case: &Path) -> Vec<u8> {
    let binary = case.join("request.bin");
    read(&if binary.exists() { binary } else { case.join("request.json") })
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn folders(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut folders: Vec<PathBuf> =
        entries.map(|entry| entry.expect("readable").path()).filter(|path| path.is_dir()).collect();
    folders.sort();
    folders
}

fn name(path: &Path) -> String {
    path.file_name().expect("a folder has a name").to_string_lossy().into_owned()
}
