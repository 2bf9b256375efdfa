//! What may use what, by a search through the text of `src/`. Comments do not count.

use std::fs;

use crate::support::{files_below, root};

/// Every file of `src/` with its lines of code, without comments and without its unit tests.
fn sources() -> Vec<(String, Vec<(usize, String)>)> {
    let src = root().join("src");
    let sources: Vec<_> = files_below(&src, "rs")
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(&src).unwrap().to_str().unwrap().to_owned();
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("\n#[cfg(test)]\nmod tests").next().unwrap();
            let lines = code.lines().enumerate().map(|(index, line)| {
                let code = line.split(" //").next().unwrap();
                (index + 1, if code.trim_start().starts_with("//") { String::new() } else { code.to_owned() })
            });
            (name, lines.collect())
        })
        .collect();
    assert!(sources.len() > 40, "only {} files found", sources.len());
    sources
}

/// Whether `word` stands in `line` as a whole word: `warp::` is found, `wrapped` is not.
fn has_word(line: &str, word: &str) -> bool {
    let part_of_word = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, found)| {
        let (before, after) = (&line[..at], &line[at + found.len()..]);
        let begins = !before.ends_with(part_of_word);
        let ends = !word.ends_with(part_of_word) || !after.starts_with(part_of_word);
        begins && ends
    })
}

/// A place where a word may stand: a file or a folder (`http/`), and the only form it may have
/// there (empty: any).
type Allowed = (&'static str, &'static str);

/// Expects `words` nowhere but in these places, and that each of the places needs its permission.
#[track_caller]
fn check(words: &[&str], allowed: &[Allowed]) {
    let mut used = vec![false; allowed.len()];
    let mut wrong = Vec::new();
    for (name, lines) in sources() {
        for (number, line) in lines {
            if !words.iter().any(|word| has_word(&line, word)) {
                continue;
            }
            let permission = allowed.iter().position(|(place, form)| {
                let here = if place.ends_with('/') { name.starts_with(place) } else { name == *place };
                here && line.contains(form)
            });
            match permission {
                Some(index) => used[index] = true,
                None => wrong.push(format!("src/{name}:{number}: {}", line.trim())),
            }
        }
    }
    assert!(wrong.is_empty(), "{words:?} where they do not belong:\n{}", wrong.join("\n"));
    let unused: Vec<_> = allowed.iter().zip(used).filter(|(_, used)| !used).collect();
    assert!(unused.is_empty(), "{words:?}: permissions that nobody needs: {unused:?}");
}

#[test]
fn only_http_uses_warp_and_the_server_side_of_hyper() {
    // Elsewhere only the plain types of headers and status codes, which warp passes on.
    check(
        &["warp", "hyper"],
        &[
            ("http/", ""),
            ("bridge.rs", "F: warp::Filter<Error = warp::Rejection>"),
            ("bridge.rs", "F::Extract: warp::Reply"),
            ("config/sources.rs", "use warp::http::{HeaderName, StatusCode};"),
            ("source/mod.rs", "use warp::http::HeaderMap;"),
            ("source/delivery.rs", "use warp::http::{HeaderMap, header};"),
            ("source/signature.rs", "use warp::http::{HeaderMap, HeaderName, HeaderValue};"),
            ("simulate/client.rs", "use warp::http::{HeaderName, Request, StatusCode, Uri};"),
            ("command/demo.rs", "use warp::http::HeaderName;"),
            ("command/send.rs", "use warp::http::HeaderName;"),
        ],
    );
    check(&["hyper_util", "http_body_util"], &[("http/", ""), ("simulate/client.rs", "")]);
    check(&["warp::serve", "warp::body::bytes", "warp::body::json"], &[]);
}

#[test]
fn only_a_brokers_own_files_know_its_client() {
    check(&["rdkafka"], &[("sink/kafka.rs", ""), ("sink/kafka_topics.rs", ""), ("sink/embedded.rs", "")]);
    check(&["async_nats"], &[("sink/nats.rs", ""), ("sink/nats_stream.rs", "")]);
}

#[test]
fn only_the_verifier_computes_signatures() {
    check(&["hmac", "Hmac"], &[("source/signature.rs", "")]);
    // Digests are ids and keys; the demo works its expected ids out a second time.
    check(&["sha2", "Sha256"], &[("source/", ""), ("command/demo.rs", "")]);
}

#[test]
fn files_are_touched_in_few_places() {
    check(
        &["std::fs", "fs::", "File::", "OpenOptions", "rustix", "tokio::fs"],
        &[
            ("spool/disk.rs", ""),
            ("dead_letter.rs", ""),
            ("config/", ""),
            ("command/", ""),
            ("bridge.rs", "std::fs::create_dir_all(dir)"),
            ("sink/nats.rs", "std::fs::read_to_string(path)"),
        ],
    );
}

#[test]
fn only_the_intake_appends() {
    check(&["appender.append("], &[("http/intake.rs", "")]);
    check(&["Verified {"], &[("source/mod.rs", "")]);
}

#[test]
fn only_the_configuration_reads_the_environment() {
    check(&["env::var", "env::vars", "env::var_os", "set_var"], &[("config/reader.rs", "")]);
}

#[test]
fn every_queue_has_a_bound_and_nothing_is_left_to_do() {
    check(
        &[
            "unbounded_channel",
            "UnboundedSender",
            "unbounded()",
            "futures_channel",
            "std::sync::mpsc::channel",
        ],
        &[],
    );
    check(&["todo!", "unimplemented!", "dbg!", "FIXME", "XXX", "unsafe"], &[]);
}

/// `from` may not name any of `to`.
#[track_caller]
fn check_never(from: &str, to: &[&str]) {
    let mut files = 0;
    for (name, lines) in sources() {
        if !(name.starts_with(&format!("{from}/")) || name == format!("{from}.rs")) {
            continue;
        }
        files += 1;
        for (number, line) in lines {
            for module in to {
                let named = has_word(&line, &format!("crate::{module}"))
                    || (line.contains("use crate::{") && has_word(&line, module));
                assert!(!named, "src/{name}:{number}: {from} may not use {module}: {}", line.trim());
            }
        }
    }
    assert!(files > 0, "there is no src/{from}");
}

#[test]
fn dependencies_go_one_way() {
    let all =
        ["command", "bridge", "config", "http", "dispatch", "sink", "source", "dead_letter", "simulate"];
    let but =
        |own: &[&str]| -> Vec<&str> { all.iter().copied().filter(|module| !own.contains(module)).collect() };
    // It stores bytes.
    check_never("spool", &[but(&[]), vec!["envelope", "subject", "json", "metrics", "schemas"]].concat());
    check_never("source", &[but(&["source"]), vec!["spool"]].concat());
    check_never("sink", &[but(&["sink"]), vec!["spool"]].concat());
    check_never("dead_letter", &[but(&["dead_letter"]), vec!["spool"]].concat());
    for pure in ["subject", "json", "schemas"] {
        check_never(pure, &[but(&[]), vec!["spool", "metrics"]].concat());
    }
    check_never("envelope", &[but(&[]), vec!["spool", "metrics"]].concat());
    check_never("metrics", &but(&[]));
    check_never("dispatch", &["command", "bridge", "config", "http", "simulate"]);
    check_never("http", &["command", "bridge", "dispatch", "sink", "dead_letter", "simulate"]);
    check_never("config", &["command", "bridge", "dispatch", "dead_letter", "simulate"]);
    check_never("bridge", &["command", "simulate"]);
}

#[test]
fn a_file_is_one_idea() {
    for path in files_below(&root().join("src"), "rs") {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines < 600, "{} has {lines} lines", path.display());
    }
}
