//! Prints what a run measured, with the machine it ran on and the command that repeats it.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use clap::ValueEnum;
use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use crate::cmd;
use crate::exit::Result;
use crate::flags::{BenchArgs, Mix};
use crate::output::{self, ReportFormat, Table};
use crate::text;

/// The result of one mix.
pub(crate) struct Outcome {
    pub(crate) mix: Mix,
    /// In nanoseconds.
    pub(crate) latency: Histogram<u64>,
    pub(crate) ops: u64,
    /// Reads that found something.
    pub(crate) found: u64,
    /// Operations that the store refused (overload, full disk).
    pub(crate) refused: u64,
    /// Keys and values read and written.
    pub(crate) bytes: u64,
    pub(crate) elapsed: Duration,
    /// How long writes were stalled (embedded store).
    pub(crate) stalled: Duration,
    /// Bytes written to log, SSTables and blobs (embedded store).
    pub(crate) written_bytes: u64,
}

impl Outcome {
    pub(crate) fn new(mix: Mix, latency: Histogram<u64>) -> Self {
        Self {
            mix,
            latency,
            ops: 0,
            found: 0,
            refused: 0,
            bytes: 0,
            elapsed: Duration::ZERO,
            stalled: Duration::ZERO,
            written_bytes: 0,
        }
    }

    fn per_second(&self, number: u64) -> f64 {
        number as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

const QUANTILES: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)];

fn name(mix: Mix) -> String {
    mix.to_possible_value()
        .map(|value| value.get_name().to_owned())
        .unwrap_or_default()
}

/// Prints all outcomes. `dir` is where an embedded store is.
pub(crate) fn print(args: &BenchArgs, dir: Option<&Path>, outcomes: &[Outcome]) -> Result<()> {
    let env = firn_io::Env::os(1);
    let mut machine = cmd::machine(&env, dir);
    machine.push(("version", env!("CARGO_PKG_VERSION").to_owned()));
    let target = match &args.server {
        Some(server) => format!("server {server}"),
        None => "embedded".to_owned(),
    };
    machine.push(("target", target));
    machine.push(("durability", args.durability.durability.name().to_owned()));
    let load = match args.rate {
        Some(rate) => format!("open loop, {} operations/s", text::count(rate)),
        None => "closed loop".to_owned(),
    };
    machine.push(("load", format!("{load}, {} threads", args.threads)));
    machine.push((
        "data",
        format!(
            "{} keys of {} bytes, values of {} bytes, {} puts a batch",
            text::count(args.keys),
            args.key_size,
            args.value_size,
            args.batch
        ),
    ));
    match args.format {
        ReportFormat::Json => print_json(args, &machine, outcomes),
        ReportFormat::Table => print_table(&machine, outcomes),
    }
}

fn print_json(
    args: &BenchArgs,
    machine: &[(&'static str, String)],
    outcomes: &[Outcome],
) -> Result<()> {
    let machine: Map<String, Value> = machine
        .iter()
        .map(|(k, v)| ((*k).to_owned(), Value::from(v.as_str())))
        .collect();
    let results: Vec<Value> = outcomes
        .iter()
        .map(|o| {
            let mut latency = Map::new();
            for (name, quantile) in QUANTILES {
                latency.insert(name.into(), o.latency.value_at_quantile(quantile).into());
            }
            latency.insert("mean".into(), o.latency.mean().into());
            latency.insert("max".into(), o.latency.max().into());
            json!({
                "mix": name(o.mix),
                "ops": o.ops,
                "ops_per_second": o.per_second(o.ops),
                "bytes_per_second": o.per_second(o.bytes),
                "seconds": o.elapsed.as_secs_f64(),
                "found": o.found,
                "refused": o.refused,
                "latency_nanos": latency,
                "write_stall_seconds": o.stalled.as_secs_f64(),
                "written_bytes": o.written_bytes,
            })
        })
        .collect();
    output::print_json(&json!({
        "environment": machine,
        "keys": args.keys,
        "key_bytes": args.key_size,
        "value_bytes": args.value_size,
        "threads": args.threads,
        "batch": args.batch,
        "rate": args.rate,
        "seed": args.seed,
        "results": results,
    }))
}

fn print_table(machine: &[(&'static str, String)], outcomes: &[Outcome]) -> Result<()> {
    let mut out = output::stdout();
    for (what, value) in machine {
        writeln!(out, "{what:<11} {value}")?;
    }
    writeln!(out, "\nlatency in microseconds")?;
    let mut head = vec!["mix", "ops", "ops/s", "MB/s"];
    head.extend(QUANTILES.map(|(name, _)| name));
    head.extend(["max", "found", "refused"]);
    let mut table = Table::new(&head);
    for o in outcomes {
        let micros = |nanos: u64| format!("{:.1}", nanos as f64 / 1000.0);
        let mut row = vec![
            name(o.mix),
            text::count(o.ops),
            text::count(o.per_second(o.ops) as u64),
            format!("{:.1}", o.per_second(o.bytes) / 1e6),
        ];
        row.extend(QUANTILES.map(|(_, quantile)| micros(o.latency.value_at_quantile(quantile))));
        row.extend([
            micros(o.latency.max()),
            text::count(o.found),
            text::count(o.refused),
        ]);
        table.row(row);
    }
    table.print(&mut out)?;
    out.flush()?;
    Ok(())
}
