//! Wrong configurations: every mistake at once, each under its key path.

use std::fs;
use std::path::Path;
use std::process::Command;

use hookbus::config::{Broker, Config, ConfigError, Mistake};
use tempfile::TempDir;

/// A directory with the files that the documents name, as `DIR/...`.
fn files() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("secret", "0123456789abcdef0123456789abcdef\n"),
        ("other", "fedcba9876543210fedcba9876543210"),
        ("sixteen", "0123456789abcdef"),
        ("short", "fifteen-bytes-!\n"),
        ("empty", "\n"),
        ("pem", "not looked into before the broker is met"),
    ] {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

fn load(dir: &Path, yaml: &str) -> Result<Config, ConfigError> {
    let path = dir.join("hookbus.yaml");
    fs::write(&path, yaml.replace("DIR", dir.to_str().unwrap())).unwrap();
    Config::load(&path)
}

#[track_caller]
fn mistakes(yaml: &str) -> Vec<Mistake> {
    match load(files().path(), yaml) {
        Err(ConfigError::Mistakes { mistakes, .. }) => mistakes,
        other => panic!("expected mistakes, not {other:?}, of\n{yaml}"),
    }
}

/// Expects exactly these mistakes, by key path, in any order.
#[track_caller]
fn check(yaml: &str, expected: &[&str]) {
    let mistakes = mistakes(yaml);
    let mut found: Vec<&str> = mistakes.iter().map(|mistake| mistake.path.as_str()).collect();
    let mut expected = expected.to_vec();
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected, "{mistakes:#?} of\n{yaml}");
}

#[track_caller]
fn good(yaml: &str) -> Config {
    match load(files().path(), yaml) {
        Ok(config) => config,
        Err(ConfigError::Mistakes { mistakes, .. }) => panic!("{mistakes:#?} in\n{yaml}"),
        Err(other) => panic!("{other}: {yaml}"),
    }
}

const HEAD: &str = "
http: { listen: '127.0.0.1:0' }
spool: { dir: DIR/spool }
";
const SOURCES: &str = "
sources:
  - { name: c66, provider: cloud66, path_token: { file: DIR/secret } }
";
const SINKS: &str = "
sinks:
  - { name: bus, kind: nats, servers: ['nats://a:4222'], stream: { name: HOOKS }, subject: 'e.{event_type}' }
";

/// One source beside good everything else.
#[track_caller]
fn check_source(source: &str, expected: &[&str]) {
    check(&format!("{HEAD}{SINKS}\nsources:\n  - {source}\n"), expected);
}

#[track_caller]
fn check_sink(sink: &str, expected: &[&str]) {
    check(&format!("{HEAD}{SOURCES}\nsinks:\n  - {sink}\n"), expected);
}

const EXAMPLE: &str = r#"
http:  { listen: "0.0.0.0:8080" }
admin: { listen: "127.0.0.1:9090" }
spool: { dir: DIR/lib/hookbus, max_bytes: 10GiB }
sources:
  - name: prod
    provider: cdhosting
    signature: { header: X-Webhook-Signature }
    secrets: [ { file: DIR/secret } ]
  - name: c66
    provider: cloud66
    path_token: { file: DIR/other }
sinks:
  - name: bus
    kind: nats
    servers: ["nats://127.0.0.1:4222"]
    stream: { name: HOOKS, create: true }
    subject: "events.{provider}.{event_type}"
  - name: lake
    kind: kafka
    brokers: ["127.0.0.1:9092"]
    topic: "events.{provider}"
    create_topics: true
    options: { compression.type: zstd }
"#;

#[test]
fn the_documented_example_is_good() {
    let config = good(EXAMPLE);
    let names: Vec<&str> = config.sources.iter().map(|configured| &**configured.source.name()).collect();
    assert_eq!(names, ["prod", "c66"]);
    assert!(config.sources.iter().all(|configured| configured.source.is_verified()));
    assert_eq!(config.spool.max_bytes, 10 << 30);
    assert_eq!(config.http.max_body, 1 << 20, "the default");
    assert_eq!(config.admin.to_string(), "127.0.0.1:9090");
    let [bus, lake] = config.sinks.as_slice() else { panic!("two sinks") };
    assert_eq!((bus.name.as_str(), lake.name.as_str()), ("bus", "lake"));
    let Broker::Nats(nats) = &bus.broker else { panic!("a NATS") };
    assert_eq!(nats.stream.subjects, ["events.*.>"]);
    let Broker::Kafka(kafka) = &lake.broker else { panic!("a Kafka") };
    assert!(kafka.create_topics.is_some());
    assert_eq!(kafka.topics, ["events.cdhosting", "events.cloud66"]);
    assert_eq!(kafka.options["compression.type"], "zstd");
}

