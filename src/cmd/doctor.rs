//! `firn doctor`: looks at the machine and says what will hurt, before it does.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use firn_io::Env;
use firn_io::fs::OpenMode;
use serde_json::{Value, json};

use crate::exit::{Exit, Failure, Result};
use crate::flags::DoctorArgs;
use crate::output::{self, ReportFormat, Table};
use crate::text::size;
use crate::{host, text};

/// What one look found. `advice` is there if something should be changed.
struct Finding {
    what: &'static str,
    found: String,
    advice: Option<String>,
}

impl Finding {
    fn new(what: &'static str, found: impl Into<String>) -> Self {
        Self {
            what,
            found: found.into(),
            advice: None,
        }
    }

    fn advise(mut self, when: bool, advice: impl Into<String>) -> Self {
        self.advice = when.then(|| advice.into());
        self
    }
}

pub(crate) fn run(args: &DoctorArgs) -> Result<()> {
    let env = Env::os(1);
    let dir = existing_parent(&env, &host::absolute(&args.data_dir))?;
    let memory = args.memory as u64;
    let mut findings = vec![sync_latency(&env, &dir), space(&env, &dir)?];
    findings.extend(open_files());
    findings.push(clock(&env));
    findings.push(memory_limit(memory));
    findings.extend(kernel());
    let advised = findings.iter().any(|finding| finding.advice.is_some());
    print(&findings, args.format)?;
    if advised {
        Err(Failure::silent(Exit::NotFound))
    } else {
        Ok(())
    }
}

fn print(findings: &[Finding], format: ReportFormat) -> Result<()> {
    if format == ReportFormat::Json {
        let list: Vec<Value> = findings
            .iter()
            .map(|f| json!({ "what": f.what, "found": f.found, "advice": f.advice }))
            .collect();
        return output::print_json(&Value::from(list));
    }
    let mut out = output::stdout();
    let mut table = Table::new(&["", "what", "found"]);
    for finding in findings {
        let mark = if finding.advice.is_some() { "!" } else { "ok" };
        table.row([mark.into(), finding.what.into(), finding.found.clone()]);
    }
    table.print(&mut out)?;
    for finding in findings {
        if let Some(advice) = &finding.advice {
            writeln!(out, "\n{}: {advice}", finding.what)?;
        }
    }
    out.flush()?;
    Ok(())
}

/// The directory, or the nearest parent that exists, so that a machine can be looked at before the
/// first start.
fn existing_parent(env: &Env, dir: &Path) -> Result<PathBuf> {
    let mut at = dir;
    while !env.fs.exists(at)? {
        at = at.parent().unwrap_or(Path::new("/"));
    }
    Ok(at.to_path_buf())
}

/// Latencies of `rounds` appends of 4 KiB, each synced, sorted; in microseconds.
pub(crate) fn measure_sync(env: &Env, dir: &Path, rounds: usize) -> firn_io::Result<Vec<u64>> {
    const BLOCK: usize = 4096;
    let path = dir.join(format!("firn-doctor-{}.tmp", std::process::id()));
    let file = env.fs.open(&path, OpenMode::Create)?;
    let measure = || {
        let mut micros = Vec::with_capacity(rounds);
        for round in 0..rounds {
            let started = host::now();
            file.write_at(&[round as u8; BLOCK], (round * BLOCK) as u64)?;
            file.sync_data()?;
            micros.push(started.elapsed().as_micros() as u64);
        }
        micros.sort_unstable();
        Ok(micros)
    };
    let measured = measure();
    env.fs.remove_file(&path)?;
    measured
}

fn sync_latency(env: &Env, dir: &Path) -> Finding {
    const ROUNDS: usize = 200;
    /// Above this a write waits so long that heartbeats and clients notice.
    const SLOW_MICROS: u64 = 10_000;
    /// Below this no disk has answered: the page cache, or a drive cache that lies.
    const IMPLAUSIBLE_MICROS: u64 = 5;
    let what = "fdatasync";
    let micros = match measure_sync(env, dir, ROUNDS) {
        Ok(micros) => micros,
        Err(error) => {
            return Finding::new(what, format!("failed: {error}"))
                .advise(true, "the data directory must be writable");
        }
    };
    let (median, p99) = (micros[micros.len() / 2], micros[micros.len() * 99 / 100]);
    let found = format!("p50 {median} us, p99 {p99} us in {}", dir.display());
    let advice = if median < IMPLAUSIBLE_MICROS {
        "no disk is so fast: it is a file system in memory, or syncs are ignored; \
         acknowledged writes may not survive power loss"
    } else {
        "this disk is slow to sync: writes with durability=sync wait for it; \
         use another disk, or durability=buffered where that is enough"
    };
    Finding::new(what, found).advise(median < IMPLAUSIBLE_MICROS || p99 > SLOW_MICROS, advice)
}

