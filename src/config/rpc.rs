//! The settings of the gRPC client and server.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use url::{Host, Url};

use super::setting::SettingKind::{Choice, Count, Ratio, Seconds};
use super::setting::{SettingsGroup, choices, settings};
use super::{CALL_TIMEOUT, TlsFiles};
use crate::error::Result;
use crate::id::{Namespace, invalid, shown};

choices! {
    /// How an endpoint is chosen for a call.
    pub enum Balance of "balance" {
        /// Of two random endpoints, the one with fewer calls in flight.
        P2c = "p2c",
        /// In turn.
        RoundRobin = "round_robin",
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

settings! {
    /// The settings of a client of peers.
    #[derive(Debug, Clone)]
    pub struct PeerClientConfig {
        settings {
            /// The deadline of a call that sets none.
            timeout: Duration = CALL_TIMEOUT,
            /// The timeout of a new connection, TLS included.
            connect_timeout: Duration = Seconds { default: 1.0, least: 0.001, most: 3600.0 },
            /// How often a connection is pinged, also while it is idle.
            keepalive: Duration = Seconds { default: 10.0, least: 0.1, most: 3600.0 },
            /// How long the answer to a ping may take.
            keepalive_timeout: Duration = Seconds { default: 5.0, least: 0.1, most: 3600.0 },
            /// How an endpoint is chosen.
            balance: Balance = Choice { default: "p2c", names: Balance::NAMES },
            /// The maximum number of users in one request.
            max_batch: usize = Count { default: 512, least: 1, most: 100_000 },
            /// The share of calls that may be retried, once the reserve is used up.
            retry_ratio: f64 = Ratio { default: 0.1 },
        }
        others {
            /// The addresses of the peers; all serve the same namespace.
            endpoints: Vec<PeerUrl> = Vec::new(),
            /// Certificates and the client's own key; read for every new connection.
            tls: TlsFiles = TlsFiles::default(),
            /// The name in the server's certificate, if it differs from the endpoint's host.
            server_name: Option<String> = None,
            /// A file that holds the bearer token; read again when it changes.
            token_file: Option<PathBuf> = None,
            /// Whether a token may be sent without TLS to another machine.
            insecure: bool = false,
        }
    }
}

impl PeerClientConfig {
    /// Validates the settings and how they relate.
    ///
    /// # Errors
    /// `InvalidParameter` that names the setting, or both settings.
    pub fn check(self) -> Result<Self> {
        self.check_each()?;
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

settings! {
    /// The settings of a server for peers.
    #[derive(Debug, Clone)]
    pub struct PeerServerConfig {
        settings {
            /// The largest request, in bytes.
            max_message_bytes: usize = Count { default: 65_536, least: 1024, most: 1 << 30 },
            /// The maximum number of users in one request.
            max_batch: usize = Count { default: 512, least: 1, most: 100_000 },
            /// The maximum number of concurrent requests of one connection; more wait.
            max_streams: u32 = Count { default: 256, least: 1, most: 1_000_000 },
            /// The maximum number of concurrent requests; more are rejected at once.
            max_in_flight: usize = Count { default: 4096, least: 1, most: 1_000_000 },
            /// The maximum number of event streams; more are rejected at once.
            max_event_streams: usize = Count { default: 1024, least: 1, most: 1_000_000 },
            /// The maximum number of connections; more wait.
            max_connections: usize = Count { default: 1024, least: 1, most: 1_000_000 },
            /// The rate limit of one caller, in requests per second.
            peer_rate: u32 = Count { default: 50_000, least: 1, most: 100_000_000 },
            /// The timeout of a request, whatever deadline its caller sets.
            request_timeout: Duration = Seconds { default: 5.0, least: 0.001, most: 3600.0 },
            /// How often an idle connection is pinged.
            keepalive: Duration = Seconds { default: 30.0, least: 0.1, most: 3600.0 },
            /// How long the answer to a ping, or the first bytes of a connection, may take.
            keepalive_timeout: Duration = Seconds { default: 10.0, least: 0.1, most: 3600.0 },
            /// The age at which a connection is closed gracefully, so that callers are balanced
            /// again.
            connection_age: Duration = Seconds { default: 3600.0, least: 1.0, most: 3_153_600.0 },
            /// How long running requests may continue after that.
            connection_grace: Duration = Seconds { default: 30.0, least: 0.1, most: 3600.0 },
        }
        others {
            /// The address to listen on; port 0 is any free port.
            listen: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 0)),
            /// TLS; without it the server listens on this machine only, unless `insecure`.
            tls: Option<ServerTls> = None,
            /// Whether other machines may connect without TLS.
            insecure: bool = false,
            /// A file of bearer tokens, one `caller token` a line; read again when it changes.
            tokens_file: Option<PathBuf> = None,
            /// The authorization table.
            allowed: Vec<Allowed> = Vec::new(),
            /// Whether gRPC reflection is enabled.
            reflection: bool = true,
        }
    }
}

impl PeerServerConfig {
    /// Validates the settings and how they relate.
    ///
    /// # Errors
    /// `InvalidParameter` that names the setting, or what is missing.
    pub fn check(self) -> Result<Self> {
        self.check_each()?;
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
