//! A progress line on stderr while a person watches; silence otherwise.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::{host, output, text};

/// Counts entries and bytes of one piece of work, shows them with their rates, and sums up.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    started: Instant,
    /// Entries so far.
    pub(crate) entries: u64,
    /// Bytes so far.
    pub(crate) bytes: u64,
    shown: Instant,
}

impl Progress {
    /// Starts the work called `what`. `total` is in bytes, if known.
    pub(crate) fn new(what: &'static str, total: Option<u64>) -> Self {
        let bar = match total {
            Some(total) => ProgressBar::new(total),
            None => ProgressBar::no_length(),
        };
        // stderr() draws only if stderr is a terminal.
        let target = if output::quiet() {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr()
        };
        bar.set_draw_target(target);
        let template = if total.is_some() {
            "{prefix} [{bar:30}] {percent:>3}% {msg} eta {eta}"
        } else {
            "{prefix} {spinner} {msg}"
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(what);
        let started = host::now();
        Self {
            bar,
            started,
            entries: 0,
            bytes: 0,
            shown: started,
        }
    }

    /// Some more was done: `entries` of together `bytes`; `position` is how far the input is.
    pub(crate) fn advance(&mut self, entries: u64, bytes: u64, position: u64) {
        self.entries += entries;
        self.bytes += bytes;
        self.show(position);
    }

    /// So much of the total is done.
    pub(crate) fn set(&mut self, entries: u64, bytes: u64, total: u64) {
        self.entries = entries;
        self.bytes = bytes;
        if total > 0 {
            self.bar.set_length(total);
        }
        self.show(bytes);
    }

    fn show(&mut self, position: u64) {
        const EVERY: Duration = Duration::from_millis(100);
        let now = host::now();
        if now - self.shown >= EVERY {
            self.shown = now;
            self.bar.set_position(position);
            self.bar.set_message(self.rates());
        }
    }

    /// Counts and rates so far, for a line.
    pub(crate) fn rates(&self) -> String {
        let seconds = self.started.elapsed().as_secs_f64().max(1e-6);
        format!(
            "{} entries, {} in {seconds:.1} s ({} entries/s, {}/s)",
            text::count(self.entries),
            text::size(self.bytes),
            text::count((self.entries as f64 / seconds) as u64),
            text::size((self.bytes as f64 / seconds) as u64),
        )
    }

    /// The line, for who takes it away from another thread.
    pub(crate) fn shown(&self) -> ProgressBar {
        self.bar.clone()
    }

    /// Takes the line away.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
