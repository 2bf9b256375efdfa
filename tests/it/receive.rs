//! The HTTP contract over a real port: raw requests in, raw answers out. The broker is down all the
//! while; accepting must not care.

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hookbus::bridge::{self, Addresses, BridgeError};
use hookbus::config::Config;
use hookbus::source::sign;
use secrecy::SecretString;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::oneshot;

use crate::support::{PATIENCE, wait_for};

const OLD: &str = "the-old-secret-0123456789";
const NEW: &str = "the-new-secret-0123456789";
const TOKEN: &str = "a-long-random-token-0123456789";
const HEADER: &str = "X-Webhook-Signature";
const MAX_BODY: usize = 4096;
/// Every deadline of the listener, where a test waits for it.
const SHORT: Duration = Duration::from_millis(300);

/// A bridge in this process, and how to stop it.
struct Running {
    addresses: Addresses,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<(), BridgeError>>>,
    _dir: TempDir,
}

impl Running {
    fn start() -> Self {
        Self::with(&json!({}), &json!({}))
    }

    /// With short deadlines.
    fn hasty() -> Self {
        let short = "300ms";
        let deadlines = json!({ "header_timeout": short, "body_timeout": short, "idle_timeout": short });
        Self::with(&deadlines, &json!({}))
    }

    fn with(http: &Value, spool: &Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            json!({ "file": path })
        };
        let mut document = json!({
            "http": { "listen": "127.0.0.1:0", "max_body": MAX_BODY },
            "admin": { "listen": "127.0.0.1:0" },
            "spool": { "dir": dir.path().join("spool"), "max_bytes": "64MiB", "allow_volatile": true },
            "shutdown_grace": "1s",
            "sources": [
                {
                    "name": "prod", "provider": "cdhosting", "signature": { "header": HEADER },
                    "secrets": [file("old", OLD), file("new", NEW)],
                },
                { "name": "c66", "provider": "cloud66", "path_token": file("token", TOKEN) },
                {
                    "name": "fast", "provider": "cloud66", "accepted_status": 204,
                    "path_token": file("token", TOKEN),
                },
            ],
            // Nothing listens on port 1.
            "sinks": [{
                "name": "bus", "kind": "nats", "servers": ["nats://127.0.0.1:1"],
                "stream": { "name": "HOOKS", "create": true }, "subject": "events.{provider}.{event_type}",
            }],
        });
        for (section, extra) in [("http", http), ("spool", spool)] {
            let section = document[section].as_object_mut().unwrap();
            section.extend(extra.as_object().unwrap().clone());
        }
        let config = Config::from_value(&document).expect("a good configuration");
        let (started, addresses) = mpsc::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            let stop = async move { drop(stopped.await) };
            let ended = runtime.block_on(bridge::run(config, move |at| started.send(at).unwrap(), stop));
            runtime.shutdown_background();
            ended
        });
        let addresses = addresses.recv_timeout(PATIENCE).expect("the bridge starts");
        Self { addresses, stop: Some(stop), thread: Some(thread), _dir: dir }
    }

    fn connect(&self) -> Client {
        Client::to(self.addresses.http)
    }

    fn admin(&self, path: &str) -> Answer {
        let mut client = Client::to(self.addresses.admin);
        client.send(format!("GET {path} HTTP/1.1\r\nHost: admin\r\n\r\n").as_bytes());
        client.answer()
    }

    /// The value of one line of `/metrics`.
    fn metric(&self, name: &str) -> Option<f64> {
        let text = String::from_utf8(self.admin("/metrics").body).unwrap();
        let line =
            text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
        line.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        let told = self.stop.take().is_some_and(|stop| stop.send(()).is_ok());
        let ended = thread.join();
        if !std::thread::panicking() {
            assert!(told, "the bridge ended before it was told to");
            ended.expect("no panic").expect("an orderly end");
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Answer {
    status: u16,
    /// Names in lower case; without the date.
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}

/// One connection, byte by byte.
struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    fn to(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream: BufReader::new(stream) }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).unwrap();
    }

    fn ask(&mut self, request: &[u8]) -> Answer {
        self.send(request);
        self.answer()
    }

    #[track_caller]
    fn answer(&mut self) -> Answer {
        let mut line = String::new();
        self.stream.read_line(&mut line).expect("an answer");
        let status = line.split(' ').nth(1).unwrap_or_else(|| panic!("no answer but `{line}`"));
        let mut answer = Answer { status: status.parse().unwrap(), headers: Vec::new(), body: Vec::new() };
        loop {
            line.clear();
            self.stream.read_line(&mut line).expect("the whole head");
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            if !name.eq_ignore_ascii_case("date") {
                answer.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
            }
        }
        // An answer to HEAD, and 204, have none.
        let length = answer.header("content-length").map_or(0, |length| length.parse().unwrap());
        answer.body = vec![0; length];
        self.stream.read_exact(&mut answer.body).expect("the whole body");
        answer
    }

    /// Waits until the server closes the connection; says how long that took.
    #[track_caller]
    fn closed(&mut self) -> Duration {
        let begun = Instant::now();
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => assert!(rest.is_empty(), "not closed but: {}", String::from_utf8_lossy(&rest)),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
        }
        begun.elapsed()
    }

    /// Whether nothing at all comes for a while.
    fn silent_for(&self, time: Duration) -> bool {
        let stream = self.stream.get_ref();
        stream.set_read_timeout(Some(time)).unwrap();
        let nothing = matches!(
            stream.peek(&mut [0]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
        );
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        nothing
    }
}

