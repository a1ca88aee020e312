//! The API as foreign clients use it: curl, bare sockets and a fuzzer.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{BOUND, end, eventually, eventually_or, free_port, installed, skip};
use crate::machine::Machine;

const CURL: &str = "/usr/bin/curl";

/// A daemon with a network API.
struct Api {
    machine: Machine,
    port: u16,
}

/// An answer that curl received.
struct Got {
    status: u16,
    head: String,
    body: String,
}

impl Got {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }
}

const TWO: &str = "[service.web]\ncommand = \"sleep 1000\"\n[service.db]\ncommand = \"sleep 1000\"\n";

impl Api {
    fn started(manifest: &str, config: &str) -> Api {
        let mut machine = Machine::new(&[("shop.toml", manifest)]);
        let port = free_port();
        let text = format!("manifests = \"services\"\n[api]\nlisten = \"127.0.0.1:{port}\"\n{config}");
        machine.project.write("daemon.toml", text);
        machine.start();
        eventually("the API listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        Api { machine, port }
    }

    fn token(&self, name: &str, allow: &[&str]) -> String {
        let mut words = vec!["token", "create", name, "--config", "daemon.toml"];
        words.extend(allow.iter().flat_map(|permission| ["--allow", permission]));
        let made = self.machine.regrow(&words);
        assert_eq!(made.code, 0, "{}", made.stderr);
        made.stdout.trim().to_owned()
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// Makes a request with curl, with these further arguments.
    fn curl(&self, token: &str, path: &str, words: &[&str]) -> Got {
        let mut all = vec!["-H".to_owned(), format!("Authorization: Bearer {token}")];
        all.extend(words.iter().map(|word| (*word).to_owned()));
        all.push(self.url(path));
        curl(&all)
    }

    fn command(&self, token: &str, json: &str, words: &[&str]) -> Got {
        let mut all = vec!["-X", "POST", "-H", "Content-Type: application/json", "-d", json];
        all.extend(words);
        self.curl(token, "/v1/command", &all)
    }
}

fn curl(words: &[String]) -> Got {
    let output = Command::new(CURL)
        .args(["-sS", "--max-time", "30", "-i"])
        .args(words)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // An interim answer (100 Continue) comes first.
    let text = text.strip_prefix("HTTP/1.1 100 Continue\r\n\r\n").unwrap_or(&text);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status =
        status.unwrap_or_else(|| panic!("{words:?}: {text}{}", String::from_utf8_lossy(&output.stderr)));
    Got { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
}

fn rss_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn s6_only_a_token_opens_and_only_what_it_allows() {
    const TEST: &str = "s6_only_a_token_opens_and_only_what_it_allows";
    if !installed(TEST, Path::new(CURL)) {
        return;
    }
    let api = Api::started(TWO, "");
    let ci = api.token("ci", &["read:web", "restart:w*"]);
    let ops = api.token("ops", &["*:*"]);
    for (what, token) in [("none", ""), ("another", "regrow_00"), ("part of one", &ci[..40])] {
        let got = api.curl(token, "/v1/status", &[]);
        assert_eq!((got.status, got.code().as_str()), (401, "unauthorized"), "{what}");
        assert!(got.head.contains("www-authenticate: bearer"), "{}", got.head);
    }
    // A client without a token learns nothing, not even which paths exist.
    assert_eq!(curl(&[api.url("/v1/nothing")]).status, 401);

    let seen = |token: &str| -> Vec<String> {
        let rows = api.curl(token, "/v1/status", &[]).json()["services"].clone();
        rows.as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(seen(&ci), ["web"]);
    assert_eq!(seen(&ops), ["web", "db"]);
    for (path, status) in [
        ("/v1/status?service=web", 200),
        ("/v1/status?service=db", 403),
        // Whether a service exists is not told either.
        ("/v1/status?service=nobody", 403),
        ("/v1/history?service=web", 200),
        ("/v1/history?service=db", 403),
        ("/v1/why?service=db", 403),
        ("/v1/logs?service=web", 403),
        ("/v1/events?service=db", 403),
        ("/v1/tree", 403),
        ("/v1/audit", 403),
        ("/v1/manifests/shop", 403),
        ("/v1/openapi.json", 200),
        ("/v1/nothing", 404),
    ] {
        assert_eq!(api.curl(&ci, path, &[]).status, status, "{path}");
    }
    let events = api.curl(&ci, "/v1/events", &[]).json();
    let events = events["events"].as_array().unwrap();
    assert!(!events.is_empty() && events.iter().all(|event| event["instance"] == "shop/web"), "{events:?}");
    assert_eq!(api.curl(&ci, "/v1/manifests", &[]).json()["manifests"], serde_json::json!([]));

    let before = api.machine.all_pids();
    for (json, status) in [
        (r#"{"verb":"restart","services":["web"]}"#, 200),
        (r#"{"verb":"restart","services":["db"]}"#, 403),
        (r#"{"verb":"restart","all":true}"#, 403),
        (r#"{"verb":"stop","services":["web"]}"#, 403),
        (r#"{"verb":"remove","services":["web"]}"#, 403),
        (r#"{"verb":"restart"}"#, 400),
        (r#"{"verb":"dance"}"#, 400),
        ("not json", 400),
    ] {
        assert_eq!(api.command(&ci, json, &[]).status, status, "{json}");
    }
    for path in ["/v1/down", "/v1/reload"] {
        assert_eq!(api.curl(&ci, path, &["-X", "POST"]).status, 403, "{path}");
    }
    let add = r#"{"manifest":"[service.x]\ncommand=\"id\"\n","file":"/tmp/x.toml"}"#;
    let json = ["-X", "POST", "-H", "Content-Type: application/json", "-d"];
    assert_eq!(api.curl(&ci, "/v1/add", &[&json[..], &[add]].concat()).status, 403);
    let after = api.machine.all_pids();
    assert_ne!(before["web"], after["web"]);
    assert_eq!(before["db"], after["db"]);
    let events = api.machine.regrow(&["events"]).stdout;
    assert!(events.contains("restart shop/web accepted (token:ci)"), "{events}");

    // The audit trail: what each requester did, and what was refused.
    let trail = api.curl(&ops, "/v1/audit", &[]).json();
    let trail: Vec<(String, String, bool)> = trail["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| {
            let text = |key: &str| entry[key].as_str().unwrap().to_owned();
            (text("who"), format!("{}:{}", text("action"), text("resource")), entry["allowed"] == true)
        })
        .collect();
    for (who, what, allowed) in [
        ("address:127.0.0.1", "enter:api", false),
        ("token:ci", "restart:web", true),
        ("token:ci", "restart:db", false),
        ("token:ci", "stop:web", false),
        ("token:ci", "down:daemon", false),
        ("token:ci", "manifest:shop", false),
        ("token:ci", "add:root", false),
    ] {
        let entry = (who.to_owned(), what.to_owned(), allowed);
        assert!(trail.contains(&entry), "{entry:?} in {trail:?}");
    }
    let shown = api.machine.regrow(&["audit", "-n", "1000"]).stdout;
    assert!(shown.contains("restart:db") && shown.contains("no: not granted"), "{shown}");

    // The stream of a follower ends when its token is revoked.
    let mut follower = Command::new(CURL)
        .args(["-sSN", "-H", &format!("Authorization: Bearer {ci}"), &api.url("/v1/events?follow=true")])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0u8; 6];
    let mut output = follower.stdout.take().unwrap();
    output.read_exact(&mut first).unwrap();
    assert_eq!(api.machine.regrow(&["token", "revoke", "ci", "--config", "daemon.toml"]).code, 0);
    assert_eq!(api.curl(&ci, "/v1/status", &[]).status, 401);
    output.read_to_end(&mut Vec::new()).unwrap();
    follower.wait().unwrap();
    assert_eq!(api.machine.regrow(&["token", "revoke", "ci", "--config", "daemon.toml"]).code, 1);

    // The tokens themselves are in no file.
    let mut files = vec![api.machine.project.state_dir()];
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if let Ok(bytes) = std::fs::read(&path) {
            for token in [&ci, &ops] {
                let secret = &token.as_bytes()[7..];
                assert!(!bytes.windows(secret.len()).any(|window| window == secret), "{}", path.display());
            }
        }
    }
}

#[test]
fn s6_other_hosts_and_other_pages_are_refused() {
    const TEST: &str = "s6_other_hosts_and_other_pages_are_refused";
    if !installed(TEST, Path::new(CURL)) {
        return;
    }
    let api = Api::started(TWO, "hosts = [\"regrow.example\"]\n");
    let token = api.token("t", &["read:*"]);
    let own = format!("Origin: http://127.0.0.1:{}", api.port);
    for (header, status, code) in [
        ("Host: evil.example", 421, "misdirected"),
        ("Host: 127.0.0.1.evil.example", 421, "misdirected"),
        ("Host:", 421, "misdirected"),
        ("Host: regrow.example", 200, ""),
        ("Host: localhost:1", 200, ""),
        ("Origin: http://evil.example", 403, "forbidden"),
        ("Origin: null", 403, "forbidden"),
        (own.as_str(), 200, ""),
    ] {
        let got = api.curl(&token, "/v1/status", &["-H", header]);
        assert_eq!((got.status, got.code().as_str()), (status, code), "{header}");
    }
}

#[test]
fn s6_large_bodies_and_slow_clients_are_cut_and_rates_are_kept() {
    const TEST: &str = "s6_large_bodies_and_slow_clients_are_cut_and_rates_are_kept";
    if !installed(TEST, Path::new(CURL)) {
        return;
    }
    let api = Api::started(TWO, "max_body = \"64KiB\"\ntimeout = \"1s\"\nrequests = 20\nconnections = 16\n");
    let token = api.token("t", &["*:*"]);
    let (daemon, _) = api.machine.pids();
    let before = rss_kib(daemon);
    // A body of one gigabyte, with and without an announced length.
    for words in [
        &["-X", "PUT", "-T", "-", "-H", "Content-Length: 1073741824"][..],
        &["-X", "PUT", "-T", "-", "-H", "Transfer-Encoding: chunked"][..],
    ] {
        let mut child = Command::new(CURL)
            .args(["-sS", "--max-time", "30", "-i", "-H", &format!("Authorization: Bearer {token}")])
            .args(["-H", "Content-Type: application/json", "-H", "Expect:"])
            .args(words)
            .arg(api.url("/v1/manifests/big"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        let sending = std::thread::spawn(move || {
            let block = vec![b'a'; 1 << 20];
            (0..1024).take_while(|_| input.write_all(&block).is_ok()).count()
        });
        let output = child.wait_with_output().unwrap();
        let answer = String::from_utf8_lossy(&output.stdout);
        assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("too_large"), "{answer}");
        assert!(sending.join().unwrap() < 1024, "it was not read to its end");
    }
    let grown = rss_kib(daemon).saturating_sub(before);
    assert!(grown < 16 << 10, "{grown} KiB more");

    // Heads and bodies that never come, and answers that the client never reads.
    let head = format!("GET /v1/status HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n");
    let body = format!(
        "POST /v1/command HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\
         Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{"
    );
    for (what, text) in [("nothing", ""), ("half a head", &head[..]), ("half a body", &body[..])] {
        let mut slow = TcpStream::connect(("127.0.0.1", api.port)).unwrap();
        slow.write_all(text.as_bytes()).unwrap();
        slow.set_read_timeout(Some(BOUND)).unwrap();
        let mut answer = Vec::new();
        slow.read_to_end(&mut answer).unwrap_or_else(|error| panic!("{what}: {error}"));
    }
    drop(many_connections(&api));
    eventually("there are places again", || {
        let mut probe = TcpStream::connect(("127.0.0.1", api.port)).unwrap();
        let request = format!("{head}Connection: close\r\n\r\n");
        let mut answer = String::new();
        probe.write_all(request.as_bytes()).is_ok()
            && probe.read_to_string(&mut answer).is_ok()
            && answer.starts_with("HTTP/1.1 200")
    });

    // Twenty requests per second, and forty at once.
    let request = format!("{head}\r\n");
    let mut busy = TcpStream::connect(("127.0.0.1", api.port)).unwrap();
    busy.set_read_timeout(Some(BOUND)).unwrap();
    let mut refused = false;
    for _ in 0..200 {
        busy.write_all(request.as_bytes()).unwrap();
        let answer = read_answer(&mut busy);
        refused |= answer.starts_with("HTTP/1.1 429") && answer.contains("too_many_requests");
        if refused {
            break;
        }
    }
    assert!(refused, "200 requests at once");
    eventually("the rate allows it again", || api.curl(&token, "/v1/status", &[]).status == 200);
    assert_eq!(api.machine.pids().0, daemon);
}

/// Opens more connections than the daemon allows one address.
fn many_connections(api: &Api) -> Vec<TcpStream> {
    let many: Vec<TcpStream> =
        (0..40).map(|_| TcpStream::connect(("127.0.0.1", api.port)).unwrap()).collect();
    let status = api.machine.regrow(&["status"]);
    assert_eq!(status.code, 0, "the control socket has seats of its own: {}", status.stderr);
    many
}

/// One address takes only a part of the connections; any beyond that is closed at once.
#[test]
fn s6_one_address_leaves_room_for_others() {
    let api = Api::started(TWO, "connections = 16\ntimeout = \"1h\"\n");
    // An earlier connection may still hold its place for a moment.
    eventually("four are listened to", || {
        let held = many_connections(&api).into_iter().filter_map(|mut connection| {
            connection.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
            let is_gone = matches!(connection.read(&mut [0]), Ok(0));
            (!is_gone).then_some(connection)
        });
        let held: Vec<TcpStream> = held.collect();
        assert!(held.len() <= 4, "{}", held.len());
        held.len() == 4
    });
}

/// A command goes on when its client hangs up, with a key or without.
#[test]
fn a_reload_is_not_cut_in_half_by_its_client() {
    let of = |kind: &str| {
        format!(
            "[service.slow]\nshell = \"trap '' TERM; while :; do sleep 0.1; done\"\nstop = {{ timeout = \"1s\" }}\n{kind}"
        )
    };
    let api = Api::started(&of(""), "");
    let token = api.token("t", &["*:*"]);
    assert_eq!(api.machine.regrow(&["wait", "slow", "--timeout", "20s"]).code, 0);
    api.machine.project.write("services/shop.toml", of("kind = \"task\"\n"));
    let mut client = TcpStream::connect(("127.0.0.1", api.port)).unwrap();
    let request = format!(
        "POST /v1/reload HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nContent-Length: 0\r\n\r\n"
    );
    client.write_all(request.as_bytes()).unwrap();
    eventually("it is being stopped", || api.machine.project.status("slow")["state"] == "stopping");
    drop(client);
    eventually("it is taken out", || api.machine.regrow(&["events"]).stdout.contains("removed: shop/slow"));
    eventually("and put back", || {
        let report = api.machine.project.json(&["status", "--json"]);
        let rows = report["services"].as_array().unwrap();
        rows.iter().any(|row| row["name"] == "slow" && row["state"] == "running")
    });
}

/// A grant for one action does not extend to actions that go with it.
#[test]
fn s6_a_grant_reaches_no_further_than_it_says() {
    const TEST: &str = "s6_a_grant_reaches_no_further_than_it_says";
    if !installed(TEST, Path::new(CURL)) {
        return;
    }
    let manifest = "[service.db]\ncommand = \"sleep 1000\"\n\
                    [service.api]\ncommand = \"sleep 1000\"\ndepends_on = [\"db\"]\n\
                    [service.web]\ncommand = \"sleep 1000\"\nreplicas = 2\n";
    let api = Api::started(manifest, "");
    assert_eq!(api.machine.regrow(&["wait", "api", "web", "--timeout", "20s"]).code, 0);
    let one = api.token("one", &["start:api", "stop:api", "remove:web.1", "stop:web.1"]);
    let both = api.token("both", &["start:*"]);
    let verb = |verb: &str, name: &str| format!("{{\"verb\":\"{verb}\",\"services\":[\"{name}\"]}}");
    assert_eq!(api.command(&one, &verb("remove", "web.1"), &[]).status, 403);
    assert_eq!(api.command(&one, &verb("remove", "web"), &[]).status, 403);
    assert_eq!(api.command(&one, &verb("stop", "web"), &[]).status, 403);
    assert_eq!(api.command(&one, &verb("stop", "web.1"), &[]).status, 200);
    assert_eq!(api.machine.regrow(&["stop", "api", "db"]).code, 0);
    let denied = api.command(&one, &verb("start", "api"), &[]);
    assert_eq!((denied.status, denied.code().as_str()), (409, "dependency_down"), "{}", denied.body);
    assert_eq!(api.machine.project.status("db")["state"], "stopped");
    let started = api.command(&both, &verb("start", "api"), &[]);
    assert_eq!(started.status, 200, "{}", started.body);
    assert_eq!(api.machine.project.status("db")["state"], "running");
    // Control characters in a name do not reach a terminal.
    let odd = api.command(&one, &verb("stop", "x\\u001b[2Jy"), &[]);
    assert_eq!(odd.status, 403, "{}", odd.body);
    let shown = api.machine.regrow(&["audit"]).stdout;
    assert!(shown.contains("stop:x\\u{1b}[2Jy") && !shown.contains('\u{1b}'), "{shown:?}");
}

/// Reads one answer that has a Content-Length.
fn read_answer(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let mut byte = [0u8; 1];
    while !bytes.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        bytes.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
    let length =
        head.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next()?.parse().ok());
    let mut body = vec![0u8; length.unwrap()];
    stream.read_exact(&mut body).unwrap();
    bytes.extend(body);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A certificate for localhost, in two files.
fn certificate(folder: &Path, name: &str) -> (PathBuf, PathBuf) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (certificate, key) = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    (certificate, key)
}

#[test]
fn tls_is_spoken_with_the_certificate_of_the_day() {
    const TEST: &str = "tls_is_spoken_with_the_certificate_of_the_day";
    if !installed(TEST, Path::new(CURL)) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (own, own_key) = certificate(folder.path(), "own");
    let (next, next_key) = certificate(folder.path(), "next");
    let (used, used_key) = (folder.path().join("used.pem"), folder.path().join("used.key"));
    std::fs::copy(&own, &used).unwrap();
    std::fs::copy(&own_key, &used_key).unwrap();
    let config = format!(
        "[api.tls]\ncertificate = {:?}\nkey = {:?}\n",
        used.display().to_string(),
        used_key.display().to_string()
    );
    let api = Api::started(TWO, &config);
    let token = api.token("t", &["read:*"]);
    let with = |trusted: &Path| {
        let output = Command::new(CURL)
            .args(["-sS", "--max-time", "30", "--cacert", &trusted.display().to_string()])
            .args(["-H", &format!("Authorization: Bearer {token}")])
            .arg(format!("https://localhost:{}/v1/status", api.port))
            .output()
            .unwrap();
        output.status.success() && String::from_utf8_lossy(&output.stdout).contains("\"web\"")
    };
    assert!(with(&own) && !with(&next));
    // A client without TLS gets no answer.
    let plain =
        Command::new(CURL).args(["-sS", "--max-time", "30", &api.url("/v1/status")]).output().unwrap();
    assert!(!plain.status.success());
    // A certificate that can't be used changes nothing; one that can be used is taken.
    std::fs::write(&used_key, "no key").unwrap();
    assert!(with(&own));
    std::fs::copy(&next_key, &used_key).unwrap();
    std::fs::copy(&next, &used).unwrap();
    assert!(with(&next) && !with(&own));
}

#[test]
fn a_command_is_done_once_per_key_though_the_daemon_dies() {
    const TEST: &str = "a_command_is_done_once_per_key_though_the_daemon_dies";
    if !installed(TEST, Path::new(CURL)) {
        return;
    }
    let slow = "[service.slow]\nshell = \"sleep 1000\"\nready = { after = \"2s\" }\n";
    let api = Api::started(&format!("{TWO}{slow}"), "");
    let token = api.token("t", &["*:*"]);
    let restart = r#"{"verb":"restart","services":["web"]}"#;
    let key = ["-H", "Idempotency-Key: one"];
    let first = api.command(&token, restart, &key);
    let pids = api.machine.all_pids();
    assert_eq!(first.status, 200);
    let again = api.command(&token, restart, &key);
    assert_eq!((again.status, &again.body), (200, &first.body));
    assert!(again.head.contains("idempotent-replayed: true"), "{}", again.head);
    assert_eq!(api.machine.all_pids(), pids);
    let other = api.command(&token, r#"{"verb":"restart","services":["db"]}"#, &key);
    assert_eq!((other.status, other.code().as_str()), (422, "key_reused"));
    // The same key of another token is another key.
    let second = api.token("u", &["*:*"]);
    assert_eq!(api.command(&second, restart, &key).status, 200);
    assert_ne!(api.machine.all_pids(), pids);
    for bad in ["Idempotency-Key;", "Idempotency-Key: a b", &format!("Idempotency-Key: {}", "x".repeat(300))]
    {
        assert_eq!(api.command(&token, restart, &["-H", bad]).status, 400, "{bad}");
    }

    // The next daemon answers as the last one did.
    let pids = api.machine.all_pids();
    api.machine.kill_daemon();
    eventually("the API listens again", || TcpStream::connect(("127.0.0.1", api.port)).is_ok());
    let again = api.command(&token, restart, &key);
    assert_eq!((again.status, &again.body), (200, &first.body));
    assert_eq!(api.machine.all_pids(), pids);

    // A command that was cut off half way is continued, not begun again.
    let before = api.machine.project.status("slow")["incarnation"].as_u64().unwrap();
    let restart = r#"{"verb":"restart","services":["slow"]}"#;
    let mut cut = Command::new(CURL)
        .args(["-sS", "-X", "POST", "-H", "Content-Type: application/json", "-H", "Idempotency-Key: two"])
        .args(["-H", &format!("Authorization: Bearer {token}"), "-d", restart])
        .arg(api.url("/v1/command"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("it is under way", || {
        api.machine.project.status("slow")["incarnation"].as_u64() == Some(before + 1)
    });
    api.machine.kill_daemon();
    cut.wait().unwrap();
    eventually("the API listens again", || TcpStream::connect(("127.0.0.1", api.port)).is_ok());
    let answer = api.command(&token, restart, &["-H", "Idempotency-Key: two"]);
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.json()["ok"], true, "{}", answer.body);
    let row = api.machine.project.status("slow");
    assert_eq!((row["incarnation"].as_u64(), &row["ready"]), (Some(before + 1), &true.into()), "{row}");
}

/// Commands of the command line outlive a daemon, too.
#[test]
fn a_typed_command_is_answered_though_the_daemon_is_killed() {
    let machine = Machine::started(&[(
        "a.toml",
        "[service.slow]\nshell = \"sleep 1000\"\nready = { after = \"2s\" }\n",
    )]);
    assert_eq!(machine.regrow(&["wait", "slow", "--timeout", "20s"]).code, 0);
    let before = machine.project.status("slow")["incarnation"].as_u64().unwrap();
    let restart = machine.project.command(&["restart", "slow"]).stdout(Stdio::piped()).spawn().unwrap();
    eventually("it is under way", || {
        machine.project.status("slow")["incarnation"].as_u64() == Some(before + 1)
    });
    machine.kill_daemon();
    let output = restart.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("slow: "), "{said}");
    assert_eq!(machine.project.status("slow")["incarnation"].as_u64(), Some(before + 1));
}

#[test]
fn a_follower_of_events_goes_on_where_it_was() {
    const TEST: &str = "a_follower_of_events_goes_on_where_it_was";
    if !installed(TEST, Path::new(CURL)) {
        return;
    }
    let api = Api::started(TWO, "");
    let token = api.token("t", &["*:*"]);
    let mut typed = api.machine.project.start(&mut api.machine.project.command(&["events", "-f"]));
    typed.line("db: ready");
    let last = api.machine.project.json(&["status", "--json"])["daemon"]["last_event"].as_u64().unwrap();
    assert_eq!(api.machine.regrow(&["restart", "web"]).code, 0);
    api.machine.kill_daemon();
    eventually("the API listens again", || TcpStream::connect(("127.0.0.1", api.port)).is_ok());
    assert_eq!(api.machine.regrow(&["restart", "db"]).code, 0);
    // The follower shows all events of both daemons, in order and once.
    typed.line("took over 2 instances");
    typed.line("restart db accepted (user:");
    let mut follower = Command::new(CURL)
        .args(["-sSN", "--max-time", "30", "-H", &format!("Authorization: Bearer {token}")])
        .args(["-H", &format!("Last-Event-ID: {last}"), &api.url("/v1/events?follow=true")])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ids = Vec::new();
    let mut text = String::new();
    for line in std::io::BufRead::lines(std::io::BufReader::new(follower.stdout.take().unwrap())) {
        let line = line.unwrap();
        ids.extend(line.strip_prefix("id: ").map(|id| id.parse::<u64>().unwrap()));
        text.push_str(&line);
        let of_db = text.matches("\"instance\":\"db\"");
        if of_db.count() >= 4 && line.starts_with("id: ") && text.contains("taken_over") {
            break;
        }
    }
    end(follower.id());
    follower.wait().unwrap();
    let want: Vec<u64> = (last + 1..).take(ids.len()).collect();
    assert_eq!(ids, want);
    assert!(text.contains("\"verb\":\"restart\""), "{text}");
    let bad = api.curl(&token, "/v1/events?follow=true", &["-H", "Last-Event-ID: x"]);
    assert_eq!(bad.status, 400);
    // Events can be selected by state.
    let states = api.machine.project.json(&["events", "--state", "running", "--json"]);
    let states = states["events"].as_array().unwrap();
    assert_eq!(states.len(), 4, "{states:?}");
    assert!(states.iter().all(|event| event["event"] == "running"));
    end(typed.pid());
}

/// S1: the kernel is asked for the user of the other end before a byte is read.
#[test]
fn s1_another_user_is_refused_unless_configured_otherwise() {
    use std::os::unix::fs::PermissionsExt;
    const TEST: &str = "s1_another_user_is_refused_unless_configured_otherwise";
    if !nix::unistd::geteuid().is_root() || !Path::new("/usr/bin/setpriv").is_file() {
        return skip(TEST, "only root can become another user");
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let socket = folder.path().join("run/control.sock");
    let mut machine = Machine::new(&[("shop.toml", TWO)]);
    let config = |access: &str| format!("manifests = \"services\"\n[socket]\npath = {socket:?}\n{access}");
    let granted = "[[access]]\nuser = \"64913\"\npermissions = [\"read:web\", \"restart:web\"]\n\
                   [[access]]\ngroup = \"64914\"\npermissions = [\"read:*\"]\n";
    machine.project.write("daemon.toml", config(granted));
    machine.start();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&socket), mode(socket.parent().unwrap())), (0o666, 0o755));
    let by = |uid: u32, gid: u32, words: &[&str]| {
        let output = Command::new("setpriv")
            .args(["--reuid", &uid.to_string(), "--regid", &gid.to_string(), "--clear-groups"])
            .arg(env!("CARGO_BIN_EXE_regrow"))
            .args(words)
            .args(["--socket", &socket.display().to_string()])
            .current_dir("/")
            .env_remove("REGROW_SOCKET")
            .env("REGROW_STATE_DIR", "/nowhere")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        (output.status.code(), text.into_owned())
    };
    // Access by the number of the user, by the number of the group, and by neither.
    let (code, text) = by(64_913, 64_913, &["status"]);
    assert!(code == Some(0) && text.contains("web") && !text.contains("db"), "{text}");
    let (code, text) = by(64_915, 64_914, &["status"]);
    assert!(code == Some(0) && text.contains("web") && text.contains("db"), "{text}");
    for words in [&["status"][..], &["restart", "web"], &["events", "-f"]] {
        let (code, text) = by(64_916, 64_916, words);
        assert!(code == Some(4) && !text.contains("web: "), "{words:?}: {code:?} {text}");
        assert!(text.contains("may not use the control socket"), "{words:?}: {text}");
    }
    assert_eq!(by(64_913, 64_913, &["restart", "web"]).0, Some(0));
    let (code, text) = by(64_913, 64_913, &["restart", "db"]);
    assert!(code == Some(1) && text.contains("user:64913 may not restart:db"), "{text}");
    assert_eq!(by(64_915, 64_914, &["stop", "web"]).0, Some(1));
    assert_eq!(by(64_913, 64_913, &["down"]).0, Some(1));
    let trail = machine.regrow(&["audit"]).stdout;
    assert!(trail.contains("user:64913") && trail.contains("no: not granted"), "{trail}");
    machine.down();

    // Without an entry for others, only the owner may use the socket.
    machine.project.write("daemon.toml", config(""));
    std::fs::remove_dir_all(socket.parent().unwrap()).unwrap();
    machine.start();
    assert_eq!((mode(&socket), mode(socket.parent().unwrap())), (0o600, 0o700));
    assert_ne!(by(64_913, 64_913, &["status"]).0, Some(0));
    // That holds even where somebody has opened the socket by hand.
    std::fs::set_permissions(&socket, PermissionsExt::from_mode(0o666)).unwrap();
    std::fs::set_permissions(socket.parent().unwrap(), PermissionsExt::from_mode(0o755)).unwrap();
    let (code, text) = by(64_913, 64_913, &["status"]);
    assert!(code != Some(0) && !text.contains("web"), "{text}");
}

/// A fuzzer that reads the OpenAPI document: every answer is one that the document describes, none
/// is a server error, none hangs, and the daemon is unchanged afterwards.
#[test]
fn s6_a_fuzzer_finds_what_the_document_says() {
    const TEST: &str = "s6_a_fuzzer_finds_what_the_document_says";
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/bin/schemathesis");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&path).map(|folder| folder.join("schemathesis")).find(|path| path.is_file());
    let fuzzer = found.unwrap_or(tools);
    if !installed(TEST, &fuzzer) {
        return;
    }
    let api = Api::started(TWO, "requests = 100000\n");
    let token = api.token("t", &["*:*"]);
    let (daemon, _) = api.machine.pids();
    let fuzz = |seed: &str| {
        let output = Command::new(&fuzzer)
            .arg("run")
            .arg(api.url("/v1/openapi.json"))
            .args(["-H", &format!("Authorization: Bearer {token}"), "--seed", seed, "-n", "10", "--no-color"])
            // These paths end the daemon, or are made to take their time.
            .args([
                "--exclude-path",
                "/v1/down",
                "--exclude-path",
                "/v1/upgrade",
                "--exclude-path",
                "/v1/wait",
            ])
            // Streams that follow never end.
            .args(["--request-timeout", "3"])
            // A manifest is a language of its own: most texts are not one, and are refused.
            .args(["--exclude-checks", "positive_data_acceptance"])
            .env("HYPOTHESIS_STORAGE_DIRECTORY", api.machine.project.file("hypothesis"))
            .current_dir(api.machine.project.dir())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    };
    fuzz("1");
    let before = rss_kib(daemon);
    fuzz("2");
    let grown = rss_kib(daemon).saturating_sub(before);
    assert!(grown < 16 << 10, "{grown} KiB more");
    assert_eq!(api.machine.pids().0, daemon);
    let begun = Instant::now();
    assert_eq!(api.machine.regrow(&["status"]).code, 0);
    assert!(begun.elapsed() < Duration::from_secs(5));
    eventually_or(|| format!("{} descriptors", descriptors(daemon)), || descriptors(daemon) < 100);
}

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

#[test]
fn the_document_is_printed_and_a_faulty_door_is_told() {
    let machine = Machine::new(&[]);
    let printed = machine.project.json(&["api-schema"]);
    assert_eq!(printed["openapi"], "3.1.0");
    assert!(printed["paths"]["/v1/status"]["get"].is_object());
    machine.project.write("daemon.toml", "manifests = \"services\"\n[api]\nlisten = \"0.0.0.0:7420\"\n");
    let started = machine.regrow(&["daemon", "--config", "daemon.toml"]);
    assert_eq!(started.code, 3, "{}", started.stderr);
    assert!(started.stderr.contains("without TLS"), "{}", started.stderr);
    for words in [
        &["token", "create", "x", "--allow", "restrat:web"][..],
        &["token", "create", "X", "--allow", "read:*"],
        &["token", "create", "x"],
        &["events", "--state", "runing"],
    ] {
        assert_eq!(machine.regrow(words).code, 2, "{words:?}");
    }
}
