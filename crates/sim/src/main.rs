//! `cargo xtask sim`: many seeds, or one again. `--help` lists the flags.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a tool for a person at a terminal"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "a tool: it has threads of its own and looks at the clock on the wall"
)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test bench")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use firn_sim::history::Counts;
use firn_sim::stage::perform;
use firn_sim::swarm::{Fault, Plan, Report};

const HELP: &str = "\
cargo xtask sim [FLAGS]     whole clusters, one a seed, with faults; then everything must hold

  --seeds N        how many seeds (default 200)
  --from S         the first one (default 0)
  --seed S         only this one, and say what happened in it
  --nodes N        3, 5, any other number, or mix: 3 for even seeds, 5 for odd ones (default mix)
  --minutes M      stop after so long, whatever --seeds says
  --jobs J         threads (default 1)
  --only A,B       these faults and no others
  --without A,B    all but these faults
  --regressions F  the seeds of a file, a line each: seed, nodes, what it found
  --keep-going     do not stop at the first seed that fails
";

/// A seed takes less than a second; one that takes so long is told of.
const HANGS: Duration = Duration::from_secs(120);

#[derive(Clone, Debug)]
struct Args {
    seeds: u64,
    from: u64,
    one: Option<u64>,
    nodes: Option<u64>,
    minutes: Option<u64>,
    jobs: u64,
    only: Option<BTreeSet<Fault>>,
    without: BTreeSet<Fault>,
    regressions: Option<String>,
    keeps_going: bool,
}

fn faults(text: &str) -> Result<BTreeSet<Fault>, String> {
    let find = |name: &str| {
        let known = Fault::ALL.into_iter().find(|fault| fault.name() == name);
        known.ok_or_else(|| {
            let all: Vec<String> = Fault::ALL.iter().map(|fault| fault.name()).collect();
            format!("no fault is called {name}; there are {}", all.join(", "))
        })
    };
    text.split(',').map(find).collect()
}

impl Args {
    fn parse() -> Result<Self, String> {
        let mut parsed = Self {
            seeds: 200,
            from: 0,
            one: None,
            nodes: None,
            minutes: None,
            jobs: 1,
            only: None,
            without: BTreeSet::new(),
            regressions: None,
            keeps_going: false,
        };
        let mut args = std::env::args().skip(1);
        while let Some(flag) = args.next() {
            let mut value = || args.next().ok_or(format!("{flag} wants a value"));
            let number = |text: String| {
                let number = text.parse::<u64>();
                number.map_err(|_| format!("{flag} wants a number, not {text}"))
            };
            match flag.as_str() {
                "--seeds" => parsed.seeds = number(value()?)?,
                "--from" => parsed.from = number(value()?)?,
                "--seed" => parsed.one = Some(number(value()?)?),
                "--nodes" => {
                    let text = value()?;
                    parsed.nodes = match text.as_str() {
                        "mix" => None,
                        _ => Some(number(text)?),
                    };
                    if parsed.nodes.is_some_and(|n| n == 0 || n > 9) {
                        return Err("--nodes wants 1 to 9, or mix".into());
                    }
                }
                "--minutes" => parsed.minutes = Some(number(value()?)?),
                "--jobs" => parsed.jobs = number(value()?)?.max(1),
                "--only" => parsed.only = Some(faults(&value()?)?),
                "--without" => parsed.without = faults(&value()?)?,
                "--regressions" => parsed.regressions = Some(value()?),
                "--keep-going" => parsed.keeps_going = true,
                "--help" | "-h" => return Err(HELP.into()),
                _ => return Err(format!("there is no flag {flag}\n\n{HELP}")),
            }
        }
        Ok(parsed)
    }

    fn nodes_of(&self, seed: u64) -> u64 {
        self.nodes.unwrap_or([3, 5][(seed % 2) as usize])
    }

    fn plan(&self, seed: u64, nodes: u64) -> Plan {
        let mut plan = Plan::new(seed, nodes);
        if let Some(only) = &self.only {
            plan.faults = only.clone();
        }
        plan.faults.retain(|fault| !self.without.contains(fault));
        if plan.faults.is_empty() {
            plan.faults.insert(Fault::Kill);
        }
        plan
    }

    /// Seeds, and how many nodes each has.
    fn work(&self) -> Result<Vec<(u64, u64)>, String> {
        if let Some(path) = &self.regressions {
            let text = std::fs::read_to_string(path).map_err(|e| format!("{path}: {e}"))?;
            let lines = text.lines().map(str::trim);
            let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
            return lines
                .map(|line| {
                    let mut words = line.split_whitespace().map(|word| word.parse().ok());
                    match (words.next().flatten(), words.next().flatten()) {
                        (Some(seed), Some(nodes)) => Ok((seed, nodes)),
                        _ => Err(format!("{path}: what is {line:?}?")),
                    }
                })
                .collect();
        }
        let seeds = match self.one {
            Some(seed) => seed..seed + 1,
            None => self.from..self.from.saturating_add(self.seeds),
        };
        Ok(seeds.map(|seed| (seed, self.nodes_of(seed))).collect())
    }

