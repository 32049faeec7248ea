//! Certificates between nodes, changed while they run.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::certificates::{Authority, authority, issue};
use crate::http::Connection;
use crate::process::{PATIENCE, Place, Server, command};

struct Node {
    server: Server,
    log: Receiver<String>,
    peer: String,
}

/// A node whose certificates are in its directory.
fn start(dir: &Path, peer: &str, how: &[&str]) -> Node {
    let file = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let mut child = command()
        .args(["serve", "--data-dir", &file("data"), "--memory", "32MiB"])
        .args(["--http", "127.0.0.1:0", "--resp", "off"])
        .args(["--peer-addr", peer, "--peer-ca", &file("ca.crt")])
        .args(["--peer-cert", &file("node.crt")])
        .args(["--peer-key", &file("node.key")])
        .args(how)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let stderr = BufReader::new(child.stderr.take().unwrap());
    let (tell, log) = channel();
    std::thread::spawn(move || {
        for line in stderr.lines().map_while(Result::ok) {
            // The test may have heard enough.
            let _ = tell.send(line);
        }
    });
    let server = Server::of(child);
    let server = server.unwrap_or_else(|ended| panic!("{ended:?} {:?}", log.iter().last()));
    Node {
        server,
        log,
        peer: peer.to_owned(),
    }
}

fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

impl Node {
    /// Asks for the certificates to be read anew; the line that says what became of it.
    fn hang_up(&self) -> String {
        self.server.signal("HUP");
        loop {
            let line = self.log.recv_timeout(PATIENCE).unwrap();
            if line.contains("certificates were") {
                return line;
            }
        }
    }

    fn ask(&self) -> Option<Value> {
        let mut connection = Connection::open(&self.server.address).ok()?;
        let reply = connection.request("GET", "/v1/cluster", b"").ok()?;
        serde_json::from_slice(&reply.body).ok()
    }

    /// Waits until so many have a vote, and this one can be read.
    fn wait_for_voters(&self, wanted: usize) {
        let begun = Instant::now();
        loop {
            let known = self.ask().unwrap_or_default();
            let members = known["members"].as_array().cloned().unwrap_or_default();
            let voters = members.iter().filter(|m| m["role"] != "learner").count();
            if known["trouble"].is_null() && voters == wanted {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "not ready: {known}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn certificates_change_without_a_restart() {
    let place = Place::new();
    let dirs = ["a", "b", "c"].map(|name| place.path(name));
    let (old, new) = (authority(1), authority(2));
    let issue = |at: usize, by: &Authority, trusted: &[&Authority]| {
        std::fs::create_dir_all(&dirs[at]).unwrap();
        issue(&dirs[at], by, trusted, "127.0.0.1");
    };
    issue(0, &old, &[&old]);
    issue(1, &old, &[&old]);
    let first = start(&dirs[0], &free_address(), &["--init-cluster"]);
    let join = ["--join", &first.server.address];
    let second = start(&dirs[1], &free_address(), &join);
    first.wait_for_voters(2);

    // With a broken file it keeps what it had: a node that comes back needs it.
    std::fs::write(dirs[0].join("node.key"), "nonsense").unwrap();
    let line = first.hang_up();
    assert!(
        line.contains("ERROR") && line.contains("node.key"),
        "{line}"
    );
    let peer = second.peer.clone();
    second.server.kill();
    let second = start(&dirs[1], &peer, &join);
    second.wait_for_voters(2);

    // Another authority. Who comes then trusts no other, and is trusted by who knows the new one.
    for (at, node) in [(0, &first), (1, &second)] {
        issue(at, &new, &[&old, &new]);
        let line = node.hang_up();
        assert!(line.contains("read anew"), "{line}");
    }
    issue(2, &new, &[&new]);
    let third = start(&dirs[2], &free_address(), &join);
    third.wait_for_voters(3);
}
