//! Store URLs: parsing them, and showing them without credentials.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use url::Url;

use super::setting::{Setting, SettingKind, SettingType, SettingValue};
use crate::error::Result;
use crate::id::{invalid, shown};

/// The address of the shared state, parsed from a URL.
#[derive(Clone)]
pub struct StoreConfig {
    /// The store to open.
    pub address: StoreAddress,
    /// The URL without its credentials, for logs and errors.
    pub shown: String,
}

/// What a store URL names.
#[derive(Clone)]
pub enum StoreAddress {
    /// In this process. The same name is the same store; without a name the store is private.
    Memory(Option<String>),
    /// One Redis or Valkey server.
    Server(Box<ServerAddress>),
}

/// The address of one Redis or Valkey server, and its credentials.
#[derive(Clone)]
pub struct ServerAddress {
    /// Host and port, or a socket file.
    pub endpoint: StoreEndpoint,
    /// ACL user; the server's default user if there is none.
    pub username: Option<String>,
    /// Password.
    pub password: Option<String>,
    /// Database number.
    pub db: i64,
    /// TLS, if the scheme asks for it.
    pub tls: Option<TlsFiles>,
    /// The timeout of connecting and authenticating.
    pub connect_timeout: Duration,
}

/// Host and port, or a socket file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreEndpoint {
    /// TCP.
    Tcp(String, u16),
    /// A Unix domain socket.
    Unix(PathBuf),
}

/// The files for TLS, all PEM. They are read when the connection is made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The authorities to trust, instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// This client's certificate.
    pub cert_file: Option<PathBuf>,
    /// The key of this client's certificate.
    pub key_file: Option<PathBuf>,
}

const SCHEMES: &str = "memory://, redis://, rediss://, valkey://, valkeys://, redis+unix:// or \
                       valkey+unix://";
const OPTIONS: &str = "db, username, password, connect_timeout, ca_file, cert_file, key_file";

impl StoreConfig {
    /// Parses a store URL.
    ///
    /// `options` mean the same as the URL's query: `db`, `username`, `password`,
    /// `connect_timeout` (seconds), `ca_file`, `cert_file`, `key_file`. They override the URL.
    ///
    /// # Errors
    /// `InvalidParameter` that names the invalid part, never a credential.
    pub fn parse(url: &str, options: &[(String, String)]) -> Result<Self> {
        let wrong = || invalid("url", &shown_url(url), &format!("a URL like {SCHEMES}"));
        let parsed = Url::parse(&with_host(url)).map_err(|_| wrong())?;
        let mut all: Vec<(String, String)> = parsed.query_pairs().into_owned().collect();
        all.extend(options.iter().cloned());
        let shown = shown_url(url);
        if parsed.fragment().is_some() {
            let allowed = "without '#'; in a password write %23";
            return Err(invalid("url", &shown, allowed));
        }
        match parsed.scheme() {
            "memory" => {
                let host = parsed
                    .host_str()
                    .filter(|h| !h.is_empty())
                    .map(str::to_owned);
                if let Some((name, _)) = all.first() {
                    return Err(invalid(
                        "url",
                        &format!("option {name:?}"),
                        "memory:// without options",
                    ));
                }
                if !matches!(parsed.path(), "" | "/") {
                    return Err(invalid("url", &shown, "memory:// or memory://name"));
                }
                Ok(Self {
                    address: StoreAddress::Memory(host),
                    shown,
                })
            }
            "redis" | "valkey" => Self::server(&parsed, &all, None, shown),
            "rediss" | "valkeys" => Self::server(&parsed, &all, Some(TlsFiles::default()), shown),
            "redis+unix" | "valkey+unix" | "unix" => Self::socket(&parsed, &all, shown),
            _ => Err(wrong()),
        }
    }

