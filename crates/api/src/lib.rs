//! What FirnDB's clients and servers say to each other, known to both and knowing neither.
//!
//! | Module | Owns |
//! |---|---|
//! | [`code`] | the one table of error codes: HTTP status, RESP prefix, gRPC status, exit code, advice |
//! | [`http`] | JSON bodies of the HTTP door, and `application/problem+json` |
//! | [`json`] | JSON as the systems of the dialects wrote and read it, pulled piece by piece |
//! | [`text`] | bytes as text: percent-encoding, base64, JSON strings |
//! | [`cursor`] | the opaque token that continues a range |
//! | [`duration`], [`size`] | `30s` and `512MiB`, read and printed |
//! | [`limits`] | every limit of the service, its name and its default |
//!
//! Nothing here does I/O, and nothing here knows the engine.
#![deny(missing_docs)]

pub mod code;
pub mod cursor;
pub mod duration;
pub mod http;
pub mod json;
pub mod limits;
pub mod size;
pub mod text;
