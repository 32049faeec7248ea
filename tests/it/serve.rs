//! The server as a process: start, ready line, drain, locks; and every verb through it.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use crate::http::Connection;
use crate::process::{Place, Server, spawn};

#[test]
fn it_says_ready_serves_and_drains() {
    let place = Place::new();
    let mut server = Server::start(&place.path("d"), &[]);
    assert!(server.ready_line.ends_with('\n'), "{:?}", server.ready_line);
    assert!(!server.address.ends_with(":0"), "{:?}", server.ready_line);
    let mut http = Connection::open(&server.address).unwrap();
    let reply = http.request("PUT", "/v1/keys/a", b"1").unwrap();
    assert!((200..300).contains(&reply.status), "{reply:?}");
    let reply = http.request("GET", "/v1/keys/a", b"").unwrap();
    assert_eq!((reply.status, &reply.body[..]), (200, &b"1"[..]));
    assert_eq!(http.request("GET", "/v1/keys/b", b"").unwrap().status, 404);
    server.signal("TERM");
    assert_eq!(server.wait(), 0);
    assert!(TcpStream::connect(&server.address).is_err());
    // What it acknowledged is in the files.
    assert_eq!(place.run(&["get", "--data-dir", "d", "a"]).ok(), b"1");
}

#[test]
fn listeners_speak_dialects() {
    let place = Place::new();
    let listen = [
        "--dialect",
        "kv-verbs/shop=127.0.0.1:0",
        "--dialect",
        "002=127.0.0.1:0",
    ];
    let mut server = Server::start(&place.path("d"), &listen);
    let address = |name: &str| {
        let mut words = server.ready_line.split_whitespace();
        let found = words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        found.expect("an address in the ready line").to_owned()
    };
    let mut raw = Connection::open(&address("v1-raw")).unwrap();
    assert_eq!(raw.request("PUT", "/v1/a", b"1").unwrap().status, 201);
    let mut verbs = Connection::open(&address("kv-verbs/shop")).unwrap();
    let reply = verbs.request("GET", "/kv/read/a", b"").unwrap();
    assert_eq!(reply.body, b"{\"error\":\"NOT_FOUND\"}");
    let mut native = Connection::open(&server.address).unwrap();
    let reply = native.request("GET", "/v1/keys/a", b"").unwrap();
    assert_eq!((reply.status, &reply.body[..]), (200, &b"1"[..]));
    server.signal("TERM");
    assert_eq!(server.wait(), 0);
    let run = place.run(&[
        "serve",
        "--data-dir",
        "e",
        "--dialect",
        "nonsense=127.0.0.1:0",
    ]);
    assert_eq!(run.code, 2);
    assert!(run.stderr.contains("no dialect"), "{}", run.stderr);
}

#[test]
fn it_finishes_what_it_has_begun() {
    let place = Place::new();
    let mut server = Server::start(&place.path("d"), &[]);
    // Half a request is on its way when the signal comes.
    let mut stream = TcpStream::connect(&server.address).unwrap();
    stream
        .write_all(b"PUT /v1/keys/slow HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nha")
        .unwrap();
    // A second connection proves that the first was accepted before it.
    let mut other = Connection::open(&server.address).unwrap();
    assert_eq!(other.request("GET", "/readyz", b"").unwrap().status, 200);
    server.signal("TERM");
    stream.write_all(b"lf").unwrap();
    let mut reply = String::new();
    std::io::Read::read_to_string(&mut stream, &mut reply).unwrap();
    assert!(reply.starts_with("HTTP/1.1 20"), "{reply}");
    assert_eq!(server.wait(), 0);
    assert_eq!(place.run(&["get", "--data-dir", "d", "slow"]).ok(), b"half");
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let place = Place::new();
    let mut server = Server::start(&place.path("d"), &["--drain-timeout", "5m"]);
    let mut stream = TcpStream::connect(&server.address).unwrap();
    stream
        .write_all(b"PUT /v1/keys/slow HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nha")
        .unwrap();
    let mut other = Connection::open(&server.address).unwrap();
    assert_eq!(other.request("GET", "/readyz", b"").unwrap().status, 200);
    server.signal("TERM");
    // Only once it drains is the second signal a second one.
    while TcpStream::connect(&server.address).is_ok() {
        std::thread::yield_now();
    }
    server.signal("TERM");
    assert_ne!(server.wait(), 0);
}

