//! A request from its head to the end of its reply: what metrics and logs say about it.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use http::Uri;

use crate::connection::Activity;
use crate::metrics::Metrics;
use crate::service::Service;

/// Counts a request when it is dropped, which is when its reply was sent or its client went away.
pub(crate) struct Request {
    service: Service,
    metrics: Arc<Metrics>,
    activity: Arc<Activity>,
    proto: &'static str,
    slow: Duration,
    begin: Duration,
    uri: Uri,
    outcome: Mutex<Outcome>,
}

struct Outcome {
    op: &'static str,
    code: &'static str,
    lasting: bool,
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request").finish_non_exhaustive()
    }
}

impl Request {
    pub(crate) fn begin(
        service: Service,
        metrics: Arc<Metrics>,
        activity: Arc<Activity>,
        proto: &'static str,
        slow: Duration,
        uri: Uri,
    ) -> Arc<Self> {
        activity.busy();
        metrics.in_flight.inc();
        let begin = service.clock().monotonic();
        // Until the reply is there, the client is the one who ended it.
        let outcome = Outcome {
            op: "other",
            code: "cancelled",
            lasting: false,
        };
        Arc::new(Self {
            service,
            metrics,
            activity,
            proto,
            slow,
            begin,
            uri,
            outcome: Mutex::new(outcome),
        })
    }

    pub(crate) fn set_op(&self, op: &'static str) {
        self.lock().op = op;
    }

    pub(crate) fn set_code(&self, code: &'static str) {
        self.lock().code = code;
    }

    /// It takes as long as the client likes: how long says nothing.
    pub(crate) fn set_lasting(&self) {
        self.lock().lasting = true;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Outcome> {
        self.outcome
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let took = self.service.clock().monotonic().saturating_sub(self.begin);
        let Outcome { op, code, lasting } = *self.lock();
        self.metrics.request(self.proto, op, code, took);
        self.metrics.in_flight.dec();
        let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        if took >= self.slow && !lasting {
            let path = self.uri.path();
            tracing::warn!(op, code, path, took_ms, "slow request");
        } else {
            let path = self.uri.path();
            tracing::debug!(op, code, path, took_us = took.as_micros() as u64, "request");
        }
        self.activity.idle();
    }
}
