//! `docs/api/resp.md`, printed from the table of commands.

use std::fmt::Write as _;

use crate::resp::client::REDIS_VERSION;
use crate::resp::table::COMMANDS;

/// The groups in the order of the page.
const GROUPS: &[(&str, &str)] = &[
    ("string", "Strings"),
    ("generic", "Keys"),
    ("transactions", "Transactions"),
    ("connection", "Connections"),
    ("server", "Server"),
    ("pubsub", "Messages and key events"),
    ("cluster", "Cluster"),
    ("firn", "FirnDB's own"),
];

const HEAD: &str = include_str!("page.md");

/// The page.
pub fn page() -> String {
    let mut page = HEAD.replace("REDIS_VERSION", REDIS_VERSION);
    for (group, title) in GROUPS {
        let _ = write!(
            page,
            "\n### {title}\n\n| command | since | what it does |\n|---|---|---|\n"
        );
        for command in COMMANDS.iter().filter(|c| c.group == *group) {
            if command.subcommands().next().is_some() && command.arity == -2 {
                continue;
            }
            let name = command.name.to_uppercase().replace('|', " ");
            let syntax = command.syntax.replace('|', "\\|");
            let space = if syntax.is_empty() { "" } else { " " };
            let (since, summary) = (command.since, command.summary);
            let _ = writeln!(page, "| `{name}{space}{syntax}` | {since} | {summary} |");
        }
    }
    page
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::disallowed_methods,
        reason = "reads and writes a page of the documentation"
    )]
    use super::*;

    #[test]
    fn the_page_is_fresh_and_complete() {
        for command in COMMANDS {
            assert!(
                GROUPS.iter().any(|(group, _)| *group == command.group),
                "{}",
                command.name
            );
        }
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/api/resp.md");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(path, page()).unwrap();
        }
        let stored = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            stored == page(),
            "docs/api/resp.md is stale: UPDATE=1 rewrites it"
        );
    }
}
