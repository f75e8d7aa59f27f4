//! Making one connection: socket, TLS, login, and a first sign of life.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::select_ok;
use redis::aio::{AsyncPushSender, MultiplexedConnection};
use redis::io::tcp::socket2::{SockRef, TcpKeepalive};
use redis::{
    AsyncConnectionConfig, Pipeline, ProtocolVersion, RedisConnectionInfo, RedisError, ServerError,
    Value,
};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::failure::{code, refusal};
use super::tls;
use super::witness::{Witness, tls_error};
use crate::config::{ServerAddress, StoreEndpoint, TlsFiles};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{invalid, shown};
use crate::op::Effect;

/// Moves bytes between the connection and the socket, as long as it is polled. It ends when the
/// connection is lost, and dropping it closes the socket.
pub(super) type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A connection that has answered, with its driver.
pub(super) type Dialled = (MultiplexedConnection, Driver);

/// Hears what the server says without being asked. The driver calls it, so it must not wait.
pub(super) type Ear = Arc<dyn AsyncPushSender>;

/// Half-open connections are found by the kernel too: a probe after ten seconds of silence...
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
/// ...then one every three seconds...
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);
/// ...and what was sent must be acknowledged within this time.
const USER_TIMEOUT: Duration = Duration::from_secs(10);
/// Calls that may wait in line for the socket before callers wait themselves.
const QUEUE: usize = 1024;

/// Why no connection came about.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) error: Error,
    /// Somebody has to change something first: a password, a file, a permission. A call need not
    /// wait for the next attempt then.
    pub(super) hopeless: bool,
}

impl Failure {
    pub(super) fn passing(error: Error) -> Self {
        Self {
            error,
            hopeless: false,
        }
    }

    fn hopeless(error: Error) -> Self {
        Self {
            error,
            hopeless: true,
        }
    }
}

/// Where to connect, and as whom.
pub(super) struct Dialer {
    address: ServerAddress,
    tls: Option<(TlsFiles, ServerName<'static>)>,
}

impl Dialer {
    /// Takes an address. No I/O.
    ///
    /// # Errors
    /// `InvalidParameter` if no certificate could ever be valid for the host's name.
    pub(super) fn new(address: &ServerAddress) -> Result<Self> {
        let tls = match (&address.tls, &address.endpoint) {
            (Some(files), StoreEndpoint::Tcp(host, _)) => {
                let name = ServerName::try_from(host.clone()).map_err(|_| {
                    invalid(
                        "url",
                        &shown(host),
                        "a host name or an address that TLS can check",
                    )
                })?;
                Some((files.clone(), name))
            }
            _ => None,
        };
        Ok(Self {
            address: address.clone(),
            tls,
        })
    }

    /// How long an attempt may take.
    pub(super) fn timeout(&self) -> Duration {
        self.address.connect_timeout
    }

    /// Connects, logs in and asks for a sign of life.
    pub(super) async fn dial(&self) -> std::result::Result<Dialled, Failure> {
        self.dial_as(None).await
    }

    /// The same for a connection that may subscribe: it speaks RESP3, and `ear` hears what comes.
    pub(super) async fn dial_to_hear(&self, ear: Ear) -> std::result::Result<Dialled, Failure> {
        self.dial_as(Some(ear)).await
    }

    async fn dial_as(&self, ear: Option<Ear>) -> std::result::Result<Dialled, Failure> {
        let limit = self.timeout();
        tokio::time::timeout(limit, self.attempt(ear))
            .await
            .unwrap_or_else(|_| {
                Err(Failure::passing(
                    self.unavailable(&format!("no answer within {limit:?}")),
                ))
            })
    }

    async fn attempt(&self, ear: Option<Ear>) -> std::result::Result<Dialled, Failure> {
        let unreachable = |error: io::Error| Failure::passing(self.io_error(error));
        match &self.address.endpoint {
            StoreEndpoint::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(unreachable)?;
                self.login(stream, ear).await
            }
            StoreEndpoint::Tcp(host, port) => {
                let stream = connect(host, *port).await.map_err(unreachable)?;
                match &self.tls {
                    None => self.login(stream, ear).await,
                    Some((files, name)) => self.secure(stream, files, name, ear).await,
                }
            }
        }
    }