#[test]
fn an_empty_document_lacks_everything() {
    check("{}", &["http", "spool", "sources", "sinks"]);
    check("[]", &[""]);
    check("just a text", &[""]);
    check(
        "http: 3\nspool: {}\nsources: {}\nsinks: []\n",
        &["http", "spool.dir", "sources", "sources", "sinks"],
    );
}

#[test]
fn what_is_no_yaml_is_told_apart_from_what_is_wrong_in_it() {
    let dir = files();
    for broken in ["http: [", "a: 1\na: 2\n", "a: &x [*x"] {
        let error = load(dir.path(), broken).expect_err("no YAML");
        assert!(matches!(error, ConfigError::Syntax { .. }), "{broken}: {error}");
    }
    let error = Config::load(&dir.path().join("nowhere.yaml")).expect_err("no file");
    assert!(matches!(error, ConfigError::Read { .. }), "{error}");
}

#[test]
fn every_mistake_is_reported_at_once() {
    check(
        "
        http: { listen: nowhere, max_body: 12 parsecs, idle_timeout: 3, max_connections: 0, tls: yes }
        admin: { listen: '1.2.3.4' }
        spool: { max_bytes: 1MiB, repeats_window: forever, commit_window: 5s, allow_volatile: perhaps }
        shutdown_grace: 0s
        sources:
          - { name: A, provider: github, path_token: { file: DIR/nowhere } }
          - { provider: cloud66, verification: maybe }
          - { name: x, provider: cloud66, path_token: { file: DIR/secret }, accepted_status: 404 }
          - { name: x, provider: cloud66, path_token: { env: HOOKBUS_TEST_UNSET } }
        sinks:
          - { name: a, kind: amqp }
          - { name: b, kind: kafka, brokers: [], topic: 'e.{x}', options: [] }
          - { name: c, kind: nats, servers: nats, stream: { name: 'a b' }, subject: 'a..b', in_flight_max: 9999 }
        sink: []
        ",
        &[
            "http.listen",
            "http.max_body",
            "http.idle_timeout",
            "http.max_connections",
            "http.tls",
            "admin.listen",
            "spool.dir",
            "spool.max_bytes",
            "spool.repeats_window",
            "spool.commit_window",
            "spool.allow_volatile",
            "shutdown_grace",
            "sources[0].name",
            "sources[0].provider",
            "sources[0].path_token",
            "sources[1].name",
            "sources[1].verification",
            "sources[2].accepted_status",
            "sources[3].name",
            "sources[3].path_token",
            "sinks[0].kind",
            "sinks[1].brokers",
            "sinks[1].topic",
            "sinks[1].options",
            "sinks[2].servers",
            "sinks[2].servers",
            "sinks[2].stream.name",
            "sinks[2].subject",
            "sinks[2].in_flight_max",
            "sink",
        ],
    );
}

/// Expects one mistake, with that path, and a hint that contains `hint`.
#[track_caller]
fn check_hint(yaml: &str, path: &str, hint: &str) {
    let mistakes = mistakes(yaml);
    let [mistake] = mistakes.as_slice() else { panic!("not one mistake: {mistakes:#?}") };
    assert_eq!(mistake.path, path);
    let given = mistake.hint.as_deref().unwrap_or("(none)");
    assert!(given.contains(hint), "hint: {given}");
    assert!(mistake.to_string().contains(given), "the hint is shown: {mistake}");
}

