//! The gRPC client: link operations on a namespace whose store cannot be reached from here.

mod budget;
mod calls;
mod channel;
mod credentials;
mod dial;
mod endpoint;

use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::Rng;
use tokio::sync::{OnceCell, watch};
use tokio::task::AbortHandle;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Request, Response, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tracing::Instrument;

use self::budget::RetryBudget;
use self::channel::PeerChannel;
use self::credentials::Credentials;
use self::dial::SystemResolver;
use self::endpoint::PeerEndpoint;
use super::server::READINESS;
use super::status;
use super::traced;
use crate::clock::{Clock, Tick};
use crate::config::{Balance, PeerClientConfig};
use crate::error::{Error, ErrorKind, Result, WriteOutcome};
use crate::op::Effect;
use crate::trace;

pub use dial::HostResolver;
pub use endpoint::Condition;

/// Is called when the condition of an endpoint changes.
pub trait ConditionHook: Send + Sync + std::fmt::Debug + 'static {
    /// An endpoint is in another condition than before. Must not wait.
    fn changed(&self, endpoint: &str, condition: Condition);
}

/// Link operations on one namespace, over one or several endpoints. Cheap to clone; the clones are
/// one client.
#[derive(Debug, Clone)]
pub struct PeerClient {
    shared: Arc<PeerClientShared>,
}

#[derive(Debug)]
struct PeerClientShared {
    config: PeerClientConfig,
    clock: Clock,
    endpoints: Vec<PeerEndpoint>,
    credentials: Credentials,
    budget: RetryBudget,
    /// Counts the changes of conditions: calls that wait for an endpoint wait here.
    changes: watch::Sender<u64>,
    hooks: Mutex<Vec<Arc<dyn ConditionHook>>>,
    turn: AtomicUsize,
    started: OnceCell<()>,
    /// The health watchers and the reader of the token; ended by `close`, and when the client is
    /// dropped.
    tasks: Mutex<Vec<AbortHandle>>,
    closed: AtomicBool,
}

/// A failed attempt.
struct AttemptFailure {
    error: Error,
    /// Another attempt may succeed and does no harm.
    again: bool,
    /// It never reached the peer.
    unsent: bool,
}

impl PeerClient {
    /// A client of these endpoints. No I/O, no task: the first call starts what it needs. Must be
    /// made on the runtime.
    ///
    /// # Errors
    /// `InvalidParameter` for an endpoint that cannot be one.
    pub fn new(config: PeerClientConfig, clock: Clock) -> Result<Self> {
        Self::with_names(config, clock, Arc::new(SystemResolver))
    }