fn signature(secret: &str, body: &[u8]) -> String {
    sign(&SecretString::from(secret), body)
}

fn post(path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut request =
        format!("POST {path} HTTP/1.1\r\nHost: hooks.example.com\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    [request.as_bytes(), body].concat()
}

fn signed(body: &[u8]) -> Vec<u8> {
    post("/hooks/prod", &[(HEADER, &signature(NEW, body))], body)
}

fn with_token(body: &[u8]) -> Vec<u8> {
    post(&format!("/hooks/c66/{TOKEN}"), &[], body)
}

fn chunked(path: &str, headers: &[(&str, &str)], chunks: &[&[u8]]) -> Vec<u8> {
    let mut request =
        format!("POST {path} HTTP/1.1\r\nHost: hooks.example.com\r\nTransfer-Encoding: chunked\r\n");
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    let mut request = format!("{request}\r\n").into_bytes();
    for chunk in chunks.iter().chain([&&b""[..]]) {
        request.extend(format!("{:x}\r\n", chunk.len()).bytes());
        request.extend(*chunk);
        request.extend(b"\r\n");
    }
    request
}

const BODY: &[u8] = br#"{"id":"evt_1","type":"server.started","data":{"server_id":"srv_1"}}"#;

/// The status, and for a refusal its form: a short problem that says nothing but the status.
#[track_caller]
fn check(running: &Running, request: &[u8], expected: u16) -> Answer {
    let answer = running.connect().ask(request);
    check_form(&answer, expected);
    answer
}

#[track_caller]
fn check_form(answer: &Answer, expected: u16) {
    assert_eq!(answer.status, expected, "{answer:?}");
    if expected < 300 {
        assert!(answer.body.is_empty(), "{answer:?}");
        return;
    }
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    let problem: Value = serde_json::from_slice(&answer.body).expect("a problem is JSON");
    assert_eq!(problem["status"], expected);
    let members: Vec<&str> = problem.as_object().unwrap().keys().map(String::as_str).collect();
    // The one detail there is helps an honest sender and says what everybody can see.
    if expected == 415 {
        assert_eq!(members, ["detail", "status", "title", "type"]);
    } else {
        assert_eq!(members, ["status", "title", "type"]);
    }
    assert_eq!(answer.header("server"), None);
}

#[test]
fn a_signed_delivery_is_accepted_under_every_secret_and_in_either_case_of_hex() {
    let running = Running::start();
    check(&running, &signed(BODY), 202);
    let upper = signature(NEW, BODY).to_uppercase();
    check(&running, &post("/hooks/prod", &[(HEADER, &upper)], BODY), 202);
    check(&running, &post("/hooks/prod", &[(HEADER, &signature(OLD, BODY))], BODY), 202);
    check(&running, &post("/hooks/prod", &[("x-webhook-signature", &signature(OLD, BODY))], BODY), 202);
    check(&running, &post("/hooks/prod", &[(HEADER, "no"), (HEADER, &signature(NEW, BODY))], BODY), 202);
}

#[test]
fn a_delivery_with_the_token_is_accepted_with_the_status_of_its_source() {
    let running = Running::start();
    check(&running, &with_token(BODY), 202);
    check(&running, &post(&format!("/hooks/fast/{TOKEN}"), &[], BODY), 204);
}

#[test]
fn what_is_not_proven_is_refused_in_one_and_the_same_way() {
    let running = Running::start();
    let wrong = signature("another-secret-0123456789", BODY);
    let first = check(&running, &post("/hooks/prod", &[(HEADER, &wrong)], BODY), 401);
    let elsewhere = signature(NEW, BODY);
    let long = format!("{elsewhere}00");
    let token_in_part = &TOKEN[..TOKEN.len() - 1];
    for request in [
        post("/hooks/prod", &[], BODY),
        post("/hooks/prod", &[(HEADER, "")], BODY),
        post("/hooks/prod", &[(HEADER, "zz")], BODY),
        post("/hooks/prod", &[(HEADER, &elsewhere[..62])], BODY),
        post("/hooks/prod", &[(HEADER, &long)], BODY),
        post("/hooks/prod", &[("X-Another-Header", &elsewhere)], BODY),
        post("/hooks/prod", &[(HEADER, &elsewhere)], b"another body"),
        post("/hooks/prod", &[(HEADER, &elsewhere)], b""),
        post(&format!("/hooks/prod/{TOKEN}"), &[], BODY),
        post("/hooks/c66", &[], BODY),
        post("/hooks/c66/", &[], BODY),
        post("/hooks/c66/wrong-token-0123456789-wrong", &[], BODY),
        post(&format!("/hooks/c66/{token_in_part}"), &[], BODY),
        post(&format!("/hooks/c66/{TOKEN}/more"), &[], BODY),
        post(&format!("/hooks/c66?token={TOKEN}"), &[], BODY),
        post("/hooks/c66", &[(HEADER, &elsewhere)], BODY),
        // An unknown source is not told apart, byte for byte.
        post("/hooks/nobody", &[(HEADER, &elsewhere)], BODY),
        post("/hooks/nobody", &[], BODY),
        post(&format!("/hooks/nobody/{TOKEN}"), &[], BODY),
        post("/hooks/", &[], BODY),
        post("/hooks/PROD", &[(HEADER, &elsewhere)], BODY),
        post("/hooks/..", &[], BODY),
    ] {
        let answer = check(&running, &request, 401);
        assert_eq!(answer, first, "{}", String::from_utf8_lossy(&request));
    }
    assert_eq!(running.metric("hookbus_spool_durable_end"), Some(0.0), "none of it was stored");
}

#[test]
fn every_other_path_is_not_found_and_every_other_method_not_allowed() {
    let running = Running::start();
    for path in ["/", "/hooks", "/hook/prod", "/livez", "/metrics", "//hooks/prod", "/Hooks/prod"] {
        check(&running, &post(path, &[(HEADER, &signature(NEW, BODY))], BODY), 404);
    }
    for method in ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"] {
        for path in ["/hooks/prod", "/hooks/nobody"] {
            let request = format!("{method} {path} HTTP/1.1\r\nHost: a\r\n\r\n");
            let answer = check(&running, request.as_bytes(), 405);
            assert_eq!(answer.header("allow"), Some("POST"), "{method}");
        }
    }
}

