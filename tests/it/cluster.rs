//! Three real servers that are one cluster, and what can happen to them.
//!
//! Writers, each with registers of its own, write 1, 2, 3... into them (as values of all lengths) by whichever server
//! answers, under the condition that the version is the last one that they saw. So a write whose answer never
//! came either happens before the next one or not at all. Readers ask any server for any register. A
//! register has one writer, so it is linearizable exactly if every read answers
//!
//! * at least what was acknowledged, and what any read had answered, before the read began,
//! * at most what was being written when it ended,
//! * nothing that was refused as not written.
//!
//! Others count in one key by `INCR`, on all servers at once: no two may be told the same number, and at
//! the end it is at least the number of those that succeeded and at most those that were tried.
//!
//! Meanwhile somebody plays a scenario. While a majority is connected and alive there must be
//! progress. `cargo xtask cluster --seconds S` plays all of them, those with wires between network
//! namespaces and with a full disk only as root; what is made for them is removed.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use firn_io::rng::Rng;
use serde_json::Value;

use crate::http::{Connection, Reply};
use crate::process::{Place, Server, command_of};

const WRITERS: usize = 4;
const REGISTERS: usize = 6;
const READERS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(60);

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
}

/// Network namespaces of three nodes, a wire between any two of them, and one to each from here. No
/// bridge: what it forwards the machine's firewall may drop.
struct Wires {
    tag: String,
    net: u32,
}

impl Wires {
    fn new() -> Self {
        // The kernel takes its time to forget those before.
        static MADE: AtomicU64 = AtomicU64::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed) as u32;
        let id = std::process::id() % 10_000;
        let wires = Self {
            tag: format!("firn{id}{number}"),
            net: (id + number) % 250,
        };
        for at in 0..3 {
            let ns = wires.ns(at);
            run("ip", &["netns", "add", &ns]);
            run("ip", &["-n", &ns, "link", "set", "lo", "up"]);
            let own = format!("{}/32", wires.host(at));
            run("ip", &["-n", &ns, "addr", "add", &own, "dev", "lo"]);
        }
        // Here is the fourth.
        for one in 0..3 {
            for other in one + 1..4 {
                wires.connect(one, other);
            }
        }
        wires
    }

    fn connect(&self, one: usize, other: usize) {
        let (near, far) = (
            format!("{}{one}{other}", self.tag),
            format!("{}{other}{one}", self.tag),
        );
        let add = ["link", "add", &near, "type", "veth", "peer", "name", &far];
        run("ip", &add);
        for (link, at, to) in [(&near, one, other), (&far, other, one)] {
            let ns = self.ns(at);
            let here: &[&str] = if at < 3 { &["-n", &ns] } else { &[] };
            if at < 3 {
                run("ip", &["link", "set", link, "netns", &ns]);
            } else {
                let own = format!("{}/32", self.host(at));
                run("ip", &["addr", "add", &own, "dev", link]);
            }
            run("ip", &[here, &["link", "set", link, "up"]].concat());
            let (from, to) = (self.host(at), self.host(to));
            // So that a black hole comes first.
            let route = [
                "route", "add", &to, "dev", link, "src", &from, "metric", "100",
            ];
            run("ip", &[here, &route].concat());
        }
    }

    fn ns(&self, at: usize) -> String {
        format!("{}n{at}", self.tag)
    }

    fn host(&self, at: usize) -> String {
        format!("10.213.{}.{}", self.net, at + 1)
    }

    /// Nothing goes from one to the other any more, or again.
    fn way(&self, from: usize, to: usize, open: bool) {
        let (verb, host) = (if open { "del" } else { "add" }, self.host(to));
        run(
            "ip",
            &["-n", &self.ns(from), "route", verb, "blackhole", &host],
        );
    }

    fn cut(&self, one: usize, other: usize, open: bool) {
        self.way(one, other, open);
        self.way(other, one, open);
    }
}

impl Drop for Wires {
    fn drop(&mut self) {
        for at in 0..3 {
            let _ = Command::new("ip")
                .args(["netns", "del", &self.ns(at)])
                .status();
        }
    }
}

struct Cluster {
    place: Place,
    http: Vec<String>,
    peer: Vec<String>,
    resp: Vec<String>,
    servers: Vec<Option<Server>>,
    wires: Option<Wires>,
    /// Directories that are file systems of their own.
    mounts: Vec<PathBuf>,
    /// What runs instead of this build, by node.
    builds: [Option<PathBuf>; 3],
}

