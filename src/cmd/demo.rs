//! `firn demo`: a cluster of three under load, the leader killed, and a timeline of what clients saw.
//!
//! The servers are this program again, each a process of its own, so that killing one is what it is
//! in earnest. A client writes one key after the other, each once, to whichever server answers; a write
//! counts as acknowledged when the server said so, and as unknown when no answer came.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use firn_client::blocking::Client;
use firn_io::Env;
use firn_io::clock::{Clock, SystemClock};
use serde_json::json;

use crate::exit::{Exit, Failure, Result};
use crate::flags::DemoArgs;
use crate::output::{self, ReportFormat, note};

const NODES: usize = 3;
/// How long a server may take to be ready.
const PATIENCE: Duration = Duration::from_secs(60);
/// A row of the timeline.
const STEP_MS: u64 = 500;

/// A server, ended when it goes.
struct Server {
    child: Child,
    http: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where a server listens; the ports were free a moment ago.
struct Place {
    http: String,
    peer: String,
}

fn free_address() -> Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

fn start(dir: &Path, at: usize, places: &[Place], args: &DemoArgs) -> Result<Server> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("serve")
        .arg("--data-dir")
        .arg(dir.join(format!("node{}", at + 1)))
        .args(["--http", &places[at].http, "--resp", "off"])
        .args(["--peer-addr", &places[at].peer])
        .args(["--memory", "64MiB", "--log-level", "error"])
        .arg("--cluster-election-timeout")
        .arg(firn_api::duration::print(args.cluster_election_timeout))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    match at {
        0 => command.arg("--init-cluster"),
        _ => command.args(["--join", &places[0].http]),
    };
    let mut child = command.spawn()?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line)?;
    }
    let server = Server {
        child,
        http: places[at].http.clone(),
    };
    if !line.starts_with("ready ") {
        let detail = format!("node {} did not start", at + 1);
        return Err(Failure::new(Exit::Unreachable, detail));
    }
    Ok(server)
}

fn client(address: &str, deadline: Duration) -> Result<Client> {
    let builder = firn_client::Client::builder(address);
    Ok(Client::build(builder.deadline(deadline).retries(0))?)
}

/// Waits until everybody is ready and has a vote.
fn wait_until_whole(servers: &[&Server], clock: &SystemClock) -> Result<()> {
    let begin = clock.monotonic();
    for server in servers {
        let client = client(&server.http, Duration::from_secs(5))?;
        loop {
            let known = client.cluster().ok();
            let is_whole = known.is_some_and(|known| {
                let votes = known.members.iter().filter(|m| m.role != "learner");
                known.trouble.is_none() && votes.count() == NODES
            });
            if is_whole {
                break;
            }
            if clock.monotonic() - begin > PATIENCE {
                let detail = "the cluster did not become ready";
                return Err(Failure::new(Exit::Unreachable, detail));
            }
            clock.sleep(Duration::from_millis(50));
        }
    }
    Ok(())
}

/// What a client wrote: when it was acknowledged, in milliseconds; `None`: nobody knows whether it was.
type Written = Vec<(String, Option<u64>)>;

/// Writes until told to stop.
fn write(
    id: u64,
    places: &[Place],
    (clock, begin): (&SystemClock, Duration),
    stop: &AtomicBool,
) -> Result<Written> {
    let clients = places
        .iter()
        .map(|place| client(&place.http, Duration::from_secs(2)))
        .collect::<Result<Vec<_>>>()?;
    let mut written = Vec::new();
    let mut at = id as usize;
    let mut number = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        let key = format!("demo/{id}/{number:08}");
        let outcome = clients[at % NODES].put(&key, key.clone());
        number += 1;
        match outcome {
            Ok(_) => {
                let now = (clock.monotonic() - begin).as_millis() as u64;
                written.push((key, Some(now)));
            }
            Err(error) => {
                use firn_client::ErrorKind as Kind;
                let is_known = matches!(error.kind, Kind::Unreachable)
                    || error.code().is_some_and(firn_api::code::Code::is_transient);
                if !is_known {
                    written.push((key, None));
                }
                at += 1;
                clock.sleep(Duration::from_millis(10));
            }
        }
    }
    Ok(written)
}

/// What was seen.
struct Report {
    acknowledged: u64,
    unknown: u64,
    lost: u64,
    gap_ms: u64,
    killed_at_ms: u64,
    leader: u64,
    next_leader: u64,
    /// Acknowledged writes, a number for each step.
    timeline: Vec<u64>,
}

pub(crate) fn run(args: &DemoArgs) -> Result<()> {
    let env = Env::os(1);
    let name = format!("firn-demo-{:08x}", env.entropy.next_u64() as u32);
    let dir = std::env::temp_dir().join(name);
    env.fs.create_dir_all(&dir)?;
    let report = play(args, &dir);
    // What is left over is in the system's directory for such things.
    let _ = env.fs.remove_dir_all(&dir);
    let report = report?;
    print(args, &report)?;
    if report.lost > 0 {
        let detail = format!("{} acknowledged writes are lost", report.lost);
        return Err(Failure::new(Exit::Corruption, detail));
    }
    Ok(())
}

