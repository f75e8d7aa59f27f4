//! A store whose calls are spans.

use std::sync::Arc;

use async_trait::async_trait;

use crate::clock::Tick;
use crate::error::Result;
use crate::id::ServiceId;
use crate::op::{Call, CallName, Reply};
use crate::store::{Changes, ConnectionReport, Store};
use crate::trace;

/// Makes a span of every call of the store within. The calls of a batch have none: the batch serves
/// many operations, and belongs to no trace of them.
#[derive(Debug)]
pub struct Traced(Arc<dyn Store>);

impl Traced {
    /// The same store, traced.
    #[must_use]
    pub fn new(store: Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self(store))
    }
}

#[async_trait]
impl Store for Traced {
    async fn call(&self, call: &Call, deadline: Tick) -> Result<Reply> {
        let span = trace::store(call.name().as_str());
        trace::observed(span, self.0.call(call, deadline)).await
    }

    async fn call_many(&self, calls: &[Call], deadline: Tick) -> Vec<Result<Reply>> {
        self.0.call_many(calls, deadline).await
    }

    async fn subscribe(&self, service: &ServiceId, deadline: Tick) -> Result<Changes> {
        let span = trace::store(CallName::Subscribe.as_str());
        trace::observed(span, self.0.subscribe(service, deadline)).await
    }

    async fn close(&self) {
        self.0.close().await;
    }

    fn report(&self) -> ConnectionReport {
        self.0.report()
    }
}
