//! JSON objects of providers, member by member, without rebuilding a tree.
//!
//! Values stay slices of the body: numbers keep every digit that the provider sent (a tree of
//! `f64` would not), and nothing is copied until it is written out. Only objects that have to be
//! changed (see [`Cleaner`]) are opened.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// Objects and arrays nested deeper than this are not opened (serde_json's own limit is 128).
const MAX_DEPTH: usize = 64;

/// The members of one JSON object in the order in which they were sent. Where a name is
/// repeated, the last value counts, as in most parsers.
#[derive(Debug, Default)]
pub struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Members<'a> {
    /// `None` if `raw` is not an object.
    pub fn of(raw: &'a RawValue) -> Option<Self> {
        raw.get().starts_with('{').then(|| serde_json::from_str(raw.get()).ok()).flatten()
    }

    pub fn get(&self, name: &str) -> Option<&'a RawValue> {
        self.0.iter().rev().find(|(key, _)| key == name).map(|(_, value)| *value)
    }

    /// A string member; `None` for every other kind of value.
    pub fn text(&self, name: &str) -> Option<Cow<'a, str>> {
        self.get(name).and_then(text)
    }

    /// A string, or an integer as its digits: ids come in both kinds.
    pub fn id(&self, name: &str) -> Option<String> {
        let raw = self.get(name)?;
        if let Some(text) = text(raw) {
            return (!text.is_empty()).then(|| text.into_owned());
        }
        let digits = raw.get();
        let unsigned = digits.strip_prefix('-').unwrap_or(digits);
        unsigned.bytes().all(|b| b.is_ascii_digit()).then(|| digits.to_owned())
    }

    pub fn object(&self, name: &str) -> Option<Members<'a>> {
        self.get(name).and_then(Members::of)
    }

    pub fn contains(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &'a RawValue)> {
        self.0.iter().map(|(key, value)| (key.as_ref(), *value))
    }
}

/// The text of a JSON string; `None` for every other kind of value.
pub fn text(raw: &RawValue) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
    raw.get()
        .starts_with('"')
        .then(|| serde_json::from_str::<Text<'_>>(raw.get()).ok())
        .flatten()
        .map(|t| t.0)
}

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                // serde's own Cow<str> always owns; this one borrows where no escape stands.
                #[derive(Deserialize)]
                struct Name<'a>(#[serde(borrow)] Cow<'a, str>);
                let mut members = Vec::with_capacity(40);
                while let Some((Name(name), value)) = map.next_entry::<Name<'de>, &'de RawValue>()? {
                    members.push((name, value));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// What is changed inside a provider's values on their way out: secrets are blanked, and of a
/// time that is sent twice (`x` and `x_iso`) only the RFC 3339 one stays, under `x`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cleaner {
    /// Member names whose values are blanked, at any depth.
    redact: Vec<String>,
}

const REDACTED: &str = "[redacted]";
const ISO_SUFFIX: &str = "_iso";

impl Cleaner {
    pub fn new(redact: Vec<String>) -> Self {
        Self { redact }
    }

    /// Writes the members of `members` for which `keep` holds as `"name":value,...`, each after
    /// a comma unless `out` ends in `{`.
    pub fn write_members(&self, members: &Members<'_>, out: &mut String, keep: impl Fn(&str) -> bool) {
        self.write_at(members, out, keep, 0);
    }

    fn write_at(&self, members: &Members<'_>, out: &mut String, keep: impl Fn(&str) -> bool, depth: usize) {
        let twins = iso_twins(members);
        for (name, value) in members.iter() {
            if !keep(name) {
                continue;
            }
            let (name, value) = match name.strip_suffix(ISO_SUFFIX) {
                // the twin `x` is written from here when it comes by
                Some(base) if twins.contains(base) => continue,
                Some(base) if is_time(value) && !members.contains(base) => (base, value),
                _ if twins.contains(name) => (name, iso_twin(members, name).unwrap_or(value)),
                _ => (name, value),
            };
            begin_member(out, name);
            if self.redact.iter().any(|secret| secret == name) && value.get() != "null" {
                write_string(out, REDACTED);
            } else {
                self.write_value(value, out, depth);
            }
        }
    }

