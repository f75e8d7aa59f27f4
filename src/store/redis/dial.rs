//! Establishing one connection: socket, TLS, login, and a first ping.

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
use super::server_id::{SECTIONS, server_id};
use super::tls;
use super::tls_capture::{TlsErrorCapture, tls_error};
use crate::config::{ServerAddress, StoreEndpoint, TlsFiles};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{invalid, shown};
use crate::op::Effect;

/// Moves bytes between the connection and the socket while it is polled. It ends when the
/// connection is lost; dropping it closes the socket.
pub(super) type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A connection that has answered a ping, with its driver.
pub(super) struct DialedConnection {
    pub(super) connection: MultiplexedConnection,
    pub(super) driver: Driver,
    /// Which server it leads to; see [`super::server_id`].
    pub(super) server: u64,
}

/// Receives push messages of the server. The driver calls it, so it must not block.
pub(super) type PushHandler = Arc<dyn AsyncPushSender>;

/// The kernel detects half-open connections too: a first probe after this idle time...
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
/// ...then one at this interval...
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);
/// ...and sent bytes must be acknowledged within this time.
const USER_TIMEOUT: Duration = Duration::from_secs(10);
/// Calls that may be queued for the socket before callers wait.
const QUEUE: usize = 1024;

/// Why no connection was established.
#[derive(Debug, Clone)]
pub(super) struct DialFailure {
    pub(super) error: Error,
    /// An operator must change something first: a password, a file, a permission. A call need
    /// not wait for the next attempt.
    pub(super) permanent: bool,
}

impl DialFailure {
    pub(super) fn transient(error: Error) -> Self {
        Self {
            error,
            permanent: false,
        }
    }

    fn permanent(error: Error) -> Self {
        Self {
            error,
            permanent: true,
        }
    }
}