#[test]
fn one_process_holds_a_directory() {
    let place = Place::new();
    let server = Server::start(&place.path("d"), &[]);
    let ended = match Server::try_start(&place.path("d"), &[]) {
        Ok(_) => panic!("two servers on one directory"),
        Err(ended) => ended,
    };
    assert_eq!(ended.code, 4, "{ended:?}");
    assert!(
        ended.stderr.contains("held open by another process"),
        "{ended:?}"
    );
    let ended = place.run(&["put", "--data-dir", "d", "k", "v"]).fails(4);
    assert!(ended.stderr.contains("--server"), "{}", ended.stderr);
    // Reading would race with the server's compactions, and take what they delete for damage.
    for reader in [&["get", "k"][..], &["scan"], &["export"], &["inspect"]] {
        let args = [reader, &["--data-dir", "d"]].concat();
        let ended = place.run(&args).fails(4);
        assert!(ended.stderr.contains("--server"), "{}", ended.stderr);
    }
    server.kill();
    place.run(&["put", "--data-dir", "d", "k", "v"]).ok();
}

#[test]
fn a_taken_port_is_told() {
    let place = Place::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let args = ["serve", "--data-dir", "d", "--http", &address];
    let ended = place.run(&args);
    assert_ne!(ended.code, 0);
    assert!(ended.stderr.contains("--http"), "{ended:?}");
}

#[test]
fn a_bad_configuration_is_exit_code_two() {
    let place = Place::new();
    let mut child = spawn(&place.path("d"), &["--memory", "lots"]);
    assert_eq!(child.wait().unwrap().code(), Some(2));
    fs::write(place.path("bad.toml"), "memroy = \"1GiB\"\n").unwrap();
    place.run(&["serve", "--config", "bad.toml"]).fails(2);
    assert!(!place.path("d").exists());
}

#[test]
fn the_verbs_speak_to_a_server() {
    let place = Place::new();
    let server = Server::start(&place.path("d"), &[]);
    let address = server.address.as_str();
    let run = |args: &[&str], input: &[u8]| {
        let all = [args, &["--server", address]].concat();
        place.run_with(&all, input)
    };
    let all: Vec<u8> = (0..=255).collect();
    run(&["put", "all", "-"], &all).ok();
    assert_eq!(run(&["get", "all"], b"").ok(), all);
    run(&["get", "none"], b"").fails(1);
    run(&["put", "all", "x", "--if-absent"], b"").fails(1);
    run(&["put", "--key-encoding", "hex", "00ff2f", "odd"], b"").ok();
    assert_eq!(
        run(&["get", "--key-encoding", "hex", "00ff2f"], b"").ok(),
        b"odd"
    );
    run(&["put", "a/b c?d", "v"], b"").ok();
    let batch =
        b"{\"op\":\"put\",\"key\":\"x\",\"value\":\"1\"}\n{\"op\":\"delete\",\"key\":\"all\"}\n";
    run(&["batch"], batch).ok();
    assert_eq!(
        run(&["scan"], b"").ok(),
        b"\\x00\\xff/\todd\na/b c?d\tv\nx\t1\n"
    );
    assert_eq!(
        run(&["scan", "--reverse", "--limit", "1", "--keys"], b"").ok(),
        b"x\n"
    );
    let lines: String = (0..3000).map(|i| format!("p/{i:05}\t{i}\n")).collect();
    run(&["import", "--from", "lines"], lines.as_bytes()).ok();
    assert_eq!(run(&["scan", "--prefix", "p/"], b"").ok(), lines.as_bytes());
    let export = run(&["export", "--format", "dump"], b"").ok();
    run(&["ns", "create", "copy"], b"").ok();
    run(&["import", "--from", "dump", "--ns", "copy"], &export).ok();
    assert_eq!(
        run(&["export", "--format", "dump", "--ns", "copy"], b"").ok(),
        export
    );
    assert_eq!(run(&["ns", "list"], b"").ok(), b"copy\ndefault\n");
    run(&["ns", "drop", "copy", "--yes"], b"").ok();
    run(&["del", "--prefix", "p/", "--yes"], b"").ok();
    run(&["del", "x"], b"").ok();
    assert_eq!(run(&["scan", "--count"], b"").ok(), b"2\n");
    run(&["health"], b"").ok();
    run(&["verify"], b"").ok();
    run(&["inspect"], b"").ok();
    run(&["checkpoint", "before"], b"").ok();
    let bench = [
        "bench",
        "--mix",
        "fillrandom,readrandom,readseq,ycsb-e",
        "--keys",
        "200",
    ];
    run(&bench, b"").ok();
}

