//! The one table of error codes. Every door translates from it: HTTP answers with the status and
//! the name, RESP with the prefix, gRPC with its status, the command line with the exit code.
//! `docs/api/errors.md` is printed from it, and a test keeps the page fresh.
//!
//! A code is an interface: names never change their meaning, and a new one is added at the end of
//! its group.

use std::fmt;

/// The gRPC status of a code, by the number that gRPC gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs)] // the names are gRPC's own
pub enum Grpc {
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
}

macro_rules! codes {
    ($($variant:ident $name:literal $http:literal $resp:literal $grpc:ident $exit:literal
       $title:literal, $advice:literal;)*) => {
        /// What went wrong, for machines.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Code { $(#[doc = $title] $variant,)* }

        impl Code {
            /// Every code, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The name in replies and in metrics: `snake_case`, never changed.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
            /// The status of an HTTP reply.
            pub const fn http_status(self) -> u16 {
                match self { $(Self::$variant => $http,)* }
            }
            /// The first word of a RESP error.
            pub const fn resp_prefix(self) -> &'static str {
                match self { $(Self::$variant => $resp,)* }
            }
            /// The status of a gRPC reply.
            pub const fn grpc_status(self) -> Grpc {
                match self { $(Self::$variant => Grpc::$grpc,)* }
            }
            /// The exit code of the command line.
            pub const fn exit_code(self) -> u8 {
                match self { $(Self::$variant => $exit,)* }
            }
            /// One line for people, the same for every occurrence.
            pub const fn title(self) -> &'static str {
                match self { $(Self::$variant => $title,)* }
            }
            /// What the caller should do.
            pub const fn advice(self) -> &'static str {
                match self { $(Self::$variant => $advice,)* }
            }
        }
    };
}

codes! {
    InvalidArgument "invalid_argument" 400 "ERR" InvalidArgument 2
        "The request is not valid",
        "Correct the argument that the detail names; repeating the request as it is cannot help.";
    UnknownParameter "unknown_parameter" 400 "ERR" InvalidArgument 2
        "A query parameter is not known",
        "Remove or correct the parameter; the detail lists those that the route takes.";
    InvalidEncoding "invalid_encoding" 400 "ERR" InvalidArgument 2
        "Percent-encoding, base64 or UTF-8 is broken",
        "Encode every byte outside the unreserved set as %XX, or use key_enc=base64url.";
    InvalidJson "invalid_json" 400 "ERR" InvalidArgument 2
        "The JSON body cannot be understood",
        "Correct the body at the line and column of the detail.";
    InvalidCursor "invalid_cursor" 400 "ERR" InvalidArgument 2
        "The cursor is damaged or belongs to another query",
        "Pass next_cursor unchanged, with the parameters of the first page; or start again without it.";
    NotUtf8 "not_utf8" 400 "ERR" InvalidArgument 2
        "A key or value is not valid UTF-8",
        "Ask with enc=auto or enc=base64.";
    BodyIncomplete "body_incomplete" 400 "ERR" InvalidArgument 3
        "The request body ended early",
        "Send as many bytes as Content-Length announces. Nothing was written.";
    ForeignOrigin "foreign_origin" 403 "ERR" PermissionDenied 2
        "The request comes from a web page of another origin",
        "Reach the server as localhost or by its address, and not from a web page.";
    NotFound "not_found" 404 "ERR" NotFound 1
        "The key does not exist",
        "Nothing: the key was never written, was deleted, or has expired.";
    NamespaceNotFound "namespace_not_found" 404 "ERR" NotFound 1
        "The namespace does not exist",
        "Create it first: PUT /v1/ns/{ns}.";
    RouteNotFound "route_not_found" 404 "ERR" Unimplemented 2
        "There is no such path",
        "See /openapi.json for the paths of this server.";
    MethodNotAllowed "method_not_allowed" 405 "ERR" Unimplemented 2
        "The path does not take this method",
        "Use one of the methods in the Allow header.";
    RequestTimeout "request_timeout" 408 "ERR" DeadlineExceeded 3
        "The request arrived too slowly",
        "Send it again over a better connection. Nothing was written.";
    NamespaceExists "namespace_exists" 409 "ERR" AlreadyExists 1
        "The namespace exists already",
        "Use it, or choose another name.";
    CheckpointExists "checkpoint_exists" 409 "ERR" AlreadyExists 1
        "A checkpoint of this name exists already",
        "Choose another name.";
    VersionTooOld "version_too_old" 410 "ERR" OutOfRange 1
        "The changefeed no longer has this version",
        "Read the state (a range, an export), then watch from the version after it; the member oldest_version is the oldest that a watch can begin at.";
    ConditionFailed "condition_failed" 412 "ERR" FailedPrecondition 1
        "A condition did not hold; nothing was written",
        "Read the key again and decide again; the member version is the version it has now.";
    KeyTooLarge "key_too_large" 413 "ERR" InvalidArgument 4
        "The key is too long",
        "Use a shorter key; the members limit and actual are in bytes.";
    ValueTooLarge "value_too_large" 413 "ERR" InvalidArgument 4
        "The value is too large",
        "Split the value, or raise limits.value_bytes where the server runs.";
    BodyTooLarge "body_too_large" 413 "ERR" InvalidArgument 4
        "The request body is too large",
        "Send less at a time.";
    LimitExceeded "limit_exceeded" 413 "ERR" InvalidArgument 4
        "A limit is exceeded",
        "The detail names the limit, the members limit and actual have its value and yours.";
    RateLimited "rate_limited" 429 "TRYAGAIN" ResourceExhausted 4
        "The client sends more requests than it may",
        "Repeat after the delay of Retry-After; limits.rate and limits.rate_burst say how many there may be.";
    Unsupported "unsupported" 409 "ERR" Unimplemented 2
        "The server cannot do this as it is set up",
        "The detail says what it would take.";
    Internal "internal" 500 "ERR" Internal 3
        "The server made a mistake",
        "Report it, with the server's log of that moment.";
    OutcomeUnknown "outcome_unknown" 500 "ERR" Unavailable 3
        "The server or its leader stopped before the write was acknowledged",
        "The write may or may not have happened: read the key, or repeat it under a condition.";
    IoError "io_error" 500 "ERR" Internal 4
        "The disk refused an operation",
        "Look at the server's log and at the disk.";
    Corruption "corruption" 500 "ERR" DataLoss 5
        "Stored bytes are damaged",
        "Run verify; restore the file, or repair. The detail names file and offset.";
    Overloaded "overloaded" 503 "TRYAGAIN" ResourceExhausted 4
        "The server is asked for more than it can do",
        "Repeat after the delay of Retry-After. Nothing was written.";
    TooManyConnections "too_many_connections" 503 "ERR" ResourceExhausted 4
        "There are as many connections as allowed",
        "Close idle connections, or raise limits.connections where the server runs.";
    ShuttingDown "shutting_down" 503 "ERR" Unavailable 3
        "The server is about to stop",
        "Repeat the request after the delay, or elsewhere.";
    NoLeader "no_leader" 503 "CLUSTERDOWN" Unavailable 3
        "The cluster has no leader that a majority follows",
        "Repeat after the delay of Retry-After, or ask another node. Nothing was written.";
    NotLeader "not_leader" 503 "TRYAGAIN" Unavailable 3
        "Only the leader does this",
        "Ask the node that the member leader names, or again later. Nothing was changed.";
    LogPoisoned "log_poisoned" 503 "ERR" Unavailable 4
        "Writes are refused: an earlier write to the log failed",
        "Mend the disk and restart the server. Reads go on; no acknowledged write is lost.";
    DeadlineExceeded "deadline_exceeded" 504 "ERR" DeadlineExceeded 3
        "The deadline of the request passed",
        "Allow more time. A write may have happened all the same: read the key, or repeat it under a condition.";
    DiskFull "disk_full" 507 "OOM" ResourceExhausted 4
        "The disk is full",
        "Delete data or add space. Deletes are still accepted, and writes resume by themselves.";
}

