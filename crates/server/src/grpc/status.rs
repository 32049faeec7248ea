//! Errors of the service as gRPC has them.
//!
//! The status is that of the table of codes. Its details (`grpc-status-details-bin`) are
//! `google.rpc.ErrorInfo` with the name of the code as the reason, `firn` as the domain, and
//! `limit`, `actual`, `version`, `index` and `oldest_version` as metadata where there are any; `BadRequest` if an
//! argument is wrong; `RetryInfo` if it may be tried again. For clients that do not read those, the
//! trailers also say `firn-code`, and `grpc-retry-pushback-ms`, which gRPC's own retries obey.

use std::collections::HashMap;
use std::time::Duration;

use firn_api::code::{Code, Grpc};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code as TonicCode, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::service::error::Error;

/// The domain of our reasons.
pub(crate) const DOMAIN: &str = "firn";
const CODE: &str = "firn-code";
const PUSHBACK: &str = "grpc-retry-pushback-ms";
/// Longest message. Clients refuse trailers that are larger than 8 KiB.
const MESSAGE_BYTES: usize = 1_000;

/// The status of an error.
pub(crate) fn of(error: &Error) -> Status {
    let mut details = ErrorDetails::new();
    let numbers = [
        ("limit", error.limit),
        ("actual", error.actual),
        ("version", error.version),
        ("index", error.index.map(u64::from)),
        ("oldest_version", error.oldest_version),
    ];
    let metadata: HashMap<_, _> = numbers
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?.to_string())))
        .collect();
    details.set_error_info(error.code.name(), DOMAIN, metadata);
    let message = shortened(&error.detail);
    if error.code.grpc_status() == Grpc::InvalidArgument {
        details.add_bad_request_violation(field(error), message.clone());
    }
    let mut trailers = MetadataMap::new();
    trailers.insert(CODE, MetadataValue::from_static(error.code.name()));
    if let Some(ms) = error.retry_after_ms {
        details.set_retry_info(Some(Duration::from_millis(ms)));
        trailers.insert(PUSHBACK, i32::try_from(ms).unwrap_or(i32::MAX).into());
    }
    let code = TonicCode::from_i32(error.code.grpc_status() as i32);
    Status::with_error_details_and_metadata(code, message, details, trailers)
}

/// The deadline of the call has passed.
pub(crate) fn too_late() -> Error {
    let detail = "grpc-timeout has passed; a write may have happened all the same";
    Error::new(Code::DeadlineExceeded, detail)
}

fn shortened(text: &str) -> String {
    let mut end = text.len().min(MESSAGE_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// The field of the request that is wrong, as far as the code tells.
fn field(error: &Error) -> String {
    if let Some(index) = error.index {
        return format!("[{index}]");
    }
    match error.code {
        Code::KeyTooLarge => "key",
        Code::ValueTooLarge => "value",
        Code::InvalidCursor => "cursor",
        // The detail begins with it where a door found the mistake.
        _ => match error.detail.split_once(": ") {
            Some((name, _)) if name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') => name,
            _ => "",
        },
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_status_and_details() {
        for code in Code::ALL {
            let error = Error {
                limit: Some(1),
                index: Some(2),
                retry_after_ms: Some(3),
                ..Error::new(*code, "detail \u{e9}")
            };
            let status = of(&error);
            assert_eq!(status.code() as i32, code.grpc_status() as i32);
            assert_ne!(status.code(), TonicCode::Unknown);
            assert_eq!(status.message(), "detail \u{e9}");
            let details = status.get_error_details();
            let info = details.error_info().unwrap();
            assert_eq!((&*info.reason, &*info.domain), (code.name(), DOMAIN));
            assert_eq!(info.metadata["limit"], "1");
            assert_eq!(info.metadata["index"], "2");
            assert!(!info.metadata.contains_key("actual"));
            let retry = details.retry_info().unwrap();
            assert_eq!(retry.retry_delay, Some(Duration::from_millis(3)));
            assert_eq!(status.metadata().get(CODE).unwrap(), code.name());
            assert_eq!(status.metadata().get(PUSHBACK).unwrap(), "3");
            let bad = details.bad_request().is_some();
            assert_eq!(bad, status.code() == TonicCode::InvalidArgument);
        }
    }

    #[test]
    fn a_long_detail_does_not_outgrow_what_clients_take() {
        let status = of(&Error::invalid("\u{e9}".repeat(5_000)));
        assert_eq!(status.message().len(), MESSAGE_BYTES);
        assert!(status.details().len() < 4_000);
    }

    #[test]
    fn the_field_is_named() {
        assert_eq!(field(&Error::invalid("ttl_ms: too long")), "ttl_ms");
        assert_eq!(field(&Error::invalid("this is wrong: so")), "");
        assert_eq!(field(&Error::invalid("x").at(4)), "[4]");
        assert_eq!(field(&Error::new(Code::KeyTooLarge, "x")), "key");
    }
}