    fn server(
        url: &Url,
        options: &[(String, String)],
        tls: Option<TlsFiles>,
        shown: String,
    ) -> Result<Self> {
        const DEFAULT_PORT: u16 = 6379;
        let host = url
            .host_str()
            .filter(|host| !host.is_empty())
            .ok_or_else(|| {
                invalid(
                    "url",
                    &shown,
                    "a URL with a host, like redis://localhost:6379/0",
                )
            })?;
        // An IPv6 address has brackets in a URL, and none elsewhere.
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let mut server = ServerAddress {
            endpoint: StoreEndpoint::Tcp(host, url.port().unwrap_or(DEFAULT_PORT)),
            username: decoded(url.username()),
            password: url.password().and_then(decoded),
            db: 0,
            tls,
            connect_timeout: Duration::read(&CONNECT_TIMEOUT, CONNECT_TIMEOUT.default())?,
        };
        match url.path().trim_start_matches('/') {
            "" => {}
            path => server.db = database(path)?,
        }
        server.apply(options)?;
        Ok(Self {
            address: StoreAddress::Server(Box::new(server)),
            shown,
        })
    }

    fn socket(url: &Url, options: &[(String, String)], shown: String) -> Result<Self> {
        let path = decoded(url.path())
            .filter(|path| path.len() > 1)
            .ok_or_else(|| {
                invalid(
                    "url",
                    &shown,
                    "a URL with a path, like redis+unix:///run/redis.sock?db=0",
                )
            })?;
        let mut server = ServerAddress {
            endpoint: StoreEndpoint::Unix(PathBuf::from(path)),
            username: decoded(url.username()),
            password: url.password().and_then(decoded),
            db: 0,
            tls: None,
            connect_timeout: Duration::read(&CONNECT_TIMEOUT, CONNECT_TIMEOUT.default())?,
        };
        server.apply(options)?;
        Ok(Self {
            address: StoreAddress::Server(Box::new(server)),
            shown,
        })
    }
}

const CONNECT_TIMEOUT: Setting = Setting {
    name: "connect_timeout",
    kind: SettingKind::Seconds {
        default: 1.0,
        least: 0.001,
        most: 600.0,
    },
    meaning: "The timeout of connecting and authenticating.",
};

/// The options of a store that are numbers with a default.
pub(super) const OPTIONS_TABLE: &[Setting] = &[CONNECT_TIMEOUT];

impl ServerAddress {
    fn apply(&mut self, options: &[(String, String)]) -> Result<()> {
        for (name, value) in options {
            match name.as_str() {
                "db" => self.db = database(value)?,
                "username" => self.username = Some(value.clone()),
                "password" => self.password = Some(value.clone()),
                "connect_timeout" => {
                    let seconds = value.parse().map_err(|_| {
                        invalid("connect_timeout", &shown(value), "a number of seconds")
                    })?;
                    let given = SettingValue::Number(seconds);
                    self.connect_timeout = Duration::read(&CONNECT_TIMEOUT, given)?;
                }
                "ca_file" | "cert_file" | "key_file" => self.tls_file(name, value)?,
                _ => {
                    return Err(invalid(
                        "url",
                        &format!("unknown option {}", unless_secret(name)),
                        &format!("given with options from {OPTIONS}"),
                    ));
                }
            }
        }
        match &self.tls {
            Some(tls) if tls.cert_file.is_some() != tls.key_file.is_some() => Err(invalid(
                "url",
                "only one of cert_file and key_file",
                "given with both or neither",
            )),
            _ => Ok(()),
        }
    }

    fn tls_file(&mut self, name: &str, value: &str) -> Result<()> {
        let Some(tls) = &mut self.tls else {
            let given = format!("option {name} without TLS");
            return Err(invalid(
                "url",
                &given,
                "rediss:// or valkeys:// for TLS options",
            ));
        };
        let path = Some(PathBuf::from(value));
        match name {
            "ca_file" => tls.ca_file = path,
            "cert_file" => tls.cert_file = path,
            _ => tls.key_file = path,
        }
        Ok(())
    }
}

fn database(text: &str) -> Result<i64> {
    let number = text
        .parse()
        .ok()
        .filter(|db| (0..=i64::from(i32::MAX)).contains(db));
    number.ok_or_else(|| invalid("db", &unless_secret(text), "a database number from 0"))
}

/// A part of a URL for an error, unless it may be the end of a password: with an unescaped `/` or
/// `?` the end of a password is parsed as the part after the host.
fn unless_secret(text: &str) -> String {
    if text.contains('@') {
        return "a part with '@' in it (write / ? # of a password as %2F %3F %23)".to_owned();
    }
    shown(text)
}

fn decoded(part: &str) -> Option<String> {
    let text = percent_decode_str(part).decode_utf8_lossy().into_owned();
    (!text.is_empty()).then_some(text)
}

