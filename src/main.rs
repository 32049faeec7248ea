//! The `firn` command: parse, dispatch, exit code; nothing else.
//!
//! Every verb is one file under `cmd`; `flags` is the one table of flags, from which help, manual
//! pages, completions and `docs/cli.md` come. Data goes to stdout, everything else to stderr, and
//! the exit code says what kind of failure it was (`exit`).

mod allocator;
mod bench;
mod cmd;
mod dump;
mod exit;
mod flags;
mod foreign;
mod host;
mod output;
mod progress;
mod store;
mod text;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    crate::allocator::tune();
    let cli = crate::flags::Cli::parse();
    crate::output::set_quiet(cli.quiet);
    match crate::cmd::run(cli.verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
