//! The verbs, one file each, and what several of them need.

use std::ffi::OsStr;
use std::io::{self, BufRead, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;

use crate::exit::{Failure, Result};
use crate::flags::{KeyArgs, RangeArgs, Verb};
use crate::store::Range;

mod batch;
mod checkpoint;
mod cluster;
mod completions;
mod config;
mod del;
mod demo;
mod doctor;
mod export;
mod get;
mod health;
mod import;
mod inspect;
mod ns;
mod put;
mod repair;
mod scan;
mod serve;
mod verify;
mod watch;

pub(crate) use crate::cmd::doctor::machine;

/// Does what the command line says.
pub(crate) fn run(verb: Verb) -> Result<()> {
    match verb {
        Verb::Serve(args) => serve::run(args),
        Verb::Get(args) => get::run(&args),
        Verb::Put(args) => put::run(args),
        Verb::Del(args) => del::run(&args),
        Verb::Scan(args) => scan::run(&args),
        Verb::Batch(args) => batch::run(&args),
        Verb::Import(args) => import::run(&args),
        Verb::Export(args) => export::run(&args),
        Verb::Ns(args) => ns::run(args),
        Verb::Cluster(args) => cluster::run(args),
        Verb::Watch(args) => watch::run(&args),
        Verb::Bench(args) => crate::bench::run(&args),
        Verb::Verify(args) => verify::run(&args),
        Verb::Repair(args) => repair::run(&args),
        Verb::Checkpoint(args) => checkpoint::run(&args),
        Verb::Inspect(args) => inspect::run(&args),
        Verb::Config(args) => config::run(args),
        Verb::Doctor(args) => doctor::run(&args),
        Verb::Health(args) => health::run(&args),
        Verb::Demo(args) => demo::run(&args),
        Verb::Completions(args) => completions::completions(&args),
        Verb::Man(args) => completions::man(&args),
        Verb::Reference => completions::reference(),
    }
}

/// The bytes of a key on the command line.
fn key_bytes(argument: &OsStr, keys: KeyArgs) -> Result<Vec<u8>> {
    keys.key_encoding.decode(argument.as_bytes())
}

/// The range that the flags name.
fn range_of(args: &RangeArgs, keys: KeyArgs) -> Result<Range> {
    let bytes = |argument: &Option<std::ffi::OsString>| {
        argument
            .as_deref()
            .map(|argument| key_bytes(argument, keys))
            .transpose()
    };
    if let Some(prefix) = bytes(&args.prefix)? {
        let end = firn_engine::key::prefix_end(&prefix);
        return Ok(Range {
            start: prefix,
            end,
            ..Range::default()
        });
    }
    let (start, end) = (bytes(&args.start)?.unwrap_or_default(), bytes(&args.end)?);
    if end.as_ref().is_some_and(|end| *end <= start) {
        return Err(Failure::usage(
            "the range is empty: --end is not after --start",
        ));
    }
    Ok(Range {
        start,
        end,
        ..Range::default()
    })
}

/// Whether a destructive act may go on: `--yes`, or a person who types `yes`. Without a terminal
/// nobody is asked.
fn confirm(yes: bool, what: &str) -> Result<()> {
    if yes {
        return Ok(());
    }
    if io::stdin().is_terminal() && io::stderr().is_terminal() {
        let mut err = io::stderr().lock();
        write!(err, "{what}. Type yes to go on: ")?;
        err.flush()?;
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer)?;
        if answer.trim() == "yes" {
            return Ok(());
        }
        return Err(Failure::usage("nothing was done"));
    }
    Err(Failure::usage(format!("{what}: say --yes to do it")))
}
