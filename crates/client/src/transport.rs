//! One call: a request out, a reply in, within the deadline, repeated where that is safe.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::Duration;

use bytes::Bytes;
use firn_api::code::Code;
use firn_api::http::Problem;
use http::header::{HeaderMap, RETRY_AFTER};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use crate::connection::Connector;
use crate::error::{Error, ErrorKind, Result};

/// Connections to one server, and how long and how often it is asked.
#[derive(Clone, Debug)]
pub(crate) struct Transport {
    pool: Pool<Connector, Full<Bytes>>,
    /// `http://host:port`
    base: String,
    deadline: Duration,
    retries: u32,
    repeat_writes: bool,
}

/// What to send.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) method: Method,
    /// Path and query, encoded.
    pub(crate) target: String,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Bytes,
    /// Whether doing it twice is the same as once.
    pub(crate) repeatable: bool,
    /// Whether it is a write that leaves the same behind when it is done twice, if nobody else writes.
    pub(crate) absolute: bool,
}

impl Call {
    pub(crate) fn new(method: Method, target: String) -> Self {
        let repeatable = matches!(method, Method::GET | Method::HEAD);
        Self {
            method,
            target,
            headers: Vec::new(),
            body: Bytes::new(),
            repeatable,
            absolute: false,
        }
    }
}

/// What came back, if it was not an error.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// The pause before the first repetition, where the server names none; then doubled.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

impl Transport {
    pub(crate) fn new(
        base: &str,
        deadline: Duration,
        retries: u32,
        repeat_writes: bool,
    ) -> Result<Self> {
        let with_scheme = if base.contains("://") {
            base.to_owned()
        } else {
            format!("http://{base}")
        };
        let uri: Uri = with_scheme.parse().map_err(|e| {
            Error::new(ErrorKind::Usage, format!("{base:?} is not an address: {e}"))
        })?;
        let (Some("http"), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            let detail = format!("{base:?} is not an address: write host:port or http://host:port");
            return Err(Error::new(ErrorKind::Usage, detail));
        };
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(deadline));
        let pool = Pool::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(60))
            // Repetition is decided here, where it is known what is safe.
            .retry_canceled_requests(false)
            .build(Connector(connector));
        Ok(Self {
            pool,
            base: format!("http://{authority}"),
            deadline,
            retries,
            repeat_writes,
        })
    }

    pub(crate) fn with_deadline(&self, deadline: Duration) -> Self {
        Self {
            deadline,
            ..self.clone()
        }
    }

    pub(crate) async fn call(&self, call: Call) -> Result<Answer> {
        match tokio::time::timeout(self.deadline, self.call_repeatedly(&call)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Error::new(
                ErrorKind::Deadline,
                format!("{} s", self.deadline.as_secs_f64()),
            )),
        }
    }

    async fn call_repeatedly(&self, call: &Call) -> Result<Answer> {
        let mut pause = FIRST_PAUSE;
        for left in (0..=self.retries).rev() {
            let failed = match self.call_once(call).await {
                Ok(answer) => return Ok(answer),
                Err(failed) => failed,
            };
            self.pause(call, failed, left, &mut pause).await?;
        }
        // The loop runs at least once and returns in its last round.
        Err(Error::new(ErrorKind::Usage, "no attempt was allowed"))
    }

    /// As [`Transport::open`], repeated where that is safe.
    pub(crate) async fn open_repeatedly(&self, call: &Call) -> Result<Incoming> {
        let mut pause = FIRST_PAUSE;
        for left in (0..=self.retries).rev() {
            let failed = match self.open(call).await {
                Ok(body) => return Ok(body),
                Err(failed) => failed,
            };
            self.pause(call, failed, left, &mut pause).await?;
        }
        // As above.
        Err(Error::new(ErrorKind::Usage, "no attempt was allowed"))
    }

    /// How long a reply that has begun may be silent.
    pub(crate) fn longest_wait(&self) -> Duration {
        self.deadline
    }

    /// Waits until a call may be repeated, `left` times from now on. An error if it may not.
    async fn pause(
        &self,
        call: &Call,
        failed: Failed,
        left: u32,
        pause: &mut Duration,
    ) -> Result<()> {
        let (again, wait) = match &failed.error.kind {
            ErrorKind::Unreachable => (true, *pause),
            ErrorKind::Unknown => {
                let again = call.repeatable || call.absolute && self.repeat_writes;
                (again, *pause)
            }
            // "Nothing was written": also writes may go again. A failed log does not heal.
            ErrorKind::Api(_) if failed.error.code() != Some(Code::LogPoisoned) => (
                failed.retry_after.is_some(),
                failed.retry_after.unwrap_or(*pause),
            ),
            _ => (false, *pause),
        };
        if !again || left == 0 {
            return Err(failed.error);
        }
        tokio::time::sleep(scattered(wait)).await;
        *pause = (*pause * 2).min(Duration::from_secs(2));
        Ok(())
    }

    /// Opens a stream: returns once the head of the reply is there, within the deadline. Nothing is
    /// repeated.
    pub(crate) async fn open(&self, call: &Call) -> std::result::Result<Incoming, Failed> {
        let opening = async {
            let reply = self.send(call).await?;
            if reply.status().is_success() {
                return Ok(reply.into_body());
            }
            let (parts, body) = reply.into_parts();
            Err(failure(&parts, &read(body).await?))
        };
        match tokio::time::timeout(self.deadline, opening).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let detail = format!("{} s", self.deadline.as_secs_f64());
                Err(Error::new(ErrorKind::Deadline, detail).into())
            }
        }
    }

    async fn send(&self, call: &Call) -> std::result::Result<http::Response<Incoming>, Failed> {
        let mut request = Request::builder()
            .method(call.method.clone())
            .uri(format!("{}{}", self.base, call.target));
        for (name, value) in &call.headers {
            request = request.header(*name, value);
        }
        let request = request
            .body(Full::new(call.body.clone()))
            .map_err(|e| Failed::from(Error::new(ErrorKind::Usage, e)))?;
        self.pool.request(request).await.map_err(|e| {
            let kind = if e.is_connect() {
                ErrorKind::Unreachable
            } else {
                ErrorKind::Unknown
            };
            Failed::from(Error::new(kind, chain(&e)))
        })
    }

    async fn call_once(&self, call: &Call) -> std::result::Result<Answer, Failed> {
        let (parts, body) = self.send(call).await?.into_parts();
        let body = read(body).await?;
        let status = parts.status;
        if status.is_success() || status == StatusCode::NOT_MODIFIED {
            return Ok(Answer {
                status,
                headers: parts.headers,
                body,
            });
        }
        Err(failure(&parts, &body))
    }
}