#[test]
fn an_unknown_key_comes_with_what_may_have_been_meant() {
    let with = |line: &str| format!("{HEAD}{SOURCES}{SINKS}\n{line}\n");
    check_hint(&with("shutdown_grade: 5s"), "shutdown_grade", "did you mean `shutdown_grace`?");
    check_hint(&with("zzzzzzzzzzzz: 1"), "zzzzzzzzzzzz", "known here: admin, http, shutdown_grace");
    check_hint(&with("admin: { listen: '127.0.0.1:1', lisen: 1 }"), "admin.lisen", "did you mean `listen`?");
    let source = "{ name: a, provider: cloud66, path_token: { fiel: DIR/secret, file: DIR/secret } }";
    check_hint(
        &format!("{HEAD}{SINKS}\nsources: [ {source} ]"),
        "sources[0].path_token.fiel",
        "did you mean `file`?",
    );
}

#[test]
fn verification_has_no_default() {
    check_source("{ name: a, provider: cloud66 }", &["sources[0].verification"]);
    check_source("{ name: a, provider: cdhosting }", &["sources[0].verification"]);
    check_source("{ name: a, provider: cdhosting, verification: ~ }", &["sources[0].verification"]);
    check_source("{ name: a, provider: cdhosting, verification: off }", &["sources[0].verification"]);
    let none =
        good(&format!("{HEAD}{SINKS}\nsources:\n  - {{ name: a, provider: cloud66, verification: none }}"));
    assert!(!none.sources[0].source.is_verified());
}

#[test]
fn a_check_that_is_written_in_part_or_twice_is_no_check() {
    let signature = "signature: { header: X-Signature }";
    check_source(&format!("{{ name: a, provider: cdhosting, {signature} }}"), &["sources[0].secrets"]);
    check_source(
        "{ name: a, provider: cdhosting, secrets: [ { file: DIR/secret } ] }",
        &["sources[0].signature", "sources[0].verification"],
    );
    check_source(
        &format!("{{ name: a, provider: cdhosting, {signature}, secrets: [] }}"),
        &["sources[0].secrets"],
    );
    check_source(
        &format!("{{ name: a, provider: cloud66, {signature}, secrets: [ {{ file: DIR/secret }} ] }}"),
        &["sources[0].signature"],
    );
    check_source(
        "{ name: a, provider: cloud66, path_token: { file: DIR/secret }, verification: none }",
        &["sources[0].verification"],
    );
    check_source(
        "{ name: a, provider: cdhosting, signature: { header: 'not a header' }, secrets: [ { file: DIR/secret } ] }",
        &["sources[0].signature.header", "sources[0].verification"],
    );
    check_source(
        "{ name: a, provider: cdhosting, signature: {}, secrets: [ { file: DIR/secret } ] }",
        &["sources[0].signature.header", "sources[0].verification"],
    );
}

#[test]
fn secrets_are_long_enough_readable_and_few() {
    for (secret, path) in [
        ("{ file: DIR/short }", "sources[0].path_token"),
        ("{ file: DIR/empty }", "sources[0].path_token"),
        ("{ file: DIR/nowhere }", "sources[0].path_token"),
        ("{ file: DIR }", "sources[0].path_token"),
        ("{ env: HOOKBUS_TEST_UNSET }", "sources[0].path_token"),
        ("{ file: DIR/secret, env: PATH }", "sources[0].path_token"),
        ("{}", "sources[0].path_token"),
    ] {
        check_source(&format!("{{ name: a, provider: cloud66, path_token: {secret} }}"), &[path]);
    }
    let sixteen = "{ name: a, provider: cloud66, path_token: { file: DIR/sixteen } }";
    good(&format!("{HEAD}{SINKS}\nsources:\n  - {sixteen}"));
    let secrets = |count: usize| {
        let secrets = vec!["{ file: DIR/secret }"; count].join(", ");
        format!("{{ name: a, provider: cdhosting, signature: {{ header: '*' }}, secrets: [ {secrets} ] }}")
    };
    good(&format!("{HEAD}{SINKS}\nsources:\n  - {}", secrets(8)));
    check_source(&secrets(9), &["sources[0].secrets"]);
    let mixed = "[ { file: DIR/secret }, { file: DIR/short }, { file: DIR/nowhere } ]";
    check_source(
        &format!("{{ name: a, provider: cdhosting, signature: {{ header: '*' }}, secrets: {mixed} }}"),
        &["sources[0].secrets[1]", "sources[0].secrets[2]"],
    );
}

