//! Commands about the server: what it can, how it is, how it is configured.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use firn_api::http::{ClusterReply, MemberReply};

use crate::cluster::Cluster;
use crate::resp::client::REDIS_VERSION;
use crate::resp::glob;
use crate::resp::parse::{Args, integer};
use crate::resp::session::{
    Hold, SYNTAX, Session, Stop, bad_subcommand, is_help, refuse, refuse_with,
};
use crate::resp::shared::{Calls, DATABASES, Shared};
use crate::resp::strings::int;
use crate::resp::table::{COMMANDS, Command, find, find_sub};
use crate::service::error::Error;

type Done = Result<(), Stop>;

/// `HELP`: with any other subcommand that runs instead.
pub(crate) fn container(s: &mut Session, args: Args<'_>) -> Done {
    let Some(command) = named(args.get(0)) else {
        return Err(SYNTAX);
    };
    let subs = command.subcommands();
    s.out.array(2 * subs.clone().count() + 3);
    let name = command.name.to_uppercase();
    let head = format!("{name} <subcommand> [<arg> [value] [opt] ...]. Subcommands are:");
    s.out.simple(&head);
    for sub in subs {
        let (_, name) = sub.name.split_once('|').unwrap_or_default();
        let space = if sub.syntax.is_empty() { "" } else { " " };
        s.out
            .simple(&format!("{}{space}{}", name.to_uppercase(), sub.syntax));
        s.out.simple(&format!("    {}", sub.summary));
    }
    s.out.simple("HELP");
    s.out.simple("    Print this help.");
    Ok(())
}

pub(crate) fn zero(s: &mut Session, _: Args<'_>) -> Done {
    s.out.int(0);
    Ok(())
}

pub(crate) fn empty_array(s: &mut Session, _: Args<'_>) -> Done {
    s.out.array(0);
    Ok(())
}

// ---- COMMAND ------------------------------------------------------------------------------------

fn top() -> impl Iterator<Item = &'static Command> + Clone {
    COMMANDS.iter().filter(|c| c.container().is_none())
}

/// The categories of the access control lists.
fn categories(command: &Command) -> Vec<&'static str> {
    let mut list = vec![match command.group {
        "string" => "@string",
        "generic" => "@keyspace",
        "transactions" => "@transaction",
        "connection" => "@connection",
        "pubsub" => "@pubsub",
        _ => "@firn",
    }];
    if command.group == "server" || command.group == "cluster" {
        list.clear();
    }
    for (flag, category) in [
        ("write", "@write"),
        ("readonly", "@read"),
        ("admin", "@admin"),
        ("admin", "@dangerous"),
    ] {
        if command.is(flag) {
            list.push(category);
        }
    }
    list.push(if command.is("fast") { "@fast" } else { "@slow" });
    list
}

fn describe(s: &mut Session, command: &Command) {
    s.out.array(10);
    s.out.bulk(command.name.as_bytes());
    s.out.int(command.arity);
    let flags: Vec<_> = command.flags.split(' ').filter(|f| !f.is_empty()).collect();
    s.out.set(flags.len());
    for flag in flags {
        s.out.simple(flag);
    }
    let (first, last, step) = command.keys;
    for position in [first, last, step] {
        s.out.int(position);
    }
    let list = categories(command);
    s.out.set(list.len());
    for category in list {
        s.out.simple(category);
    }
    s.out.array(0);
    describe_keys(s, command);
    let subs = command.subcommands();
    s.out.array(subs.clone().count());
    for sub in subs {
        describe(s, sub);
    }
}

/// Where the keys are, as Redis 7 says it.
fn describe_keys(s: &mut Session, command: &Command) {
    let (first, last, step) = command.keys;
    if first == 0 {
        s.out.array(0);
        return;
    }
    let counted = command.is("movablekeys");
    s.out.array(1);
    s.out.map(3);
    s.out.bulk(b"flags");
    s.out.set(1);
    s.out.simple(if command.is("write") { "RW" } else { "RO" });
    let begin = |s: &mut Session, index: i64| {
        s.out.bulk(b"begin_search");
        s.out.map(2);
        s.out.bulk(b"type");
        s.out.bulk(b"index");
        s.out.bulk(b"spec");
        s.out.map(1);
        s.out.bulk(b"index");
        s.out.int(index);
    };
    begin(s, if counted { 1 } else { first });
    s.out.bulk(b"find_keys");
    s.out.map(2);
    s.out.bulk(b"type");
    let (kind, fields) = if counted {
        (
            "keynum",
            [("keynumidx", 0), ("firstkey", 1), ("keystep", 2)],
        )
    } else {
        let last = if last < 0 { last } else { last - first };
        (
            "range",
            [("lastkey", last), ("keystep", step), ("limit", 0)],
        )
    };
    s.out.bulk(kind.as_bytes());
    s.out.bulk(b"spec");
    s.out.map(3);
    for (name, value) in fields {
        s.out.bulk(name.as_bytes());
        s.out.int(value);
    }
}