fn space(env: &Env, dir: &Path) -> Result<Finding> {
    const LEAST: u64 = 1 << 30;
    let space = env.fs.space(dir)?;
    let share = space.available * 100 / space.total.max(1);
    let found = format!(
        "{} of {} free ({share} %)",
        size(space.available),
        size(space.total)
    );
    Ok(Finding::new("disk space", found).advise(
        space.available < LEAST || share < 10,
        "compaction needs room to rewrite; keep a tenth of the disk free",
    ))
}

fn open_files() -> Option<Finding> {
    const ENOUGH: u64 = 8192;
    let limits = host::kernel("/proc/self/limits")?;
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))?;
    let soft = line.split_whitespace().nth(3)?;
    let few = soft.parse::<u64>().is_ok_and(|soft| soft < ENOUGH);
    Some(Finding::new("open files (ulimit -n)", soft).advise(
        few,
        format!("raise it to at least {ENOUGH}: `ulimit -n {ENOUGH}`, or LimitNOFILE= in the unit"),
    ))
}

fn clock(env: &Env) -> Finding {
    /// 2025-01-01: before this version was written.
    const TOO_EARLY_MS: u64 = 1_735_689_600_000;
    /// 2100-01-01.
    const TOO_LATE_MS: u64 = 4_102_444_800_000;
    const DRIFT: Duration = Duration::from_millis(5);
    let (wall, mono) = (env.clock.unix_ms(), env.clock.monotonic());
    host::wait_until(host::now() + Duration::from_millis(100));
    let (wall_later, mono_later) = (env.clock.unix_ms(), env.clock.monotonic());
    let elapsed = Duration::from_millis(wall_later.saturating_sub(wall));
    let drift = elapsed.abs_diff(mono_later.saturating_sub(mono));
    let sane = (TOO_EARLY_MS..TOO_LATE_MS).contains(&wall);
    let source = host::kernel("/sys/devices/system/clocksource/clocksource0/current_clocksource");
    let source = source.unwrap_or_else(|| "unknown".into());
    let found = format!("Unix time {}, source {source}", wall / 1000);
    let advice = if sane {
        "the wall clock moved against the monotonic clock within 0.1 s: check the time service"
    } else {
        "the wall clock is wrong: expiry (TTL) depends on it; run a time service"
    };
    Finding::new("clock", found).advise(!sane || drift > DRIFT, advice)
}

fn memory_limit(budget: u64) -> Finding {
    let total = host::kernel("/proc/meminfo").and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
        line.split_whitespace()
            .nth(1)?
            .parse::<u64>()
            .ok()
            .map(|kib| kib << 10)
    });
    let group = host::kernel("/sys/fs/cgroup/memory.max")
        .or_else(|| host::kernel("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
        .and_then(|text| text.parse::<u64>().ok());
    let limit = [total, group].into_iter().flatten().min();
    let Some(limit) = limit else {
        return Finding::new("memory", "unknown");
    };
    let found = format!("{} usable, budget {}", size(limit), size(budget));
    Finding::new("memory", found).advise(
        budget > limit / 4 * 3,
        "the budget leaves too little for connections and the page cache: \
         give the store at most three quarters",
    )
}

fn kernel() -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(pages) = host::kernel("/sys/kernel/mm/transparent_hugepage/enabled") {
        findings.push(
            Finding::new("transparent huge pages", pages.clone()).advise(
                pages.contains("[always]"),
                "`always` makes memory grow beyond the budget and adds pauses: \
             echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
            ),
        );
    }
    if let Some(swappiness) = host::kernel("/proc/sys/vm/swappiness") {
        let swap = host::kernel("/proc/swaps").is_some_and(|text| text.lines().count() > 1);
        let found = format!("{swappiness}{}", if swap { "" } else { ", no swap" });
        let high = swap && swappiness.parse::<u64>().is_ok_and(|value| value > 10);
        findings.push(Finding::new("vm.swappiness", found).advise(
            high,
            "a cache in swap is slower than no cache: sysctl vm.swappiness=1",
        ));
    }
    if let Some(ratio) =
        host::kernel("/proc/sys/vm/dirty_ratio").and_then(|r| r.parse::<u64>().ok())
    {
        findings.push(Finding::new("vm.dirty_ratio", ratio.to_string()).advise(
            ratio > 40,
            "so much unwritten data makes one sync wait for gigabytes: sysctl vm.dirty_ratio=20",
        ));
    }
    findings
}

/// Lines about this machine, for the reports of the load generator.
pub(crate) fn machine(env: &Env, dir: Option<&Path>) -> Vec<(&'static str, String)> {
    let cpu = host::kernel("/proc/cpuinfo").and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    });
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let memory = host::kernel("/proc/meminfo").and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    });
    let mut lines = vec![
        (
            "cpu",
            format!(
                "{} ({cores} cores)",
                cpu.unwrap_or_else(|| "unknown".into())
            ),
        ),
        (
            "memory",
            memory.map_or("unknown".into(), |kib| text::size(kib << 10)),
        ),
        (
            "kernel",
            host::kernel("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".into()),
        ),
    ];
    if let Some(dir) = dir
        && let Ok(micros) = measure_sync(env, dir, 20)
    {
        lines.push(("fdatasync", format!("p50 {} us", micros[micros.len() / 2])));
    }
    lines
}
