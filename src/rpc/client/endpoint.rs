//! One endpoint: its channel, its condition, and its health checks.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use rand::Rng;
use tokio::sync::Notify;
use tokio_stream::StreamExt;
use tonic::{Code, Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::PeerClientShared;
use super::channel::PeerChannel;
use super::dial::{HostResolver, PeerDialer};
use crate::config::{PeerClientConfig, PeerUrl};
use crate::error::{Error, ErrorKind, Result};
use crate::rpc::server::READINESS;
use crate::rpc::status;

/// The condition of an endpoint, from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Condition {
    /// Its health service reports that it serves.
    Ready = 0,
    /// Not known yet.
    Connecting = 1,
    /// It failed several consecutive calls and gets no calls for a while.
    Ejected = 2,
    /// Its health service reports that it does not serve.
    NotServing = 3,
    /// It cannot be reached.
    Down = 4,
}

impl Condition {
    /// Every condition.
    pub const ALL: [Self; 5] = [
        Self::Ready,
        Self::Connecting,
        Self::Ejected,
        Self::NotServing,
        Self::Down,
    ];

    /// The name that users see.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "READY",
            Self::Connecting => "CONNECTING",
            Self::Ejected => "EJECTED",
            Self::NotServing => "NOT_SERVING",
            Self::Down => "DOWN",
        }
    }
}

/// After this many consecutive failures an endpoint is ejected.
const FAILURES_MAX: u32 = 3;
/// The delay before an ejected endpoint is probed, doubled each time.
const EJECTION_MIN: Duration = Duration::from_millis(500);
const EJECTION_MAX: Duration = Duration::from_secs(10);

/// One endpoint.
#[derive(Debug)]
pub(super) struct PeerEndpoint {
    pub(super) url: PeerUrl,
    pub(super) channel: PeerChannel,
    /// Calls in progress.
    pub(super) under_way: AtomicUsize,
    condition: AtomicU8,
    /// Consecutive calls that were not answered.
    failures: AtomicU32,
    ejected: AtomicBool,
    /// How often it was ejected since a call was answered.
    ejections: AtomicU32,
    /// Wakes the probe task, which checks an ejected endpoint.
    probe_waker: Arc<Notify>,
    /// Why the health watcher's last attempt failed.
    last_error: ArcSwapOption<String>,
}

impl PeerEndpoint {
    /// An endpoint that is not connected yet.
    pub(super) fn new(
        url: PeerUrl,
        config: &PeerClientConfig,
        resolver: Arc<dyn HostResolver>,
    ) -> Result<Self> {
        let authority = url.authority().parse().map_err(|error| {
            Error::new(ErrorKind::InvalidParameter, format!("{url}: {error}"))
                .with("parameter", "endpoint")
        })?;
        let dialer = PeerDialer {
            url: url.clone(),
            resolver,
            tls: config.tls.clone(),
            server_name: config.server_name.clone(),
            timeout: config.connect_timeout,
        };
        Ok(Self {
            url,
            channel: PeerChannel::new(
                dialer,
                authority,
                config.keepalive,
                config.keepalive_timeout,
            ),
            under_way: AtomicUsize::new(0),
            condition: AtomicU8::new(Condition::Connecting as u8),
            failures: AtomicU32::new(0),
            ejected: AtomicBool::new(false),
            ejections: AtomicU32::new(0),
            probe_waker: Arc::default(),
            last_error: ArcSwapOption::empty(),
        })
    }

    /// Its current condition.
    pub(super) fn condition(&self) -> Condition {
        let condition = Condition::ALL[usize::from(self.condition.load(Ordering::Relaxed))];
        if condition < Condition::Ejected && self.ejected.load(Ordering::Relaxed) {
            return Condition::Ejected;
        }
        condition
    }

    /// Records a condition.
    pub(super) fn set(&self, condition: Condition) {
        self.condition.store(condition as u8, Ordering::Relaxed);
    }

    /// Why the health watcher's last attempt failed, if it did.
    pub(super) fn last_error(&self) -> Option<Arc<String>> {
        self.last_error.load_full()
    }

    /// A call was answered, even with an error. Returns whether that ends its ejection.
    pub(super) fn answered(&self) -> bool {
        // It is nearly always zero, and a load is cheaper than a store.
        if self.failures.load(Ordering::Relaxed) == 0 {
            return false;
        }
        self.failures.store(0, Ordering::Relaxed);
        self.ejections.store(0, Ordering::Relaxed);
        self.ejected.swap(false, Ordering::Relaxed)
    }

    /// A call was not answered. Returns whether that ejects the endpoint.
    pub(super) fn failed(&self) -> bool {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        let ejected = failures >= FAILURES_MAX && !self.ejected.swap(true, Ordering::Relaxed);
        if ejected {
            self.ejections.fetch_add(1, Ordering::Relaxed);
            self.probe_waker.notify_one();
        }
        ejected
    }

    /// A probe found it healthy: it gets calls, but the next failure ejects it again.
    fn readmit(&self) {
        self.failures.store(FAILURES_MAX - 1, Ordering::Relaxed);
        self.ejected.store(false, Ordering::Relaxed);
    }
}

