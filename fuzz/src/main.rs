//! Runs the targets on the stable toolchain.
//!
//! ```text
//! firn-fuzz [TARGET...] [--seconds S | --runs N] [--seed SEED]
//! firn-fuzz TARGET FILE        one input, for instance one that was found
//! firn-fuzz list               the names of the targets
//! firn-fuzz seeds              write the seed corpus anew
//! ```
//!
//! Every target first meets its seeds as they are, then mutations of them: `--runs` of each target,
//! or for `--seconds` in total. The same seed gives the same inputs in the same order. An input
//! that makes a target panic, or take longer than ten seconds, is written to
//! `artifacts/TARGET/`. Nothing guides the mutations: libFuzzer, which is guided by coverage, finds
//! more in more time.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a tool for a person at a terminal"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "a tool, not the database: it has its own files and its own time"
)]

use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{env, fs, io};

use firn_fuzz::{TARGETS, Target, mutate, seeds};
use firn_io::checksum::xxh3_64;
use firn_io::rng::Rng;

/// An input that takes longer is a finding.
const TOO_SLOW: Duration = Duration::from_secs(10);
/// The seed of runs that name none.
const SEED: u64 = 1;

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["list"] => {
            TARGETS.iter().for_each(|(name, _)| println!("{name}"));
            Ok(())
        }
        ["seeds"] => write_seeds().map_err(|error| error.to_string()),
        [name, file] if target(name).is_some() && Path::new(file).is_file() => one(name, file),
        _ => Plan::parse(&words).and_then(|plan| plan.run()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("firn-fuzz: {message}");
            ExitCode::FAILURE
        }
    }
}

fn target(name: &str) -> Option<Target> {
    TARGETS.iter().find(|row| row.0 == name).map(|row| row.1)
}

fn here() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn one(name: &str, file: &str) -> Result<(), String> {
    let bytes = fs::read(file).map_err(|error| format!("{file}: {error}"))?;
    if let Some(target) = target(name) {
        target(&bytes);
    }
    Ok(())
}

fn write_seeds() -> io::Result<()> {
    for (target, seeds) in seeds::all() {
        let dir = here().join("corpus").join(target);
        fs::create_dir_all(&dir)?;
        for (name, bytes) in seeds {
            fs::write(dir.join(name), bytes)?;
        }
    }
    Ok(())
}

fn corpus(name: &str) -> Result<Vec<(PathBuf, Vec<u8>)>, String> {
    let dir = here().join("corpus").join(name);
    let shown = |error: io::Error| format!("{}: {error}", dir.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(&dir).map_err(shown)? {
        paths.push(entry.map_err(shown)?.path());
    }
    paths.sort();
    let read = |path: PathBuf| Ok((path.clone(), fs::read(path)?));
    paths
        .into_iter()
        .map(read)
        .collect::<io::Result<_>>()
        .map_err(shown)
}

struct Plan {
    targets: Vec<(&'static str, Target)>,
    /// Of each target; without it until the time is over.
    runs: Option<u64>,
    time: Duration,
    seed: u64,
}

impl Plan {
    fn parse(words: &[&str]) -> Result<Self, String> {
        let mut plan = Self {
            targets: Vec::new(),
            runs: None,
            time: Duration::from_secs(10),
            seed: SEED,
        };
        let mut words = words.iter();
        while let Some(&word) = words.next() {
            let mut number = || {
                let number = words.next().and_then(|text| text.parse().ok());
                number.ok_or_else(|| format!("{word} wants a number"))
            };
            match word {
                "--runs" => plan.runs = Some(number()?),
                "--seconds" => plan.time = Duration::from_secs(number()?),
                "--seed" => plan.seed = number()?,
                _ => match TARGETS.iter().find(|row| row.0 == word) {
                    Some(&row) => plan.targets.push(row),
                    None => return Err(format!("{word} is no target; `list` shows them")),
                },
            }
        }
        if plan.targets.is_empty() {
            plan.targets = TARGETS.to_vec();
        }
        Ok(plan)
    }

    fn run(&self) -> Result<(), String> {
        println!("seed {}", self.seed);
        let share = self.time / self.targets.len() as u32;
        let mut found = 0;
        for &(name, target) in &self.targets {
            let mut inputs = corpus(name)?;
            let mut session = Session::new(name, target);
            for (_, bytes) in &inputs {
                session.try_input(bytes);
            }
            if inputs.is_empty() {
                inputs.push((PathBuf::new(), Vec::new()));
            }
            let mut rng = Rng::new(self.seed ^ xxh3_64(name.as_bytes()));
            let started = Instant::now();
            let goes_on = |done: u64| match self.runs {
                Some(runs) => done < runs,
                None => started.elapsed() < share,
            };
            let mut done = 0;
            while session.findings < 5 && goes_on(done) {
                let mut bytes = inputs[rng.index(inputs.len())].1.clone();
                let other = rng.index(inputs.len());
                mutate::mutate(&mut rng, &mut bytes, &inputs[other].1);
                session.try_input(&bytes);
                done += 1;
            }
            println!(
                "{name}: {} seeds, {done} mutations, slowest {:.1} ms",
                inputs.len(),
                session.slowest.as_secs_f64() * 1e3
            );
            found += session.findings;
        }
        match found {
            0 => Ok(()),
            _ => Err(format!("{found} findings, in fuzz/artifacts/")),
        }
    }
}

struct Session {
    name: &'static str,
    target: Target,
    slowest: Duration,
    findings: u64,
}

impl Session {
    fn new(name: &'static str, target: Target) -> Self {
        Self {
            name,
            target,
            slowest: Duration::ZERO,
            findings: 0,
        }
    }

    fn try_input(&mut self, bytes: &[u8]) {
        let target = self.target;
        // Every input begins anew: nothing that a panic leaves behind is looked at again. What was
        // slow may have waited for a busy machine: only what is slow each time counts.
        let mut took = Duration::MAX;
        let mut result = Ok(());
        for _ in 0..3 {
            let started = Instant::now();
            result = catch_unwind(|| target(bytes));
            took = took.min(started.elapsed());
            if result.is_err() || took < TOO_SLOW {
                break;
            }
        }
        self.slowest = self.slowest.max(took);
        if result.is_ok() && took < TOO_SLOW {
            return;
        }
        self.findings += 1;
        let kind = if result.is_ok() { "slow" } else { "crash" };
        let dir = here().join("artifacts").join(self.name);
        let path = dir.join(format!("{kind}-{:016x}", xxh3_64(bytes)));
        let written = fs::create_dir_all(&dir).and_then(|()| fs::write(&path, bytes));
        if let Err(error) = written {
            eprintln!("{}: {error}", path.display());
        }
        eprintln!("{kind}: cargo xtask fuzz {} {}", self.name, path.display());
    }
}