pub(crate) fn command(s: &mut Session, args: Args<'_>) -> Done {
    if is_help(args) {
        return container(s, args);
    }
    s.out.array(top().count());
    for command in top() {
        describe(s, command);
    }
    Ok(())
}

pub(crate) fn command_count(s: &mut Session, _: Args<'_>) -> Done {
    s.out.count(top().count());
    Ok(())
}

pub(crate) fn command_list(s: &mut Session, args: Args<'_>) -> Done {
    let wanted: Box<dyn Fn(&Command) -> bool> =
        match (args.len(), args.get(3).to_ascii_lowercase().as_slice()) {
            (2, _) => Box::new(|_| true),
            (5, _) if !args.get(2).eq_ignore_ascii_case(b"filterby") => return Err(SYNTAX),
            (5, b"module") => Box::new(|_| false),
            (5, b"aclcat") => {
                let category = format!("@{}", String::from_utf8_lossy(args.get(4)).to_lowercase());
                Box::new(move |c| categories(c).contains(&category.as_str()))
            }
            (5, b"pattern") => {
                let pattern = args.get(4).to_ascii_lowercase();
                Box::new(move |c| glob::matches(&pattern, c.name.as_bytes()))
            }
            _ => return Err(SYNTAX),
        };
    let names: Vec<_> = top().filter(|c| wanted(c)).map(|c| c.name).collect();
    s.out.array(names.len());
    for name in names {
        s.out.bulk(name.as_bytes());
    }
    Ok(())
}

/// The row that a name in `COMMAND INFO` means: `get`, `client|list`.
fn named(name: &[u8]) -> Option<&'static Command> {
    find(name).map(|row| &COMMANDS[usize::from(row)])
}

pub(crate) fn command_info(s: &mut Session, args: Args<'_>) -> Done {
    let names = args.from(2);
    if names.is_empty() {
        return command(s, args);
    }
    s.out.array(names.len());
    for name in names.iter() {
        match named(name) {
            Some(command) => describe(s, command),
            None => s.out.null(),
        }
    }
    Ok(())
}

fn document(s: &mut Session, command: &Command) {
    let subs = command.subcommands();
    let has_subs = subs.clone().next().is_some();
    s.out.bulk(command.name.as_bytes());
    s.out.map(if has_subs { 5 } else { 4 });
    for (name, value) in [
        ("summary", command.summary),
        ("since", command.since),
        ("group", command.group),
    ] {
        s.out.bulk(name.as_bytes());
        s.out.bulk(value.as_bytes());
    }
    // The arguments as one text: redis-cli shows it behind the name.
    s.out.bulk(b"arguments");
    if command.syntax.is_empty() {
        s.out.array(0);
    } else {
        s.out.array(1);
        s.out.map(3);
        for (name, value) in [
            ("name", command.syntax),
            ("type", "string"),
            ("display_text", command.syntax),
        ] {
            s.out.bulk(name.as_bytes());
            s.out.bulk(value.as_bytes());
        }
    }
    if has_subs {
        s.out.bulk(b"subcommands");
        s.out.map(subs.clone().count());
        for sub in subs {
            document(s, sub);
        }
    }
}

pub(crate) fn command_docs(s: &mut Session, args: Args<'_>) -> Done {
    let wanted: Vec<_> = if args.len() == 2 {
        top().collect()
    } else {
        args.from(2).iter().filter_map(named).collect()
    };
    s.out.map(wanted.len());
    for command in wanted {
        document(s, command);
    }
    Ok(())
}

pub(crate) fn command_getkeys(s: &mut Session, args: Args<'_>) -> Done {
    let inner = args.from(2);
    let Some(mut command) = named(inner.get(0)) else {
        return Err(refuse("ERR Invalid command specified"));
    };
    if let Some(sub) = find_sub(command.name, inner.get(1)) {
        command = &COMMANDS[usize::from(sub)];
    }
    if command.keys.0 == 0 {
        return Err(refuse("ERR The command has no key arguments"));
    }
    if !command.takes(inner.len()) {
        return Err(refuse(
            "ERR Invalid number of arguments specified for command",
        ));
    }
    let keys = command.key_positions(inner);
    s.out.array(keys.clone().count());
    for at in keys {
        s.out.bulk(inner.get(at));
    }
    Ok(())
}

// ---- INFO ---------------------------------------------------------------------------------------

type Section = fn(&Shared, &mut String);

const SECTIONS: &[(&str, &str, Section)] = &[
    ("server", "Server", info_server),
    ("clients", "Clients", info_clients),
    ("memory", "Memory", info_memory),
    ("persistence", "Persistence", info_persistence),
    ("stats", "Stats", info_stats),
    ("replication", "Replication", info_replication),
    ("cpu", "CPU", |_, _| {}),
    ("modules", "Modules", |_, _| {}),
    ("commandstats", "Commandstats", info_commandstats),
    ("errorstats", "Errorstats", |_, _| {}),
    ("cluster", "Cluster", |_, page| {
        page.push_str("cluster_enabled:0\r\n")
    }),
    ("keyspace", "Keyspace", info_keyspace),
];

