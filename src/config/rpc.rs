//! The settings of the gRPC client and server.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use url::{Host, Url};

use super::{TlsFiles, within};
use crate::error::Result;
use crate::id::{Namespace, invalid, shown};

/// How an endpoint is chosen for a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Balance {
    /// Of two random endpoints, the one with fewer calls in flight.
    P2c,
    /// In turn.
    RoundRobin,
}

impl Balance {
    /// The balance with this name.
    ///
    /// # Errors
    /// `InvalidParameter` that lists the names.
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "p2c" => Ok(Self::P2c),
            "round_robin" => Ok(Self::RoundRobin),
            _ => Err(invalid("balance", &shown(name), "p2c or round_robin")),
        }
    }
}

/// The address of a peer: `grpc://host:port`, or `grpcs://host:port` with TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerUrl {
    /// A DNS name, resolved for every new connection, or an IP address.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Whether the connection is encrypted.
    pub tls: bool,
}

impl PeerUrl {
    /// Parses an endpoint.
    ///
    /// # Errors
    /// `InvalidParameter` that lists what is allowed.
    pub fn parse(given: &str) -> Result<Self> {
        const ALLOWED: &str = "grpc://host:port or grpcs://host:port";
        // Never the text itself: it may contain a password.
        let refused = |why: &str| invalid("endpoint", why, ALLOWED);
        let url = Url::parse(given).map_err(|error| refused(&error.to_string()))?;
        let tls = match url.scheme() {
            "grpc" => false,
            "grpcs" => true,
            other => return Err(refused(&format!("the scheme {}", shown(other)))),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(refused("a URL with credentials; use token_file"));
        }
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err(refused("a URL with a path or a query"));
        }
        let host = match url.host() {
            Some(Host::Ipv6(address)) => address.to_string(),
            Some(host) if !host.to_string().is_empty() => host.to_string(),
            _ => return Err(refused("a URL without a host")),
        };
        let port = url.port().ok_or_else(|| refused("a URL without a port"))?;
        Ok(Self { host, port, tls })
    }

    /// Whether the connection stays on this machine.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        let address = self.host.parse::<IpAddr>();
        address.map_or(self.host == "localhost", |address| address.is_loopback())
    }

    /// Host and port, as in a URL.
    #[must_use]
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            return format!("[{}]:{}", self.host, self.port);
        }
        format!("{}:{}", self.host, self.port)
    }
}

impl fmt::Display for PeerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "grpcs" } else { "grpc" };
        write!(f, "{scheme}://{}", self.authority())
    }
}

/// The settings of a client of peers.
#[derive(Debug, Clone)]
pub struct PeerClientConfig {
    /// The addresses of the peers; all serve the same namespace.
    pub endpoints: Vec<PeerUrl>,
    /// The deadline of a call that sets none.
    pub timeout: Duration,
    /// The timeout of a new connection.
    pub connect_timeout: Duration,
    /// The interval of keepalive pings, also on idle connections.
    pub keepalive: Duration,
    /// The timeout of a keepalive ping.
    pub keepalive_timeout: Duration,
    /// How an endpoint is chosen.
    pub balance: Balance,
    /// The maximum number of users in one request.
    pub max_batch: usize,
    /// The share of calls that may be retried, once the reserve is used up.
    pub retry_ratio: f64,
    /// Certificates and the client's own key; read for every new connection.
    pub tls: TlsFiles,
    /// The name in the server's certificate, if it differs from the endpoint's host.
    pub server_name: Option<String>,
    /// A file that holds the bearer token; read again when it changes.
    pub token_file: Option<PathBuf>,
    /// Whether a token may be sent without TLS to another machine.
    pub insecure: bool,
}