#[test]
fn no_mistake_shows_a_secret() {
    let dir = files();
    let inline = "{ name: a, provider: cloud66, path_token: a-secret-where-its-file-should-stand }";
    let mistakes = mistakes(&format!("{HEAD}{SINKS}\nsources:\n  - {inline}"));
    assert!(mistakes.iter().all(|mistake| mistake.path == "sources[0].path_token"), "{mistakes:#?}");
    assert!(!format!("{mistakes:?}").contains("a-secret"), "{mistakes:#?}");
    let secrets = "[ { file: DIR/short }, { file: DIR/secret } ]";
    let yaml = format!(
        "{HEAD}{SINKS}\nsources:\n  - {{ name: a, provider: cdhosting, signature: {{ header: 1 }}, secrets: {secrets} }}"
    );
    let error = load(dir.path(), &yaml).expect_err("mistakes");
    let shown = format!("{error:?} {error}");
    assert!(!shown.contains("fifteen-bytes") && !shown.contains("0123456789abcdef"), "{shown}");
    let shown = format!("{:?}", good(EXAMPLE));
    assert!(!shown.contains("0123456789abcdef") && !shown.contains("fedcba98"), "{shown}");
}

fn kafka(extra: &str) -> String {
    format!("{{ name: lake, kind: kafka, brokers: ['a:9092'], topic: 'e.{{provider}}', {extra} }}")
}

#[test]
fn options_that_would_break_the_promise_are_refused() {
    for (key, value) in [
        ("acks", "1"),
        ("acks", "0"),
        ("request.required.acks", "1"),
        ("enable.idempotence", "false"),
        ("message.timeout.ms", "5000"),
        ("delivery.timeout.ms", "5000"),
        ("retries", "3"),
        ("message.send.max.retries", "0"),
        ("max.in.flight", "6"),
        ("max.in.flight.requests.per.connection", "100"),
        ("enable.gapless.guarantee", "false"),
        ("transactional.id", "x"),
        ("allow.auto.create.topics", "true"),
        ("queue.buffering.max.messages", "10"),
        ("queue.buffering.max.kbytes", "10"),
        ("bootstrap.servers", "b:1"),
        ("metadata.broker.list", "b:1"),
        ("message.max.bytes", "10"),
        ("security.protocol", "plaintext"),
        ("partitioner", "random"),
        ("delivery.report.only.error", "true"),
        ("test.mock.num.brokers", "3"),
        ("partitioner", "consistent"),
        ("ssl.ca.location", "/x"),
        ("ssl.key.password", "x"),
        ("sasl.username", "x"),
        ("sasl.password", "x"),
        ("sasl.mechanisms", "PLAIN"),
    ] {
        if (key, value) == ("partitioner", "consistent") {
            // Of one key one partition: allowed.
            good(&format!(
                "{HEAD}{SOURCES}\nsinks:\n  - {}",
                kafka(&format!("options: {{ {key}: {value} }}"))
            ));
            continue;
        }
        let path = format!("sinks[0].options.{key}");
        check_sink(&kafka(&format!("options: {{ {key}: {value} }}")), &[&path]);
    }
    let harmless = "options: { acks: all, linger.ms: 20, compression.type: zstd, enable.idempotence: true, max.in.flight: 5 }";
    good(&format!("{HEAD}{SOURCES}\nsinks:\n  - {}", kafka(harmless)));
}

#[test]
fn names_subjects_and_topics_that_a_broker_would_misread_are_refused() {
    for subject in ["$JS.API.x", "e.*", "e.>", "e..x", ".e", "e.", "e e", "e.{nothing}", "e.{provider", ""] {
        let sink =
            format!("{{ name: a, kind: nats, servers: ['a'], stream: {{ name: S }}, subject: '{subject}' }}");
        check_sink(&sink, &["sinks[0].subject"]);
    }
    for topic in ["__consumer_offsets", "a/b", "a*", "a b", "..", "e.{event_type", &"x".repeat(250)] {
        let sink = format!("{{ name: a, kind: kafka, brokers: ['a'], topic: '{topic}' }}");
        check_sink(&sink, &["sinks[0].topic"]);
    }
    for name in ["A", "-a", "a.b", "a/b", "../a", "ä", &"x".repeat(65)] {
        let source = format!("{{ name: '{name}', provider: cloud66, path_token: {{ file: DIR/secret }} }}");
        check_source(&source, &["sources[0].name"]);
    }
}

