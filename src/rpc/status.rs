//! Errors on the wire: a gRPC status with google.rpc.ErrorInfo, and back.

use std::collections::HashMap;
use std::error::Error as _;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::error::{Error, ErrorKind, WriteOutcome};

/// The domain of the codes in `reason`.
const DOMAIN: &str = "podlink";

/// The closest gRPC code, for a client that does not know podlink.
pub(super) const fn code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::InvalidParameter => Code::InvalidArgument,
        ErrorKind::ServiceNotFound | ErrorKind::PodNotFound | ErrorKind::NamespaceUnreachable => {
            Code::NotFound
        }
        ErrorKind::PodNotAvailable
        | ErrorKind::NoRoutablePod
        | ErrorKind::PodIndexBusy
        | ErrorKind::LeaseLost
        | ErrorKind::NotOwner
        | ErrorKind::OwnershipLost
        | ErrorKind::IllegalState => Code::FailedPrecondition,
        ErrorKind::PermissionDenied => Code::PermissionDenied,
        ErrorKind::Overloaded | ErrorKind::OutOfResources => Code::ResourceExhausted,
        ErrorKind::PeerUnavailable | ErrorKind::StoreUnavailable | ErrorKind::Closed => {
            Code::Unavailable
        }
        ErrorKind::Timeout => Code::DeadlineExceeded,
        ErrorKind::StoreData => Code::DataLoss,
        ErrorKind::Redis
        | ErrorKind::StoreAuthentication
        | ErrorKind::ForkedProcess
        | ErrorKind::Internal => Code::Internal,
    }
}

/// The error as a status.
pub(super) fn from_error(error: &Error) -> Status {
    status(code(error.kind()), error)
}

/// An unknown caller: the only error with a gRPC code other than its kind's.
pub(super) fn unauthenticated(why: &str) -> Status {
    let error = Error::new(ErrorKind::PermissionDenied, why)
        .with("reason", "the caller is not known")
        .with_outcome(WriteOutcome::NotSent);
    status(Code::Unauthenticated, &error)
}

fn status(code: Code, error: &Error) -> Status {
    // Trailers are limited in size: a truncated value is better than an error that is not sent.
    const VALUE_MAX: usize = 500;
    let mut metadata = HashMap::from([("retryable".to_owned(), error.is_retryable().to_string())]);
    for (name, value) in error.details() {
        let value: String = value.chars().take(VALUE_MAX).collect();
        metadata.insert(name.to_owned(), value);
    }
    let details = ErrorDetails::with_error_info(error.kind().code(), DOMAIN, metadata);
    Status::with_error_details(code, error.to_string(), details)
}

/// The status as an error.
pub(super) fn to_error(status: &Status) -> Error {
    let details = status.get_error_details();
    let info = details.error_info().filter(|info| info.domain == DOMAIN);
    let Some(info) = info else {
        return foreign(status);
    };
    let kind = ErrorKind::of_code(&info.reason).unwrap_or(ErrorKind::Internal);
    let mut error = Error::new(kind, message_of(status.message(), &info.metadata));
    for (name, value) in &info.metadata {
        error = match (name.as_str(), value.as_str()) {
            ("retryable", retryable) => error.with_retryable(retryable == "true"),
            ("outcome", "not sent") => error.with_outcome(WriteOutcome::NotSent),
            ("outcome", _) => error.with_outcome(WriteOutcome::Unknown),
            // The driver adds the caller's own name for the operation.
            ("operation", _) => error,
            (name, value) => error.with(name.to_owned(), value),
        };
    }
    error.with("reported_by", "peer")
}

/// The text without what `Error` adds when displayed, so that it is not added twice.
fn message_of(text: &str, metadata: &HashMap<String, String>) -> String {
    let operation = metadata.get("operation").or(metadata.get("store_call"));
    let operation = operation.map(|name| format!("{name}: "));
    let text = operation
        .as_deref()
        .and_then(|prefix| text.strip_prefix(prefix))
        .unwrap_or(text);
    let outcome = metadata.get("outcome");
    let suffix = outcome.map(|outcome| format!(" (write outcome: {outcome})"));
    let text = suffix
        .as_deref()
        .and_then(|suffix| text.strip_suffix(suffix))
        .unwrap_or(text);
    text.to_owned()
}

