//! The request limiter of the `kv-json` dialect: so many requests in a fixed window, counted for
//! each connection alone.
//!
//! Its numbers are a contract of that dialect, which is why it is here and not a part of the
//! server: clients of it expect the eleventh request of a connection within five seconds to be
//! refused and the first one after them to pass. A token bucket, which lets requests through
//! between, would answer differently. A connection's window begins with its first request.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The numbers; `requests` of 0 limits nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    pub(crate) requests: u64,
    pub(crate) window: Duration,
}

/// What one connection used.
#[derive(Debug, Default)]
pub(crate) struct Used(Mutex<Window>);

#[derive(Debug, Default)]
struct Window {
    begin: Option<Duration>,
    count: u64,
}

impl Used {
    /// Counts a request at `now`; `false` if it is one too many.
    pub(crate) fn take(&self, rate: Rate, now: Duration) -> bool {
        if rate.requests == 0 {
            return true;
        }
        // Counters cannot be half changed.
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let over = |begin: Duration| now.saturating_sub(begin) >= rate.window;
        if window.begin.is_none_or(over) {
            *window = Window {
                begin: Some(now),
                count: 0,
            };
        }
        window.count = window.count.saturating_add(1);
        window.count <= rate.requests
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_has_so_many_and_the_next_one_again() {
        let rate = Rate {
            requests: 2,
            window: Duration::from_secs(5),
        };
        let at = Duration::from_millis;
        let used = Used::default();
        assert!(used.take(rate, at(1_000)) && used.take(rate, at(2_000)));
        assert!(!used.take(rate, at(2_000)) && !used.take(rate, at(5_999)));
        assert!(used.take(rate, at(6_000)) && used.take(rate, at(6_000)));
        assert!(!used.take(rate, at(6_000)));
        assert!(Used::default().take(rate, at(6_000)));
        let off = Rate {
            requests: 0,
            ..rate
        };
        assert!((0..100).all(|_| used.take(off, at(6_000))));
    }
}