fn play(args: &DemoArgs, dir: &Path) -> Result<Report> {
    let clock = SystemClock::new();
    let places = (0..NODES)
        .map(|_| {
            let (http, peer) = (free_address()?, free_address()?);
            Ok(Place { http, peer })
        })
        .collect::<Result<Vec<_>>>()?;
    note(format_args!("starting three nodes in {}", dir.display()));
    let mut servers: Vec<Option<Server>> = Vec::new();
    for at in 0..NODES {
        servers.push(Some(start(dir, at, &places, args)?));
    }
    let all: Vec<&Server> = servers.iter().flatten().collect();
    wait_until_whole(&all, &clock)?;
    note(format_args!(
        "{} clients write for {}",
        args.clients,
        firn_api::duration::print(args.time)
    ));
    let begin = clock.monotonic();
    let stop = AtomicBool::new(false);
    let written: Mutex<Vec<Result<Written>>> = Mutex::default();
    let staged = std::thread::scope(|scope| {
        for id in 0..args.clients {
            let (stop, written, places, clock) = (&stop, &written, &places, &clock);
            scope.spawn(move || {
                let all = write(id, places, (clock, begin), stop);
                let mut written = written.lock().unwrap_or_else(PoisonError::into_inner);
                written.push(all);
            });
        }
        let staged = stage(args, dir, &places, &mut servers, &clock, begin);
        stop.store(true, Ordering::Relaxed);
        staged
    });
    let (killed_at_ms, leader, next_leader) = staged?;
    let alive: Vec<&Server> = servers.iter().flatten().collect();
    wait_until_whole(&alive, &clock)?;
    let written = written.into_inner().unwrap_or_else(PoisonError::into_inner);
    let written = written.into_iter().collect::<Result<Vec<_>>>()?.concat();
    note(format_args!("reading everything that was acknowledged"));
    let reader = client(&places[0].http, Duration::from_secs(30))?;
    let acknowledged: Vec<&(String, Option<u64>)> =
        written.iter().filter(|(_, at)| at.is_some()).collect();
    let mut lost = 0;
    for some in acknowledged.chunks(1_000) {
        let keys: Vec<&str> = some.iter().map(|(key, _)| key.as_str()).collect();
        let found = reader.multi_get(&keys)?;
        let is_lost = |(entry, key): &(&Option<firn_client::Entry>, &&str)| {
            entry
                .as_ref()
                .is_none_or(|entry| &*entry.value != key.as_bytes())
        };
        lost += found.iter().zip(&keys).filter(is_lost).count() as u64;
    }
    let mut times: Vec<u64> = acknowledged.iter().filter_map(|(_, at)| *at).collect();
    times.sort_unstable();
    // The longest silence that began about when the leader was killed.
    let around = times
        .windows(2)
        .filter(|w| w[1] >= killed_at_ms && w[0] < killed_at_ms + 2_000);
    let gap_ms = around.map(|w| w[1] - w[0]).max().unwrap_or(0);
    let last = times.last().copied().unwrap_or(0);
    let mut timeline = vec![0; (last / STEP_MS + 1) as usize];
    for at in &times {
        timeline[(at / STEP_MS) as usize] += 1;
    }
    Ok(Report {
        acknowledged: acknowledged.len() as u64,
        unknown: (written.len() - acknowledged.len()) as u64,
        lost,
        gap_ms,
        killed_at_ms,
        leader,
        next_leader,
        timeline,
    })
}

/// Kills the leader when a third of the time is over, and starts it again after another third.
fn stage(
    args: &DemoArgs,
    dir: &Path,
    places: &[Place],
    servers: &mut [Option<Server>],
    clock: &SystemClock,
    begin: Duration,
) -> Result<(u64, u64, u64)> {
    clock.sleep(args.time / 3);
    let leader_of = |address: &str| -> Result<(u64, Option<u64>)> {
        let known = client(address, Duration::from_secs(5))?.cluster()?;
        Ok((known.node, known.leader))
    };
    let mut found = None;
    for (at, place) in places.iter().enumerate() {
        let (node, leader) = leader_of(&place.http)?;
        if leader == Some(node) {
            found = Some((at, node));
        }
    }
    let Some((at, leader)) = found else {
        return Err(Failure::new(Exit::Unreachable, "nobody leads"));
    };
    // SIGKILL.
    servers[at] = None;
    let killed_at = (clock.monotonic() - begin).as_millis() as u64;
    note(format_args!("killed node {leader}, which led"));
    clock.sleep(args.time / 3);
    let (_, next) = leader_of(&places[(at + 1) % NODES].http)?;
    servers[at] = Some(start(dir, at, places, args)?);
    note(format_args!("started node {leader} again"));
    clock.sleep(args.time / 3);
    Ok((killed_at, leader, next.unwrap_or(0)))
}

fn print(args: &DemoArgs, report: &Report) -> Result<()> {
    if args.format == ReportFormat::Json {
        return output::print_json(&json!({
            "acknowledged": report.acknowledged,
            "unknown": report.unknown,
            "lost": report.lost,
            "gap_ms": report.gap_ms,
            "killed_at_ms": report.killed_at_ms,
            "leader": report.leader,
            "next_leader": report.next_leader,
            "step_ms": STEP_MS,
            "timeline": report.timeline,
        }));
    }
    let most = report.timeline.iter().max().copied().unwrap_or(1).max(1);
    let mut out = output::stdout();
    for (step, count) in report.timeline.iter().enumerate() {
        let from = step as u64 * STEP_MS;
        let bar = "#".repeat((count * 50).div_ceil(most) as usize);
        let is_here = (from..from + STEP_MS).contains(&report.killed_at_ms);
        let mark = if is_here {
            format!("  <- node {} killed", report.leader)
        } else {
            String::new()
        };
        let seconds = from as f64 / 1e3;
        writeln!(out, "{seconds:5.1}s {count:7}  {bar}{mark}")?;
    }
    writeln!(out)?;
    writeln!(out, "acknowledged  {}", report.acknowledged)?;
    writeln!(out, "lost          {}", report.lost)?;
    writeln!(
        out,
        "unknown       {} (no answer came; they may or may not be there)",
        report.unknown
    )?;
    writeln!(
        out,
        "gap           {} ms without an acknowledged write; node {} led then",
        report.gap_ms, report.next_leader
    )?;
    out.flush()?;
    Ok(())
}