impl PeerClientConfig {
    /// Validates the settings and how they relate.
    ///
    /// # Errors
    /// `InvalidParameter` that names the setting, or both settings.
    pub fn check(self) -> Result<Self> {
        within("timeout", self.timeout, 0.001, 3600.0)?;
        within("connect_timeout", self.connect_timeout, 0.001, 3600.0)?;
        within("keepalive", self.keepalive, 0.1, 3600.0)?;
        within("keepalive_timeout", self.keepalive_timeout, 0.1, 3600.0)?;
        count_within("max_batch", self.max_batch, 1, 100_000)?;
        if !(0.0..=1.0).contains(&self.retry_ratio) {
            return Err(invalid(
                "retry_ratio",
                &self.retry_ratio.to_string(),
                "0 to 1",
            ));
        }
        if self.endpoints.is_empty() {
            return Err(invalid("endpoint", "none", "at least one"));
        }
        if self.tls.cert_file.is_some() != self.tls.key_file.is_some() {
            return Err(invalid(
                "cert_file",
                "only one of cert_file and key_file",
                "given together with key_file",
            ));
        }
        let exposed = |url: &PeerUrl| !url.tls && !url.is_loopback();
        if self.token_file.is_some() && !self.insecure && self.endpoints.iter().any(exposed) {
            return Err(invalid(
                "token_file",
                "an endpoint on another machine without TLS",
                "used with grpcs://, on this machine, or with insecure=True",
            ));
        }
        Ok(self)
    }
}

/// The TLS files of a server, all PEM; read again when they change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerTls {
    /// The server's certificate chain.
    pub cert_file: PathBuf,
    /// Its key.
    pub key_file: PathBuf,
    /// The authority that must sign clients' certificates. Without it clients need none.
    pub client_ca_file: Option<PathBuf>,
}

/// One rule of the authorization table. A call that matches no rule is denied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowed {
    /// The caller's authenticated name; `None`: any caller.
    pub caller: Option<String>,
    /// The method, such as `GetLinkedPod`; `None`: any method.
    pub method: Option<String>,
    /// The namespace of the request; `None`: any namespace.
    pub namespace: Option<Namespace>,
}

impl Allowed {
    /// Parses a rule; `*` means any.
    ///
    /// # Errors
    /// `InvalidParameter` for an empty caller, an unknown method or an illegal namespace.
    pub fn parse(caller: &str, method: &str, namespace: &str, methods: &[&str]) -> Result<Self> {
        let given = |text: &str| (text != "*").then(|| text.to_owned());
        if caller.is_empty() {
            return Err(invalid("authorize", "an empty caller", "a name or *"));
        }
        if method != "*" && !methods.contains(&method) {
            let allowed = format!("* or one of {}", methods.join(", "));
            return Err(invalid("authorize", &shown(method), &allowed));
        }
        let namespace = given(namespace).map(|name| Namespace::new(&name));
        Ok(Self {
            caller: given(caller),
            method: given(method),
            namespace: namespace.transpose()?,
        })
    }
}

/// The settings of a server for peers.
#[derive(Debug, Clone)]
pub struct PeerServerConfig {
    /// The address to listen on; port 0 is any free port.
    pub listen: SocketAddr,
    /// TLS; without it the server listens on this machine only, unless `insecure`.
    pub tls: Option<ServerTls>,
    /// Whether other machines may connect without TLS.
    pub insecure: bool,
    /// A file of bearer tokens, one `caller token` a line; read again when it changes.
    pub tokens_file: Option<PathBuf>,
    /// The authorization table.
    pub allowed: Vec<Allowed>,
    /// The largest request, in bytes.
    pub max_message_bytes: usize,
    /// The maximum number of users in one request.
    pub max_batch: usize,
    /// The maximum number of concurrent requests of one connection.
    pub max_streams: u32,
    /// The maximum number of concurrent requests; more are rejected at once.
    pub max_in_flight: usize,
    /// The maximum number of event streams; more are rejected at once.
    pub max_event_streams: usize,
    /// The maximum number of connections.
    pub max_connections: usize,
    /// The rate limit of one caller, in requests per second.
    pub peer_rate: u32,
    /// The timeout of a request, whatever deadline its caller sets.
    pub request_timeout: Duration,
    /// The interval of keepalive pings on an idle connection.
    pub keepalive: Duration,
    /// The timeout of a keepalive ping, and of the first bytes of a new connection.
    pub keepalive_timeout: Duration,
    /// The age at which a connection is closed gracefully, so that callers are balanced again.
    pub connection_age: Duration,
    /// How long running requests may continue after that.
    pub connection_grace: Duration,
    /// Whether gRPC reflection is enabled.
    pub reflection: bool,
}