#[test]
fn a_body_over_the_cap_is_refused_before_it_is_read_and_one_at_the_cap_is_taken() {
    let running = Running::start();
    check(&running, &with_token(&vec![b'x'; MAX_BODY]), 202);
    check(&running, &with_token(&vec![b'x'; MAX_BODY + 1]), 413);
    // Announced alone is enough: nothing of the body has to be sent.
    let mut client = running.connect();
    let head = format!("POST /hooks/c66/{TOKEN} HTTP/1.1\r\nHost: a\r\nContent-Length: 999999999999\r\n\r\n");
    let answer = client.ask(head.as_bytes());
    check_form(&answer, 413);
    client.closed();
}

#[test]
fn a_chunked_body_is_taken_up_to_the_cap() {
    let running = Running::start();
    let path = format!("/hooks/c66/{TOKEN}");
    let half = vec![b'y'; MAX_BODY / 2];
    check(&running, &chunked(&path, &[], &[&half, &half]), 202);
    check(&running, &chunked(&path, &[], &[&half, &half, b"1"]), 413);
    // The signature covers the body, not its chunks.
    let (one, other) = BODY.split_at(10);
    check(&running, &chunked("/hooks/prod", &[(HEADER, &signature(NEW, BODY))], &[one, other]), 202);
    let mut broken = chunked(&path, &[], &[b"abc"]);
    let at = broken.windows(2).position(|pair| pair == b"3\r").unwrap();
    broken[at] = b'z';
    check(&running, &broken, 400);
}