fn uptime(shared: &Shared) -> Duration {
    shared
        .service
        .clock()
        .monotonic()
        .saturating_sub(shared.started.0)
}

/// `name:value` lines. Writing to a string does not fail.
macro_rules! lines {
    ($page:expr, $($name:literal: $value:expr,)*) => {
        $(let _ = write!($page, concat!($name, ":{}\r\n"), $value);)*
    };
}

fn info_server(shared: &Shared, page: &mut String) {
    let up = uptime(shared).as_secs();
    lines! { page,
        "redis_version": REDIS_VERSION,
        "redis_git_sha1": "00000000",
        "redis_git_dirty": 0,
        "redis_build_id": 0,
        "firn_version": env!("CARGO_PKG_VERSION"),
        "server_name": "firn",
        "redis_mode": "standalone",
        "os": std::env::consts::OS,
        "arch_bits": usize::BITS,
        "multiplexing_api": "tokio",
        "process_id": std::process::id(),
        "run_id": shared.run_id,
        "tcp_port": shared.port,
        "server_time_usec": shared.service.clock().unix_ms() * 1_000,
        "uptime_in_seconds": up,
        "uptime_in_days": up / 86_400,
        "hz": 10,
        "executable": "firn",
        "config_file": "",
    }
}

fn info_clients(shared: &Shared, page: &mut String) {
    lines! { page,
        "connected_clients": shared.clients.lock().len(),
        "cluster_connections": 0,
        "maxclients": shared.max_clients,
        "blocked_clients": 0,
        "tracking_clients": 0,
    }
}

fn info_memory(shared: &Shared, page: &mut String) {
    let memory = shared.service.db().stats().memory;
    let used = memory.memtables + memory.block_cache + memory.tables;
    lines! { page,
        "used_memory": used,
        "used_memory_human": human(used),
        "used_memory_rss": used,
        "used_memory_peak": used,
        "used_memory_dataset": used,
        "maxmemory": memory.budget,
        "maxmemory_human": human(memory.budget),
        "maxmemory_policy": "noeviction",
        "mem_fragmentation_ratio": "1.00",
        "mem_allocator": "firn",
    }
}

fn human(bytes: u64) -> String {
    format!("{:.2}M", bytes as f64 / f64::from(1 << 20))
}

fn info_persistence(shared: &Shared, page: &mut String) {
    let stats = shared.service.db().stats();
    let ok = stats.poisoned.is_none();
    lines! { page,
        "loading": 0,
        "async_loading": 0,
        "rdb_changes_since_last_save": 0,
        "rdb_bgsave_in_progress": 0,
        "rdb_last_save_time": shared.last_save.load(Ordering::Relaxed),
        "rdb_last_bgsave_status": "ok",
        "aof_enabled": 1,
        "aof_rewrite_in_progress": 0,
        "aof_last_bgrewrite_status": "ok",
        "aof_last_write_status": if ok { "ok" } else { "err" },
        "aof_current_size": stats.log.disk_bytes,
    }
}

fn info_stats(shared: &Shared, page: &mut String) {
    let totals = shared.totals();
    let all = shared.commands.load(Ordering::Relaxed);
    lines! { page,
        "total_connections_received": totals.accepted,
        "total_commands_processed": totals.commands,
        "instantaneous_ops_per_sec": all / uptime(shared).as_secs().max(1),
        "rejected_connections": totals.refused,
        "expired_keys": totals.expired,
        "evicted_keys": 0,
        "keyspace_hits": totals.hits,
        "keyspace_misses": totals.misses,
        "pubsub_channels": shared.hub.len().0,
        "pubsub_patterns": shared.hub.len().1,
        "latest_fork_usec": 0,
    }
}

fn info_replication(shared: &Shared, page: &mut String) {
    if let Some(cluster) = shared.service.cluster() {
        return info_replication_of(shared, cluster, page);
    }
    lines! { page,
        "role": "master",
        "connected_slaves": 0,
        "master_failover_state": "no-failover",
        "master_replid": shared.run_id,
        "master_repl_offset": 0,
        "repl_backlog_active": 0,
    }
}

/// Host and port of an address; what is not one is a host.
fn split(address: &str) -> (&str, &str) {
    address.rsplit_once(':').unwrap_or((address, "0"))
}

/// Where clients that speak RESP find a node; if it speaks none, where others find it.
fn resp_of(member: &MemberReply) -> (&str, &str) {
    if member.resp.is_empty() {
        split(&member.peer)
    } else {
        split(&member.resp)
    }
}