    /// Writes one value, compact and cleaned.
    pub fn write_value(&self, value: &RawValue, out: &mut String, depth: usize) {
        let raw = value.get();
        let opens = matches!(raw.as_bytes().first(), Some(b'{' | b'['));
        if !opens || !self.concerns(raw) {
            compact(raw, out);
        } else if depth >= MAX_DEPTH {
            // Too deep to look for secrets in: nothing of it leaves.
            write_string(out, REDACTED);
        } else if let Some(members) = Members::of(value) {
            out.push('{');
            self.write_at(&members, out, |_| true, depth + 1);
            out.push('}');
        } else if let Ok(items) = serde_json::from_str::<Vec<&RawValue>>(raw) {
            out.push('[');
            for (index, item) in items.into_iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                self.write_value(item, out, depth + 1);
            }
            out.push(']');
        } else {
            compact(raw, out);
        }
    }

    /// Whether anything in this text could have to be changed. A name may hide behind escapes,
    /// so any backslash makes it a concern.
    fn concerns(&self, raw: &str) -> bool {
        raw.contains(ISO_SUFFIX)
            || raw.contains('\\')
            || self.redact.iter().any(|secret| raw.contains(secret.as_str()))
    }
}

/// Names `x` for which both `x` and a usable `x_iso` exist.
fn iso_twins<'m>(members: &'m Members<'_>) -> HashSet<&'m str> {
    let bases: HashSet<&str> = members
        .iter()
        .filter(|(_, value)| is_time(value) || value.get() == "null")
        .filter_map(|(name, _)| name.strip_suffix(ISO_SUFFIX))
        .collect();
    if bases.is_empty() {
        return bases;
    }
    members.iter().map(|(name, _)| name).filter(|name| bases.contains(name)).collect()
}

fn iso_twin<'a>(members: &Members<'a>, name: &str) -> Option<&'a RawValue> {
    members.get(&format!("{name}{ISO_SUFFIX}")).filter(|value| is_time(value))
}

fn is_time(value: &RawValue) -> bool {
    text(value).is_some_and(|text| is_rfc3339(&text))
}

/// RFC 3339 wants a `T`; jiff reads more forms than that.
pub fn is_rfc3339(text: &str) -> bool {
    text.as_bytes().get(10) == Some(&b'T') && text.parse::<jiff::Timestamp>().is_ok()
}

/// Starts a member: comma where one is due, then `"name":`.
pub fn begin_member(out: &mut String, name: &str) {
    if !out.ends_with('{') {
        out.push(',');
    }
    write_string(out, name);
    out.push(':');
}

/// Writes a member whose value is a text.
pub fn text_member(out: &mut String, name: &str, value: &str) {
    begin_member(out, name);
    write_string(out, value);
}

/// Writes `text` as a JSON string.
pub fn write_string(out: &mut String, text: &str) {
    out.push_str(&serde_json::to_string(text).expect("a text serialises"));
}

/// Copies valid JSON without the white space between its tokens.
fn compact(raw: &str, out: &mut String) {
    if !raw.contains(['\n', ' ', '\t', '\r']) {
        out.push_str(raw);
        return;
    }
    let (mut in_string, mut escaped) = (false, false);
    for c in raw.chars() {
        if in_string {
            out.push(c);
            (in_string, escaped) = (escaped || c != '"', !escaped && c == '\\');
        } else if !matches!(c, ' ' | '\n' | '\r' | '\t') {
            out.push(c);
            in_string = c == '"';
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(input: &str, expected: &str) {
        let raw: &RawValue = serde_json::from_str(input).expect("test input is JSON");
        let mut out = String::new();
        Cleaner::new(vec!["hook".to_owned()]).write_value(raw, &mut out, 0);
        assert_eq!(out, expected);
    }

    #[test]
    fn values_are_compacted_and_numbers_keep_every_digit() {
        check(
            r#"{ "a" : 12345678901234567890123 , "b" : [ 1.0, "x \" , y\\" ] }"#,
            r#"{"a":12345678901234567890123,"b":[1.0,"x \" , y\\"]}"#,
        );
    }

    #[test]
    fn secrets_are_blanked_at_any_depth_even_behind_escapes() {
        check(r#"{"a":[{"hook":"u"}],"hook":null}"#, r#"{"a":[{"hook":"[redacted]"}],"hook":null}"#);
        check(r#"{"\u0068ook":"u"}"#, r#"{"hook":"[redacted]"}"#);
    }

    #[test]
    fn of_two_times_the_rfc_3339_one_stays() {
        check(
            r#"{"at":"2024-02-15 14:30:00 UTC","at_iso":"2024-02-15T14:30:00Z"}"#,
            r#"{"at":"2024-02-15T14:30:00Z"}"#,
        );
        check(r#"{"at_iso":"2024-02-15T14:30:00Z"}"#, r#"{"at":"2024-02-15T14:30:00Z"}"#);
        check(r#"{"at":"soon","at_iso":null}"#, r#"{"at":"soon"}"#);
        check(r#"{"at":"soon","at_iso":"later"}"#, r#"{"at":"soon","at_iso":"later"}"#);
    }
}
