//! The channel of events: a second connection, on which the server says that pods changed.
//!
//! All subscriptions of an executor share it. The first makes it, and it ends with the last. It
//! is not made anew by itself: when it breaks, every subscription ends, and whoever wants to hear
//! more listens again at a pace of their own, looking at the pods meanwhile.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{PushInfo, PushKind, RedisResult, Value};
use tokio::runtime::Handle;
use tokio::sync::mpsc::{self, Sender, UnboundedReceiver, UnboundedSender};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;

use super::dial::Dialer;
use super::failure::refusal;
use super::line::closed;
use crate::clock::{Clock, Tick};
use crate::error::{Error, ErrorKind, Result};
use crate::op::Effect;
use crate::store::Changes;

/// The connection is asked for a sign of life this often: a half-open one brings no events, and
/// looks as if there were none.
const PING_EVERY: Duration = Duration::from_secs(5);

/// The channel as calls see it. Dropping it ends every subscription.
pub(super) struct Channel {
    dialer: Arc<Dialer>,
    clock: Clock,
    /// Never held across an await.
    door: Mutex<Door>,
}

enum Door {
    /// Nobody has listened yet.
    Idle,
    /// The task that owns the connection, started by the first subscription on the runtime of
    /// that call. It ends with the last subscription, when the connection is lost, with
    /// [`Channel::close`], or when the channel is dropped.
    Open(UnboundedSender<Request>, JoinHandle<()>),
    /// Closed for good.
    Closed,
}

/// Somebody who waits for a subscription.
struct Request {
    name: String,
    /// `None`: the last subscription ended at this very moment, so ask the next task.
    answer: oneshot::Sender<Result<Option<Changes>>>,
}

impl Channel {
    /// A channel that nobody listens on yet. No I/O, no task.
    pub(super) fn new(dialer: Dialer, clock: Clock) -> Self {
        Self {
            dialer: Arc::new(dialer),
            clock,
            door: Mutex::new(Door::Idle),
        }
    }

    /// Subscribes. When this returns, the server has confirmed it: no later event is missed.
    pub(super) async fn listen(&self, name: &str, deadline: Tick) -> Result<Changes> {
        loop {
            let left = deadline.since(self.clock.now());
            if left.is_zero() {
                let why = "the deadline had passed before the call";
                return Err(Error::new(ErrorKind::Timeout, why));
            }
            let (answer, answered) = oneshot::channel();
            let name = name.to_owned();
            self.ask(Request { name, answer })?;
            match tokio::time::timeout(left, answered).await {
                Ok(Ok(Ok(Some(changes)))) => return Ok(changes),
                Ok(Ok(Ok(None))) => {}
                Ok(Ok(Err(error))) => return Err(error),
                Ok(Err(_)) if matches!(*self.door(), Door::Closed) => return Err(closed()),
                Ok(Err(_)) => return Err(self.dialer.unavailable("the connection was lost")),
                Err(_) => {
                    let text = format!("the store did not confirm a subscription within {left:?}");
                    return Err(Error::new(ErrorKind::Timeout, text));
                }
            }
        }
    }

    fn ask(&self, mut request: Request) -> Result<()> {
        let mut door = self.door();
        match &*door {
            Door::Closed => return Err(closed()),
            Door::Idle => {}
            Door::Open(requests, _) => match requests.send(request) {
                Ok(()) => return Ok(()),
                // That task has ended.
                Err(returned) => request = returned.0,
            },
        }
        let runtime = Handle::try_current().map_err(|error| {
            Error::new(ErrorKind::Internal, "a store was used outside of a runtime")
                .caused_by(error)
        })?;
        // Without a bound, because behind each request somebody waits.
        let (requests, inbox) = mpsc::unbounded_channel();
        // It cannot fail: the inbox is here.
        let _ = requests.send(request);
        let task = runtime.spawn(carry(Arc::clone(&self.dialer), inbox));
        *door = Door::Open(requests, task);
        Ok(())
    }

    /// Ends every subscription for good. Calls that wait fail with `Closed`.
    pub(super) async fn close(&self) {
        let door = std::mem::replace(&mut *self.door(), Door::Closed);
        if let Door::Open(_, task) = door {
            task.abort();
            // It was cancelled, or it had ended: either is what was asked for.
            let _ = task.await;
        }
    }

    fn door(&self) -> MutexGuard<'_, Door> {
        self.door.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        if let Door::Open(_, task) = &*self.door() {
            task.abort();
        }
    }
}

/// Who listens to what. It goes with the task: then every subscription ends.
#[derive(Default)]
struct Table {
    /// Never held across an await.
    listeners: Mutex<HashMap<String, Vec<Sender<()>>>>,
    /// Somebody listens no more.
    left: Arc<Notify>,
}

impl Table {
    fn listeners(&self) -> MutexGuard<'_, HashMap<String, Vec<Sender<()>>>> {
        self.listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a listener; says whether the server must be asked for the channel.
    fn add(&self, name: &str) -> (Changes, bool) {
        let (tell, changes) = Changes::channel(Some(Arc::clone(&self.left)));
        let mut listeners = self.listeners();
        let first = !listeners.contains_key(name);
        listeners.entry(name.to_owned()).or_default().push(tell);
        (changes, first)
    }

