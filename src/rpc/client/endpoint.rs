//! One endpoint: its channel, and what is known of it.

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

use super::Shared;
use super::dial::{Dialer, Names};
use super::line::Line;
use crate::config::{PeerClientConfig, PeerUrl};
use crate::error::{Error, ErrorKind, Result};
use crate::rpc::server::READINESS;
use crate::rpc::status;

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
/// When an endpoint that was set aside is asked whether it answers again, doubled each time.
const ASIDE: Duration = Duration::from_millis(500);
const ASIDE_MAX: Duration = Duration::from_secs(10);

/// One endpoint.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) url: PeerUrl,
    pub(super) line: Line,
    /// Calls under way.
    pub(super) under_way: AtomicUsize,
    condition: AtomicU8,
    /// Calls in a row that were not answered.
    failures: AtomicU32,
    aside: AtomicBool,
    /// How often it was set aside since a call was answered.
    spells: AtomicU32,
    /// Calls the watcher, which asks an endpoint that was set aside.
    call: Arc<Notify>,
    /// Why it could not be reached when the watcher tried last.
    trouble: ArcSwapOption<String>,
}

impl Endpoint {
    /// An endpoint to which nobody has connected yet.
    pub(super) fn new(
        url: PeerUrl,
        config: &PeerClientConfig,
        names: Arc<dyn Names>,
    ) -> Result<Self> {
        let authority = url.authority().parse().map_err(|error| {
            Error::new(ErrorKind::InvalidParameter, format!("{url}: {error}"))
                .with("parameter", "endpoint")
        })?;
        let dialer = Dialer {
            url: url.clone(),
            names,
            tls: config.tls.clone(),
            server_name: config.server_name.clone(),
            timeout: config.connect_timeout,
        };
        Ok(Self {
            url,
            line: Line::new(
                dialer,
                authority,
                config.keepalive,
                config.keepalive_timeout,
            ),
            under_way: AtomicUsize::new(0),
            condition: AtomicU8::new(Condition::Connecting as u8),
            failures: AtomicU32::new(0),
            aside: AtomicBool::new(false),
            spells: AtomicU32::new(0),
            call: Arc::default(),
            trouble: ArcSwapOption::empty(),
        })
    }

    /// What is known of it now.
    pub(super) fn condition(&self) -> Condition {
        let known = Condition::ALL[usize::from(self.condition.load(Ordering::Relaxed))];
        if known < Condition::SetAside && self.aside.load(Ordering::Relaxed) {
            return Condition::SetAside;
        }
        known
    }

    /// Takes note of a condition.
    pub(super) fn set(&self, condition: Condition) {
        self.condition.store(condition as u8, Ordering::Relaxed);
    }

    /// Why it could not be reached when the watcher tried last, if it could not.
    pub(super) fn trouble(&self) -> Option<Arc<String>> {
        self.trouble.load_full()
    }

    /// A call was answered, in whatever way. Whether that ends its being set aside.
    pub(super) fn answered(&self) -> bool {
        // Nearly always there is nothing to write.
        if self.failures.load(Ordering::Relaxed) == 0 {
            return false;
        }
        self.failures.store(0, Ordering::Relaxed);
        self.spells.store(0, Ordering::Relaxed);
        self.aside.swap(false, Ordering::Relaxed)
    }

    /// A call was not answered. Whether the endpoint is set aside by that.
    pub(super) fn failed(&self) -> bool {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        let aside = failures >= FAILURES_MAX && !self.aside.swap(true, Ordering::Relaxed);
        if aside {
            self.spells.fetch_add(1, Ordering::Relaxed);
            self.call.notify_one();
        }
        aside
    }

    /// It answers again, as far as its health tells: the next call that fails sets it aside anew.
    fn forgive(&self) {
        self.failures.store(FAILURES_MAX - 1, Ordering::Relaxed);
        self.aside.store(false, Ordering::Relaxed);
    }
}

/// Asks an endpoint that was set aside whether it answers again, and gives it calls if it does.
/// Owned by the client, which ends it.
pub(super) async fn probe(shared: Weak<Shared>, at: usize) {
    let of = |shared: Arc<Shared>| Arc::clone(&shared.endpoints[at].call);
    let Some(call) = shared.upgrade().map(of) else {
        return;
    };
    loop {
        call.notified().await;
        let mut pause = {
            let Some(shared) = shared.upgrade() else {
                return;
            };
            let spells = shared.endpoints[at].spells.load(Ordering::Relaxed);
            (ASIDE * 2_u32.pow(spells.clamp(1, 6) - 1)).min(ASIDE_MAX)
        };
        loop {
            tokio::time::sleep(jittered(pause)).await;
            let Some(asked) = question(&shared, at) else {
                return;
            };
            if !asked.aside {
                break;
            }
            let answer = tokio::time::timeout(asked.within, async {
                HealthClient::new(asked.line).check(asked.request).await
            });
            if answer.await.is_ok_and(healthy) {
                let Some(shared) = shared.upgrade() else {
                    return;
                };
                shared.endpoints[at].forgive();
                shared.tell(at);
                break;
            }
            pause = (pause * 2).min(ASIDE_MAX);
        }
    }
}

/// Whether whoever answered this takes calls: one without a health service does.
fn healthy(answer: std::result::Result<Response<HealthCheckResponse>, Status>) -> bool {
    match answer {
        Ok(said) => said.into_inner().status() == ServingStatus::Serving,
        Err(status) => has_no_health(&status),
    }
}

fn has_no_health(status: &Status) -> bool {
    matches!(status.code(), Code::Unimplemented | Code::NotFound)
}

/// What it takes to ask an endpoint for its health, without holding the client.
struct Question {
    line: Line,
    request: Request<HealthCheckRequest>,
    within: Duration,
    aside: bool,
}

/// `None`: the client is gone.
fn question(shared: &Weak<Shared>, at: usize) -> Option<Question> {
    let shared = shared.upgrade()?;
    let service = READINESS.to_owned();
    Some(Question {
        line: shared.endpoints[at].line.clone(),
        request: shared.credentials.on(HealthCheckRequest { service }),
        within: shared.config.connect_timeout,
        aside: shared.endpoints[at].aside.load(Ordering::Relaxed),
    })
}

fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.5..1.0))
}

/// Watches the health of an endpoint, and so asks it again while it is down. Owned by the client,
/// which ends it.
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
        tokio::time::sleep(jittered(pause)).await;
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
    let asked = question(weak, at)?;
    let first_word = asked.within;
    let asked = async {
        let mut health = HealthClient::new(asked.line);
        let mut stream = health.watch(asked.request).await?.into_inner();
        let first = stream.next().await.transpose()?;
        Ok::<_, Status>((stream, first))
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
        Ok(Err(status)) if has_no_health(&status) => {
            note(Condition::Ready)?;
            Some(Heard::NoHealthService)
        }
        failed => {
            let why = match failed {
                Ok(Err(status)) => status::to_error(&status).to_string(),
                _ => format!("nobody answered within {first_word:?}"),
            };
            weak.upgrade()?.endpoints[at]
                .trouble
                .store(Some(Arc::new(why)));
            note(Condition::Down)?;
            Some(Heard::Nothing)
        }
    }
}
