//! What is generated from the table of flags: completions, manual pages, the reference.

use std::fmt::Write as _;
use std::io::Write;

use clap::{Arg, Command, CommandFactory};

use crate::exit::{Exit, Failure, Result};
use crate::flags::{Cli, CompletionsArgs, ManArgs};
use crate::{host, output};

/// `firn completions`
pub(crate) fn completions(args: &CompletionsArgs) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "firn", &mut script);
    let mut out = output::stdout();
    out.write_all(&script)?;
    out.flush()?;
    Ok(())
}

/// `firn man`
pub(crate) fn man(args: &ManArgs) -> Result<()> {
    let mut command = Cli::command();
    command.build();
    let mut pages = vec![command.clone().display_name("firn")];
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        let name = format!("firn-{}", verb.get_name());
        pages.push(verb.clone().display_name(name));
    }
    for page in pages {
        let man = clap_mangen::Man::new(page);
        let mut text = Vec::new();
        man.render(&mut text)?;
        host::write_file(&args.dir.join(man.get_filename()), &text)?;
    }
    Ok(())
}

/// `firn reference`: `docs/cli.md`.
pub(crate) fn reference() -> Result<()> {
    let text = markdown().map_err(|_| Failure::new(Exit::Refused, "out of memory"))?;
    let mut out = output::stdout();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

fn markdown() -> std::result::Result<String, std::fmt::Error> {
    let mut root = Cli::command();
    root.build();
    let mut out = String::new();
    writeln!(out, "# The command line\n")?;
    writeln!(
        out,
        "Generated from the table of flags by `cargo xtask docs`; do not edit.\n"
    )?;
    if let Some(about) = root.get_about() {
        writeln!(out, "{about}\n")?;
    }
    writeln!(out, "| Exit code | Meaning |\n|---|---|")?;
    for (exit, meaning) in crate::exit::TABLE {
        writeln!(out, "| {} | {meaning} |", exit as u8)?;
    }
    writeln!(
        out,
        "\nData goes to stdout, messages to stderr. `--quiet` silences messages; `NO_COLOR` is honoured."
    )?;
    for verb in root.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        section(verb, &format!("firn {}", verb.get_name()), 2, &mut out)?;
    }
    Ok(out)
}

fn section(
    command: &Command,
    path: &str,
    depth: usize,
    out: &mut String,
) -> std::result::Result<(), std::fmt::Error> {
    writeln!(out, "\n{} {path}\n", "#".repeat(depth))?;
    if let Some(about) = command.get_long_about().or(command.get_about()) {
        writeln!(out, "{about}\n")?;
    }
    let shown = |arg: &&Arg| {
        !arg.is_hide_set() && !["help", "version", "quiet"].contains(&arg.get_id().as_str())
    };
    let args: Vec<&Arg> = command.get_arguments().filter(shown).collect();
    if !args.is_empty() {
        writeln!(out, "| | |\n|---|---|")?;
        for arg in args {
            row(arg, out)?;
        }
    }
    if let Some(examples) = command.get_after_help() {
        writeln!(out, "\n```\n{examples}\n```")?;
    }
    for verb in command.get_subcommands() {
        section(verb, &format!("{path} {}", verb.get_name()), depth + 1, out)?;
    }
    Ok(())
}

fn row(arg: &Arg, out: &mut String) -> std::result::Result<(), std::fmt::Error> {
    let mut name = String::new();
    if let Some(long) = arg.get_long() {
        write!(name, "--{long}")?;
    }
    if arg.get_action().takes_values() {
        let values = arg.get_value_names().unwrap_or_default();
        for value in values {
            if !name.is_empty() {
                name.push(' ');
            }
            name.push_str(value);
        }
    }
    let mut help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let values = arg.get_possible_values();
    if arg.get_action().takes_values() && !values.is_empty() {
        let names: Vec<_> = values
            .iter()
            .map(|value| format!("`{}`", value.get_name()))
            .collect();
        write!(help, ": {}", names.join(", "))?;
    }
    let defaults: Vec<_> = arg
        .get_default_values()
        .iter()
        .map(|v| v.to_string_lossy())
        .collect();
    if arg.get_action().takes_values() && defaults.iter().any(|value| !value.is_empty()) {
        write!(help, " [default: {}]", defaults.join(","))?;
    }
    writeln!(out, "| `{name}` | {} |", help.replace('|', "\\|"))
}