    fn remove(&self, name: &str) {
        self.listeners().remove(name);
    }

    /// Takes out the channels that nobody listens to any more.
    fn abandoned(&self) -> Vec<String> {
        let mut listeners = self.listeners();
        for tell in listeners.values_mut() {
            tell.retain(|tell| !tell.is_closed());
        }
        let gone = listeners.extract_if(|_, tell| tell.is_empty());
        gone.map(|(name, _)| name).collect()
    }

    fn is_empty(&self) -> bool {
        self.listeners().is_empty()
    }

    /// Passes on what the server said without being asked.
    fn hear(&self, said: &PushInfo) {
        let (PushKind::Message, Some(Value::BulkString(name))) = (&said.kind, said.data.first())
        else {
            return;
        };
        let Ok(name) = std::str::from_utf8(name) else {
            return;
        };
        for tell in self.listeners().get(name).into_iter().flatten() {
            // Full: an event waits already, and one is as good as two.
            let _ = tell.try_send(());
        }
    }
}

/// The task: one connection, from the first subscription to the last.
async fn carry(dialer: Arc<Dialer>, mut inbox: UnboundedReceiver<Request>) {
    let table = Arc::new(Table::default());
    let ear = Arc::clone(&table);
    let ear = Arc::new(move |said: PushInfo| {
        ear.hear(&said);
        Ok::<(), ()>(())
    });
    let end = match dialer.dial_to_hear(ear).await {
        Err(failure) => Err(failure.error),
        Ok((connection, driver)) => tokio::select! {
            () = driver => Err(dialer.unavailable("the connection was lost")),
            error = signs_of_life(&dialer, connection.clone()) => Err(error),
            end = serve(&dialer, &table, connection, &mut inbox) => end,
        },
    };
    inbox.close();
    while let Ok(request) = inbox.try_recv() {
        // Whoever has gone away meanwhile does not mind.
        let _ = request.answer.send(end.clone().map(|()| None));
    }
}

/// Asks for a sign of life every now and then. Returns when there was none.
async fn signs_of_life(dialer: &Dialer, mut connection: MultiplexedConnection) -> Error {
    let ping = redis::cmd("PING");
    loop {
        tokio::time::sleep(PING_EVERY).await;
        // An error of the server is a sign of life too.
        let answer = connection.send_packed_command(&ping);
        if let Err(error) = in_time(dialer, "a PING was not answered", answer).await {
            return error;
        }
    }
}

/// Serves those who come and those who leave, one after the other. Returns when nobody listens
/// any more, or with the reason why nobody can.
async fn serve(
    dialer: &Dialer,
    table: &Table,
    mut connection: MultiplexedConnection,
    inbox: &mut UnboundedReceiver<Request>,
) -> Result<()> {
    loop {
        tokio::select! {
            request = inbox.recv() => match request {
                Some(request) => admit(dialer, table, &mut connection, request).await?,
                None => return Ok(()),
            },
            () = table.left.notified() => {}
        }
        for name in table.abandoned() {
            // Refused or not: nobody here passes its messages on any more.
            exchange(dialer, &mut connection, "UNSUBSCRIBE", &name).await?;
        }
        if table.is_empty() && inbox.is_empty() {
            return Ok(());
        }
    }
}

async fn admit(
    dialer: &Dialer,
    table: &Table,
    connection: &mut MultiplexedConnection,
    request: Request,
) -> Result<()> {
    // It is in the table before the server is asked, so that it hears the first event too.
    let (changes, first) = table.add(&request.name);
    let reply = if first {
        exchange(dialer, connection, "SUBSCRIBE", &request.name).await
    } else {
        Ok(Value::Okay)
    };
    let (answer, broken) = match reply {
        Ok(Value::ServerError(error)) => {
            table.remove(&request.name);
            (Err(refusal(&error, Effect::Read).0), Ok(()))
        }
        Ok(_) => (Ok(Some(changes)), Ok(())),
        Err(error) => (Err(error.clone()), Err(error)),
    };
    // Whoever has stopped waiting drops the subscription with the answer.
    let _ = request.answer.send(answer);
    broken
}

/// One command and its confirmation. A half-open connection confirms nothing.
async fn exchange(
    dialer: &Dialer,
    connection: &mut MultiplexedConnection,
    command: &str,
    name: &str,
) -> Result<Value> {
    let mut packed = redis::cmd(command);
    packed.arg(name);
    let answer = connection.send_packed_command(&packed);
    in_time(dialer, "a subscription was not confirmed", answer).await
}

/// Waits for an answer as long as for a connection.
async fn in_time(
    dialer: &Dialer,
    silence: &'static str,
    answer: impl Future<Output = RedisResult<Value>>,
) -> Result<Value> {
    match tokio::time::timeout(dialer.timeout(), answer).await {
        Ok(Ok(reply)) => Ok(reply),
        Ok(Err(_)) => Err(dialer.unavailable("the connection was lost")),
        Err(_) => Err(dialer.unavailable(silence)),
    }
}
