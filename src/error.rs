//! One error type for the whole core: what failed, whether to retry, where, with what, and why.
//!
//! The shape follows OpenDAL's `Error`: a kind that programs match on, an operation, a context of
//! name and value pairs, and the source. Python gets one exception class per kind
//! (`python/podlink/errors.py`); a contract test fails when a kind has none.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

/// The kind of a failure. Users match on its code, in Python and over gRPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An argument does not have the required form.
    InvalidParameter,
    /// No pod of this service is known.
    ServiceNotFound,
    /// The service has pods, but this one is not alive.
    PodNotFound,
    /// The pod exists, but may not serve users now.
    PodNotAvailable,
    /// No pod may take a new user now.
    NoRoutablePod,
    /// A pod index is held by another live process.
    PodIndexBusy,
    /// This pod's lease is over, or its incarnation was declared dead.
    LeaseLost,
    /// Another pod owns the user.
    NotOwner,
    /// This process owned the user, and does so no more.
    OwnershipLost,
    /// The driver is in a state that does not allow the operation.
    IllegalState,
    /// A namespace that is not this driver's and has no registered peer.
    NamespaceUnreachable,
    /// The peer in another namespace could not be reached, or the connection broke.
    PeerUnavailable,
    /// The peer could not authenticate the caller, or does not authorize the call.
    PermissionDenied,
    /// The peer is over its limits and did not begin the request.
    Overloaded,
    /// The store replied with an error of its own.
    Redis,
    /// The store could not be reached, or the connection broke.
    StoreUnavailable,
    /// The store rejected the user name, the password or the permission.
    StoreAuthentication,
    /// The store holds a value at this key that podlink did not write.
    StoreData,
    /// The deadline passed first.
    Timeout,
    /// The driver or the store was closed.
    Closed,
    /// The object was created before `fork` and is used in the child.
    ForkedProcess,
    /// This process has no descriptor or thread left that the call needs.
    OutOfResources,
    /// A bug in podlink.
    Internal,
}

impl ErrorKind {
    /// Every kind, so that tables can be tested for completeness.
    pub const ALL: [Self; 23] = [
        Self::InvalidParameter,
        Self::ServiceNotFound,
        Self::PodNotFound,
        Self::PodNotAvailable,
        Self::NoRoutablePod,
        Self::PodIndexBusy,
        Self::LeaseLost,
        Self::NotOwner,
        Self::OwnershipLost,
        Self::IllegalState,
        Self::NamespaceUnreachable,
        Self::PeerUnavailable,
        Self::PermissionDenied,
        Self::Overloaded,
        Self::Redis,
        Self::StoreUnavailable,
        Self::StoreAuthentication,
        Self::StoreData,
        Self::Timeout,
        Self::Closed,
        Self::ForkedProcess,
        Self::OutOfResources,
        Self::Internal,
    ];

    /// The stable code of this kind.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::InvalidParameter => "INVALID_PARAMETER",
            Self::ServiceNotFound => "SERVICE_NOT_FOUND",
            Self::PodNotFound => "POD_NOT_FOUND",
            Self::PodNotAvailable => "POD_NOT_AVAILABLE",
            Self::NoRoutablePod => "POD_NOT_ROUTABLE",
            Self::PodIndexBusy => "POD_INDEX_BUSY",
            Self::LeaseLost => "LEASE_LOST",
            Self::NotOwner => "NOT_OWNER",
            Self::OwnershipLost => "OWNERSHIP_LOST",
            Self::IllegalState => "ILLEGAL_STATE",
            Self::NamespaceUnreachable => "NAMESPACE_UNREACHABLE",
            Self::PeerUnavailable => "PEER_UNAVAILABLE",
            Self::PermissionDenied => "PERMISSION_DENIED",
            Self::Overloaded => "OVERLOADED",
            Self::Redis => "REDIS_ERROR",
            Self::StoreUnavailable => "STORE_UNAVAILABLE",
            Self::StoreAuthentication => "STORE_AUTHENTICATION",
            Self::StoreData => "STORE_DATA",
            Self::Timeout => "TIMEOUT",
            Self::Closed => "CLOSED",
            Self::ForkedProcess => "FORKED_PROCESS",
            Self::OutOfResources => "OUT_OF_RESOURCES",
            Self::Internal => "INTERNAL_ERROR",
        }
    }

    /// The kind with this code.
    #[must_use]
    pub fn of_code(code: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }

    /// Whether the same call may succeed on a retry.
    #[must_use]
    pub const fn is_retryable(self) -> bool {
        matches!(
            self,
            Self::PodNotAvailable
                | Self::NoRoutablePod
                | Self::PodIndexBusy
                | Self::PeerUnavailable
                | Self::Overloaded
                | Self::OutOfResources
                | Self::StoreUnavailable
                | Self::Timeout
        )
    }
}

