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
    waited: Duration,
    /// How long the server worked on it, once its reply began.
    worked: Option<Duration>,
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
            waited: Duration::ZERO,
            worked: None,
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

    /// The reply begins. What comes now takes as long as the client likes, and is counted only where
    /// the server works for it ([`Request::working`]).
    pub(crate) fn answered(&self) {
        let took = self.now().saturating_sub(self.begin);
        let mut outcome = self.lock();
        outcome.worked = Some(took.saturating_sub(outcome.waited));
    }

    /// So much of the time until now was spent with waiting for the client.
    pub(crate) fn waited(&self, time: Duration) {
        self.lock().waited += time;
    }

    /// Runs `work` for the rest of the reply, and counts its time.
    pub(crate) fn working<T>(&self, work: impl FnOnce() -> T) -> T {
        let begin = self.now();
        let done = work();
        let took = self.now().saturating_sub(begin);
        if let Some(worked) = &mut self.lock().worked {
            *worked += took;
        }
        done
    }

    fn now(&self) -> Duration {
        self.service.clock().monotonic()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Outcome> {
        self.outcome
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let Outcome {
            op,
            code,
            lasting,
            worked,
            ..
        } = *self.lock();
        let took = worked.unwrap_or_else(|| self.now().saturating_sub(self.begin));
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