/// A socket's URL may have credentials and no host, `redis+unix://:secret@/path`, which URL parsers
/// reject: this adds a host that is never used.
fn with_host(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    match rest.split_once('/') {
        Some((credentials, path)) if scheme.ends_with("unix") && credentials.ends_with('@') => {
            format!("{scheme}://{credentials}localhost/{path}")
        }
        _ => url.to_owned(),
    }
}

/// A URL without user, password and query, for logs and errors. A password may contain unescaped
/// characters, so everything before the last `@` is hidden.
fn shown_url(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let bare = |text: &str| text.split(['?', '#']).next().unwrap_or_default().to_owned();
    match (rest.rfind('@'), scheme) {
        // Without a scheme, any part may be the password.
        (Some(_), "") => "***".to_owned(),
        (Some(at), _) => format!("{scheme}://***@{}", bare(&rest[at + 1..])),
        (None, _) => bare(url),
    }
}

impl fmt::Debug for StoreConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StoreConfig").field(&self.shown).finish()
    }
}

impl fmt::Debug for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerAddress")
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(url: &str) -> ServerAddress {
        match StoreConfig::parse(url, &[]).unwrap().address {
            StoreAddress::Server(server) => *server,
            StoreAddress::Memory(_) => unreachable!("{url} is a server"),
        }
    }

    fn refusal(url: &str) -> String {
        StoreConfig::parse(url, &[]).unwrap_err().to_string()
    }

    #[test]
    fn a_url_sets_every_option_of_a_server() {
        let given =
            server("rediss://us%40er:p%3Ass@[::1]:7000/3?ca_file=/ca.pem&connect_timeout=2.5");
        assert_eq!(given.endpoint, StoreEndpoint::Tcp("::1".into(), 7000));
        assert_eq!(given.username.as_deref(), Some("us@er"));
        assert_eq!(given.password.as_deref(), Some("p:ss"));
        assert_eq!(given.db, 3);
        assert_eq!(given.tls.unwrap().ca_file, Some("/ca.pem".into()));
        assert_eq!(given.connect_timeout, Duration::from_millis(2500));
    }

    #[test]
    fn defaults_and_sockets() {
        let plain = server("valkey://localhost");
        assert_eq!(plain.endpoint, StoreEndpoint::Tcp("localhost".into(), 6379));
        assert_eq!((plain.db, plain.tls.is_none()), (0, true));
        let socket = server("redis+unix:///run/a%20b.sock?db=2");
        assert_eq!(socket.endpoint, StoreEndpoint::Unix("/run/a b.sock".into()));
        assert_eq!(socket.db, 2);
        let locked = server("valkey+unix://game:s%20cret@/run/a.sock");
        assert_eq!(locked.endpoint, StoreEndpoint::Unix("/run/a.sock".into()));
        assert_eq!(locked.password.as_deref(), Some("s cret"));
    }

    #[test]
    fn a_wrong_url_is_rejected_by_name() {
        assert!(refusal("http://x").contains("redis://"));
        assert!(refusal("redis://").contains("host"));
        assert!(refusal("redis://h/x").contains("db"));
        assert!(refusal("redis://h?colour=red").contains("colour"));
        assert!(refusal("redis://h?ca_file=/x").contains("rediss://"));
        assert!(refusal("rediss://h?cert_file=/x").contains("key_file"));
        assert!(refusal("redis://h?connect_timeout=never").contains("connect_timeout"));
        assert!(refusal("memory://x?db=1").contains("db"));
        assert!(refusal("").contains("memory://"));
    }

    #[test]
    fn credentials_are_never_shown() {
        for url in [
            "redis://user:canary@host:1/0",
            "redis://user:canary@host:x",
            "redis://h?password=canary",
            "user:canary@host",
            "http://:canary@host",
            "redis://:12canary#ss@host",
            "redis://u:canary?x@host",
            "redis://u:canary/x@host",
            "redis://u:12#canary@host",
        ] {
            let text = match StoreConfig::parse(url, &[]) {
                Ok(config) => format!("{config:?} {}", config.shown),
                Err(error) => format!("{error} {error:?}"),
            };
            assert!(!text.contains("canary"), "{url} shows {text}");
        }
    }
}