fn info_replication_of(shared: &Shared, cluster: &Cluster, page: &mut String) {
    let known = cluster.describe();
    let leader = known.members.iter().find(|m| Some(m.node) == known.leader);
    let offset = known.applied_index.unwrap_or(0);
    let others = known.members.iter().filter(|m| m.node != known.node);
    if known.leader == Some(known.node) {
        lines! { page, "role": "master", "connected_slaves": others.clone().count(), }
        let last = known.last_index.unwrap_or(0);
        for (number, member) in others.enumerate() {
            let (host, port) = resp_of(member);
            let has = last - member.lag.unwrap_or(last).min(last);
            let heard = member.heard_ms.map_or(-1, |ms| (ms / 1_000) as i64);
            let state = if heard == 0 { "online" } else { "wait_bgsave" };
            let _ = write!(
                page,
                "slave{number}:ip={host},port={port},state={state},offset={has},lag={heard}\r\n"
            );
        }
    } else {
        let (host, port) = leader.map_or(("", "0"), resp_of);
        let up = leader.is_some() && known.trouble.is_none();
        lines! { page,
            "role": "slave",
            "master_host": host,
            "master_port": port,
            "master_link_status": if up { "up" } else { "down" },
            "slave_repl_offset": offset,
            "slave_read_only": 0,
            "connected_slaves": 0,
        }
    }
    lines! { page,
        "master_failover_state": "no-failover",
        "master_replid": shared.run_id,
        "master_repl_offset": known.committed_index.unwrap_or(offset),
        "repl_backlog_active": 0,
        "raft_cluster": known.cluster,
        "raft_node": known.node,
        "raft_role": known.role,
        "raft_leader": known.leader.unwrap_or(0),
        "raft_term": known.term,
    }
}

fn info_commandstats(shared: &Shared, page: &mut String) {
    for (row, command) in COMMANDS.iter().enumerate() {
        let Calls { ok, bad, ns } = shared.calls(row);
        let calls = ok + bad;
        if calls > 0 {
            let _ = write!(
                page,
                "cmdstat_{}:calls={calls},usec={},usec_per_call={:.2},rejected_calls=0,failed_calls={bad}\r\n",
                command.name,
                ns / 1_000,
                ns as f64 / 1_000.0 / calls as f64,
            );
        }
    }
}

/// Approximate counts: exact ones would need a walk.
fn info_keyspace(shared: &Shared, page: &mut String) {
    for index in 0..DATABASES {
        let Ok(ns) = shared.service.namespace(&Shared::database_name(index)) else {
            continue;
        };
        let keys = shared.service.db().approximate_count(&ns);
        if keys > 0 {
            let _ = write!(
                page,
                "db{index}:keys={keys},expires=0,avg_ttl=0,subexpiry=0\r\n"
            );
        }
    }
}

pub(crate) fn info(s: &mut Session, args: Args<'_>) -> Done {
    /// Not part of what is shown without being asked for.
    const EXTRA: [&str; 1] = ["commandstats"];
    let asked: Vec<_> = args
        .from(1)
        .iter()
        .map(|name| String::from_utf8_lossy(name).to_lowercase())
        .collect();
    let has = |name: &str| asked.iter().any(|asked| asked == name);
    let default = asked.is_empty() || has("default");
    let everything = has("all") || has("everything");
    let mut page = String::new();
    for (name, title, write) in SECTIONS {
        if everything || has(name) || default && !EXTRA.contains(name) {
            if !page.is_empty() {
                page.push_str("\r\n");
            }
            let _ = write!(page, "# {title}\r\n");
            write(&s.shared, &mut page);
        }
    }
    s.out.verbatim(&page);
    Ok(())
}

pub(crate) fn time(s: &mut Session, _: Args<'_>) -> Done {
    let ms = s.now_ms();
    s.out.array(2);
    s.out.bulk((ms / 1_000).to_string().as_bytes());
    s.out.bulk((ms % 1_000 * 1_000).to_string().as_bytes());
    Ok(())
}

pub(crate) fn lolwut(s: &mut Session, _: Args<'_>) -> Done {
    let text = format!(
        "*  .  *  .\n .  *  .  *\nFirnDB {}\n",
        env!("CARGO_PKG_VERSION")
    );
    s.out.verbatim(&text);
    Ok(())
}

// ---- CONFIG -------------------------------------------------------------------------------------

