//! The event channel: a second connection, on which the server announces changes of pods.
//!
//! All subscriptions of a store share it. The first one opens it, and the last one closes it. It
//! does not reconnect by itself: when it is lost, every subscription ends. A subscriber that wants
//! more events subscribes again at its own pace, and polls the pods meanwhile.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{PushInfo, PushKind, RedisResult, Value};
use tokio::runtime::Handle;
use tokio::sync::mpsc::{self, Sender, UnboundedReceiver, UnboundedSender};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;

use super::dial::{DialedConnection, Dialer};
use super::failure::refusal;
use super::node::closed;
use crate::clock::{Clock, Tick};
use crate::error::{Error, ErrorKind, Result};
use crate::op::Effect;
use crate::store::Changes;

/// How often the connection is pinged: a half-open one delivers no events, which looks like a
/// service without changes.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// The channel as calls see it. Dropping it ends every subscription.
pub(super) struct Channel {
    dialer: Arc<Dialer>,
    clock: Clock,
    /// Never held across an await.
    state: Mutex<ChannelState>,
}

enum ChannelState {
    /// No subscription yet.
    Idle,
    /// The task that owns the connection, spawned by the first subscription on the runtime of
    /// that call. It ends with the last subscription, when the connection is lost, with
    /// [`Channel::close`], or when the channel is dropped.
    Open(UnboundedSender<ChannelRequest>, JoinHandle<()>),
    /// Closed for good.
    Closed,
}

/// A caller that waits for its subscription.
struct ChannelRequest {
    name: String,
    /// `None`: the task is ending because the last subscription just ended; ask the next task.
    reply: oneshot::Sender<Result<Option<Changes>>>,
}

impl Channel {
    /// A channel without subscriptions. No I/O, no task.
    pub(super) fn new(dialer: Dialer, clock: Clock) -> Self {
        Self {
            dialer: Arc::new(dialer),
            clock,
            state: Mutex::new(ChannelState::Idle),
        }
    }

    /// Subscribes. When this returns, the server has confirmed it: no later event is missed.
    pub(super) async fn subscribe(&self, name: &str, deadline: Tick) -> Result<Changes> {
        loop {
            let left = deadline.since(self.clock.now());
            if left.is_zero() {
                let why = "the deadline had passed before the call";
                return Err(Error::new(ErrorKind::Timeout, why));
            }
            let (reply, receiver) = oneshot::channel();
            let name = name.to_owned();
            self.send(ChannelRequest { name, reply })?;
            match tokio::time::timeout(left, receiver).await {
                Ok(Ok(Ok(Some(changes)))) => return Ok(changes),
                Ok(Ok(Ok(None))) => {}
                Ok(Ok(Err(error))) => return Err(error),
                Ok(Err(_)) if matches!(*self.state(), ChannelState::Closed) => {
                    return Err(closed());
                }
                Ok(Err(_)) => return Err(self.dialer.unavailable("the connection was lost")),
                Err(_) => {
                    let text = format!("the store did not confirm a subscription within {left:?}");
                    return Err(Error::new(ErrorKind::Timeout, text));
                }
            }
        }
    }

    /// Hands the request to the task; spawns one if none runs.
    fn send(&self, mut request: ChannelRequest) -> Result<()> {
        let mut state = self.state();
        match &*state {
            ChannelState::Closed => return Err(closed()),
            ChannelState::Idle => {}
            ChannelState::Open(requests, _) => match requests.send(request) {
                Ok(()) => return Ok(()),
                // That task has ended.
                Err(returned) => request = returned.0,
            },
        }
        let runtime = Handle::try_current().map_err(|error| {
            Error::new(ErrorKind::Internal, "a store was used outside of a runtime")
                .caused_by(error)
        })?;
        // Unbounded, because a caller waits for each request.
        let (requests, inbox) = mpsc::unbounded_channel();
        // It cannot fail: the receiver is still here.
        let _ = requests.send(request);
        let task = runtime.spawn(run(Arc::clone(&self.dialer), inbox));
        *state = ChannelState::Open(requests, task);
        Ok(())
    }

    /// Ends every subscription for good. Calls that wait fail with `Closed`.
    pub(super) async fn close(&self) {
        let state = std::mem::replace(&mut *self.state(), ChannelState::Closed);
        if let ChannelState::Open(_, task) = state {
            task.abort();
            // Cancelled or already finished: both are fine.
            let _ = task.await;
        }
    }

    fn state(&self) -> MutexGuard<'_, ChannelState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        if let ChannelState::Open(_, task) = &*self.state() {
            task.abort();
        }
    }
}

/// The subscribers of each Redis channel. It is dropped with the task: every subscription ends.
#[derive(Default)]
struct SubscriptionTable {
    /// Never held across an await.
    subscribers: Mutex<HashMap<String, Vec<Sender<()>>>>,
    /// A subscription was dropped.
    dropped: Arc<Notify>,
}

impl SubscriptionTable {
    fn subscribers(&self) -> MutexGuard<'_, HashMap<String, Vec<Sender<()>>>> {
        self.subscribers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a subscriber; returns whether the server must be asked for the channel.
    fn add(&self, name: &str) -> (Changes, bool) {
        let (sender, changes) = Changes::channel(Some(Arc::clone(&self.dropped)));
        let mut subscribers = self.subscribers();
        let first = !subscribers.contains_key(name);
        subscribers.entry(name.to_owned()).or_default().push(sender);
        (changes, first)
    }