/// What is known about a write that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WriteOutcome {
    /// It never left this process, or the store rejected it: nothing changed.
    NotSent,
    /// It may have been applied. Retry, or read, to find out.
    Unknown,
}

impl WriteOutcome {
    /// The name of the outcome in error details.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotSent => "not sent",
            Self::Unknown => "unknown",
        }
    }
}

/// What has a name that errors carry: an operation.
pub trait Named {
    /// The name.
    fn name(&self) -> &'static str;
}

/// The error of every fallible function in podlink.
#[derive(Clone)]
pub struct Error(Box<ErrorFields>);

/// `Result` with podlink's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

#[derive(Clone)]
struct ErrorFields {
    kind: ErrorKind,
    message: String,
    operation: Option<&'static str>,
    store_call: Option<&'static str>,
    context: Vec<(Cow<'static, str>, String)>,
    outcome: Option<WriteOutcome>,
    retryable: bool,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// A new error of this kind.
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(ErrorFields {
            kind,
            message: message.into(),
            operation: None,
            store_call: None,
            context: Vec::new(),
            outcome: None,
            retryable: kind.is_retryable(),
            source: None,
        }))
    }

    /// Names the public operation that failed. The outermost name counts.
    #[must_use]
    pub fn during(mut self, operation: impl Named) -> Self {
        self.0.operation = Some(operation.name());
        self
    }

    /// Names the call of a store or a peer that failed. The innermost name counts.
    #[must_use]
    pub fn in_call(mut self, call: impl Named) -> Self {
        self.0.store_call.get_or_insert(call.name());
        self
    }

    /// Adds a detail. A detail that is already set stays.
    #[must_use]
    pub fn with(mut self, name: impl Into<Cow<'static, str>>, value: impl ToString) -> Self {
        let name = name.into();
        if !self.0.context.iter().any(|(known, _)| *known == name) {
            self.0.context.push((name, value.to_string()));
        }
        self
    }

    /// Sets what is known about the write that failed.
    #[must_use]
    pub fn with_outcome(mut self, outcome: WriteOutcome) -> Self {
        self.0.outcome = Some(outcome);
        self
    }

    /// Marks the error as retryable, whatever its kind.
    #[must_use]
    pub fn retryable(mut self) -> Self {
        self.0.retryable = true;
        self
    }

    /// Sets whether a retry may succeed, whatever the kind.
    #[must_use]
    pub fn with_retryable(mut self, retryable: bool) -> Self {
        self.0.retryable = retryable;
        self
    }

    /// Sets the cause.
    #[must_use]
    pub fn caused_by(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.0.source = Some(Arc::new(source));
        self
    }

    /// The kind.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether a retry may succeed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.0.retryable
    }

    /// What is known about the write, if it was one.
    #[must_use]
    pub fn outcome(&self) -> Option<WriteOutcome> {
        self.0.outcome
    }

    /// Every detail in the order in which they were added, the operation first.
    #[must_use]
    pub fn details(&self) -> Vec<(&str, String)> {
        let context = self.0.context.iter();
        let operation = self.0.operation.map(|name| ("operation", name.to_owned()));
        let call = self
            .0
            .store_call
            .map(|name| ("store_call", name.to_owned()));
        let outcome = self.0.outcome.map(|o| ("outcome", o.as_str().to_owned()));
        let source = self.0.source.as_ref().map(|s| ("cause", s.to_string()));
        operation
            .into_iter()
            .chain(call)
            .chain(context.map(|(name, value)| (name.as_ref(), value.clone())))
            .chain(outcome)
            .chain(source)
            .collect()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(operation) = self.0.operation.or(self.0.store_call) {
            write!(f, "{operation}: ")?;
        }
        f.write_str(&self.0.message)?;
        if let Some(outcome) = self.0.outcome {
            write!(f, " (write outcome: {})", outcome.as_str())?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("message", &self.0.message)
            .field("details", &self.details())
            .finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|source| source.as_ref() as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::{CallName, OperationName};
    use std::collections::HashSet;

    #[test]
    fn every_kind_has_a_code_of_its_own() {
        let codes: HashSet<_> = ErrorKind::ALL.iter().map(|kind| kind.code()).collect();
        assert_eq!(codes.len(), ErrorKind::ALL.len());
    }

    #[test]
    fn an_error_says_what_where_and_with_what() {
        let error = Error::new(ErrorKind::Timeout, "no answer within 2 s")
            .in_call(CallName::SetIfAbsent)
            .during(OperationName::GetLinkedPod)
            .during(OperationName::ComputeLinkedPod)
            .with("uid", "u1")
            .with_outcome(WriteOutcome::Unknown);
        assert_eq!(
            error.to_string(),
            "compute_linked_pod: no answer within 2 s (write outcome: unknown)"
        );
        assert!(error.is_retryable());
        assert_eq!(error.details().len(), 4);
    }
}