/// The parameters that `CONFIG GET` knows, with Redis's names.
fn parameters(s: &Session) -> Vec<(&'static str, String)> {
    let shared = &s.shared;
    let memory = shared.service.db().stats().memory.budget;
    vec![
        (
            "appendfsync",
            match shared.service.default_durability() {
                firn_engine::Durability::Sync => "always".into(),
                firn_engine::Durability::Buffered => "everysec".into(),
            },
        ),
        ("appendonly", "yes".into()),
        ("bind", String::new()),
        ("databases", DATABASES.to_string()),
        ("dbfilename", String::new()),
        ("dir", shared.dir.clone()),
        ("hz", "10".into()),
        ("maxclients", shared.max_clients.to_string()),
        ("maxmemory", memory.to_string()),
        ("maxmemory-policy", "noeviction".into()),
        ("notify-keyspace-events", shared.notify_text()),
        ("port", shared.port.to_string()),
        ("proto-max-bulk-len", shared.max_bulk.to_string()),
        ("requirepass", String::new()),
        ("save", String::new()),
        (
            "slowlog-log-slower-than",
            shared.slow_log.given_threshold().to_string(),
        ),
        ("slowlog-max-len", shared.slow_log.max_len().to_string()),
        ("tcp-keepalive", "300".into()),
        ("timeout", "0".into()),
    ]
}

pub(crate) fn config_get(s: &mut Session, args: Args<'_>) -> Done {
    let patterns: Vec<_> = args
        .from(2)
        .iter()
        .map(<[u8]>::to_ascii_lowercase)
        .collect();
    let mut found = parameters(s);
    found.retain(|(name, _)| patterns.iter().any(|p| glob::matches(p, name.as_bytes())));
    s.out.map(found.len());
    for (name, value) in &found {
        s.out.bulk(name.as_bytes());
        s.out.bulk(value.as_bytes());
    }
    Ok(())
}

pub(crate) fn config_set(s: &mut Session, args: Args<'_>) -> Done {
    let pairs = args.from(2);
    if pairs.len() % 2 == 1 {
        return Err(refuse(
            "ERR wrong number of arguments for 'config|set' command",
        ));
    }
    let failed = |name: &str, why: &str| {
        refuse_with(format!(
            "ERR CONFIG SET failed (possibly related to argument '{name}') - {why}"
        ))
    };
    // First everything is checked, then everything is set.
    for check_only in [true, false] {
        for at in (0..pairs.len()).step_by(2) {
            let name = String::from_utf8_lossy(pairs.get(at)).to_lowercase();
            let value = pairs.get(at + 1);
            let again = |other: usize| pairs.get(other).eq_ignore_ascii_case(name.as_bytes());
            if check_only && (0..at).step_by(2).any(again) {
                return Err(failed(&name, "duplicate parameter"));
            }
            let number = || {
                integer(value)
                    .ok_or_else(|| failed(&name, "argument couldn't be parsed into an integer"))
            };
            match name.as_str() {
                "notify-keyspace-events" => {
                    let known = value.iter().all(|l| {
                        *l == b'A' || crate::resp::shared::NOTIFY.iter().any(|(k, _)| k == l)
                    });
                    if !known {
                        return Err(failed(
                            &name,
                            "Invalid event class character. Use 'Ag$lshzxeKEtmdn'.",
                        ));
                    }
                    if !check_only {
                        s.shared.set_notify(value);
                    }
                }
                "slowlog-log-slower-than" => {
                    let micros = number()?;
                    if micros < -1 {
                        return Err(failed(
                            &name,
                            "argument must be between -1 and 9223372036854775807 inclusive",
                        ));
                    }
                    if !check_only {
                        s.shared.slow_log.set_threshold(micros);
                    }
                }
                "slowlog-max-len" => {
                    let len = u64::try_from(number()?).map_err(|_| {
                        failed(
                            &name,
                            "argument must be between 0 and 9223372036854775807 inclusive",
                        )
                    })?;
                    if !check_only {
                        s.shared.slow_log.set_max_len(len);
                    }
                }
                _ if parameters(s).iter().any(|(known, _)| *known == name) => {
                    return Err(failed(&name, "can't set immutable config"));
                }
                _ => {
                    return Err(refuse_with(format!(
                        "ERR Unknown option or number of arguments for CONFIG SET - '{name}'"
                    )));
                }
            }
        }
    }
    s.out.ok();
    Ok(())
}

pub(crate) fn config_resetstat(s: &mut Session, _: Args<'_>) -> Done {
    s.shared.reset_stats();
    s.out.ok();
    Ok(())
}

// ---- SLOWLOG ------------------------------------------------------------------------------------

pub(crate) fn slowlog_get(s: &mut Session, args: Args<'_>) -> Done {
    let count = match args.len() {
        2 => 10,
        3 => match integer(args.get(2)) {
            Some(-1) => i64::MAX,
            Some(count) if count >= 0 => count,
            _ => return Err(refuse("ERR count should be greater than or equal to -1")),
        },
        _ => return Err(bad_subcommand("SLOWLOG", args)),
    };
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let shared = Arc::clone(&s.shared);
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    shared.slow_log.with(|entries| {
        s.out.array(entries.len().min(count));
        for entry in entries.iter().take(count) {
            s.out.array(6);
            s.out.int(number(entry.id));
            s.out.int(number(entry.at));
            s.out.int(number(entry.micros));
            s.out.array(entry.args.len());
            for arg in &entry.args {
                s.out.bulk(arg);
            }
            s.out.bulk(entry.address.as_bytes());
            s.out.bulk(entry.name.as_bytes());
        }
    });
    Ok(())
}