fn free_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

/// What a server knows of its cluster.
fn known_at(http: &str) -> Option<Value> {
    let mut connection = Connection::open(http).ok()?;
    let reply = connection.request("GET", "/v1/cluster", b"").ok()?;
    serde_json::from_slice(&reply.body).ok()
}

impl Cluster {
    fn new(wires: Option<Wires>) -> Self {
        let address = |at: usize, port: u16| match &wires {
            Some(wires) => format!("{}:{port}", wires.host(at)),
            None => free_address(),
        };
        Self {
            place: Place::new(),
            http: (0..3).map(|at| address(at, 8080)).collect(),
            peer: (0..3).map(|at| address(at, 7000)).collect(),
            resp: (0..3).map(|at| address(at, 6379)).collect(),
            servers: (0..3).map(|_| None).collect(),
            wires,
            mounts: Vec::new(),
            builds: Default::default(),
        }
    }

    fn start_all(&mut self) {
        self.start(0, &["--init-cluster"]);
        let first = self.http[0].clone();
        for at in 1..3 {
            self.start(at, &["--join", &first]);
        }
        self.wait_until_whole();
    }

    fn dir(&self, at: usize) -> PathBuf {
        self.place.path(&format!("node{at}"))
    }

    fn start(&mut self, at: usize, extra: &[&str]) {
        let program = command_of(self.builds[at].as_deref());
        let mut command = match &self.wires {
            Some(wires) => {
                let mut command = Command::new("ip");
                let ns = wires.ns(at);
                command
                    .args(["netns", "exec", &ns])
                    .arg(program.get_program());
                for (name, _) in program.get_envs().filter(|(_, value)| value.is_none()) {
                    command.env_remove(name);
                }
                command
            }
            None => program,
        };
        command.arg("serve").arg("--data-dir").arg(self.dir(at));
        command.args(["--http", &self.http[at], "--resp", &self.resp[at]]);
        command.args(["--peer-addr", &self.peer[at]]);
        command.args(["--memory", "32MiB", "--log-level", "warn"]);
        command.args(["--cluster-request-timeout", "5s"]);
        // Small disks have room for it, and who was away is sent snapshots too.
        command.args(["--cluster-log-bytes", "16MiB"]);
        if self.wires.is_some() {
            command.arg("--insecure");
        }
        command.args(extra);
        let pipes = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let started = Server::of(pipes.spawn().unwrap());
        self.servers[at] = Some(started.unwrap_or_else(|ended| panic!("{ended:?}")));
    }

    fn kill(&mut self, at: usize) {
        self.servers[at].take().unwrap().kill();
    }

    /// As a service manager does it.
    fn stop(&mut self, at: usize) {
        let mut server = self.servers[at].take().unwrap();
        server.signal("TERM");
        assert_eq!(server.wait(), 0);
    }

    /// Has another build run on a node, as an operator would go about it.
    fn change_build(&mut self, at: usize, build: Option<PathBuf>) {
        self.stop(at);
        self.builds[at] = build;
        self.start(at, &[]);
        self.wait_until_whole();
    }

    /// Hands the lead to a node.
    fn lead(&self, at: usize) {
        let begun = Instant::now();
        while self.leader() != at {
            let node = self.ask(at).unwrap()["node"].to_string();
            let server = &self.http[self.leader()];
            // It may be another one's meanwhile.
            let args = ["cluster", "transfer", &node, "--server", server];
            self.place.run(&args);
            assert!(begun.elapsed() < PATIENCE, "node {at} does not lead");
        }
    }

    fn ask(&self, at: usize) -> Option<Value> {
        known_at(&self.http[at])
    }

    fn running(&self) -> Vec<usize> {
        (0..3).filter(|&at| self.servers[at].is_some()).collect()
    }

