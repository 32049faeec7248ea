//! What a message costs: two ends in one process over loopback, as consensus uses them (a call is
//! answered by 8 bytes).
//!
//! ```text
//! cargo run --release -p firn-peer --example loopback [-- CERT KEY CA]
//! ```
//!
//! Prints, for each length of a request and number of requests in flight: messages and bytes a second,
//! the time of a call, and the processor time of both ends together for each message.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a tool for a person at a terminal"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use firn_io::Env;
use firn_peer::{ClusterId, Handler, PeerOptions, Peers, Tls, TlsFiles};
use firn_replica::NodeId;
use firn_replica::transport::{BoxFuture, Class, Peer, Transport};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;

struct Acknowledge;

impl Handler for Acknowledge {
    fn handle(&self, _: NodeId, _: Class, _: Bytes) -> BoxFuture<'static, Bytes> {
        Box::pin(async { Bytes::from_static(&[7; 8]) })
    }
}

/// User and system time of this process so far.
fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    // In ticks, of which Linux has 100 a second.
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

fn main() {
    let files: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(run(&files));
}

async fn run(files: &[String]) {
    let env = Env::os(1);
    let tls = match files {
        [cert, key, ca] => {
            let files = TlsFiles {
                cert: cert.into(),
                key: key.into(),
                ca: ca.into(),
                server_name: None,
            };
            Some(Tls::load(&env, files).unwrap())
        }
        _ => None,
    };
    let end = |node| {
        let mut options = PeerOptions::new(ClusterId([1; 16]), node, node);
        options.tls = tls.clone();
        let root =
            std::env::temp_dir().join(format!("firn-loopback-{}-{node}", std::process::id()));
        std::fs::create_dir_all(&root).unwrap();
        let handle = tokio::runtime::Handle::current();
        let peers = Peers::new(options, &env, &root, handle).unwrap();
        (peers, root)
    };
    let (server, server_root) = end(2);
    let (client, client_root) = end(1);
    let listener = server.listen("127.0.0.1:0").await.unwrap();
    let to = Peer {
        id: 2,
        address: listener.address().to_string(),
    };
    tokio::spawn(listener.serve(Arc::new(Acknowledge)));
    println!("bytes   in flight   messages/s     MiB/s   us/call   us of processor/message");
    for (bytes, in_flight) in [(256, 1), (256, 64), (4096, 64), (65_536, 16), (1 << 20, 4)] {
        let (client, to) = (Arc::clone(&client), to.clone());
        let measured = tokio::spawn(measure(client, to, bytes, in_flight));
        let (count, took, used) = measured.await.unwrap();
        let each = |time: Duration| time.as_secs_f64() * 1e6 / count as f64;
        println!(
            "{bytes:<9} {in_flight:<8} {:>10.0} {:>10.0} {:>9.1} {:>10.2}",
            count as f64 / took.as_secs_f64(),
            (count * bytes as u64) as f64 / took.as_secs_f64() / f64::from(1 << 20),
            each(took) * f64::from(in_flight),
            each(used),
        );
    }
    for root in [server_root, client_root] {
        std::fs::remove_dir_all(root).unwrap();
    }
}

/// Calls for two seconds. How many, how long, and at what cost.
async fn measure(
    client: Arc<Peers>,
    to: Peer,
    bytes: usize,
    in_flight: u32,
) -> (u64, Duration, Duration) {
    let body = Bytes::from(vec![9; bytes]);
    let time = Duration::from_secs(30);
    let call = || client.call(&to, Class::Log, body.clone(), time);
    call().await.unwrap();
    let (begin, before) = (Instant::now(), processor_time());
    let mut calls: FuturesUnordered<_> = (0..in_flight).map(|_| call()).collect();
    let mut count = 0;
    while begin.elapsed() < Duration::from_secs(2) {
        calls.next().await.unwrap().unwrap();
        count += 1;
        calls.push(call());
    }
    (count, begin.elapsed(), processor_time() - before)
}