pub(crate) fn slowlog_len(s: &mut Session, _: Args<'_>) -> Done {
    let len = s.shared.slow_log.with(|entries| entries.len());
    s.out.count(len);
    Ok(())
}

pub(crate) fn slowlog_reset(s: &mut Session, _: Args<'_>) -> Done {
    s.shared.slow_log.reset();
    s.out.ok();
    Ok(())
}

// ---- durability and replication -----------------------------------------------------------------

pub(crate) fn readonly(s: &mut Session, _: Args<'_>) -> Done {
    s.stale = true;
    s.out.ok();
    Ok(())
}

pub(crate) fn readwrite(s: &mut Session, _: Args<'_>) -> Done {
    s.stale = false;
    s.out.ok();
    Ok(())
}

fn port_of(text: &str) -> i64 {
    text.parse().unwrap_or(0)
}

/// What a cluster's node does, as Redis says it.
fn role_of(s: &mut Session, known: &ClusterReply) {
    let number = |index: Option<u64>| i64::try_from(index.unwrap_or(0)).unwrap_or(i64::MAX);
    let offset = number(known.applied_index);
    if known.leader != Some(known.node) {
        let leader = known.members.iter().find(|m| Some(m.node) == known.leader);
        let (host, port) = leader.map_or(("", "0"), resp_of);
        let is_up = leader.is_some() && known.trouble.is_none();
        s.out.array(5);
        s.out.bulk(b"slave");
        s.out.bulk(host.as_bytes());
        s.out.int(port_of(port));
        s.out.bulk(if is_up { b"connected" } else { b"connect" });
        s.out.int(offset);
        return;
    }
    let others: Vec<_> = known
        .members
        .iter()
        .filter(|m| m.node != known.node)
        .collect();
    s.out.array(3);
    s.out.bulk(b"master");
    s.out.int(offset);
    s.out.array(others.len());
    for member in others {
        let (host, port) = resp_of(member);
        let last = known.last_index.unwrap_or(0);
        let has = last - member.lag.unwrap_or(last).min(last);
        s.out.array(3);
        s.out.bulk(host.as_bytes());
        s.out.bulk(port.as_bytes());
        s.out.bulk(has.to_string().as_bytes());
    }
}

/// How many other nodes have what this connection wrote on their disks, at least.
fn copies(s: &Session, cluster: &Cluster) -> i64 {
    let known = cluster.describe();
    let voters = known.members.iter().filter(|m| m.role != "learner");
    let majority = voters.clone().count() / 2;
    let written = s.written().unwrap_or(0);
    let last = known.last_index.unwrap_or(0);
    let has = |m: &&MemberReply| m.lag.is_some_and(|lag| last.saturating_sub(lag) >= written);
    let counted = voters.filter(|m| m.node != known.node).filter(has).count();
    i64::try_from(counted.max(majority)).unwrap_or(i64::MAX)
}

pub(crate) fn role(s: &mut Session, _: Args<'_>) -> Done {
    if let Some(cluster) = s.service().cluster() {
        let known = cluster.describe();
        role_of(s, &known);
        return Ok(());
    }
    s.out.array(3);
    s.out.bulk(b"master");
    s.out.int(0);
    s.out.array(0);
    Ok(())
}

/// Reads a time-out in milliseconds.
fn timeout(text: &[u8]) -> Result<u64, Stop> {
    let ms = integer(text).ok_or(refuse("ERR timeout is not an integer or out of range"))?;
    u64::try_from(ms).map_err(|_| refuse("ERR timeout is negative"))
}

pub(crate) fn wait(s: &mut Session, args: Args<'_>) -> Done {
    let replicas = int(args.get(1))?;
    let ms = timeout(args.get(2))?;
    // A write that was acknowledged is on a majority already; whoever waits for more copies than there
    // are, or for one of a server by itself, waits for as long as was asked. For ever is not
    // waited in a transaction, as in Redis, and not longer than an hour.
    if replicas <= 0 || s.overlay.is_some() {
        s.out.int(0);
        return Ok(());
    }
    const HOUR_MS: u64 = 3_600_000;
    let ms = if ms == 0 { HOUR_MS } else { ms.min(HOUR_MS) };
    let mut have = 0;
    if let Some(cluster) = s.service().cluster().cloned() {
        if !s.is_settled() {
            return Err(Hold::Settle.into());
        }
        have = copies(s, &cluster);
        if have >= replicas {
            s.out.int(have);
            return Ok(());
        }
    }
    Err(Hold::Delay(Duration::from_millis(ms), have).into())
}