#[test]
fn an_encoded_body_is_refused() {
    let running = Running::start();
    for encoding in ["gzip", "br", "deflate, gzip", "GZIP"] {
        let headers = [(HEADER, &*signature(NEW, BODY)), ("Content-Encoding", encoding)];
        check(&running, &post("/hooks/prod", &headers, BODY), 415);
    }
    let headers = [(HEADER, &*signature(NEW, BODY)), ("Content-Encoding", "identity")];
    check(&running, &post("/hooks/prod", &headers, BODY), 202);
}

#[test]
fn a_request_with_two_lengths_smuggles_nothing() {
    let running = Running::start();
    let path = format!("/hooks/c66/{TOKEN}");
    // A proxy that goes by the length passes all of it as one request; whatever is behind the last
    // chunk must not become a request of its own. hyper goes by the chunks and ends the connection,
    // which RFC 9112 allows beside refusing.
    let mut both = chunked(&path, &[("Content-Length", "400")], &[b"abc"]);
    both.extend(with_token(b"smuggled"));
    let mut client = running.connect();
    let answer = client.ask(&both);
    assert_eq!(answer.header("connection"), Some("close"), "{answer:?}");
    client.closed();
    assert!(matches!(answer.status, 202 | 400), "{answer:?}");
    let stored = if answer.status == 202 { 1.0 } else { 0.0 };
    let differing = post(&path, &[("Content-Length", "2")], b"abc");
    let mut client = running.connect();
    assert_eq!(client.ask(&differing).status, 400);
    client.closed();
    assert_eq!(running.metric("hookbus_spool_durable_end"), Some(stored));
}