    async fn secure(
        &self,
        stream: TcpStream,
        files: &TlsFiles,
        name: &ServerName<'static>,
        ear: Option<Ear>,
    ) -> std::result::Result<Dialled, Failure> {
        let files = files.clone();
        let connector = tokio::task::spawn_blocking(move || tls::connector(&files)).await;
        let connector = connector
            .map_err(|error| Failure::passing(self.unavailable("TLS failed").caused_by(error)))?
            .map_err(Failure::hopeless)?;
        let stream = match connector.connect(name.clone(), stream).await {
            Ok(stream) => stream,
            Err(error) => {
                // A certificate that is refused will be refused again; a broken socket need not.
                let hopeless = tls_error(&error).is_some();
                let error = self.io_error(error);
                return Err(Failure { hopeless, error });
            }
        };
        let (stream, seen) = Witness::new(stream);
        let dialled = self.login(stream, ear).await;
        dialled.map_err(|failure| match seen.get() {
            Some(error) => {
                let text = format!("TLS was refused: {error}");
                Failure::hopeless(self.unavailable(&text).caused_by(error.clone()))
            }
            None => failure,
        })
    }

    async fn login<S>(&self, stream: S, ear: Option<Ear>) -> std::result::Result<Dialled, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        // The login commands are sent below, where their errors can be told apart.
        let mut greeting = RedisConnectionInfo::default().set_skip_set_lib_name();
        let mut config = AsyncConnectionConfig::new()
            .set_response_timeout(None)
            .set_connection_timeout(None)
            .set_pipeline_buffer_size(QUEUE);
        if let Some(ear) = ear {
            greeting = self.greet_in_resp3(greeting);
            config = config.set_push_sender(ear);
        }
        let made = MultiplexedConnection::new_with_config(&greeting, stream, config).await;
        let broken = |error: redis::RedisError| self.not_greeted(&error);
        let (mut connection, driver) = made.map_err(broken)?;
        let mut driver: Driver = Box::pin(driver);
        let (commands, steps) = self.login_commands();
        let replies = {
            let mut replies =
                std::pin::pin!(connection.send_packed_commands(&commands, 0, steps.len()));
            tokio::select! {
                replies = &mut replies => replies,
                // The driver has told the waiting commands why it ended.
                () = &mut driver => replies.await,
            }
        };
        for (step, reply) in steps.iter().zip(replies.map_err(broken)?) {
            self.judge(*step, &reply)?;
        }
        Ok((connection, driver))
    }

    /// RESP3 begins with a HELLO, and a server that wants a password wants it in there.
    fn greet_in_resp3(&self, greeting: RedisConnectionInfo) -> RedisConnectionInfo {
        let mut greeting = greeting.set_protocol(ProtocolVersion::RESP3);
        if let Some(username) = &self.address.username {
            greeting = greeting.set_username(username);
        }
        match &self.address.password {
            Some(password) => greeting.set_password(password),
            None => greeting,
        }
    }

    fn not_greeted(&self, error: &RedisError) -> Failure {
        match error.code() {
            None => Failure::passing(self.unavailable(&error.to_string())),
            Some(code @ ("NOAUTH" | "WRONGPASS" | "NOPERM")) => {
                Failure::hopeless(self.refused(code))
            }
            // Something in between that only knows the older protocol. Its text is not passed on.
            Some(code) => {
                let error = self.unavailable("the server does not speak RESP3");
                Failure::passing(error.with("server_code", code))
            }
        }
    }

    fn login_commands(&self) -> (Pipeline, Vec<Step>) {
        let mut commands = Pipeline::new();
        let mut steps = Vec::new();
        if let Some(password) = &self.address.password {
            commands
                .cmd("AUTH")
                .arg(self.address.username.as_deref())
                .arg(password);
            steps.push(Step::Login);
        }
        if self.address.db != 0 {
            commands.cmd("SELECT").arg(self.address.db);
            steps.push(Step::Database);
        }
        commands.cmd("HELLO");
        steps.push(Step::Role);
        commands.cmd("PING");
        steps.push(Step::SignOfLife);
        for (name, value) in [
            ("LIB-NAME", "podlink"),
            ("LIB-VER", env!("CARGO_PKG_VERSION")),
        ] {
            commands.cmd("CLIENT").arg("SETINFO").arg(name).arg(value);
            steps.push(Step::Courtesy);
        }
        (commands, steps)
    }

    fn judge(&self, step: Step, reply: &Value) -> std::result::Result<(), Failure> {
        match (step, reply) {
            (Step::Login, Value::ServerError(error)) => {
                Err(Failure::hopeless(self.refused(code(error))))
            }
            (Step::Database, Value::ServerError(error)) => Err(self.no_database(error)),
            (Step::SignOfLife, Value::ServerError(error)) => {
                let (error, _) = refusal(error, Effect::Read);
                let hopeless = error.kind() == ErrorKind::StoreAuthentication;
                Err(Failure {
                    error: self.at(error),
                    hopeless,
                })
            }
            // A replica must not be read either: it may not have heard of a link yet.
            (Step::Role, hello) if is_replica(hello) => {
                let error = self.unavailable("the server is a read-only replica");
                Err(Failure::passing(error.with("server_code", "READONLY")))
            }
            _ => Ok(()),
        }
    }

    /// The text of a refused AUTH is not passed on: some servers repeat the command in it.
    fn refused(&self, code: &str) -> Error {
        let text = "the store refused the user name or the password";
        self.at(Error::new(ErrorKind::StoreAuthentication, text))
            .with("server_code", code)
    }

    fn no_database(&self, error: &ServerError) -> Failure {
        let (refused, _) = refusal(error, Effect::Read);
        if refused.kind() == ErrorKind::StoreAuthentication {
            return Failure::hopeless(self.at(refused));
        }
        let given = self.address.db.to_string();
        let allowed = format!(
            "one of the store's databases ({})",
            error.details().unwrap_or_default()
        );
        Failure::hopeless(self.at(invalid("db", &given, &allowed)))
    }

    /// A `StoreUnavailable` that names the endpoint, and nothing else of the address.
    pub(super) fn unavailable(&self, why: &str) -> Error {
        let text = format!(
            "no connection to {}: {why}",
            ShownEndpoint(&self.address.endpoint)
        );
        self.at(Error::new(ErrorKind::StoreUnavailable, text))
    }

    fn io_error(&self, error: io::Error) -> Error {
        self.unavailable(&error.to_string()).caused_by(error)
    }

    fn at(&self, error: Error) -> Error {
        error.with("store", ShownEndpoint(&self.address.endpoint))
    }
}