#[test]
fn logins_and_certificates_are_whole() {
    let nats = |extra: &str| {
        format!("{{ name: a, kind: nats, servers: ['a'], stream: {{ name: S }}, subject: 'e.x', {extra} }}")
    };
    check_sink(&nats("tls: { cert_file: DIR/pem }"), &["sinks[0].tls.cert_file"]);
    check_sink(&nats("tls: { ca_file: DIR/nowhere }"), &["sinks[0].tls.ca_file"]);
    check_sink(&nats("auth: {}"), &["sinks[0].auth.auth"]);
    check_sink(
        &nats("auth: { token: { file: DIR/secret }, nkey_seed: { file: DIR/secret } }"),
        &["sinks[0].auth.auth"],
    );
    check_sink(&nats("auth: { user: u }"), &["sinks[0].auth.password", "sinks[0].auth.auth"]);
    good(&format!(
        "{HEAD}{SOURCES}\nsinks:\n  - {}",
        nats("auth: { user: u, password: { file: DIR/secret } }")
    ));
    check_sink(
        &kafka("sasl: { mechanism: GSSAPI }"),
        &["sinks[0].sasl.mechanism", "sinks[0].sasl.username", "sinks[0].sasl.password"],
    );
    check_sink(&kafka("tls: { key_file: DIR/pem }"), &["sinks[0].tls.cert_file"]);
    check_sink(&kafka("create_topics: { partitions: 0 }"), &["sinks[0].create_topics.partitions"]);
    check_sink(&kafka("create_topics: 3"), &["sinks[0].create_topics"]);
    check_sink(&kafka("retry: { first: 10s, longest: 1s }"), &["sinks[0].retry.first"]);
}

#[test]
fn the_spool_is_large_enough_for_its_segments() {
    let spool = |text: &str| {
        format!("http: {{ listen: '127.0.0.1:0' }}\nspool: {{ dir: DIR/spool, {text} }}\n{SOURCES}{SINKS}")
    };
    check(&spool("max_bytes: 4MiB, segment_bytes: 3MiB"), &["spool.max_bytes"]);
    check(&spool("segment_bytes: 1KiB"), &["spool.segment_bytes"]);
    let small = good(&spool("max_bytes: 4MiB, segment_bytes: 64KiB"));
    assert_eq!((small.spool.max_bytes, small.spool.segment_bytes), (4 << 20, 64 << 10));
    let http =
        "http: { listen: '127.0.0.1:0', max_body: 2MiB, body_memory: 1MiB }\nspool: { dir: DIR/spool }";
    check(&format!("{http}\n{SOURCES}{SINKS}"), &["http.body_memory"]);
}

#[test]
fn check_prints_every_mistake_and_exits_64() {
    let dir = files();
    let path = dir.path().join("hookbus.yaml");
    let run = |yaml: &str| {
        fs::write(&path, yaml.replace("DIR", dir.path().to_str().unwrap())).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_hookbus")).arg("check").arg("-c").arg(&path).output();
        let output = output.unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, out, _) = run(EXAMPLE);
    assert_eq!(code, Some(0));
    assert!(out.ends_with("good: 2 sources, 2 sinks\n"), "{out}");
    let (code, out, err) = run("http: { listen: x }\nspol: {}\n");
    assert_eq!((code, out.as_str()), (Some(64), ""));
    for part in [
        "5 mistake(s)",
        "http.listen: `x`",
        "spool: missing",
        "sources: ",
        "sinks: ",
        "spol: unknown key",
        "did you mean `spool`?",
    ] {
        assert!(err.contains(part), "no `{part}` in\n{err}");
    }
    let (code, ..) = run("http: [");
    assert_eq!(code, Some(64));
    fs::remove_file(&path).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_hookbus")).arg("check").arg("-c").arg(&path).output();
    assert_eq!(output.unwrap().status.code(), Some(64));
}