/// Between the time and half of it more, so that those who were refused together do not come back
/// together.
pub(crate) fn scattered(time: Duration) -> Duration {
    let random = RandomState::new().build_hasher().finish();
    time + time.mul_f64((random >> 32) as f64 / f64::from(u32::MAX) / 2.0)
}

async fn read(body: Incoming) -> std::result::Result<Bytes, Failed> {
    let read = body.collect().await;
    Ok(read
        .map_err(|e| Failed::from(Error::new(ErrorKind::Unknown, chain(&e))))?
        .to_bytes())
}

/// The error that a reply is.
fn failure(parts: &http::response::Parts, body: &[u8]) -> Failed {
    let retry_after = parts
        .headers
        .get(RETRY_AFTER)
        .and_then(|v| v.to_str().ok()?.parse().ok());
    let mut retry_after = retry_after.map(Duration::from_secs);
    let error = match serde_json::from_slice::<Problem>(body) {
        Ok(problem) => {
            // More exact than the header's whole seconds.
            retry_after = problem
                .retry_after_ms
                .map(Duration::from_millis)
                .or(retry_after);
            Error::api(problem)
        }
        Err(_) => Error::api(foreign_problem(parts.status, body)),
    };
    Failed { error, retry_after }
}

/// A failed attempt.
pub(crate) struct Failed {
    pub(crate) error: Error,
    /// When the server says that it is worth trying again.
    pub(crate) retry_after: Option<Duration>,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self {
            error,
            retry_after: None,
        }
    }
}

/// An error that is no problem document: of a proxy, or of the server's HTTP parser.
fn foreign_problem(status: StatusCode, body: &[u8]) -> Problem {
    let text = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
    Problem {
        status: status.as_u16(),
        detail: format!("{status} {text}").trim().into(),
        ..Problem::default()
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