#[test]
fn a_verified_body_is_never_refused_for_its_content() {
    let running = Running::start();
    let bodies: [&[u8]; 7] =
        [b"", b"{", b"[1,2]", b"null", b"\xff\xfe\0", b"not json", br#"{"type":"$JS.API.>"}"#];
    for body in bodies {
        check(&running, &signed(body), 202);
        check(&running, &with_token(body), 202);
    }
    let expected = 2.0 * f64::from(u32::try_from(bodies.len()).unwrap());
    assert_eq!(running.metric("hookbus_spool_durable_end"), Some(expected));
    let types = ["text/plain", "application/json; charset=utf-8", "application/x-www-form-urlencoded"];
    for content_type in types {
        let headers = [(HEADER, &*signature(NEW, BODY)), ("Content-Type", content_type)];
        check(&running, &post("/hooks/prod", &headers, BODY), 202);
    }
}

#[test]
fn repeats_are_answered_the_same_and_stored_once() {
    let running = Running::start();
    for _ in 0..3 {
        check(&running, &signed(BODY), 202);
    }
    // CDHosting's repeat is the id, whatever else has changed.
    check(&running, &signed(br#"{"id":"evt_1","type":"server.started","attempt":2}"#), 202);
    check(&running, &signed(br#"{"id":"evt_2","type":"server.started"}"#), 202);
    let count = |name: &str, source: &str| {
        running.metric(&format!("hookbus_deliveries_{name}_total{{source=\"{source}\"}}"))
    };
    assert_eq!(count("accepted", "prod"), Some(2.0));
    assert_eq!(count("repeated", "prod"), Some(3.0));
    assert_eq!(running.metric("hookbus_spool_durable_end"), Some(2.0));
    // Cloud 66 sends no id: equal bodies are one event, of each source its own.
    for _ in 0..2 {
        check(&running, &with_token(BODY), 202);
        check(&running, &post(&format!("/hooks/fast/{TOKEN}"), &[], BODY), 204);
    }
    assert_eq!((count("accepted", "c66"), count("repeated", "c66")), (Some(1.0), Some(1.0)));
    assert_eq!((count("accepted", "fast"), count("repeated", "fast")), (Some(1.0), Some(1.0)));
}

#[test]
fn requests_in_one_packet_are_answered_in_their_order() {
    let running = Running::start();
    let mut client = running.connect();
    let wrong = post("/hooks/c66/wrong-token-0123456789-wrong", &[], b"2");
    client.send(&[with_token(b"1"), wrong, with_token(b"3"), post("/elsewhere", &[], b"")].concat());
    let statuses: Vec<u16> = (0..4).map(|_| client.answer().status).collect();
    assert_eq!(statuses, [202, 401, 202, 404]);
    assert_eq!(client.ask(&with_token(b"5")).status, 202, "the connection goes on");
    assert_eq!(running.metric("hookbus_spool_durable_end"), Some(3.0));
}

#[test]
fn a_client_that_hangs_up_after_sending_has_delivered() {
    let running = Running::start();
    for round in 1..=20 {
        let mut client = running.connect();
        client.send(&with_token(format!("body {round}").as_bytes()));
        if round % 2 == 0 {
            client.stream.get_ref().shutdown(Shutdown::Both).unwrap();
        }
        drop(client);
        wait_for("the delivery is durable", || {
            (running.metric("hookbus_spool_durable_end") == Some(f64::from(round))).then_some(())
        });
    }
}

/// Closed by the server: not before the deadline, and not long after it.
#[track_caller]
fn check_deadline(took: Duration) {
    assert!(took >= SHORT - Duration::from_millis(50), "closed too soon: {took:?}");
    assert!(took < SHORT + Duration::from_secs(5), "closed too late: {took:?}");
}

#[test]
fn a_connection_that_says_nothing_is_closed() {
    let running = Running::hasty();
    let begun = Instant::now();
    running.connect().closed();
    check_deadline(begun.elapsed());
}

#[test]
fn a_head_that_dribbles_in_is_cut_off() {
    let running = Running::hasty();
    let begun = Instant::now();
    let mut client = running.connect();
    let mut head = b"POST /hooks/prod HTTP/1.1\r\n".iter().chain(b"x-slow: 1\r\n".iter().cycle());
    // A byte every 20 ms would last for ever; the deadline counts from the first of them.
    while client.silent_for(Duration::from_millis(20)) {
        assert!(begun.elapsed() < PATIENCE, "never cut off");
        let next = [*head.next().unwrap()];
        if client.stream.get_mut().write_all(&next).is_err() {
            break;
        }
    }
    check_deadline(begun.elapsed());
}

#[test]
fn a_body_that_does_not_come_is_not_waited_for() {
    let running = Running::hasty();
    let mut client = running.connect();
    let begun = Instant::now();
    let head = format!("POST /hooks/c66/{TOKEN} HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nonly this");
    let answer = client.ask(head.as_bytes());
    check_deadline(begun.elapsed());
    check_form(&answer, 408);
    client.closed();
    assert_eq!(running.metric("hookbus_spool_durable_end"), Some(0.0));
}

#[test]
fn an_idle_connection_is_closed() {
    let running = Running::hasty();
    let mut client = running.connect();
    assert_eq!(client.ask(&with_token(BODY)).status, 202);
    check_deadline(client.closed());
}

#[test]
fn a_connection_may_be_idle_for_longer_than_a_head_may_take() {
    let running = Running::with(&json!({ "header_timeout": "300ms", "idle_timeout": "3s" }), &json!({}));
    let mut client = running.connect();
    for round in 0..2 {
        assert_eq!(client.ask(&with_token(&[round])).status, 202);
        assert!(client.silent_for(2 * SHORT), "closed while idle, round {round}");
    }
    // What holds of the first head holds of every other.
    client.send(b"POST /hooks/prod HTTP/1.1\r\n");
    check_deadline(client.closed());
}

#[test]
fn over_the_cap_a_connection_waits_until_another_ends() {
    let running = Running::with(&json!({ "max_connections": 2 }), &json!({}));
    let (mut one, mut two) = (running.connect(), running.connect());
    assert_eq!(one.ask(&with_token(b"1")).status, 202);
    assert_eq!(two.ask(&with_token(b"2")).status, 202);
    let mut three = running.connect();
    three.send(&with_token(b"3"));
    assert!(three.silent_for(Duration::from_millis(200)), "a third connection is served");
    assert_eq!(two.ask(&with_token(b"4")).status, 202, "those there go on");
    drop(one);
    assert_eq!(three.answer().status, 202);
}

#[test]
fn a_full_spool_says_so_and_keeps_what_it_has() {
    let running = Running::with(
        &json!({ "max_body": "512KiB" }),
        &json!({ "max_bytes": "4MiB", "segment_bytes": "64KiB" }),
    );
    let mut client = running.connect();
    let mut accepted = 0_u32;
    let refused = loop {
        assert!(accepted < 20, "more fits than there is room for");
        let mut body = vec![b'z'; 400 * 1024];
        body.extend(accepted.to_string().bytes());
        let answer = client.ask(&with_token(&body));
        if answer.status != 202 {
            break answer;
        }
        accepted += 1;
    };
    check_form(&refused, 503);
    assert!(refused.header("retry-after").unwrap().parse::<u32>().unwrap() > 0);
    assert!(accepted >= 5, "{accepted} fitted");
    assert_eq!(running.metric("hookbus_spool_durable_end"), Some(f64::from(accepted)));
    let refusals = "hookbus_deliveries_refused_total{source=\"c66\",reason=\"spool_full\"}";
    assert_eq!(running.metric(refusals), Some(1.0));
    let ready = running.admin("/readyz");
    assert_eq!(ready.status, 503);
    let facts: Value = serde_json::from_slice(&ready.body).unwrap();
    assert_eq!(facts["accepting"], false);
    assert_eq!(running.admin("/livez").status, 200, "full is no reason to be restarted");
}

#[test]
fn readiness_keeps_accepting_and_publishing_apart() {
    let running = Running::start();
    let facts = || {
        let answer = running.admin("/readyz");
        assert_eq!(answer.status, 200, "a broker that is down does not take the bridge out of service");
        assert_eq!(answer.header("content-type"), Some("application/json"));
        serde_json::from_slice::<Value>(&answer.body).unwrap()
    };
    check(&running, &with_token(BODY), 202);
    let stalled = wait_for("it is seen that the broker is down", || {
        let facts = facts();
        (facts["publishing"] == false).then_some(facts)
    });
    let expected = json!({
        "accepting": true, "publishing": false, "sinks": [{ "name": "bus", "publishing": false }],
    });
    assert_eq!(stalled, expected);
}

#[test]
fn the_admin_listener_answers_its_three_paths_and_no_other() {
    let running = Running::start();
    let alive = running.admin("/livez");
    assert_eq!((alive.status, alive.body.as_slice()), (200, &b"ok\n"[..]));
    for path in ["/", "/hooks/prod", "/livez/", "/debug"] {
        assert_eq!(running.admin(path).status, 404, "{path}");
    }
}

#[test]
fn the_metrics_have_their_documented_names_and_no_label_from_a_request() {
    let running = Running::start();
    check(&running, &with_token(BODY), 202);
    check(&running, &post("/hooks/attacker-chosen", &[], BODY), 401);
    check(&running, &post("/hooks/prod", &[], BODY), 401);
    let answer = running.admin("/metrics");
    let kind = answer.header("content-type").unwrap();
    assert!(kind.starts_with("application/openmetrics-text; version=1.0.0"), "{kind}");
    let text = String::from_utf8(answer.body).unwrap();
    for name in [
        "hookbus_deliveries_accepted_total{source=\"c66\"} 1",
        "hookbus_deliveries_repeated_total{source=\"c66\"} 0",
        "hookbus_deliveries_refused_total{source=\"unknown\",reason=\"unknown_source\"} 1",
        "hookbus_deliveries_refused_total{source=\"prod\",reason=\"signature_missing\"} 1",
        "hookbus_accepting 1",
        "hookbus_spool_bytes ",
        "hookbus_spool_max_bytes 67108864",
        "hookbus_spool_segments 1",
        "hookbus_spool_durable_end 1",
        "hookbus_spool_syncs ",
        "hookbus_spool_tail_truncated_bytes 0",
        "hookbus_spool_lost_records 0",
        "hookbus_spool_remembered_ids 1",
        "hookbus_sink_published_total{sink=\"bus\"} 0",
        "hookbus_sink_retries_total{sink=\"bus\"} ",
        "hookbus_sink_dead_letters_total{sink=\"bus\"} 0",
        "hookbus_sink_backlog_records{sink=\"bus\"} 1",
        "hookbus_sink_in_flight{sink=\"bus\"} ",
        "hookbus_sink_oldest_undelivered_seconds{sink=\"bus\"} ",
        "hookbus_sink_publishing{sink=\"bus\"} ",
        "hookbus_sink_publish_latency_seconds_bucket{le=",
    ] {
        assert!(text.lines().any(|line| line.starts_with(name)), "no line `{name}` in\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
    assert!(!text.contains("attacker"));
}

#[test]
fn it_speaks_nothing_but_http_1() {
    let running = Running::start();
    let mut client = running.connect();
    client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    let mut answer = Vec::new();
    drop(client.stream.read_to_end(&mut answer));
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 "), "{answer:?}");
    let mut head = b"GET /hooks/prod HTTP/1.1\r\nHost: a\r\nx: ".to_vec();
    head.resize(64 * 1024, b'a');
    head.extend(b"\r\n\r\n");
    let mut client = running.connect();
    drop(client.stream.get_mut().write_all(&head));
    let mut answer = Vec::new();
    drop(client.stream.read_to_end(&mut answer));
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&answer));
}

#[test]
fn what_waits_at_the_stop_is_answered_and_nothing_is_taken_after_it() {
    let mut running = Running::start();
    let mut open = running.connect();
    assert_eq!(open.ask(&with_token(b"before")).status, 202);
    running.stop.take().unwrap().send(()).unwrap();
    open.closed();
    running.thread.take().unwrap().join().unwrap().expect("an orderly end");
    let refused = TcpStream::connect(running.addresses.http);
    assert_eq!(refused.expect_err("nobody listens").kind(), ErrorKind::ConnectionRefused);
}