/// Probes an ejected endpoint, and readmits it when it is healthy. Owned by the client, which
/// aborts it.
pub(super) async fn probe(shared: Weak<PeerClientShared>, at: usize) {
    let waker = |shared: Arc<PeerClientShared>| Arc::clone(&shared.endpoints[at].probe_waker);
    let Some(waker) = shared.upgrade().map(waker) else {
        return;
    };
    loop {
        waker.notified().await;
        let mut delay = {
            let Some(shared) = shared.upgrade() else {
                return;
            };
            let ejections = shared.endpoints[at].ejections.load(Ordering::Relaxed);
            (EJECTION_MIN * 2_u32.pow(ejections.clamp(1, 6) - 1)).min(EJECTION_MAX)
        };
        loop {
            tokio::time::sleep(jittered(delay)).await;
            let Some(query) = health_query(&shared, at) else {
                return;
            };
            if !query.ejected {
                break;
            }
            let response = tokio::time::timeout(query.timeout, async {
                HealthClient::new(query.channel).check(query.request).await
            });
            if response.await.is_ok_and(healthy) {
                let Some(shared) = shared.upgrade() else {
                    return;
                };
                shared.endpoints[at].readmit();
                shared.publish_change(at);
                break;
            }
            delay = (delay * 2).min(EJECTION_MAX);
        }
    }
}

/// Whether a response means that the server takes calls. A server without a health service does.
fn healthy(response: std::result::Result<Response<HealthCheckResponse>, Status>) -> bool {
    match response {
        Ok(response) => response.into_inner().status() == ServingStatus::Serving,
        Err(status) => has_no_health(&status),
    }
}

fn has_no_health(status: &Status) -> bool {
    matches!(status.code(), Code::Unimplemented | Code::NotFound)
}

/// What a health check of an endpoint needs, without holding the client.
struct HealthQuery {
    channel: PeerChannel,
    request: Request<HealthCheckRequest>,
    timeout: Duration,
    ejected: bool,
}

/// `None`: the client is dropped.
fn health_query(shared: &Weak<PeerClientShared>, at: usize) -> Option<HealthQuery> {
    let shared = shared.upgrade()?;
    let service = READINESS.to_owned();
    Some(HealthQuery {
        channel: shared.endpoints[at].channel.clone(),
        request: shared.credentials.on(HealthCheckRequest { service }),
        timeout: shared.config.connect_timeout,
        ejected: shared.endpoints[at].ejected.load(Ordering::Relaxed),
    })
}

fn jittered(delay: Duration) -> Duration {
    delay.mul_f64(rand::rng().random_range(0.5..1.0))
}

/// Watches the health of an endpoint, and so retries it while it is down. Owned by the client,
/// which aborts it.
pub(super) async fn watch(shared: Weak<PeerClientShared>, at: usize) {
    const BACKOFF_MIN: Duration = Duration::from_millis(50);
    const BACKOFF_MAX: Duration = Duration::from_millis(500);
    /// A server without a health service is checked at this interval.
    const UNKNOWN_INTERVAL: Duration = Duration::from_secs(5);
    let mut delay = BACKOFF_MIN;
    while let Some(outcome) = watch_once(&shared, at).await {
        delay = match outcome {
            WatchOutcome::Watched => BACKOFF_MIN,
            WatchOutcome::NoHealthService => UNKNOWN_INTERVAL,
            WatchOutcome::Unreachable => (delay * 2).min(BACKOFF_MAX),
        };
        tokio::time::sleep(jittered(delay)).await;
    }
}

/// The outcome of watching an endpoint.
enum WatchOutcome {
    /// It reported its health until its connection ended.
    Watched,
    /// It answers, but has no health service.
    NoHealthService,
    /// It did not answer.
    Unreachable,
}

/// Watches until the connection ends. `None`: the client is dropped.
async fn watch_once(weak: &Weak<PeerClientShared>, at: usize) -> Option<WatchOutcome> {
    let note = |condition| weak.upgrade().map(|shared| shared.note(at, condition));
    let query = health_query(weak, at)?;
    let timeout = query.timeout;
    let started = async {
        let mut health = HealthClient::new(query.channel);
        let mut stream = health.watch(query.request).await?.into_inner();
        let first = stream.next().await.transpose()?;
        Ok::<_, Status>((stream, first))
    };
    match tokio::time::timeout(timeout, started).await {
        Ok(Ok((mut stream, mut next))) => {
            while let Some(status) = next {
                note(match status.status() {
                    ServingStatus::Serving => Condition::Ready,
                    ServingStatus::ServiceUnknown => Condition::Connecting,
                    ServingStatus::Unknown | ServingStatus::NotServing => Condition::NotServing,
                })?;
                next = stream.next().await.and_then(std::result::Result::ok);
            }
            // The connection may only have reached its maximum age.
            note(Condition::Connecting)?;
            Some(WatchOutcome::Watched)
        }
        Ok(Err(status)) if has_no_health(&status) => {
            note(Condition::Ready)?;
            Some(WatchOutcome::NoHealthService)
        }
        failed => {
            let why = match failed {
                Ok(Err(status)) => status::to_error(&status).to_string(),
                _ => format!("no answer within {timeout:?}"),
            };
            weak.upgrade()?.endpoints[at]
                .last_error
                .store(Some(Arc::new(why)));
            note(Condition::Down)?;
            Some(WatchOutcome::Unreachable)
        }
    }
}