/// What is written while a range is read does not show in it.
#[test]
fn an_export_is_of_one_instant() {
    use firn_client::ScanOptions;
    use firn_client::blocking::Client;
    let place = Place::new();
    let server = Server::start(&place.path("d"), &["--durability", "buffered"]);
    let client = Client::connect(&server.address).unwrap();
    // More than the buffers between server and client take.
    let (old, new) = (vec![b'o'; 64 << 10], vec![b'n'; 64 << 10]);
    let keys: Vec<_> = (0..400).map(|number| format!("key{number:04}")).collect();
    for key in &keys {
        client.put(key, old.clone()).unwrap();
    }
    let mut scan = client.scan(ScanOptions::default()).one_instant();
    let first = scan.next().unwrap().unwrap();
    assert_eq!(first.key, keys[0].as_bytes());
    for key in &keys {
        client.put(key, new.clone()).unwrap();
    }
    client.delete(&keys[7]).unwrap();
    for key in &keys[1..] {
        let entry = scan.next().unwrap().unwrap();
        assert_eq!(
            (&entry.key[..], &entry.value[..]),
            (key.as_bytes(), &old[..])
        );
    }
    assert!(scan.next().is_none());
    let options = ScanOptions::prefix("key000").reverse().limit(3);
    let scan = client.scan(options).one_instant();
    let found: Vec<_> = scan.map(|entry| entry.unwrap().key).collect();
    assert_eq!(found, ["key0009", "key0008", "key0006"]);
}

/// A stream without its last line was cut: an export of it is none.
#[test]
fn a_cut_stream_is_no_export() {
    let place = Place::new();
    let line = "{\"key\":\"a\",\"value\":\"1\",\"version\":1}\n";
    for end in ["", "{\"end\":true,\"count\":2,\"next_cursor\":null}\n"] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                head.push(byte[0]);
            }
            let body = format!("{line}{end}");
            let reply = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(reply.as_bytes()).unwrap();
            String::from_utf8(head).unwrap()
        });
        let export = ["export", "--server", &address, "--output", "out"];
        let ended = place.run(&export).fails(3);
        assert!(!place.path("out").exists(), "{}", ended.stderr);
        let head = server.join().unwrap();
        assert!(head.contains("accept: application/x-ndjson"), "{head}");
    }
}

/// A server may allow less than the files of a database may hold.
#[test]
fn what_a_server_refuses_for_its_size_can_be_left_out() {
    let place = Place::new();
    let server = Server::start(&place.path("d"), &["--limits-value-bytes", "1KiB"]);
    let with = |args: &[&str]| {
        let long = "x".repeat(2000);
        let lines = format!("a\t1\nb\t{long}\nc\t3\nd\t{long}\n");
        let all = ["import", "--from", "lines", "--server", &server.address];
        place.run_with(&[&all[..], args].concat(), lines.as_bytes())
    };
    let scan = || {
        place
            .run(&["scan", "--server", &server.address, "--keys"])
            .ok()
    };
    let ended = with(&[]).fails(4);
    let (told, key) = ("1 entries are stored; to go on: --skip 1", "the key is b");
    assert!(
        ended.stderr.contains(told) && ended.stderr.contains(key),
        "{}",
        ended.stderr
    );
    assert_eq!(scan(), b"a\n");
    for args in [&["--skip-bad"][..], &["--skip-bad", "--batch-size", "1"]] {
        let ended = with(args);
        let told = "2 bad entries left out";
        assert!(ended.stderr.contains(told), "{}", ended.stderr);
        ended.ok();
        assert_eq!(scan(), b"a\nc\n");
    }
}

#[test]
fn a_server_takes_its_settings_from_the_environment() {
    let place = Place::new();
    let mut child = crate::process::command()
        .arg("serve")
        .env("FIRN_DATA_DIR", place.path("env"))
        .env("FIRN_HTTP", "not an address")
        .current_dir(place.dir.path())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(2));
}

