//! Reads a parsed YAML document key by key and collects every mistake with its key path, instead
//! of stopping at the first one.

use std::cell::RefCell;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value};

/// One thing that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// `sinks[1].options`; empty for the document itself.
    pub path: String,
    pub problem: String,
    pub hint: Option<String>,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = if self.path.is_empty() { "(document)" } else { &self.path };
        write!(f, "{path}: {}", self.problem)?;
        match &self.hint {
            Some(hint) => write!(f, "\n    hint: {hint}"),
            None => Ok(()),
        }
    }
}

/// Where mistakes gather.
#[derive(Debug, Default)]
pub(super) struct Mistakes(RefCell<Vec<Mistake>>);

impl Mistakes {
    pub(super) fn add(&self, path: impl Into<String>, problem: impl Into<String>, hint: Option<String>) {
        self.0.borrow_mut().push(Mistake { path: path.into(), problem: problem.into(), hint });
    }

    pub(super) fn into_vec(self) -> Vec<Mistake> {
        self.0.into_inner()
    }
}

/// One mapping of the document. Every key that is asked for counts as known; [`Section::finish`]
/// reports the others.
pub(super) struct Section<'a> {
    path: String,
    map: &'a Map<String, Value>,
    mistakes: &'a Mistakes,
    known: RefCell<Vec<&'static str>>,
}

impl<'a> Section<'a> {
    /// `None`, with a mistake, if `value` is not a mapping.
    pub(super) fn of(path: String, value: &'a Value, mistakes: &'a Mistakes) -> Option<Self> {
        let Some(map) = value.as_object() else {
            mistakes.add(path, format!("expected a mapping of keys, found {}", kind_of(value)), None);
            return None;
        };
        Some(Self { path, map, mistakes, known: RefCell::default() })
    }

