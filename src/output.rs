//! What the user sees: data on stdout, messages on stderr, entries in the format asked for.

use std::fmt;
use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use firn_api::text::Enc;
use serde_json::Value;

use crate::exit::Result;

static QUIET: AtomicBool = AtomicBool::new(false);

/// Silences [`note`]; errors are still told.
pub(crate) fn set_quiet(quiet: bool) {
    QUIET.store(quiet, Ordering::Relaxed);
}

/// Whether the user asked for silence.
pub(crate) fn quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// A message about the work, on stderr.
pub(crate) fn note(message: fmt::Arguments<'_>) {
    if !quiet() {
        complain(message);
    }
}

/// A message that must be told, on stderr. If nobody listens there, nothing can be done.
pub(crate) fn complain(message: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr().lock(), "{message}");
}

/// Buffered stdout.
pub(crate) fn stdout() -> BufWriter<StdoutLock<'static>> {
    BufWriter::with_capacity(64 << 10, io::stdout().lock())
}

/// Whether a person reads stdout.
pub(crate) fn stdout_is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// How entries are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// The bytes as they are, nothing added
    Raw,
    /// A line an entry: key, tab, value, unprintable bytes escaped
    Text,
    /// Columns for reading
    Table,
    /// One JSON document
    Json,
    /// One JSON object a line, and a trailer line that proves the end
    Ndjson,
}

/// How reports are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ReportFormat {
    /// For reading
    Table,
    /// One JSON document
    Json,
}

/// Appends an entry as a JSON object: bytes as text where they are UTF-8, else base64 under
/// `..._b64`.
pub(crate) fn push_json(
    out: &mut Vec<u8>,
    key: &[u8],
    value: Option<&[u8]>,
    version: u64,
    expires_at_ms: Option<u64>,
) {
    // reason: only the encoding `Utf8` can fail.
    let _ = firn_api::http::push_entry(out, key, value, version, expires_at_ms, Enc::Auto);
}

/// Prints a JSON document, indented, with a newline.
pub(crate) fn print_json(value: &Value) -> Result<()> {
    let mut out = stdout();
    writeln!(out, "{value:#}")?;
    out.flush()?;
    Ok(())
}

/// Columns padded to the widest cell; columns of numbers are aligned to the right.
#[derive(Debug, Default)]
pub(crate) struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(head: &[&str]) -> Self {
        Self {
            head: head.iter().map(|&s| s.to_owned()).collect(),
            rows: Vec::new(),
        }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    pub(crate) fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        let columns = self.head.len();
        let cells = |column: usize| self.rows.iter().filter_map(move |row| row.get(column));
        let width = |column: usize| {
            let head = self.head[column].chars().count();
            cells(column)
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
                .max(head)
        };
        let is_number = |column: usize| {
            cells(column).next().is_some()
                && cells(column).all(|cell| {
                    cell == "-" || cell.starts_with(|c: char| c.is_ascii_digit() || c == '<')
                })
        };
        let layout: Vec<_> = (0..columns).map(|c| (width(c), is_number(c))).collect();
        for row in std::iter::once(&self.head).chain(&self.rows) {
            let mut line = String::new();
            for (cell, &(width, right)) in row.iter().zip(&layout) {
                if !line.is_empty() {
                    line.push_str("  ");
                }
                let pad = width.saturating_sub(cell.chars().count());
                let blanks = " ".repeat(pad);
                if right {
                    line.push_str(&blanks);
                    line.push_str(cell);
                } else {
                    line.push_str(cell);
                    line.push_str(&blanks);
                }
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align() {
        let mut table = Table::new(&["name", "bytes"]);
        table.row(["a".into(), "5".into()]);
        table.row(["long".into(), "1234567".into()]);
        let mut out = Vec::new();
        table.print(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text, "name    bytes\na           5\nlong  1234567\n");
    }
}