#[test]
fn a_time_to_live_begins_by_the_clock_of_the_server() {
    let place = Place::new();
    let batch = br#"{"op":"put","key":"k","value":"v","ttl":"30s"}"#;
    for (args, input) in [
        (&["put", "k", "v", "--ttl", "30s"][..], &b""[..]),
        (&["batch"], batch),
    ] {
        // A server that takes one request and answers nothing.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let heard = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut text = String::new();
            while !text.contains("30s") && !text.contains("expires") {
                let mut bytes = [0; 4096];
                let read = stream.read(&mut bytes).unwrap();
                assert!(read > 0, "{text}");
                text.push_str(&String::from_utf8_lossy(&bytes[..read]));
            }
            text
        });
        let ended = place.run_with(&[args, &["--server", &address]].concat(), input);
        assert_ne!(ended.code, 0);
        let text = heard.join().unwrap();
        assert!(!text.contains("expires"), "{text}");
    }
}

/// As many as this process may open, at most ten thousand.
fn idle_connections() -> usize {
    const OTHERS: usize = 300;
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().nth(3)?.parse::<usize>().ok());
    soft.map_or(500, |soft| soft.saturating_sub(OTHERS).min(10_000))
}

#[test]
fn idle_connections_and_slow_heads_disturb_nobody() {
    let place = Place::new();
    let server = Server::start(&place.path("d"), &[]);
    let idle: Vec<TcpStream> = (0..idle_connections())
        .map(|i| {
            let mut stream = TcpStream::connect(&server.address).unwrap();
            if i % 2 == 0 {
                stream.write_all(b"GET /v1/keys/never HT").unwrap();
            }
            stream
        })
        .collect();
    let mut http = Connection::open(&server.address).unwrap();
    for i in 0..100 {
        let target = format!("/v1/keys/{i}?durability=buffered");
        assert_eq!(http.request("PUT", &target, b"v").unwrap().status, 204);
        let reply = http.request("GET", &format!("/v1/keys/{i}"), b"");
        assert_eq!(reply.unwrap().body, b"v");
    }
    let connections = |http: &mut Connection| {
        let page = http.request("GET", "/metrics", b"").unwrap().body;
        let page = String::from_utf8(page).unwrap();
        let line = page
            .lines()
            .find_map(|l| l.strip_prefix("firn_connections "));
        line.unwrap().parse::<usize>().unwrap()
    };
    assert!(
        connections(&mut http) > idle.len() / 2,
        "they were let go of too early"
    );
    drop(idle);
    // Nothing of them stays.
    while connections(&mut http) > 1 {
        std::thread::yield_now();
    }
}

#[test]
fn changes_are_watched_from_a_version_on() {
    let place = Place::new();
    let server = Server::start(&place.path("d"), &[]);
    let address = server.address.as_str();
    for (key, value) in [("a", "1"), ("user/b", "2"), ("user/c", "3")] {
        place.run(&["put", "--server", address, key, value]).ok();
    }
    let watch = |more: &[&str]| {
        let all = [&["watch", "--server", address, "--from", "1"], more].concat();
        place.run(&all)
    };
    let ended = watch(&["--limit", "2", "--prefix", "user/"]);
    assert!(
        ended.stderr.contains("go on with --from 4"),
        "{}",
        ended.stderr
    );
    let lines = String::from_utf8(ended.ok()).unwrap();
    assert_eq!(
        lines,
        "2\tput\tdefault\tuser/b\t2\n3\tput\tdefault\tuser/c\t3\n"
    );
    let lines = watch(&["--limit", "1", "--format", "ndjson", "--all-namespaces"]).ok();
    assert_eq!(
        String::from_utf8(lines).unwrap(),
        "{\"op\":\"put\",\"version\":1,\"commit\":1,\"ns\":\"default\",\"key\":\"a\",\"value\":\"1\"}\n"
    );
    place
        .run(&["watch", "--server", address, "--from", "99"])
        .fails(2);
    place
        .run(&["watch", "--server", address, "--ns", "none"])
        .fails(1);
    let unreachable = ["watch", "--server", "127.0.0.1:1", "--patience", "100ms"];
    place.run(&unreachable).fails(3);
}