    /// Waits until those that run are ready, and three have a vote.
    fn wait_until_whole(&self) {
        for at in self.running() {
            let begun = Instant::now();
            loop {
                let known = self.ask(at).unwrap_or_default();
                let members = known["members"].as_array().cloned().unwrap_or_default();
                let voters = members.iter().filter(|m| m["role"] != "learner").count();
                if known["trouble"].is_null() && voters == 3 {
                    break;
                }
                assert!(
                    begun.elapsed() < PATIENCE,
                    "node {at} is not ready: {known}"
                );
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }

    fn leader(&self) -> usize {
        self.leader_but(usize::MAX)
    }

    /// Who leads, not counting one that may not know better.
    fn leader_but(&self, not: usize) -> usize {
        let begun = Instant::now();
        loop {
            for at in self.running().into_iter().filter(|&at| at != not) {
                let known = self.ask(at).unwrap_or_default();
                if known["role"] == "leader" && known["trouble"].is_null() {
                    return at;
                }
            }
            assert!(begun.elapsed() < PATIENCE, "nobody leads");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.servers.clear();
        for mount in &self.mounts {
            let _ = Command::new("umount").arg(mount).status();
        }
    }
}

/// A key with one writer.
#[derive(Default)]
struct Register {
    acked: AtomicU64,
    attempted: AtomicU64,
    seen: AtomicU64,
    refused: Mutex<BTreeSet<u64>>,
}

struct Load {
    http: Vec<String>,
    resp: Vec<String>,
    registers: Vec<Register>,
    stop: AtomicBool,
    acks: AtomicU64,
    reads: AtomicU64,
    refused: AtomicU64,
    unknown: AtomicU64,
    counted: Mutex<BTreeSet<i64>>,
    count_unknown: AtomicU64,
    /// When writes were acknowledged.
    times: Mutex<Vec<Instant>>,
    violations: Mutex<Vec<String>>,
}

fn key(register: usize) -> String {
    format!("/v1/keys/r{register}")
}

fn number(reply: &Reply) -> u64 {
    match reply.status {
        404 => 0,
        _ => String::from_utf8_lossy(&reply.body)
            .trim_end()
            .parse()
            .unwrap(),
    }
}

/// A number as a value of whatever length it has, up to 128 KiB: messages between nodes are of all sizes.
fn padded(number: u64) -> Vec<u8> {
    let mut random = Rng::new(number);
    let most = 1 << random.index(18);
    let mut value = number.to_string().into_bytes();
    value.resize(value.len() + random.index(most), b' ');
    value
}

fn version(reply: &Reply) -> Option<String> {
    reply.header("etag").map(str::to_owned)
}

impl Load {
    fn new(cluster: &Cluster) -> Self {
        Self {
            http: cluster.http.clone(),
            resp: cluster.resp.clone(),
            registers: (0..WRITERS * REGISTERS)
                .map(|_| Register::default())
                .collect(),
            stop: AtomicBool::new(false),
            acks: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
            counted: Mutex::default(),
            count_unknown: AtomicU64::new(0),
            times: Mutex::default(),
            violations: Mutex::default(),
        }
    }

    fn violation(&self, text: String) {
        self.violations.lock().unwrap().push(text);
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// A connection to some server that takes one; `None` when it is over.
    fn connect(&self, at: &mut usize) -> Option<Connection> {
        loop {
            if self.is_over() {
                return None;
            }
            *at += 1;
            let address = self.http[*at % self.http.len()].parse().unwrap();
            let patience = Duration::from_millis(300);
            if let Ok(stream) = std::net::TcpStream::connect_timeout(&address, patience)
                && let Ok(connection) = Connection::on(stream, Duration::from_secs(8))
            {
                return Some(connection);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Reads a register; `None` when nobody answered.
    fn read(&self, connection: &mut Connection, register: usize) -> Option<Reply> {
        let it = &self.registers[register];
        let least = it
            .acked
            .load(Ordering::SeqCst)
            .max(it.seen.load(Ordering::SeqCst));
        let reply = connection.request("GET", &key(register), b"").ok()?;
        if reply.status != 200 && reply.status != 404 {
            return None;
        }
        let (found, most) = (number(&reply), it.attempted.load(Ordering::SeqCst));
        if found < least || found > most || it.refused.lock().unwrap().contains(&found) {
            self.violation(format!(
                "r{register} answered {found} where {least} to {most} may be, without those refused"
            ));
        }
        it.seen.fetch_max(found, Ordering::SeqCst);
        self.reads.fetch_add(1, Ordering::Relaxed);
        Some(reply)
    }

    fn reader(&self, seed: u64) {
        let mut random = Rng::new(seed);
        let mut at = seed as usize;
        while let Some(mut connection) = self.connect(&mut at) {
            for _ in 0..20 {
                if self.is_over() {
                    return;
                }
                let register = random.index(self.registers.len());
                if self.read(&mut connection, register).is_none() {
                    break;
                }
            }
        }
    }

    fn writer(&self, id: usize) {
        let mut at = id;
        let mut versions: Vec<Option<String>> = vec![None; REGISTERS];
        let mut doubtful = [true; REGISTERS];
        let mut next = 0;
        while let Some(mut connection) = self.connect(&mut at) {
            // Not for ever the same server.
            for _ in 0..50 {
                if self.is_over() {
                    return;
                }
                next = (next + 1) % REGISTERS;
                let register = id * REGISTERS + next;
                if doubtful[next] {
                    let Some(reply) = self.read(&mut connection, register) else {
                        break;
                    };
                    (versions[next], doubtful[next]) = (version(&reply), false);
                }
                if !self.write(
                    &mut connection,
                    register,
                    &mut versions[next],
                    &mut doubtful[next],
                ) {
                    break;
                }
            }
        }
    }

    /// Whether the connection is of use any more.
    fn write(
        &self,
        connection: &mut Connection,
        register: usize,
        known: &mut Option<String>,
        doubtful: &mut bool,
    ) -> bool {
        let it = &self.registers[register];
        let value = it.attempted.fetch_add(1, Ordering::SeqCst) + 1;
        let condition = match &known {
            Some(version) => format!("If-Match: {version}\r\n"),
            None => "If-None-Match: *\r\n".into(),
        };
        let body = padded(value);
        let reply = connection.request_with("PUT", &key(register), &condition, &body);
        let refuse = || {
            it.refused.lock().unwrap().insert(value);
            self.refused.fetch_add(1, Ordering::Relaxed);
        };
        match reply {
            Ok(reply) if reply.status == 201 || reply.status == 204 => {
                it.acked.fetch_max(value, Ordering::SeqCst);
                it.seen.fetch_max(value, Ordering::SeqCst);
                *known = version(&reply);
                self.acks.fetch_add(1, Ordering::Relaxed);
                self.times.lock().unwrap().push(Instant::now());
                true
            }
            Ok(reply) if reply.status == 412 => {
                refuse();
                *doubtful = true;
                true
            }
            Ok(reply) if reply.status == 503 => {
                refuse();
                std::thread::sleep(Duration::from_millis(20));
                false
            }
            _ => {
                self.unknown.fetch_add(1, Ordering::Relaxed);
                *doubtful = true;
                false
            }
        }
    }

    /// Counts by `INCR`.
    fn counter(&self, at: usize) {
        use std::io::{BufRead, BufReader, Write};
        while !self.is_over() {
            let address = self.resp[at].parse().unwrap();
            let patience = Duration::from_millis(300);
            let Ok(stream) = std::net::TcpStream::connect_timeout(&address, patience) else {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            };
            stream.set_nodelay(true).unwrap();
            stream
                .set_read_timeout(Some(Duration::from_secs(8)))
                .unwrap();
            let mut stream = BufReader::new(stream);
            while !self.is_over() {
                let mut line = String::new();
                let sent = stream.get_mut().write_all(b"INCR count\r\n");
                let read = sent.and_then(|()| stream.read_line(&mut line));
                let text = line.trim_end();
                match text.split_at_checked(1) {
                    Some((":", count)) if read.is_ok() => {
                        let count: i64 = count.parse().unwrap();
                        if !self.counted.lock().unwrap().insert(count) {
                            self.violation(format!("INCR answered {count} twice"));
                        }
                    }
                    Some(("-", why))
                        if why.starts_with("CLUSTERDOWN") || why.starts_with("TRYAGAIN") =>
                    {
                        std::thread::sleep(Duration::from_millis(20));
                    }
                    _ => {
                        self.count_unknown.fetch_add(1, Ordering::Relaxed);
                        break;
                    }
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }

    /// Fails unless writes are acknowledged within reasonable time.
    fn must_progress(&self, what: &str) {
        let (before, begun) = (self.acks.load(Ordering::Relaxed), Instant::now());
        while self.acks.load(Ordering::Relaxed) < before + 10 {
            if begun.elapsed() > PATIENCE / 2 {
                let known = self.http.iter().map(|http| known_at(http));
                let known: Vec<_> = known.map(Option::unwrap_or_default).collect();
                panic!("no progress: {what}: {known:#?}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Looks at everything once more on every server.
    fn check(&self, cluster: &Cluster) {
        for at in cluster.running() {
            let mut connection = Connection::open(&self.http[at]).unwrap();
            for register in 0..self.registers.len() {
                let read = self.read(&mut connection, register);
                assert!(read.is_some(), "r{register} cannot be read");
            }
            let reply = connection.request("GET", "/v1/keys/count", b"").unwrap();
            let counted = self.counted.lock().unwrap();
            let (done, tried) = (
                counted.len() as u64,
                counted.len() as u64 + self.count_unknown.load(Ordering::Relaxed),
            );
            let found = number(&reply);
            if found < done || found > tried {
                self.violation(format!("the count is {found} and not {done} to {tried}"));
            }
        }
        let violations = self.violations.lock().unwrap();
        assert!(
            violations.is_empty(),
            "{:#?}",
            &violations[..violations.len().min(20)]
        );
    }
}

/// What happens to a cluster under load; how long a phase of it lasts.
type Scenario = fn(&mut Cluster, &Load, Duration);

/// Plays a scenario under load and checks what clients saw.
fn play(
    name: &str,
    cluster: &mut Cluster,
    scenario: impl FnOnce(&mut Cluster, &Load, Duration),
    phase: Duration,
) {
    let load = Load::new(cluster);
    std::thread::scope(|scope| {
        for id in 0..WRITERS {
            let load = &load;
            scope.spawn(move || load.writer(id));
        }
        for id in 0..READERS {
            let load = &load;
            scope.spawn(move || load.reader(id as u64));
        }
        for at in 0..3 {
            let load = &load;
            scope.spawn(move || load.counter(at));
        }
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            load.must_progress("at the beginning");
            scenario(cluster, &load, phase);
            cluster.wait_until_whole();
            load.must_progress("at the end");
        }));
        load.stop.store(true, Ordering::Relaxed);
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
    load.check(cluster);
    let mut times = load.times.into_inner().unwrap();
    times.sort_unstable();
    let gap = times
        .windows(2)
        .map(|w| w[1] - w[0])
        .max()
        .unwrap_or_default();
    println!(
        "{name}: {} writes acknowledged, {} refused, {} unknown, {} reads, count {}, longest gap {:?}",
        load.acks.into_inner(),
        load.refused.into_inner(),
        load.unknown.into_inner(),
        load.reads.into_inner(),
        load.counted.into_inner().unwrap().len(),
        gap,
    );
}

fn kill_leader(cluster: &mut Cluster, load: &Load, phase: Duration) {
    let leader = cluster.leader();
    cluster.kill(leader);
    load.must_progress("the leader is dead");
    std::thread::sleep(phase);
    cluster.start(leader, &[]);
    cluster.wait_until_whole();
}

fn hand_over(cluster: &mut Cluster, load: &Load, phase: Duration) {
    let failed = || {
        let (refused, unknown) = (&load.refused, &load.unknown);
        refused.load(Ordering::Relaxed) + unknown.load(Ordering::Relaxed)
    };
    let (before, begun) = (failed(), Instant::now());
    while begun.elapsed() < phase {
        let server = cluster.http[cluster.leader()].clone();
        let args = ["cluster", "transfer", "--server", &server];
        cluster.place.run(&args).ok();
        load.must_progress("the leader has changed");
        std::thread::sleep(Duration::from_millis(300));
    }
    assert_eq!(failed(), before, "requests were refused or lost");
}

fn stop_leader(cluster: &mut Cluster, load: &Load, phase: Duration) {
    let leader = cluster.leader();
    cluster.stop(leader);
    load.must_progress("the leader has handed over");
    std::thread::sleep(phase);
    cluster.start(leader, &[]);
    cluster.wait_until_whole();
}

/// An older build, or this one again if none is given.
fn older_build() -> Option<PathBuf> {
    std::env::var_os("FIRN_CLUSTER_OLD").map(PathBuf::from)
}

/// Node by node from an older build to this one, back, and to this one again. While two builds are there, each
/// leads the other.
fn change_builds(cluster: &mut Cluster, load: &Load, phase: Duration) {
    for build in [None, older_build(), None] {
        for at in 0..3 {
            cluster.change_build(at, build.clone());
            load.must_progress("a node runs another build");
            for leader in [at, (at + 1) % 3] {
                cluster.lead(leader);
                load.must_progress("the lead went to another build");
                std::thread::sleep(phase / 6);
            }
        }
    }
}

fn freeze_leader(cluster: &mut Cluster, load: &Load, phase: Duration) {
    let leader = cluster.leader();
    cluster.servers[leader].as_ref().unwrap().signal("STOP");
    load.must_progress("the leader stands still");
    std::thread::sleep(phase);
    cluster.servers[leader].as_ref().unwrap().signal("CONT");
}

fn cut_power(cluster: &mut Cluster, _: &Load, phase: Duration) {
    for at in 0..3 {
        cluster.kill(at);
    }
    std::thread::sleep(phase / 4);
    for at in 0..3 {
        cluster.start(at, &[]);
    }
}

fn lose_disk(cluster: &mut Cluster, load: &Load, phase: Duration) {
    let leader = cluster.leader();
    let lost = (leader + 1) % 3;
    let node = cluster.ask(lost).unwrap()["node"].to_string();
    cluster.kill(lost);
    std::fs::remove_dir_all(cluster.dir(lost)).unwrap();
    load.must_progress("a disk is lost");
    std::thread::sleep(phase);
    let server = cluster.http[leader].clone();
    let args = ["cluster", "remove", &node, "--yes", "--server", &server];
    cluster.place.run(&args).ok();
    cluster.start(lost, &["--join", &server]);
    cluster.wait_until_whole();
    let again = cluster.ask(lost).unwrap()["node"].to_string();
    assert_ne!(again, node);
}

fn fill_disk(cluster: &mut Cluster, load: &Load, phase: Duration) {
    let full = (cluster.leader() + 1) % 3;
    let ballast = cluster.dir(full).join("ballast");
    let mut file = std::fs::File::create(&ballast).unwrap();
    let block = vec![1_u8; 1 << 20];
    while std::io::Write::write_all(&mut file, &block).is_ok() {}
    drop(file);
    std::thread::sleep(phase);
    load.must_progress("a disk is full");
    std::fs::remove_file(&ballast).unwrap();
    // It may have left the cluster when its log could not be written.
    cluster.kill(full);
    cluster.start(full, &[]);
    cluster.wait_until_whole();
}

fn isolate(cluster: &mut Cluster, load: &Load, phase: Duration, leader: bool) {
    let at = (cluster.leader() + usize::from(!leader)) % 3;
    let others = [(at + 1) % 3, (at + 2) % 3];
    for other in others {
        cluster.wires.as_ref().unwrap().cut(at, other, false);
    }
    cluster.leader_but(at);
    load.must_progress("one is cut off");
    std::thread::sleep(phase);
    // It tells nobody what it cannot know.
    let mut connection = Connection::open(&cluster.http[at]).unwrap();
    let reply = connection.request("GET", "/v1/keys/r0", b"").unwrap();
    assert_eq!(reply.status, 503, "{reply:?}");
    for other in others {
        cluster.wires.as_ref().unwrap().cut(at, other, true);
    }
}

fn one_way(cluster: &mut Cluster, load: &Load, phase: Duration) {
    let at = cluster.leader();
    let others = [(at + 1) % 3, (at + 2) % 3];
    // It hears the others and cannot speak to them.
    for other in others {
        cluster.wires.as_ref().unwrap().way(at, other, false);
    }
    load.must_progress("one is not heard");
    std::thread::sleep(phase);
    for other in others {
        cluster.wires.as_ref().unwrap().way(at, other, true);
    }
}

fn flap(cluster: &mut Cluster, load: &Load, phase: Duration) {
    let at = cluster.leader();
    let begun = Instant::now();
    let mut other = 1;
    while begun.elapsed() < phase {
        let to = (at + other) % 3;
        cluster.wires.as_ref().unwrap().cut(at, to, false);
        std::thread::sleep(Duration::from_millis(300));
        cluster.wires.as_ref().unwrap().cut(at, to, true);
        std::thread::sleep(Duration::from_millis(100));
        other = 3 - other;
    }
    load.must_progress("the wires are well again");
}

/// Short: always played.
#[test]
fn the_leader_is_killed() {
    let mut cluster = Cluster::new(None);
    cluster.start_all();
    play(
        "kill -9 of the leader",
        &mut cluster,
        kill_leader,
        Duration::from_millis(300),
    );
}

/// Short: always played.
#[test]
fn builds_change_node_by_node() {
    let mut cluster = Cluster::new(None);
    cluster.builds = [(); 3].map(|()| older_build());
    cluster.start_all();
    play(
        "another build, node by node",
        &mut cluster,
        change_builds,
        Duration::from_millis(300),
    );
}

/// One is left of three: it goes on alone, with what it has, and others can join it.
#[test]
fn what_is_left_goes_on_alone() {
    let mut cluster = Cluster::new(None);
    cluster.start_all();
    let mut connection = Connection::open(&cluster.http[1]).unwrap();
    let put = connection.request("PUT", "/v1/keys/kept", b"yes").unwrap();
    assert_eq!(put.status, 204);
    drop(connection);
    for at in 0..3 {
        cluster.kill(at);
    }
    let dir = cluster.dir(2).to_str().unwrap().to_owned();
    let recover = ["cluster", "recover", "--data-dir", &dir];
    // Nobody is there to say yes.
    cluster.place.run(&recover).fails(2);
    let done = cluster.place.run(&[&recover[..], &["--yes"]].concat());
    assert!(done.stderr.contains("no longer members"), "{done:?}");
    done.ok();
    cluster.start(2, &[]);
    let begun = Instant::now();
    loop {
        let mut connection = Connection::open(&cluster.http[2]).unwrap();
        let got = connection.request("GET", "/v1/keys/kept", b"").unwrap();
        if got.status == 200 {
            assert_eq!(got.body, b"yes");
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{got:?}");
    }
    std::fs::remove_dir_all(cluster.dir(1)).unwrap();
    let first = cluster.http[2].clone();
    cluster.start(1, &["--join", &first]);
    let mut connection = Connection::open(&cluster.http[1]).unwrap();
    let got = connection.request("GET", "/v1/keys/kept", b"").unwrap();
    assert_eq!(got.body, b"yes");
    // Who was lost is not let in again.
    cluster.start(0, &[]);
    std::thread::sleep(Duration::from_secs(2));
    let known = cluster.ask(0).unwrap();
    assert!(known["trouble"].is_string(), "{known}");
    let known = cluster.ask(2).unwrap();
    assert_eq!(known["members"].as_array().unwrap().len(), 2, "{known}");
}

/// Versions are the same everywhere: who loses a node goes on watching at another one.
#[test]
fn a_watch_goes_on_at_another_node() {
    let mut cluster = Cluster::new(None);
    cluster.start_all();
    let put = |at: usize, from: u64| {
        let mut connection = Connection::open(&cluster.http[at]).unwrap();
        for n in from..from + 10 {
            let begun = Instant::now();
            let path = format!("/v1/keys/k{n}");
            while connection.request("PUT", &path, b"v").unwrap().status != 204 {
                assert!(begun.elapsed() < PATIENCE, "nobody takes a write");
            }
        }
    };
    let watch = |at: usize, from: u64, count: u64| {
        let (from, count) = (from.to_string(), count.to_string());
        let server = &cluster.http[at];
        let flags = ["--from", &from, "--limit", &count, "--format", "ndjson"];
        let told = cluster
            .place
            .run(&[&["watch", "--server", server], &flags[..]].concat());
        String::from_utf8(told.ok()).unwrap()
    };
    let leader = cluster.leader();
    let (left, other) = ((leader + 1) % 3, (leader + 2) % 3);
    put(other, 0);
    let first = watch(leader, 1, 10);
    assert_eq!(first, watch(left, 1, 10));
    let ahead = ["watch", "--server", &cluster.http[left], "--from", "1000"];
    let ended = cluster.place.run(&ahead).fails(2);
    assert!(ended.stderr.contains("beyond the next one"), "{ended:?}");
    cluster.servers[leader].take().unwrap().kill();
    put(left, 10);
    let both = first + &watch(other, 11, 10);
    assert_eq!(both, watch(left, 1, 20));
    assert_eq!(both.lines().count(), 20, "{both}");
}

#[test]
fn the_commands_of_clusters_say_what_is_wrong() {
    let place = Place::new();
    let none = ["cluster", "status", "--server", "127.0.0.1:1"];
    place.run(&none).fails(3);
    let alone = ["serve", "--data-dir", "x", "--join", "127.0.0.1:1"];
    let ended = place.run(&alone).fails(2);
    assert!(ended.stderr.contains("peer_addr"), "{ended:?}");
    let join = [
        "cluster",
        "join",
        "--data-dir",
        "x",
        "--peer-addr",
        "127.0.0.1:7",
    ];
    let ended = place.run(&join).fails(2);
    assert!(ended.stderr.contains("--join"), "{ended:?}");
    let picked = [
        "cluster",
        "init",
        "--data-dir",
        "x",
        "--peer-addr",
        "127.0.0.1:0",
    ];
    let ended = place.run(&picked).fails(2);
    assert!(ended.stderr.contains("cannot be picked"), "{ended:?}");
    let recover = ["cluster", "recover", "--data-dir", "x", "--yes"];
    let ended = place.run(&recover).fails(4);
    assert!(ended.stderr.contains("no node of a cluster"), "{ended:?}");
    let init = [
        "cluster",
        "init",
        "--data-dir",
        "y",
        "--peer-addr",
        "127.0.0.1:7",
    ];
    let first = place.run(&init).ok();
    let text = String::from_utf8(first.clone()).unwrap();
    assert!(
        text.starts_with("cluster ") && text.ends_with(" node 1\n"),
        "{text}"
    );
    assert_eq!(place.run(&init).ok(), first, "once is enough");
    let other = [&init[..], &["--cluster-id", "00000000000000ab"]].concat();
    let ended = place.run(&other).fails(2);
    assert!(ended.stderr.contains("belongs to cluster"), "{ended:?}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let serve = [
        "serve",
        "--data-dir",
        "z",
        "--http",
        "127.0.0.1:0",
        "--resp",
        "off",
    ];
    let ended = place.run(&[&serve[..], &["--init-cluster", "--peer-addr", &taken]].concat());
    let ended = ended.fails(2);
    assert!(ended.stderr.contains(&taken), "{ended:?}");
    let tls = [&init[..], &["--peer-cert", "c.pem"]].concat();
    let ended = place.run(&tls).fails(2);
    assert!(ended.stderr.contains("go together"), "{ended:?}");
}

/// Whether this one is wanted: `FIRN_CLUSTER_ONLY` names a part of those that are.
fn is_wanted(name: &str) -> bool {
    let only = std::env::var("FIRN_CLUSTER_ONLY").unwrap_or_default();
    name.contains(&only)
}

#[test]
fn everything_else_happens() {
    let Some(seconds) = std::env::var_os("FIRN_CLUSTER_SECONDS") else {
        println!("FIRN_CLUSTER_SECONDS is not set: nothing is played");
        return;
    };
    let seconds: u64 = seconds.to_str().unwrap().parse().unwrap();
    let phase = Duration::from_secs(seconds);
    let scenarios: [(&str, Scenario); 6] = [
        ("a leader that hands over", hand_over),
        ("kill -9 of the leader", kill_leader),
        ("SIGTERM of the leader", stop_leader),
        ("SIGSTOP of the leader", freeze_leader),
        ("kill -9 of all", cut_power),
        ("loss of a disk", lose_disk),
    ];
    for (name, scenario) in scenarios.into_iter().filter(|s| is_wanted(s.0)) {
        let mut cluster = Cluster::new(None);
        cluster.start_all();
        play(name, &mut cluster, scenario, phase);
    }
    let is_root = Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
    if !is_root {
        println!("not root: no full disk and no wires");
        return;
    }
    if is_wanted("a full disk") {
        on_small_disks(phase);
    }
    let on_wires: [(&str, Scenario); 4] = [
        ("the leader is cut off", |c, l, p| isolate(c, l, p, true)),
        ("a follower is cut off", |c, l, p| isolate(c, l, p, false)),
        ("a leader that is not heard", one_way),
        ("wires that come and go", flap),
    ];
    for (name, scenario) in on_wires.into_iter().filter(|s| is_wanted(s.0)) {
        let mut cluster = Cluster::new(Some(Wires::new()));
        cluster.start_all();
        play(name, &mut cluster, scenario, phase);
    }
}

/// Each node on a file system of its own.
fn on_small_disks(phase: Duration) {
    let mut cluster = Cluster::new(None);
    for at in 0..3 {
        let dir = cluster.dir(at);
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.to_str().unwrap().to_owned();
        run("mount", &["-t", "tmpfs", "-o", "size=256m", "tmpfs", &path]);
        cluster.mounts.push(dir);
    }
    cluster.start_all();
    play("a full disk", &mut cluster, fill_disk, phase);
}