pub(crate) fn waitaof(s: &mut Session, args: Args<'_>) -> Done {
    let (local, replicas) = (int(args.get(1))?, int(args.get(2))?);
    timeout(args.get(3))?;
    if !(0..=1).contains(&local) || replicas < 0 {
        return Err(refuse(
            "ERR value is out of range, must be 0 or 1 for numlocal",
        ));
    }
    let mut have = 0;
    match s.service().cluster().cloned() {
        Some(cluster) => {
            cluster.node().sync_log().map_err(Error::from)?;
            have = copies(s, &cluster);
        }
        None => s.service().db().sync()?,
    }
    s.out.array(2);
    s.out.int(1);
    s.out.int(have);
    Ok(())
}

pub(crate) fn save(s: &mut Session, _: Args<'_>) -> Done {
    s.service().db().flush()?;
    let now = s.now_ms() / 1_000;
    s.shared.last_save.store(now, Ordering::Relaxed);
    s.out.ok();
    Ok(())
}

pub(crate) fn bgsave(s: &mut Session, args: Args<'_>) -> Done {
    if args.len() > 2 || args.len() == 2 && !args.get(1).eq_ignore_ascii_case(b"schedule") {
        return Err(SYNTAX);
    }
    let shared = Arc::clone(&s.shared);
    tokio::task::spawn_blocking(move || match shared.service.db().flush() {
        Ok(()) => {
            let now = shared.service.clock().unix_ms() / 1_000;
            shared.last_save.store(now, Ordering::Relaxed);
        }
        Err(error) => tracing::warn!(%error, "BGSAVE failed"),
    });
    s.out.simple("Background saving started");
    Ok(())
}

pub(crate) fn bgrewriteaof(s: &mut Session, _: Args<'_>) -> Done {
    s.out
        .simple("Background append only file rewriting started");
    Ok(())
}

pub(crate) fn lastsave(s: &mut Session, _: Args<'_>) -> Done {
    let at = s.shared.last_save.load(Ordering::Relaxed);
    s.out.int(i64::try_from(at).unwrap_or(i64::MAX));
    Ok(())
}

pub(crate) fn debug(_: &mut Session, _: Args<'_>) -> Done {
    Err(refuse(
        "ERR DEBUG command not allowed. If the enable-debug-command option is set to \"local\", you can run it from a local connection, otherwise you need to set this option in the configuration file, and then restart the server.",
    ))
}

pub(crate) fn acl_whoami(s: &mut Session, _: Args<'_>) -> Done {
    s.out.bulk(b"default");
    Ok(())
}

// ---- CLUSTER ------------------------------------------------------------------------------------

const SLOTS: i64 = 16_384;

pub(crate) fn cluster_info(s: &mut Session, _: Args<'_>) -> Done {
    if let Some(cluster) = s.service().cluster() {
        let known = cluster.describe();
        let state = if known.trouble.is_none() {
            "ok"
        } else {
            "fail"
        };
        let page = format!(
            "cluster_enabled:0\r\ncluster_state:{state}\r\ncluster_slots_assigned:16384\r\n\
             cluster_slots_ok:16384\r\ncluster_slots_pfail:0\r\ncluster_slots_fail:0\r\n\
             cluster_known_nodes:{}\r\ncluster_size:1\r\ncluster_current_epoch:{}\r\n\
             cluster_my_epoch:{}\r\n",
            known.members.len(),
            known.term,
            known.term,
        );
        s.out.verbatim(&page);
        return Ok(());
    }
    s.out.verbatim(
        "cluster_enabled:0\r\ncluster_state:ok\r\ncluster_slots_assigned:16384\r\n\
         cluster_slots_ok:16384\r\ncluster_slots_pfail:0\r\ncluster_slots_fail:0\r\n\
         cluster_known_nodes:1\r\ncluster_size:1\r\ncluster_current_epoch:0\r\ncluster_my_epoch:0\r\n",
    );
    Ok(())
}

/// The id of a node: 40 digits, as in Redis.
fn node_id(node: u64) -> String {
    format!("{node:040x}")
}

fn my_id(s: &Session) -> String {
    match s.service().cluster() {
        Some(cluster) => node_id(cluster.identity().node),
        None => s.shared.run_id.clone(),
    }
}

pub(crate) fn cluster_myid(s: &mut Session, _: Args<'_>) -> Done {
    let id = my_id(s);
    s.out.bulk(id.as_bytes());
    Ok(())
}

/// CRC-16 (XMODEM) of the key, or of what is in its first braces.
fn slot_of(key: &[u8]) -> i64 {
    let tag = key.iter().position(|&b| b == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        let close = rest
            .iter()
            .position(|&b| b == b'}')
            .filter(|&close| close > 0)?;
        Some(&rest[..close])
    });
    let crc = tag.unwrap_or(key).iter().fold(0_u16, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte) << 8, |crc, _| {
            if crc & 0x8000 != 0 {
                crc << 1 ^ 0x1021
            } else {
                crc << 1
            }
        })
    });
    i64::from(crc) % SLOTS
}