impl Code {
    /// The code of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.name() == name)
    }

    /// The `type` member of a problem: a page that explains the code.
    pub fn type_uri(self) -> String {
        format!("urn:firn:error:{}", self.name())
    }

    /// Whether the same request may succeed later although nobody corrects it.
    pub const fn is_transient(self) -> bool {
        matches!(
            self,
            Self::Overloaded
                | Self::RateLimited
                | Self::TooManyConnections
                | Self::ShuttingDown
                | Self::NoLeader
        )
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The page `docs/api/errors.md`.
pub fn errors_page() -> String {
    let mut page = String::from(
        "# Error codes\n\n\
         Printed from `crates/api/src/code.rs`; a test keeps this page fresh (`UPDATE=1 cargo test \
         -p firn-api` rewrites it).\n\n\
         An HTTP error is `application/problem+json` (RFC 9457) with the members `type`, `title`, \
         `status`, `detail`, `instance`, and `code` from the table below; where they apply also \
         `limit` and `actual` (the limit's value and yours), `version` (the version the key has \
         now), `index` (the position in a batch), `oldest_version` (of the changefeed) and \
         `retry_after_ms`. Replies with status 429 and 503 always carry `Retry-After` in whole \
         seconds.\n\n\
         | Code | HTTP | RESP | gRPC | Exit | Meaning | What to do |\n\
         |---|---|---|---|---|---|---|\n",
    );
    for code in Code::ALL {
        page.push_str(&format!(
            "| `{}` | {} | `{}` | {:?} ({}) | {} | {} | {} |\n",
            code.name(),
            code.http_status(),
            code.resp_prefix(),
            code.grpc_status(),
            code.grpc_status() as u8,
            code.exit_code(),
            code.title(),
            code.advice()
        ));
    }
    page
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::disallowed_methods,
        reason = "the test reads and writes a page of docs"
    )]
    use super::*;

    #[test]
    fn names_are_unique_and_found_again() {
        for code in Code::ALL {
            assert_eq!(Code::from_name(code.name()), Some(*code));
            assert!((400..600).contains(&code.http_status()));
        }
        let mut names: Vec<_> = Code::ALL.iter().map(|c| c.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Code::ALL.len());
        assert_eq!(Code::from_name("nonsense"), None);
    }

    #[test]
    fn the_page_of_errors_is_fresh() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/api/errors.md");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(path, errors_page()).unwrap();
        }
        let page = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            page == errors_page(),
            "docs/api/errors.md is stale: UPDATE=1 rewrites it"
        );
    }
}
