//! One endpoint: its channel, and what is known of it.

use std::sync::Weak;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use rand::Rng;
use tokio_stream::StreamExt;
use tonic::Code;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::Shared;
use super::dial::Dialer;
use crate::clock::Tick;
use crate::config::{PeerClientConfig, PeerUrl};
use crate::error::{Error, ErrorKind, Result};
use crate::rpc::server::READINESS;

/// What is known of an endpoint, from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Condition {
    /// It says that it can answer.
    Ready = 0,
    /// Nobody knows yet.
    Connecting = 1,
    /// It failed several times in a row and gets no calls for a while.
    SetAside = 2,
    /// It says that it cannot answer.
    NotServing = 3,
    /// It cannot be reached.
    Down = 4,
}

impl Condition {
    /// Every condition.
    pub const ALL: [Self; 5] = [
        Self::Ready,
        Self::Connecting,
        Self::SetAside,
        Self::NotServing,
        Self::Down,
    ];

    /// The name that users see.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "READY",
            Self::Connecting => "CONNECTING",
            Self::SetAside => "SET_ASIDE",
            Self::NotServing => "NOT_SERVING",
            Self::Down => "DOWN",
        }
    }
}

/// Failures in a row after which an endpoint is set aside.
const FAILURES_MAX: u32 = 3;
/// For how long it is set aside, times the failures.
const ASIDE: Duration = Duration::from_millis(500);
const ASIDE_MAX: Duration = Duration::from_secs(10);

/// One endpoint.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) url: PeerUrl,
    /// One connection, made by the first call and made again when it breaks.
    pub(super) channel: Channel,
    /// Calls under way.
    pub(super) under_way: AtomicUsize,
    condition: AtomicU8,
    failures: AtomicU32,
    /// Until when it is set aside, as a [`Tick`].
    aside_until: AtomicU64,
}

impl Endpoint {
    /// An endpoint to which nobody has connected yet.
    pub(super) fn new(url: PeerUrl, config: &PeerClientConfig) -> Result<Self> {
        let scheme = if url.tls { "https" } else { "http" };
        let refused = |error: String| {
            Error::new(ErrorKind::InvalidParameter, format!("{url}: {error}"))
                .with("parameter", "endpoint")
        };
        // TLS is the dialer's business; to the channel every connection is plain bytes.
        let address = format!("http://{}", url.authority());
        let origin = format!("{scheme}://{}", url.authority());
        let origin = origin
            .parse()
            .map_err(|error| refused(format!("{error}")))?;
        let dialer = Dialer {
            url: url.clone(),
            tls: config.tls.clone(),
            server_name: config.server_name.clone(),
            timeout: config.connect_timeout,
        };
        let channel = tonic::transport::Endpoint::from_shared(address)
            .map_err(|error| refused(error.to_string()))?
            .origin(origin)
            .http2_keep_alive_interval(config.keepalive)
            .keep_alive_timeout(config.keepalive_timeout)
            .keep_alive_while_idle(true)
            .connect_with_connector_lazy(dialer);
        Ok(Self {
            url,
            channel,
            under_way: AtomicUsize::new(0),
            condition: AtomicU8::new(Condition::Connecting as u8),
            failures: AtomicU32::new(0),
            aside_until: AtomicU64::new(0),
        })
    }

    /// What is known of it now.
    pub(super) fn condition(&self, now: Tick) -> Condition {
        let known = Condition::ALL[usize::from(self.condition.load(Ordering::Relaxed))];
        let aside = now.as_nanos() < self.aside_until.load(Ordering::Relaxed);
        if aside && known < Condition::SetAside {
            return Condition::SetAside;
        }
        known
    }

    /// Takes note of a condition. Whether that is news.
    pub(super) fn set(&self, condition: Condition) -> bool {
        self.condition.swap(condition as u8, Ordering::Relaxed) != condition as u8
    }

    /// A call was answered, in whatever way.
    pub(super) fn answered(&self) {
        self.failures.store(0, Ordering::Relaxed);
    }

    /// A call was not answered. Whether the endpoint is set aside by that.
    pub(super) fn failed(&self, now: Tick) -> bool {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        if failures < FAILURES_MAX {
            return false;
        }
        let aside = (ASIDE * (failures - FAILURES_MAX + 1).min(20)).min(ASIDE_MAX);
        let until = now.after(aside).as_nanos();
        self.aside_until.fetch_max(until, Ordering::Relaxed);
        true
    }
}

/// Watches the health of an endpoint, and so probes it while it is down or set aside. Owned by the
/// client, which ends it.
pub(super) async fn watch(shared: Weak<Shared>, at: usize) {
    const PAUSE_LEAST: Duration = Duration::from_millis(50);
    const PAUSE_MOST: Duration = Duration::from_millis(500);
    /// A server without a health service is asked again after this.
    const UNKNOWN_PAUSE: Duration = Duration::from_secs(5);
    let mut pause = PAUSE_LEAST;
    while let Some(heard) = listen(&shared, at).await {
        pause = match heard {
            Heard::Something => PAUSE_LEAST,
            Heard::NoHealthService => UNKNOWN_PAUSE,
            Heard::Nothing => (pause * 2).min(PAUSE_MOST),
        };
        let jitter = rand::rng().random_range(0.5..1.0);
        tokio::time::sleep(pause.mul_f64(jitter)).await;
    }
}

/// What came of listening to an endpoint.
enum Heard {
    /// It told its health, until its connection ended.
    Something,
    /// It lives, and has no health service.
    NoHealthService,
    /// It did not answer.
    Nothing,
}

/// Listens until the connection ends. `None`: the client is gone.
async fn listen(weak: &Weak<Shared>, at: usize) -> Option<Heard> {
    let note = |condition| weak.upgrade().map(|shared| shared.note(at, condition));
    let (channel, request, first_word) = {
        let shared = weak.upgrade()?;
        let service = READINESS.to_owned();
        let request = shared.credentials.on(HealthCheckRequest { service });
        let channel = shared.endpoints[at].channel.clone();
        (channel, request, shared.config.connect_timeout)
    };
    let asked = async {
        let mut health = HealthClient::new(channel);
        let mut stream = health.watch(request).await?.into_inner();
        let first = stream.next().await.transpose()?;
        Ok::<_, tonic::Status>((stream, first))
    };
    match tokio::time::timeout(first_word, asked).await {
        Ok(Ok((mut stream, mut told))) => {
            while let Some(status) = told {
                note(match status.status() {
                    ServingStatus::Serving => Condition::Ready,
                    ServingStatus::ServiceUnknown => Condition::Connecting,
                    ServingStatus::Unknown | ServingStatus::NotServing => Condition::NotServing,
                })?;
                told = stream.next().await.and_then(std::result::Result::ok);
            }
            // Perhaps only to be made anew.
            note(Condition::Connecting)?;
            Some(Heard::Something)
        }
        Ok(Err(status)) if matches!(status.code(), Code::Unimplemented | Code::NotFound) => {
            note(Condition::Ready)?;
            Some(Heard::NoHealthService)
        }
        Ok(Err(_)) | Err(_) => {
            note(Condition::Down)?;
            Some(Heard::Nothing)
        }
    }
}