    /// The flags that change what a seed does.
    fn again(&self, seed: u64, nodes: u64) -> String {
        let names = |faults: &BTreeSet<Fault>| {
            let names: Vec<String> = faults.iter().map(|fault| fault.name()).collect();
            names.join(",")
        };
        let mut command = format!("cargo xtask sim --seed {seed} --nodes {nodes}");
        if let Some(only) = &self.only {
            command += &format!(" --only {}", names(only));
        }
        if !self.without.is_empty() {
            command += &format!(" --without {}", names(&self.without));
        }
        command
    }
}

#[derive(Default)]
struct Sum {
    seeds: u64,
    failed: u64,
    undecided: u64,
    snapshots: u64,
    compared: u64,
    counts: Counts,
    simulated: Duration,
    happened: BTreeMap<Fault, u64>,
}

impl Sum {
    fn add(&mut self, report: &Report) {
        self.seeds += 1;
        self.failed += u64::from(!report.violations.is_empty());
        self.undecided += report.undecided;
        self.snapshots += report.snapshots;
        self.compared += report.compared;
        self.counts += report.counts;
        self.simulated += report.simulated;
        for (fault, count) in &report.happened {
            *self.happened.entry(*fault).or_default() += count;
        }
    }

    fn tell(&self, took: Duration) {
        let rate = self.seeds as f64 / took.as_secs_f64();
        let times = self.simulated.as_secs_f64() / took.as_secs_f64();
        println!(
            "{} seeds in {took:.1?} ({rate:.1} a second, {times:.0} times as fast as the clock): \
             {} failed, {} histories undecided",
            self.seeds, self.failed, self.undecided
        );
        println!(
            "{} writes acknowledged, {} of unknown outcome, {} reads, {} calls refused, \
             {} snapshots sent, contents compared {} times",
            self.counts.writes,
            self.counts.unknown,
            self.counts.reads,
            self.counts.refused,
            self.snapshots,
            self.compared
        );
        let faults: Vec<String> = self
            .happened
            .iter()
            .map(|(fault, count)| format!("{} {count}", fault.name()))
            .collect();
        println!("faults: {}", faults.join(", "));
    }
}

fn main() -> ExitCode {
    match Args::parse().and_then(|args| Ok((args.work()?, args))) {
        Ok((work, args)) => run(&Arc::new(args), work),
        Err(message) => {
            eprintln!("{message}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Arc<Args>, work: Vec<(u64, u64)>) -> ExitCode {
    let begin = Instant::now();
    let end = args.minutes.map(|m| begin + Duration::from_secs(60 * m));
    let is_alone = work.len() == 1;
    let (work, next) = (Arc::new(work), Arc::new(AtomicU64::new(0)));
    let (sum, is_over) = (
        Arc::new(Mutex::new(Sum::default())),
        Arc::new(AtomicBool::new(false)),
    );
    let running: Arc<Mutex<BTreeMap<u64, (String, Instant)>>> = Arc::default();
    let threads: Vec<_> = (0..args.jobs)
        .map(|job| {
            let running = Arc::clone(&running);
            let (args, work, next) = (Arc::clone(args), Arc::clone(&work), Arc::clone(&next));
            let (sum, is_over) = (Arc::clone(&sum), Arc::clone(&is_over));
            std::thread::spawn(move || {
                while !is_over.load(Ordering::Relaxed) && end.is_none_or(|end| Instant::now() < end)
                {
                    let at = next.fetch_add(1, Ordering::Relaxed) as usize;
                    let Some(&(seed, nodes)) = work.get(at) else {
                        return;
                    };
                    let plan = args.plan(seed, nodes);
                    let faults: Vec<String> = plan.faults.iter().map(|f| f.name()).collect();
                    let begun = (args.again(seed, nodes), Instant::now());
                    running.lock().unwrap().insert(job, begun);
                    let report = perform(plan);
                    running.lock().unwrap().remove(&job);
                    let mut sum = sum.lock().unwrap();
                    sum.add(&report);
                    if is_alone {
                        println!("{report:#?}");
                    }
                    if !report.violations.is_empty() {
                        println!("seed {seed}, {nodes} nodes, faults {}:", faults.join(","));
                        for violation in &report.violations {
                            println!("  {violation}");
                        }
                        println!("again: {}", args.again(seed, nodes));
                        is_over.fetch_or(!args.keeps_going, Ordering::Relaxed);
                    }
                }
            })
        })
        .collect();
    while threads.iter().any(|thread| !thread.is_finished()) {
        std::thread::sleep(Duration::from_millis(50));
        for (again, begun) in running.lock().unwrap().values_mut() {
            if begun.elapsed() > HANGS {
                eprintln!("still running after {HANGS:?}: {again}");
                *begun = Instant::now();
            }
        }
    }
    for thread in threads {
        thread.join().unwrap();
    }
    let sum = sum.lock().unwrap();
    sum.tell(begin.elapsed());
    ExitCode::from(u8::from(sum.failed > 0))
}