/// Where to connect, and with which login.
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

    /// Connects, logs in and pings the server.
    pub(super) async fn dial(&self) -> std::result::Result<DialedConnection, DialFailure> {
        self.dial_as(None).await
    }

    /// The same for a connection that subscribes: it uses RESP3; `handler` receives the pushes.
    pub(super) async fn dial_with_push(
        &self,
        handler: PushHandler,
    ) -> std::result::Result<DialedConnection, DialFailure> {
        self.dial_as(Some(handler)).await
    }

    async fn dial_as(
        &self,
        handler: Option<PushHandler>,
    ) -> std::result::Result<DialedConnection, DialFailure> {
        let limit = self.timeout();
        tokio::time::timeout(limit, self.attempt(handler))
            .await
            .unwrap_or_else(|_| {
                Err(DialFailure::transient(
                    self.unavailable(&format!("no answer within {limit:?}")),
                ))
            })
    }

    async fn attempt(
        &self,
        handler: Option<PushHandler>,
    ) -> std::result::Result<DialedConnection, DialFailure> {
        let unreachable = |error: io::Error| DialFailure::transient(self.io_error(error));
        match &self.address.endpoint {
            StoreEndpoint::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(unreachable)?;
                self.login(stream, handler).await
            }
            StoreEndpoint::Tcp(host, port) => {
                let stream = connect(host, *port).await.map_err(unreachable)?;
                match &self.tls {
                    None => self.login(stream, handler).await,
                    Some((files, name)) => self.secure(stream, files, name, handler).await,
                }
            }
        }
    }

    async fn secure(
        &self,
        stream: TcpStream,
        files: &TlsFiles,
        name: &ServerName<'static>,
        handler: Option<PushHandler>,
    ) -> std::result::Result<DialedConnection, DialFailure> {
        let files = files.clone();
        let connector = tokio::task::spawn_blocking(move || tls::connector(&files)).await;
        let connector = connector
            .map_err(|error| {
                DialFailure::transient(self.unavailable("TLS failed").caused_by(error))
            })?
            .map_err(DialFailure::permanent)?;
        let stream = match connector.connect(name.clone(), stream).await {
            Ok(stream) => stream,
            Err(error) => {
                // A refused certificate is refused again; a broken socket is transient.
                let permanent = tls_error(&error).is_some();
                let error = self.io_error(error);
                return Err(DialFailure { permanent, error });
            }
        };
        let (stream, captured) = TlsErrorCapture::new(stream);
        let dialed = self.login(stream, handler).await;
        dialed.map_err(|failure| match captured.get() {
            Some(error) => {
                let text = format!("TLS was refused: {error}");
                DialFailure::permanent(self.unavailable(&text).caused_by(error.clone()))
            }
            None => failure,
        })
    }

    async fn login<S>(
        &self,
        stream: S,
        handler: Option<PushHandler>,
    ) -> std::result::Result<DialedConnection, DialFailure>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        // The login commands are sent below, where their errors can be distinguished.
        let mut greeting = RedisConnectionInfo::default().set_skip_set_lib_name();
        let mut config = AsyncConnectionConfig::new()
            .set_response_timeout(None)
            .set_connection_timeout(None)
            .set_pipeline_buffer_size(QUEUE);
        if let Some(handler) = handler {
            greeting = self.resp3_greeting(greeting);
            config = config.set_push_sender(handler);
        }
        let connected = MultiplexedConnection::new_with_config(&greeting, stream, config).await;
        let failed = |error: redis::RedisError| self.handshake_failure(&error);
        let (mut connection, driver) = connected.map_err(failed)?;
        let mut driver: Driver = Box::pin(driver);
        let (commands, steps) = self.login_commands();
        let replies = {
            let mut replies =
                std::pin::pin!(connection.send_packed_commands(&commands, 0, steps.len()));
            tokio::select! {
                replies = &mut replies => replies,
                // The driver has failed the waiting commands with the reason why it ended.
                () = &mut driver => replies.await,
            }
        };
        let replies = replies.map_err(failed)?;
        for (step, reply) in steps.iter().zip(&replies) {
            self.check(*step, reply)?;
        }
        let each = steps.iter().zip(&replies);
        let sections = each.filter(|(step, _)| **step == DialStep::ServerId);
        Ok(DialedConnection {
            server: server_id(sections.map(|(_, section)| section)),
            connection,
            driver,
        })
    }

    /// RESP3 begins with a HELLO, which must carry the password if the server requires one.
    fn resp3_greeting(&self, greeting: RedisConnectionInfo) -> RedisConnectionInfo {
        let mut greeting = greeting.set_protocol(ProtocolVersion::RESP3);
        if let Some(username) = &self.address.username {
            greeting = greeting.set_username(username);
        }
        match &self.address.password {
            Some(password) => greeting.set_password(password),
            None => greeting,
        }
    }

    fn handshake_failure(&self, error: &RedisError) -> DialFailure {
        match error.code() {
            None => DialFailure::transient(self.unavailable(&error.to_string())),
            Some(code @ ("NOAUTH" | "WRONGPASS" | "NOPERM")) => {
                DialFailure::permanent(self.login_refused(code))
            }
            // A proxy that only knows RESP2. Its text is not passed on.
            Some(code) => {
                let error = self.unavailable("the server does not speak RESP3");
                DialFailure::transient(error.with("server_code", code))
            }
        }
    }

    fn login_commands(&self) -> (Pipeline, Vec<DialStep>) {
        let mut commands = Pipeline::new();
        let mut steps = Vec::new();
        if let Some(password) = &self.address.password {
            commands
                .cmd("AUTH")
                .arg(self.address.username.as_deref())
                .arg(password);
            steps.push(DialStep::Login);
        }
        if self.address.db != 0 {
            commands.cmd("SELECT").arg(self.address.db);
            steps.push(DialStep::SelectDb);
        }
        commands.cmd("HELLO");
        steps.push(DialStep::Role);
        for section in SECTIONS {
            commands.cmd("INFO").arg(section);
            steps.push(DialStep::ServerId);
        }
        commands.cmd("PING");
        steps.push(DialStep::Ping);
        for (name, value) in [
            ("LIB-NAME", "podlink"),
            ("LIB-VER", env!("CARGO_PKG_VERSION")),
        ] {
            commands.cmd("CLIENT").arg("SETINFO").arg(name).arg(value);
            steps.push(DialStep::ClientInfo);
        }
        (commands, steps)
    }

    fn check(&self, step: DialStep, reply: &Value) -> std::result::Result<(), DialFailure> {
        match (step, reply) {
            (DialStep::Login, Value::ServerError(error)) => {
                Err(DialFailure::permanent(self.login_refused(code(error))))
            }
            (DialStep::SelectDb, Value::ServerError(error)) => Err(self.database_refused(error)),
            (DialStep::Ping, Value::ServerError(error)) => {
                let (error, _) = refusal(error, Effect::Read);
                let permanent = error.kind() == ErrorKind::StoreAuthentication;
                Err(DialFailure {
                    error: self.with_endpoint(error),
                    permanent,
                })
            }
            // A replica must not be read either: a link may not have been replicated yet.
            (DialStep::Role, hello) if is_replica(hello) => {
                let error = self.unavailable("the server is a read-only replica");
                Err(DialFailure::transient(
                    error.with("server_code", "READONLY"),
                ))
            }
            _ => Ok(()),
        }
    }

    /// The text of a refused AUTH is not passed on: some servers echo the command in it.
    fn login_refused(&self, code: &str) -> Error {
        let text = "the store refused the user name or the password";
        self.with_endpoint(Error::new(ErrorKind::StoreAuthentication, text))
            .with("server_code", code)
    }

    fn database_refused(&self, error: &ServerError) -> DialFailure {
        let (refused, _) = refusal(error, Effect::Read);
        if refused.kind() == ErrorKind::StoreAuthentication {
            return DialFailure::permanent(self.with_endpoint(refused));
        }
        let given = self.address.db.to_string();
        let allowed = format!(
            "one of the store's databases ({})",
            error.details().unwrap_or_default()
        );
        DialFailure::permanent(self.with_endpoint(invalid("db", &given, &allowed)))
    }

    /// The server's address as users see it.
    pub(super) fn endpoint(&self) -> impl std::fmt::Display + '_ {
        EndpointText(&self.address.endpoint)
    }

    /// A `StoreUnavailable` that names the endpoint and no other part of the address.
    pub(super) fn unavailable(&self, why: &str) -> Error {
        let text = format!(
            "no connection to {}: {why}",
            EndpointText(&self.address.endpoint)
        );
        self.with_endpoint(Error::new(ErrorKind::StoreUnavailable, text))
    }

    fn io_error(&self, error: io::Error) -> Error {
        self.unavailable(&error.to_string()).caused_by(error)
    }

    fn with_endpoint(&self, error: Error) -> Error {
        error.with("store", EndpointText(&self.address.endpoint))
    }
}

/// One command of the login; its reply is checked by step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DialStep {
    Login,
    SelectDb,
    /// HELLO without arguments changes nothing and returns the role. A proxy or an ACL may
    /// reject it; then the first READONLY reveals a replica.
    Role,
    /// An ACL may reject INFO: then the server is not distinguished from another.
    ServerId,
    /// PING fails while the server loads its data or has lost its primary.
    Ping,
    ClientInfo,
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

/// Connects to all addresses of the host at once; the first that answers wins.
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

/// Displays an endpoint as in a URL.
pub(super) struct EndpointText<'a>(pub(super) &'a StoreEndpoint);

impl fmt::Display for EndpointText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            StoreEndpoint::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            StoreEndpoint::Tcp(host, port) => write!(f, "{host}:{port}"),
            StoreEndpoint::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}
