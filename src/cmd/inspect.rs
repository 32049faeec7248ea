//! `firn inspect`: what a store consists of. Offline it opens for reading only and changes nothing.

use std::io::Write;
use std::path::Path;

use firn_engine::Stats;
use firn_engine::names::{self, FileKind};
use firn_io::Env;
use serde_json::{Value, json};

use crate::exit::Result;
use crate::flags::InspectArgs;
use crate::output::{self, ReportFormat, Table};
use crate::store::{self, Access};
use crate::text::{count, escape, size};

pub(crate) fn run(args: &InspectArgs) -> Result<()> {
    let report = match &args.data_dir {
        Some(dir) => {
            let dir = store::existing_dir(dir)?;
            let mut report = files(&dir, args.files)?;
            let db = store::open_db(&dir, None, Access::Read)?;
            let stats = stats_json(&db.stats());
            db.close()?;
            if let (Value::Object(report), Value::Object(stats)) = (&mut report, stats) {
                report.extend(stats);
            }
            report
        }
        None => {
            let server = args.server.as_deref().unwrap_or(store::DEFAULT_SERVER);
            let stats = firn_client::blocking::Client::connect(server)?.stats()?;
            serde_json::to_value(stats).unwrap_or_default()
        }
    };
    if args.format == ReportFormat::Json {
        return output::print_json(&report);
    }
    let mut out = output::stdout();
    print(&report, &mut out)?;
    out.flush()?;
    Ok(())
}

/// What lies in the directory, by kind; each file if asked.
fn files(dir: &Path, each: bool) -> Result<Value> {
    let env = Env::os(1);
    let mut kinds: Vec<(&str, u64, u64)> = Vec::new();
    let mut list = Vec::new();
    let wal = dir.join(names::WAL_DIR);
    let mut entries: Vec<_> = env
        .fs
        .list(dir)?
        .into_iter()
        .map(|e| (String::new(), e))
        .collect();
    if env.fs.exists(&wal)? {
        let prefix = format!("{}/", names::WAL_DIR);
        entries.extend(env.fs.list(&wal)?.into_iter().map(|e| (prefix.clone(), e)));
    }
    for (prefix, entry) in entries {
        if entry.is_dir {
            continue;
        }
        let kind = match names::parse(&entry.name) {
            _ if !prefix.is_empty() => "log",
            Some(FileKind::Sstable(_)) => "sstable",
            Some(FileKind::Blob(_)) => "blob",
            Some(FileKind::Manifest(_)) => "manifest",
            None if entry.name == names::CURRENT => "current",
            None if entry.name == names::BALLAST => "ballast",
            None => "other",
        };
        match kinds.iter_mut().find(|row| row.0 == kind) {
            Some(row) => {
                row.1 += 1;
                row.2 += entry.len;
            }
            None => kinds.push((kind, 1, entry.len)),
        }
        if each {
            list.push(json!({
                "name": format!("{prefix}{}", entry.name), "kind": kind, "bytes": entry.len,
            }));
        }
    }
    let kinds: Vec<Value> = kinds
        .iter()
        .map(|(kind, files, bytes)| json!({ "kind": kind, "files": files, "bytes": bytes }))
        .collect();
    let mut report = json!({
        "data_dir": dir.to_string_lossy(),
        "manifest": current(&env, dir)?,
        "kinds": kinds,
    });
    if each {
        report["files"] = Value::from(list);
    }
    Ok(report)
}

/// What `CURRENT` names.
fn current(env: &Env, dir: &Path) -> Result<String> {
    const LONGEST: usize = 4096;
    let file = env
        .fs
        .open(&dir.join(names::CURRENT), firn_io::fs::OpenMode::Read)?;
    let mut bytes = vec![0; LONGEST];
    let read = file.read_at(&mut bytes, 0)?;
    Ok(escape(bytes[..read].trim_ascii()))
}

fn stats_json(stats: &Stats) -> Value {
    let levels: Vec<Value> = stats
        .levels
        .iter()
        .map(|l| json!({ "level": l.level, "files": l.files, "bytes": l.bytes }))
        .collect();
    let namespaces: Vec<Value> = stats
        .namespaces
        .iter()
        .map(|ns| {
            json!({
                "name": ns.name, "approximate_keys": ns.approximate_keys,
                "disk_bytes": ns.disk_bytes, "memtable_bytes": ns.memtable_bytes,
            })
        })
        .collect();
    json!({
        "last_version": stats.last_seqno.0,
        "disk_bytes": stats.disk_bytes,
        "compaction_debt_bytes": stats.compaction_debt_bytes,
        "log": { "segments": stats.log.segments, "disk_bytes": stats.log.disk_bytes },
        "blobs": {
            "files": stats.blob_files, "bytes": stats.blob_bytes,
            "garbage_bytes": stats.blob_garbage_bytes,
        },
        "levels": levels,
        "namespaces": namespaces,
    })
}

fn print(report: &Value, out: &mut dyn Write) -> Result<()> {
    for (name, value) in report.as_object().into_iter().flatten() {
        match value {
            Value::Null | Value::Array(_) | Value::Object(_) => {}
            Value::Number(n) if name.ends_with("_bytes") => {
                writeln!(out, "{name}: {}", size(n.as_u64().unwrap_or(0)))?;
            }
            Value::Number(n) => writeln!(out, "{name}: {n}")?,
            Value::String(text) => writeln!(out, "{name}: {text}")?,
            other => writeln!(out, "{name}: {other}")?,
        }
    }
    for (name, value) in report.as_object().into_iter().flatten() {
        match value {
            Value::Object(map) if !map.is_empty() => {
                writeln!(out, "\n{name}")?;
                let mut table = Table::new(&["  part", "value"]);
                for (part, value) in map {
                    let number = value.as_u64();
                    let bytes = part.ends_with("bytes") || name == "memory";
                    let shown = match number {
                        Some(n) if bytes => size(n),
                        Some(n) => count(n),
                        None => value.to_string(),
                    };
                    table.row([format!("  {part}"), shown]);
                }
                table.print(out)?;
            }
            Value::Array(rows) if !rows.is_empty() => {
                writeln!(out, "\n{name}")?;
                rows_table(rows, out)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// A list of objects of the same kind, as columns.
fn rows_table(rows: &[Value], out: &mut dyn Write) -> Result<()> {
    let mut head: Vec<&str> = rows[0]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, _)| name.as_str())
        .collect();
    // What a row is about comes first; the sort is stable.
    head.sort_by_key(|column| !["kind", "level", "name"].contains(column));
    let mut table = Table::new(&head);
    for row in rows {
        table.row(head.iter().map(|&column| match &row[column] {
            Value::Number(n) if column.ends_with("bytes") => size(n.as_u64().unwrap_or(0)),
            Value::Number(n) if n.is_f64() => format!("{:.2}", n.as_f64().unwrap_or(0.0)),
            Value::Number(n) => n.to_string(),
            Value::String(text) => escape(text.as_bytes()),
            other => other.to_string(),
        }));
    }
    Ok(table.print(out)?)
}