    /// The same, with hosts looked up by `names`.
    ///
    /// # Errors
    /// As `new`.
    pub fn with_names(
        config: PeerClientConfig,
        clock: Clock,
        names: Arc<dyn HostResolver>,
    ) -> Result<Self> {
        let endpoints = config.endpoints.iter().cloned();
        let endpoint = |url| PeerEndpoint::new(url, &config, Arc::clone(&names));
        let endpoints: Result<Vec<PeerEndpoint>> = endpoints.map(endpoint).collect();
        let shared = PeerClientShared {
            endpoints: endpoints?,
            credentials: Credentials::new(config.token_file.clone()),
            budget: RetryBudget::new(config.retry_ratio),
            config,
            clock,
            changes: watch::Sender::new(0),
            hooks: Mutex::default(),
            turn: AtomicUsize::new(0),
            started: OnceCell::new(),
            tasks: Mutex::default(),
            closed: AtomicBool::new(false),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// The deadline of a call with this timeout, or of one that names none.
    #[must_use]
    pub fn deadline(&self, timeout: Option<Duration>) -> Tick {
        let timeout = timeout.unwrap_or(self.shared.config.timeout);
        self.shared.clock.deadline(timeout)
    }

    /// The condition of each endpoint.
    #[must_use]
    pub fn conditions(&self) -> Vec<(String, Condition)> {
        let endpoints = self.shared.endpoints.iter();
        endpoints
            .map(|endpoint| (endpoint.url.to_string(), endpoint.condition()))
            .collect()
    }

    /// Calls `hook` for every change of a condition from now on.
    pub fn on_condition(&self, hook: Arc<dyn ConditionHook>) {
        self.shared.hooks().push(hook);
    }

    /// Calls `hook` no more.
    pub fn off_condition(&self, hook: &Arc<dyn ConditionHook>) {
        self.shared
            .hooks()
            .retain(|other| !Arc::ptr_eq(other, hook));
    }

    /// Whether the client was closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.closed.load(Ordering::SeqCst)
    }

    /// Asks the endpoints whether they can answer; the first response counts.
    ///
    /// # Errors
    /// `PeerUnavailable` if none responds; `Timeout`; `Closed`.
    pub async fn check_health(&self, deadline: Tick) -> Result<bool> {
        self.shared.start().await?;
        let service = READINESS.to_owned();
        let message = HealthCheckRequest { service };
        let ask = |channel: PeerChannel, request: Request<HealthCheckRequest>| async move {
            HealthClient::new(channel).check(request).await
        };
        let response = self
            .shared
            .call("Check", Effect::Read, deadline, message, ask)
            .await?;
        Ok(response.status() == ServingStatus::Serving)
    }

    /// Ends the connections and tasks. Later calls fail with `Closed`.
    pub fn close(&self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        self.shared.end();
        // Calls that wait for an endpoint fail now.
        self.shared.changes.send_modify(|count| *count += 1);
    }
}

impl PeerClientShared {
    fn hooks(&self) -> MutexGuard<'_, Vec<Arc<dyn ConditionHook>>> {
        self.hooks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> Result<()> {
        if self.closed.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Closed, "the gRPC client was closed"));
        }
        Ok(())
    }

    /// Starts what runs in the background, once.
    async fn start(self: &Arc<Self>) -> Result<()> {
        self.open()?;
        let start = async {
            self.credentials.load().await?;
            let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
            for at in 0..self.endpoints.len() {
                let watching = endpoint::watch(Arc::downgrade(self), at);
                tasks.push(tokio::spawn(watching).abort_handle());
                let probing = endpoint::probe(Arc::downgrade(self), at);
                tasks.push(tokio::spawn(probing).abort_handle());
            }
            if self.credentials.follows() {
                let following = credentials::follow(Arc::downgrade(self));
                tasks.push(tokio::spawn(following).abort_handle());
            }
            Ok(())
        };
        self.started.get_or_try_init(|| start).await?;
        Ok(())
    }

    fn end(&self) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.drain(..).for_each(|task| task.abort());
        self.endpoints
            .iter()
            .for_each(|each| each.channel.disconnect());
    }

    /// Sets the condition of an endpoint, and publishes a change.
    fn note(&self, at: usize, condition: Condition) {
        let endpoint = &self.endpoints[at];
        let before = endpoint.condition();
        endpoint.set(condition);
        if endpoint.condition() != before {
            self.publish_change(at);
        }
    }

    /// Notifies waiting calls and hooks that the condition of an endpoint has changed.
    fn publish_change(&self, at: usize) {
        let endpoint = &self.endpoints[at];
        let condition = endpoint.condition();
        let shown = endpoint.url.to_string();
        tracing::debug!(endpoint = %shown, condition = condition.as_str(), "a peer has changed");
        self.changes.send_modify(|count| *count += 1);
        for hook in self.hooks().iter() {
            hook.changed(&shown, condition);
        }
    }

    /// Sends until it is answered, refused, or `deadline`.
    async fn call<Q, A, W>(
        &self,
        method: &'static str,
        effect: Effect,
        deadline: Tick,
        message: Q,
        send: impl Fn(PeerChannel, Request<Q>) -> W,
    ) -> Result<A>
    where
        Q: Clone,
        W: Future<Output = std::result::Result<Response<A>, Status>>,
    {
        self.budget.deposit();
        let deadline = self.earlier(deadline);
        let (mut last, mut tried, mut attempts) = (None, None, 0);
        let mut pause = Duration::from_millis(10);
        loop {
            let at = match self.usable(tried, deadline).await {
                Ok(at) => at,
                Err(error) => return Err(self.no_reachable_endpoint(error, last, effect)),
            };
            attempts += 1;
            let span = trace::attempt(method, &self.endpoints[at].url, attempts);
            // Pinned, here and below, because it is large: a pointer is moved instead.
            let attempt = pin!(self.attempt(at, effect, deadline, &message, &send));
            let attempt = attempt.instrument(span.clone()).await;
            trace::ended(&span, attempt.as_ref().map_err(|failure| &failure.error));
            let failure = match attempt {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            // A connection that cannot be made costs the peer nothing.
            let free = failure.unsent && self.endpoints[at].condition() == Condition::Down;
            if !failure.again || !(free || self.budget.withdraw()) {
                return Err(failure.error);
            }
            (last, tried) = (Some(failure.error), Some(at));
            let jittered = pause.mul_f64(rand::rng().random_range(0.5..1.0));
            tokio::time::sleep(jittered.min(deadline.since(self.clock.now()))).await;
            pause = (pause * 2).min(Duration::from_millis(250));
        }
    }

    /// A little before the deadline, so that its own error, with the outcome of the write,
    /// reaches the caller before the caller's own timeout.
    fn earlier(&self, deadline: Tick) -> Tick {
        const MARGIN: Duration = Duration::from_millis(20);
        let now = self.clock.now();
        let left = deadline.since(now);
        now.after(left.saturating_sub(MARGIN.min(left / 10)))
    }

    async fn attempt<Q, A, W>(
        &self,
        at: usize,
        effect: Effect,
        deadline: Tick,
        message: &Q,
        send: &impl Fn(PeerChannel, Request<Q>) -> W,
    ) -> std::result::Result<A, AttemptFailure>
    where
        Q: Clone,
        W: Future<Output = std::result::Result<Response<A>, Status>>,
    {
        let endpoint = &self.endpoints[at];
        let left = deadline.since(self.clock.now());
        // Where another endpoint could answer, half of the time is kept for it.
        let spare = effect != Effect::Once && self.endpoints.len() > 1;
        let limit = if spare { left / 2 } else { left };
        let mut request = self.credentials.on(message.clone());
        request
            .metadata_mut()
            .insert("grpc-timeout", timeout_header(left));
        traced::inject(&mut request);
        let _in_flight = CallUnderWay::new(&endpoint.under_way);
        let sending = pin!(send(endpoint.channel.clone(), request));
        let failure = match tokio::time::timeout(limit, sending).await {
            Ok(Ok(answer)) => {
                self.answered(at);
                return Ok(answer.into_inner());
            }
            Ok(Err(status)) => judge(&status, effect),
            Err(_) => timed_out(effect, spare && limit < left),
        };
        let silent = matches!(
            failure.error.kind(),
            ErrorKind::PeerUnavailable | ErrorKind::Timeout
        );
        if !silent {
            self.answered(at);
        } else if failure.unsent {
            self.note(at, Condition::Down);
        } else if endpoint.failed() {
            self.publish_change(at);
        }
        Err(failure)
    }

    fn answered(&self, at: usize) {
        if self.endpoints[at].answered() {
            self.publish_change(at);
        }
    }

    /// An endpoint to send to, in the best condition there is; waits while all are down.
    async fn usable(&self, tried: Option<usize>, deadline: Tick) -> Result<usize> {
        self.open()?;
        if let Some(at) = self.pick(tried) {
            return Ok(at);
        }
        let mut changes = self.changes.subscribe();
        loop {
            self.open()?;
            if let Some(at) = self.pick(tried) {
                return Ok(at);
            }
            let left = deadline.since(self.clock.now());
            if left.is_zero() || tokio::time::timeout(left, changes.changed()).await.is_err() {
                return Err(Error::new(ErrorKind::PeerUnavailable, "no endpoint"));
            }
        }
    }

    fn pick(&self, tried: Option<usize>) -> Option<usize> {
        if let [only] = self.endpoints.as_slice() {
            return (only.condition() != Condition::Down).then_some(0);
        }
        let condition = |at: usize| self.endpoints[at].condition();
        let all = 0..self.endpoints.len();
        let best = |others: Vec<usize>| -> Option<Vec<usize>> {
            let best = others.iter().map(|at| condition(*at)).min()?;
            let good = others.into_iter().filter(|at| condition(*at) == best);
            (best != Condition::Down).then(|| good.collect())
        };
        // Another one than the one that has just failed, if there is any.
        let others = all.clone().filter(|at| Some(*at) != tried).collect();
        let good = best(others).or_else(|| best(all.collect()))?;
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        if good.len() == 1 {
            return good.first().copied();
        }
        match self.config.balance {
            Balance::RoundRobin => good.get(turn % good.len()).copied(),
            Balance::P2c => {
                let two = rand::seq::index::sample(&mut rand::rng(), good.len(), 2);
                let busy = |at: &usize| self.endpoints[*at].under_way.load(Ordering::Relaxed);
                two.iter()
                    .filter_map(|at| good.get(at).copied())
                    .min_by_key(busy)
            }
        }
    }

    fn no_reachable_endpoint(&self, error: Error, last: Option<Error>, effect: Effect) -> Error {
        if error.kind() != ErrorKind::PeerUnavailable {
            return error;
        }
        let urls: Vec<String> = self.endpoints.iter().map(|e| e.url.to_string()).collect();
        // Where the watchers dialed first, no call has dialed itself.
        let found = || self.endpoints.iter().find_map(PeerEndpoint::last_error);
        let why = last.as_ref().map(ToString::to_string);
        let why = why.or_else(|| found().map(|why| why.to_string()));
        let why = why.map(|why| format!(": {why}"));
        let text = format!(
            "no endpoint of {} can be reached{}",
            urls.join(", "),
            why.unwrap_or_default()
        );
        let mut error = Error::new(ErrorKind::PeerUnavailable, text);
        if effect != Effect::Read {
            // An attempt before may have arrived.
            let outcome = last.and_then(|last| last.outcome());
            error = error.with_outcome(outcome.unwrap_or(WriteOutcome::NotSent));
        }
        error
    }
}