pub(crate) fn cluster_keyslot(s: &mut Session, args: Args<'_>) -> Done {
    s.out.int(slot_of(args.get(2)));
    Ok(())
}

/// Host and port at which the asking client reached this server.
fn here(s: &Session) -> (String, i64) {
    match s.client.local.rsplit_once(':') {
        Some((host, port)) => (host.to_owned(), port.parse().unwrap_or(0)),
        None => (String::new(), i64::from(s.shared.port)),
    }
}

pub(crate) fn cluster_slots(s: &mut Session, _: Args<'_>) -> Done {
    // Whichever node a client reached takes everything.
    let ((host, port), id) = (here(s), my_id(s));
    s.out.array(1);
    s.out.array(3);
    s.out.int(0);
    s.out.int(SLOTS - 1);
    s.out.array(4);
    s.out.bulk(host.as_bytes());
    s.out.int(port);
    s.out.bulk(id.as_bytes());
    s.out.array(0);
    Ok(())
}

pub(crate) fn cluster_shards(s: &mut Session, _: Args<'_>) -> Done {
    let (host, port) = here(s);
    let mut nodes = vec![ShardNode {
        id: my_id(s),
        host,
        port,
        role: "master",
        health: "online",
        offset: 0,
    }];
    if let Some(cluster) = s.service().cluster() {
        let known = cluster.describe();
        let last = known.last_index.unwrap_or(0);
        nodes = known
            .members
            .iter()
            .map(|m| shard_node(&known, m, last))
            .collect();
    }
    s.out.array(1);
    s.out.map(2);
    s.out.bulk(b"slots");
    s.out.array(2);
    s.out.int(0);
    s.out.int(SLOTS - 1);
    s.out.bulk(b"nodes");
    s.out.array(nodes.len());
    for node in nodes {
        s.out.map(7);
        for (name, value) in [
            ("id", node.id.as_str()),
            ("ip", &node.host),
            ("endpoint", &node.host),
            ("role", node.role),
            ("health", node.health),
        ] {
            s.out.bulk(name.as_bytes());
            s.out.bulk(value.as_bytes());
        }
        for (name, value) in [("port", node.port), ("replication-offset", node.offset)] {
            s.out.bulk(name.as_bytes());
            s.out.int(value);
        }
    }
    Ok(())
}

/// A row of `CLUSTER SHARDS`.
struct ShardNode {
    id: String,
    host: String,
    port: i64,
    role: &'static str,
    health: &'static str,
    offset: i64,
}

fn shard_node(known: &ClusterReply, member: &MemberReply, last: u64) -> ShardNode {
    let (host, port) = resp_of(member);
    let is_me = member.node == known.node;
    let is_well = match (is_me, member.heard_ms) {
        (true, _) => known.trouble.is_none(),
        // A follower knows of the leader only.
        (false, None) => known.leader != Some(known.node),
        (false, Some(ms)) => ms < 5_000,
    };
    let has = match (is_me, member.lag) {
        (true, _) => known.applied_index.unwrap_or(0),
        (false, lag) => lag.map_or(0, |lag| last.saturating_sub(lag)),
    };
    ShardNode {
        id: node_id(member.node),
        host: host.to_owned(),
        port: port_of(port),
        role: if member.role == "leader" {
            "master"
        } else {
            "replica"
        },
        health: if is_well { "online" } else { "fail" },
        offset: i64::try_from(has).unwrap_or(i64::MAX),
    }
}

pub(crate) fn cluster_nodes(s: &mut Session, _: Args<'_>) -> Done {
    let (host, port) = here(s);
    if let Some(cluster) = s.service().cluster() {
        let known = cluster.describe();
        let last = known.last_index.unwrap_or(0);
        let leader = known.leader.map_or("-".into(), node_id);
        let mut page = String::new();
        for member in &known.members {
            let row = shard_node(&known, member, last);
            let (_, bus) = split(&member.peer);
            let myself = if member.node == known.node {
                "myself,"
            } else {
                ""
            };
            let (role, of, slots) = match row.role {
                "master" => ("master", "-", " 0-16383"),
                _ => ("slave", leader.as_str(), ""),
            };
            let link = match row.health {
                "online" => "connected",
                _ => "disconnected",
            };
            let _ = writeln!(
                page,
                "{} {}:{}@{bus} {myself}{role} {of} 0 0 {} {link}{slots}",
                row.id, row.host, row.port, known.term
            );
        }
        s.out.verbatim(&page);
        return Ok(());
    }
    let line = format!(
        "{} {host}:{port}@{port} myself,master - 0 0 0 connected 0-16383\n",
        s.shared.run_id
    );
    s.out.verbatim(&line);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_redis() {
        for (key, slot) in [
            ("foo", 12_182),
            ("{user1000}.following", 3_443),
            ("user1000", 3_443),
            ("", 0),
            ("123456789", 12_739),
        ] {
            assert_eq!(slot_of(key.as_bytes()), slot, "{key}");
        }
    }
}