/// One command of the login, and what its reply decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Login,
    Database,
    /// HELLO without arguments changes nothing and tells the role. A proxy or an ACL may not
    /// know it; then a replica shows itself with the first READONLY.
    Role,
    /// PING fails while the server loads its data or has lost its primary.
    SignOfLife,
    Courtesy,
}

/// Whether the reply to HELLO is that of a replica.
pub(super) fn is_replica(hello: &Value) -> bool {
    let bulk =
        |value: &Value, text: &str| matches!(value, Value::BulkString(b) if b == text.as_bytes());
    let replica = |role: &Value| bulk(role, "replica") || bulk(role, "slave");
    match hello {
        Value::Map(pairs) => pairs
            .iter()
            .any(|(name, value)| bulk(name, "role") && replica(value)),
        Value::Array(flat) => flat.chunks(2).any(|pair| match pair {
            [name, role] => bulk(name, "role") && replica(role),
            _ => false,
        }),
        _ => false,
    }
}

/// Asks all addresses of the host at once; the first that answers is taken.
async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let attempts: Vec<_> = tokio::net::lookup_host((host, port))
        .await?
        .map(|address| Box::pin(TcpStream::connect(address)))
        .collect();
    if attempts.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            "the host has no address",
        ));
    }
    let (stream, _) = select_ok(attempts).await?;
    stream.set_nodelay(true)?;
    let socket = SockRef::from(&stream);
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    Ok(stream)
}

/// An endpoint as people write it.
pub(super) struct ShownEndpoint<'a>(pub(super) &'a StoreEndpoint);

impl fmt::Display for ShownEndpoint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            StoreEndpoint::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            StoreEndpoint::Tcp(host, port) => write!(f, "{host}:{port}"),
            StoreEndpoint::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}