impl PeerServerConfig {
    /// Validates the settings and how they relate.
    ///
    /// # Errors
    /// `InvalidParameter` that names the setting, or what is missing.
    pub fn check(self) -> Result<Self> {
        const HUGE: usize = 1 << 30;
        count_within("max_message_bytes", self.max_message_bytes, 1024, HUGE)?;
        count_within("max_batch", self.max_batch, 1, 100_000)?;
        count_within("max_streams", self.max_streams as usize, 1, 1_000_000)?;
        count_within("max_in_flight", self.max_in_flight, 1, 1_000_000)?;
        count_within("max_event_streams", self.max_event_streams, 1, 1_000_000)?;
        count_within("max_connections", self.max_connections, 1, 1_000_000)?;
        count_within("peer_rate", self.peer_rate as usize, 1, 100_000_000)?;
        within("request_timeout", self.request_timeout, 0.001, 3600.0)?;
        within("keepalive", self.keepalive, 0.1, 3600.0)?;
        within("keepalive_timeout", self.keepalive_timeout, 0.1, 3600.0)?;
        within("connection_age", self.connection_age, 1.0, 3_153_600.0)?;
        within("connection_grace", self.connection_grace, 0.1, 3600.0)?;
        let local = self.listen.ip().is_loopback();
        if self.tls.is_none() && !local && !self.insecure {
            return Err(invalid(
                "listen",
                &self.listen.to_string(),
                "an address of this machine alone (127.0.0.1, [::1]) without TLS; give cert_file \
                 and key_file, or insecure=True",
            ));
        }
        Ok(self)
    }
}

fn count_within(what: &'static str, given: usize, least: usize, most: usize) -> Result<()> {
    if (least..=most).contains(&given) {
        return Ok(());
    }
    let allowed = format!("{least} to {most}");
    Err(invalid(what, &given.to_string(), &allowed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_parsed_or_rejected() {
        let read = |text| PeerUrl::parse(text).map(|url| url.to_string()).ok();
        assert_eq!(read("grpc://h:50051").as_deref(), Some("grpc://h:50051"));
        assert_eq!(read("grpcs://[::1]:1/").as_deref(), Some("grpcs://[::1]:1"));
        for bad in [
            "h:1",
            "http://h:1",
            "grpc://h",
            "grpc://:1",
            "grpc://u:secret@h:1",
            "grpc://h:1/path",
            "grpc://h:1?q",
            "",
        ] {
            let error = PeerUrl::parse(bad).err().map(|error| error.to_string());
            assert!(error.is_some_and(|text| !text.contains("secret")), "{bad}");
        }
    }

    #[test]
    fn only_this_machine_is_loopback() {
        let local = |text| PeerUrl::parse(text).is_ok_and(|url| url.is_loopback());
        assert!(local("grpc://127.0.0.1:1") && local("grpc://[::1]:1"));
        assert!(local("grpc://localhost:1"));
        assert!(!local("grpc://10.0.0.1:1") && !local("grpc://localhost.evil:1"));
    }

    #[test]
    fn a_rule_of_the_table_is_parsed_or_rejected() {
        let methods = ["GetLinkedPod"];
        let line = Allowed::parse("game", "*", "prod", &methods).unwrap();
        assert_eq!((line.caller.as_deref(), line.method), (Some("game"), None));
        for (caller, method, namespace) in [
            ("", "*", "*"),
            ("a", "Unknown", "*"),
            ("a", "*", "not a name"),
        ] {
            assert!(Allowed::parse(caller, method, namespace, &methods).is_err());
        }
    }
}