/// A status that podlink's server did not create: one of the transport, a proxy or a limit.
fn foreign(status: &Status) -> Error {
    let kind = match status.code() {
        Code::InvalidArgument | Code::OutOfRange => ErrorKind::InvalidParameter,
        Code::DeadlineExceeded => ErrorKind::Timeout,
        // The message of tonic when its own deadline passed, on either side.
        Code::Cancelled if status.message().contains("Timeout expired") => ErrorKind::Timeout,
        Code::Unavailable | Code::Cancelled | Code::Unknown | Code::Aborted => {
            ErrorKind::PeerUnavailable
        }
        Code::ResourceExhausted => ErrorKind::Overloaded,
        Code::PermissionDenied | Code::Unauthenticated => ErrorKind::PermissionDenied,
        Code::Internal if is_transport_error(status) => ErrorKind::PeerUnavailable,
        _ => ErrorKind::Internal,
    };
    let text = status.message();
    let error = Error::new(kind, format!("the peer: {text}")).with("grpc_code", status.code());
    match cause(status) {
        Some(cause) if cause != text => error.with("cause", cause),
        _ => error,
    }
}

/// The innermost source, which names the cause; the outer ones only say "transport error".
fn cause(status: &Status) -> Option<String> {
    chain(status).last().map(ToString::to_string)
}

fn chain(status: &Status) -> Vec<&(dyn std::error::Error + 'static)> {
    let (mut found, mut next) = (Vec::new(), status.source());
    while let Some(error) = next {
        found.push(error);
        next = error.source();
    }
    found
}

fn is_transport_error(status: &Status) -> bool {
    chain(status)
        .into_iter()
        .any(|error| error.is::<h2::Error>() || error.is::<std::io::Error>())
}

/// Whether the call certainly never reached the peer's service.
pub(super) fn never_sent(status: &Status) -> bool {
    chain(status).into_iter().any(|error| {
        let http2 = error.downcast_ref::<h2::Error>();
        error.is::<DialError>()
            || error.is::<Unsent>()
            || http2.is_some_and(|error| {
                error.is_remote() && error.reason() == Some(h2::Reason::REFUSED_STREAM)
            })
    })
}

/// The connection accepts no more calls: nothing was sent.
#[derive(Debug)]
pub(super) struct Unsent(pub(super) h2::Error);

impl std::fmt::Display for Unsent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the connection was ended: {}", self.0)
    }
}

impl std::error::Error for Unsent {}

/// No connection could be established: nothing was sent.
#[derive(Debug, Clone)]
pub(super) struct DialError {
    pub(super) endpoint: String,
    pub(super) why: String,
}

impl std::fmt::Display for DialError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "no connection to {}: {}", self.endpoint, self.why)
    }
}

impl std::error::Error for DialError {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::OperationName;

    #[test]
    fn every_kind_crosses_the_wire_with_all_its_facts() {
        for kind in ErrorKind::ALL {
            for outcome in [
                None,
                Some(WriteOutcome::NotSent),
                Some(WriteOutcome::Unknown),
            ] {
                let mut error = Error::new(kind, "what happened")
                    .during(OperationName::SetLinkedPod)
                    .with("pods_known", 3);
                if let Some(outcome) = outcome {
                    error = error.with_outcome(outcome);
                }
                let back = to_error(&from_error(&error)).during(OperationName::SetLinkedPod);
                assert_eq!(back.kind(), kind);
                assert_eq!(back.outcome(), outcome);
                assert_eq!(back.is_retryable(), error.is_retryable());
                assert_eq!(back.to_string(), error.to_string());
                let facts = back.details();
                assert!(
                    facts
                        .iter()
                        .any(|(name, value)| *name == "pods_known" && value == "3")
                );
            }
        }
    }

    #[test]
    fn no_kind_looks_like_success() {
        for kind in ErrorKind::ALL {
            assert_ne!(code(kind), Code::Ok);
            assert_ne!(code(kind), Code::Unknown);
        }
    }

    #[test]
    fn a_foreign_status_is_an_error_too() {
        for (status, kind) in [
            (Status::unavailable("x"), ErrorKind::PeerUnavailable),
            (Status::deadline_exceeded("x"), ErrorKind::Timeout),
            (Status::cancelled("Timeout expired"), ErrorKind::Timeout),
            (
                Status::out_of_range("too large"),
                ErrorKind::InvalidParameter,
            ),
            (Status::unimplemented("x"), ErrorKind::Internal),
            (Status::resource_exhausted("x"), ErrorKind::Overloaded),
        ] {
            assert_eq!(to_error(&status).kind(), kind, "{status:?}");
        }
    }

    #[test]
    fn a_code_that_this_version_does_not_know_is_internal() {
        let details = ErrorDetails::with_error_info("NEWER", DOMAIN, HashMap::new());
        let status = Status::with_error_details(Code::NotFound, "text", details);
        assert_eq!(to_error(&status).kind(), ErrorKind::Internal);
    }

    #[test]
    fn what_is_refused_before_it_is_read_was_not_sent() {
        let back = to_error(&unauthenticated("no token"));
        assert_eq!(back.kind(), ErrorKind::PermissionDenied);
        assert_eq!(back.outcome(), Some(WriteOutcome::NotSent));
    }
}