    pub(super) fn key_path(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    pub(super) fn mistake(&self, key: &str, problem: impl Into<String>) {
        self.mistakes.add(self.key_path(key), problem, None);
    }

    pub(super) fn mistake_with_hint(&self, key: &str, problem: impl Into<String>, hint: impl Into<String>) {
        self.mistakes.add(self.key_path(key), problem, Some(hint.into()));
    }

    pub(super) fn get(&self, key: &'static str) -> Option<&'a Value> {
        self.known.borrow_mut().push(key);
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn contains(&self, key: &'static str) -> bool {
        self.get(key).is_some()
    }

    /// The value, with a mistake when the key is absent.
    pub(super) fn require(&self, key: &'static str, hint: &str) -> Option<&'a Value> {
        let value = self.get(key);
        if value.is_none() {
            self.mistake_with_hint(key, "missing", hint);
        }
        value
    }

    pub(super) fn text(&self, key: &'static str) -> Option<&'a str> {
        self.as_text(key, self.get(key)?)
    }

    pub(super) fn require_text(&self, key: &'static str, hint: &str) -> Option<&'a str> {
        self.as_text(key, self.require(key, hint)?)
    }

    fn as_text(&self, key: &str, value: &'a Value) -> Option<&'a str> {
        let text = value.as_str();
        if text.is_none() {
            self.mistake(key, format!("expected a text, found {}", kind_of(value)));
        }
        text
    }

    pub(super) fn flag(&self, key: &'static str, default: bool) -> bool {
        let Some(value) = self.get(key) else { return default };
        value.as_bool().unwrap_or_else(|| {
            self.mistake(key, format!("expected true or false, found {}", kind_of(value)));
            default
        })
    }

    pub(super) fn number(
        &self,
        key: &'static str,
        default: u64,
        range: std::ops::RangeInclusive<u64>,
    ) -> u64 {
        let Some(value) = self.get(key) else { return default };
        match value.as_u64() {
            Some(number) if range.contains(&number) => number,
            Some(number) => {
                self.mistake(key, format!("{number} is outside {} to {}", range.start(), range.end()));
                default
            }
            None => {
                self.mistake(key, format!("expected a whole number, found {}", kind_of(value)));
                default
            }
        }
    }

    /// `250ms`, `10s`, `5m`, `48h`.
    pub(super) fn duration(
        &self,
        key: &'static str,
        default: Duration,
        range: std::ops::RangeInclusive<Duration>,
    ) -> Duration {
        let Some(value) = self.get(key) else { return default };
        let parsed = value.as_str().and_then(|text| text.parse::<jiff::SignedDuration>().ok());
        let Some(duration) = parsed.and_then(|signed| Duration::try_from(signed).ok()) else {
            let problem = format!("expected a duration, found {}", kind_of(value));
            self.mistake_with_hint(key, problem, "write 250ms, 10s, 5m or 48h");
            return default;
        };
        if !range.contains(&duration) {
            self.mistake(key, format!("{duration:?} is outside {:?} to {:?}", range.start(), range.end()));
            return default;
        }
        duration
    }

    /// Bytes: a number, or `512KiB`, `64MiB`, `10GiB`.
    pub(super) fn bytes(&self, key: &'static str, default: u64, range: std::ops::RangeInclusive<u64>) -> u64 {
        let Some(value) = self.get(key) else { return default };
        let parsed = match value {
            Value::Number(number) => number.as_u64(),
            Value::String(text) => text.parse::<bytesize::ByteSize>().ok().map(|size| size.as_u64()),
            _ => None,
        };
        let Some(bytes) = parsed else {
            self.mistake_with_hint(
                key,
                format!("expected a size, found {}", kind_of(value)),
                "write 65536, 64KiB, 1MiB or 10GiB",
            );
            return default;
        };
        if !range.contains(&bytes) {
            self.mistake(key, format!("{bytes} bytes is outside {} to {}", range.start(), range.end()));
            return default;
        }
        bytes
    }

    pub(super) fn path(&self, key: &'static str) -> Option<PathBuf> {
        self.text(key).map(PathBuf::from)
    }

    /// A path to a file that must be readable now.
    pub(super) fn readable(&self, key: &'static str) -> Option<PathBuf> {
        let path = self.path(key)?;
        if let Err(error) = std::fs::File::open(&path) {
            self.mistake(key, format!("cannot read {}: {error}", path.display()));
        }
        Some(path)
    }

    pub(super) fn texts(&self, key: &'static str) -> Vec<String> {
        let Some(value) = self.get(key) else { return Vec::new() };
        let texts = value.as_array().and_then(|items| {
            items.iter().map(|item| item.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
        });
        texts.unwrap_or_else(|| {
            self.mistake(key, format!("expected a list of texts, found {}", kind_of(value)));
            Vec::new()
        })
    }

    pub(super) fn section(&self, key: &'static str) -> Option<Section<'a>> {
        Section::of(self.key_path(key), self.get(key)?, self.mistakes)
    }

    /// The sections of a list; with `one_or_many` a single mapping counts as a list of one.
    pub(super) fn sections(&self, key: &'static str, one_or_many: bool) -> Vec<Section<'a>> {
        let Some(value) = self.get(key) else { return Vec::new() };
        if one_or_many && value.is_object() {
            return Section::of(self.key_path(key), value, self.mistakes).into_iter().collect();
        }
        let Some(items) = value.as_array() else {
            self.mistake(key, format!("expected a list, found {}", kind_of(value)));
            return Vec::new();
        };
        let path = self.key_path(key);
        items
            .iter()
            .enumerate()
            .filter_map(|(index, item)| Section::of(format!("{path}[{index}]"), item, self.mistakes))
            .collect()
    }

    /// `{ file: PATH }` or `{ env: NAME }`; a trailing line break is not part of the secret.
    pub(super) fn secret(self, min_bytes: usize) -> Option<SecretString> {
        let (file, env) = (self.path("file"), self.text("env"));
        let read = match (file, env) {
            (Some(file), None) => std::fs::read_to_string(&file)
                .map_err(|error| format!("cannot read {}: {error}", file.display())),
            (None, Some(name)) => read_env(name),
            _ => Err("expected either `file` or `env`".to_owned()),
        };
        let path = self.path.clone();
        let mistakes = self.mistakes;
        self.finish();
        match read {
            Ok(text) => {
                let secret = SecretString::from(text.trim_end_matches(['\n', '\r']));
                let len = secret.expose_secret().len();
                if len < min_bytes {
                    let hint = "make one with: openssl rand -hex 32".to_owned();
                    mistakes.add(
                        path,
                        format!("secret of {len} bytes is shorter than {min_bytes}"),
                        Some(hint),
                    );
                    return None;
                }
                Some(secret)
            }
            Err(problem) => {
                mistakes.add(path, problem, Some("write { file: PATH } or { env: NAME }".to_owned()));
                None
            }
        }
    }

    /// Reports every key that nobody asked for.
    pub(super) fn finish(self) {
        let known = self.known.borrow();
        for key in self.map.keys().filter(|key| !known.contains(&key.as_str())) {
            let near = known
                .iter()
                .map(|name| (strsim::damerau_levenshtein(name, key), name))
                .min()
                .filter(|(distance, _)| *distance <= 3)
                .map(|(_, name)| format!("did you mean `{name}`?"));
            let hint = near.unwrap_or_else(|| format!("known here: {}", sorted(&known)));
            self.mistakes.add(self.key_path(key), "unknown key", Some(hint));
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the configuration names this variable")]
fn read_env(name: &str) -> Result<String, String> {
    std::env::var(name).map_err(|error| format!("environment variable {name}: {error}"))
}

fn sorted(known: &[&'static str]) -> String {
    let mut names = known.to_vec();
    names.sort_unstable();
    names.dedup();
    names.join(", ")
}

fn kind_of(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(flag) => format!("`{flag}`"),
        Value::Number(number) => format!("the number {number}"),
        // Never its words: a secret may stand where its file's name should.
        Value::String(_) => "a text".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a mapping".to_owned(),
    }
}