    fn remove(&self, name: &str) {
        self.subscribers().remove(name);
    }

    /// Removes and returns the channels without subscribers.
    fn take_unused(&self) -> Vec<String> {
        let mut subscribers = self.subscribers();
        for senders in subscribers.values_mut() {
            senders.retain(|sender| !sender.is_closed());
        }
        let unused = subscribers.extract_if(|_, senders| senders.is_empty());
        unused.map(|(name, _)| name).collect()
    }

    fn is_empty(&self) -> bool {
        self.subscribers().is_empty()
    }

    /// Notifies the subscribers of a pushed message.
    fn dispatch(&self, push: &PushInfo) {
        let (PushKind::Message, Some(Value::BulkString(name))) = (&push.kind, push.data.first())
        else {
            return;
        };
        let Ok(name) = std::str::from_utf8(name) else {
            return;
        };
        for sender in self.subscribers().get(name).into_iter().flatten() {
            // Full: an event is pending already, and one stands for all.
            let _ = sender.try_send(());
        }
    }
}

/// The task: one connection, from the first subscription to the last.
async fn run(dialer: Arc<Dialer>, mut inbox: UnboundedReceiver<ChannelRequest>) {
    let table = Arc::new(SubscriptionTable::default());
    let dispatcher = Arc::clone(&table);
    let handler = Arc::new(move |push: PushInfo| {
        dispatcher.dispatch(&push);
        Ok::<(), ()>(())
    });
    let end = match dialer.dial_with_push(handler).await {
        Err(failure) => Err(failure.error),
        Ok(DialedConnection {
            connection, driver, ..
        }) => tokio::select! {
            () = driver => Err(dialer.unavailable("the connection was lost")),
            error = ping_periodically(&dialer, connection.clone()) => Err(error),
            end = serve(&dialer, &table, connection, &mut inbox) => end,
        },
    };
    inbox.close();
    while let Ok(request) = inbox.try_recv() {
        // The caller may have given up meanwhile.
        let _ = request.reply.send(end.clone().map(|()| None));
    }
}

/// Pings the server periodically. Returns when a ping was not answered.
async fn ping_periodically(dialer: &Dialer, mut connection: MultiplexedConnection) -> Error {
    let ping = redis::cmd("PING");
    loop {
        tokio::time::sleep(PING_INTERVAL).await;
        // A server error proves that the connection works, too.
        let reply = connection.send_packed_command(&ping);
        if let Err(error) = with_timeout(dialer, "a PING was not answered", reply).await {
            return error;
        }
    }
}

/// Serves subscriptions and their ends one after the other. Returns when no subscription is
/// left, or with the reason why none can be served.
async fn serve(
    dialer: &Dialer,
    table: &SubscriptionTable,
    mut connection: MultiplexedConnection,
    inbox: &mut UnboundedReceiver<ChannelRequest>,
) -> Result<()> {
    loop {
        tokio::select! {
            request = inbox.recv() => match request {
                Some(request) => subscribe(dialer, table, &mut connection, request).await?,
                None => return Ok(()),
            },
            () = table.dropped.notified() => {}
        }
        for name in table.take_unused() {
            // Refused or not: the table no longer dispatches its messages.
            send_command(dialer, &mut connection, "UNSUBSCRIBE", &name).await?;
        }
        if table.is_empty() && inbox.is_empty() {
            return Ok(());
        }
    }
}

async fn subscribe(
    dialer: &Dialer,
    table: &SubscriptionTable,
    connection: &mut MultiplexedConnection,
    request: ChannelRequest,
) -> Result<()> {
    // In the table before the server is asked, so that the first event is dispatched too.
    let (changes, first) = table.add(&request.name);
    let reply = if first {
        send_command(dialer, connection, "SUBSCRIBE", &request.name).await
    } else {
        Ok(Value::Okay)
    };
    let (reply, connected) = match reply {
        Ok(Value::ServerError(error)) => {
            table.remove(&request.name);
            (Err(refusal(&error, Effect::Read).0), Ok(()))
        }
        Ok(_) => (Ok(Some(changes)), Ok(())),
        Err(error) => (Err(error.clone()), Err(error)),
    };
    // A caller that has stopped waiting drops the subscription with the reply.
    let _ = request.reply.send(reply);
    connected
}

/// One command and its confirmation. A half-open connection confirms nothing.
async fn send_command(
    dialer: &Dialer,
    connection: &mut MultiplexedConnection,
    command: &str,
    name: &str,
) -> Result<Value> {
    let mut packed = redis::cmd(command);
    packed.arg(name);
    let reply = connection.send_packed_command(&packed);
    with_timeout(dialer, "a subscription was not confirmed", reply).await
}

/// Waits for a reply no longer than for a connection.
async fn with_timeout(
    dialer: &Dialer,
    on_timeout: &'static str,
    reply: impl Future<Output = RedisResult<Value>>,
) -> Result<Value> {
    match tokio::time::timeout(dialer.timeout(), reply).await {
        Ok(Ok(reply)) => Ok(reply),
        Ok(Err(_)) => Err(dialer.unavailable("the connection was lost")),
        Err(_) => Err(dialer.unavailable(on_timeout)),
    }
}