impl Drop for PeerClientShared {
    fn drop(&mut self) {
        self.end();
    }
}

fn judge(status: &Status, effect: Effect) -> AttemptFailure {
    let mut error = status::to_error(status);
    let unsent = status::never_sent(status);
    if effect != Effect::Read && error.outcome().is_none() {
        let broke = matches!(
            error.kind(),
            ErrorKind::PeerUnavailable | ErrorKind::Timeout
        );
        if unsent {
            error = error.with_outcome(WriteOutcome::NotSent);
        } else if broke {
            error = error.with_outcome(WriteOutcome::Unknown);
        }
    }
    let harmless = effect != Effect::Once || error.outcome() == Some(WriteOutcome::NotSent);
    let passing = matches!(
        error.kind(),
        ErrorKind::PeerUnavailable | ErrorKind::Overloaded
    );
    AttemptFailure {
        error,
        again: harmless && passing,
        unsent,
    }
}

fn timed_out(effect: Effect, again: bool) -> AttemptFailure {
    let text = "the deadline passed while waiting for the peer";
    let mut error = Error::new(ErrorKind::Timeout, text).with("waited_for", "the peer");
    if effect != Effect::Read {
        error = error.with_outcome(WriteOutcome::Unknown);
    }
    AttemptFailure {
        error,
        again,
        unsent: false,
    }
}

/// The time left, for the server. It is rounded up, to the same few values for most calls, so that
/// HTTP/2's header table has it.
fn timeout_header(left: Duration) -> MetadataValue<Ascii> {
    let milliseconds = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
    let step = if milliseconds < 1_000 { 1 } else { 10 };
    let rounded = (milliseconds / step + 1) * step;
    // Eight digits is what the header holds.
    let text = format!("{}m", rounded.min(99_999_999));
    text.parse().unwrap_or(MetadataValue::from_static("1S"))
}

/// A call under way.
struct CallUnderWay<'a>(&'a AtomicUsize);

impl<'a> CallUnderWay<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for CallUnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
