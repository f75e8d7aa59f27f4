//! Authentication and authorization of callers. What no line of the table allows is denied.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use subtle::ConstantTimeEq;
use tonic::{Extensions, Status, metadata::MetadataMap};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::clock::{Clock, Tick};
use crate::config::{Allowed, PeerServerConfig};
use crate::error::{Error, ErrorKind, Result, WriteOutcome};
use crate::id::Namespace;
use crate::rpc::status;

/// The client at the other end of a connection.
#[derive(Debug, Clone)]
pub(super) struct ConnectionPeer {
    pub(super) address: IpAddr,
    /// The names in the client's certificate; empty without one.
    pub(super) names: Arc<[String]>,
}

/// The caller of a request.
#[derive(Debug, Clone)]
pub(super) struct CallerIdentity {
    names: Arc<[String]>,
    address: IpAddr,
}

impl CallerIdentity {
    /// The caller's name in errors and logs.
    fn shown(&self) -> String {
        self.names
            .first()
            .cloned()
            .unwrap_or_else(|| "an unknown caller".to_owned())
    }

    fn is(&self, name: &str) -> bool {
        self.names.iter().any(|known| known == name)
    }
}

/// A bearer token and the caller that it authenticates.
struct BearerToken {
    caller: Arc<[String]>,
    secret: Vec<u8>,
}

/// The valid tokens: several per caller while they are being rotated.
#[derive(Default)]
pub(super) struct Tokens(Vec<BearerToken>);

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokens({})", self.0.len())
    }
}

impl Tokens {
    /// Reads lines `caller token`; empty lines and those that begin with `#` are ignored. It
    /// blocks on the file system.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let refused = |why: &str| {
            let text = format!("tokens_file {}: {why}", path.display());
            Error::new(ErrorKind::InvalidParameter, text).with("parameter", "tokens_file")
        };
        let text = std::fs::read_to_string(path)
            .map_err(|error| refused("it cannot be read").caused_by(error))?;
        Self::parse(&text).ok_or_else(|| {
            refused("it must hold lines `caller token`, each token 16 characters or longer")
        })
    }

    fn parse(text: &str) -> Option<Self> {
        // Shorter ones can be guessed.
        const LENGTH_MIN: usize = 16;
        let lines = text.lines().map(str::trim);
        let tokens = lines
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| {
                let mut words = line.split_whitespace();
                let (caller, secret) = (words.next()?, words.next()?);
                let fits = words.next().is_none() && secret.len() >= LENGTH_MIN;
                fits.then(|| BearerToken {
                    caller: Arc::from([caller.to_owned()]),
                    secret: secret.as_bytes().to_vec(),
                })
            });
        let tokens: Option<Vec<BearerToken>> = tokens.collect();
        tokens.filter(|tokens| !tokens.is_empty()).map(Self)
    }

    /// Compares every token in full, in constant time, so that the duration reveals nothing.
    fn caller(&self, given: &[u8]) -> Option<Arc<[String]>> {
        let mut found = None;
        for token in &self.0 {
            if bool::from(token.secret.ct_eq(given)) {
                found = Some(Arc::clone(&token.caller));
            }
        }
        found
    }
}

/// The names of a certificate's owner: the subject alternative names, and the namespace in a
/// SPIFFE id or in the DNS name of a Kubernetes service. The common name counts only if there
/// are no others.
pub(super) fn certificate_names(certificate: &[u8]) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else {
        return Vec::new();
    };
    let mut names = Vec::new();
    if let Ok(Some(alternative)) = certificate.subject_alternative_name() {
        for name in &alternative.value.general_names {
            if let GeneralName::DNSName(name) | GeneralName::URI(name) = name {
                names.extend(namespace_in(name));
                names.push((*name).to_owned());
            }
        }
    }
    if names.is_empty() {
        let common = certificate.subject().iter_common_name();
        names.extend(common.filter_map(|name| name.as_str().ok().map(str::to_owned)));
    }
    names
}

/// `spiffe://trust.domain/ns/NAMESPACE/…` or `service.NAMESPACE.svc…`.
fn namespace_in(name: &str) -> Option<String> {
    if let Some(id) = name.strip_prefix("spiffe://") {
        let mut parts = id.split('/').skip(1);
        return (parts.next() == Some("ns")).then(|| parts.next().map(str::to_owned))?;
    }
    let mut labels = name.split('.').skip(1);
    let namespace = labels.next()?;
    (labels.next() == Some("svc")).then(|| namespace.to_owned())
}

/// Authenticates, rate-limits and authorizes requests.
#[derive(Debug)]
pub(super) struct Gate {
    clock: Clock,
    allowed: Vec<Allowed>,
    /// The valid tokens; `None`: callers need none.
    tokens: Option<ArcSwap<Tokens>>,
    rate: RateLimiter,
}

impl Gate {
    pub(super) fn new(config: &PeerServerConfig, tokens: Option<Tokens>, clock: Clock) -> Self {
        Self {
            clock,
            allowed: config.allowed.clone(),
            tokens: tokens.map(ArcSwap::from_pointee),
            rate: RateLimiter::new(config.peer_rate),
        }
    }

    /// Replaces the valid tokens.
    pub(super) fn replace(&self, tokens: Tokens) {
        if let Some(current) = &self.tokens {
            current.store(Arc::new(tokens));
        }
    }

    /// The caller's identity: by the token if tokens are configured, else by the certificate.
    pub(super) fn identify(
        &self,
        metadata: &MetadataMap,
        extensions: &Extensions,
    ) -> std::result::Result<CallerIdentity, Status> {
        let peer = extensions.get::<ConnectionPeer>();
        let address = peer.map_or(IpAddr::from([0, 0, 0, 0]), |peer| peer.address);
        let Some(tokens) = &self.tokens else {
            let names = peer.map_or_else(|| Arc::from([]), |peer| Arc::clone(&peer.names));
            return Ok(CallerIdentity { names, address });
        };
        let given = metadata.get("authorization").map(|value| value.as_bytes());
        let token = given.and_then(bearer).ok_or_else(|| {
            status::unauthenticated("a bearer token is needed in the metadata `authorization`")
        })?;
        let names = tokens
            .load()
            .caller(token)
            .ok_or_else(|| status::unauthenticated("this bearer token is not known here"))?;
        Ok(CallerIdentity { names, address })
    }

    /// Checks the caller's rate limit.
    pub(super) fn check_rate(&self, caller: &CallerIdentity) -> Result<()> {
        let now = self.clock.now();
        let within = match caller.names.first() {
            Some(name) => self.rate.allow(name, now),
            None => self.rate.allow(&caller.address.to_string(), now),
        };
        if within {
            return Ok(());
        }
        let text = format!(
            "{} asks more than {} times a second",
            caller.shown(),
            self.rate.per_second
        );
        Err(Error::new(ErrorKind::Overloaded, text).with_outcome(WriteOutcome::NotSent))
    }

    /// Checks that the table allows this caller this method on this namespace.
    pub(super) fn authorize(
        &self,
        caller: &CallerIdentity,
        method: &str,
        namespace: &Namespace,
    ) -> Result<()> {
        let fits = |line: &Allowed| {
            line.caller.as_ref().is_none_or(|name| caller.is(name))
                && line.method.as_ref().is_none_or(|name| name == method)
                && line.namespace.as_ref().is_none_or(|name| name == namespace)
        };
        if self.allowed.iter().any(fits) {
            return Ok(());
        }
        let text = format!("{} may not call {method} on {namespace}", caller.shown());
        let error = Error::new(ErrorKind::PermissionDenied, text)
            .with("caller", caller.shown())
            .with("method", method)
            .with("namespace", namespace);
        Err(error.with_outcome(WriteOutcome::NotSent))
    }
}

fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(token)
}

/// A token bucket per caller, with the capacity of one second.
#[derive(Debug)]
struct RateLimiter {
    per_second: u32,
    /// Each bucket's level, and the time of that level. Never held across an await.
    buckets: Mutex<HashMap<String, (f64, Tick)>>,
}

impl RateLimiter {
    fn new(per_second: u32) -> Self {
        Self {
            per_second,
            buckets: Mutex::default(),
        }
    }

    fn allow(&self, caller: &str, now: Tick) -> bool {
        /// Above this many callers, full buckets are evicted: a new bucket is full, too.
        const CALLERS_MAX: usize = 10_000;
        let full = f64::from(self.per_second);
        let filled =
            |left: f64, since: Tick| full.min(now.since(since).as_secs_f64().mul_add(full, left));
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((left, since)) = buckets.get_mut(caller) {
            *left = filled(*left, *since);
            *since = now;
            if *left < 1.0 {
                return false;
            }
            *left -= 1.0;
            return true;
        }
        if buckets.len() >= CALLERS_MAX {
            buckets.retain(|_, (left, since)| filled(*left, *since) < full);
        }
        buckets.insert(caller.to_owned(), (full - 1.0, now));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn several_tokens_are_valid_at_once() {
        let text = "# rotated on Monday\ngame 0123456789abcdef\n\ngame fedcba9876543210\n";
        let tokens = Tokens::parse(text).unwrap();
        for good in ["0123456789abcdef", "fedcba9876543210"] {
            let caller = tokens.caller(good.as_bytes()).unwrap();
            assert_eq!(caller.first().map(String::as_str), Some("game"));
        }
        for bad in [
            "",
            "0123456789abcde",
            "0123456789abcdeg",
            "0123456789abcdef0",
        ] {
            assert!(tokens.caller(bad.as_bytes()).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn malformed_token_file_is_refused() {
        for bad in ["", "# nothing\n", "game\n", "game short\n", "a b c\n"] {
            assert!(Tokens::parse(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn debug_hides_tokens() {
        let tokens = Tokens::parse("game 0123456789abcdef").unwrap();
        assert!(!format!("{tokens:?}").contains("0123"));
    }

    #[test]
    fn namespace_is_read_from_a_name() {
        for (name, namespace) in [
            ("spiffe://cluster.local/ns/game/sa/default", Some("game")),
            ("spiffe://cluster.local/game", None),
            ("spiffe://ns/ns/game", Some("game")),
            ("client.game.svc.cluster.local", Some("game")),
            ("client.game.svc", Some("game")),
            ("client.game.example", None),
            ("game", None),
        ] {
            assert_eq!(namespace_in(name).as_deref(), namespace, "{name}");
        }
    }

    fn gate(lines: &[(&str, &str, &str)]) -> Gate {
        let methods = ["GetLinkedPod", "SetLinkedPod"];
        let read = |(c, m, n): &(&str, &str, &str)| Allowed::parse(c, m, n, &methods).unwrap();
        Gate {
            clock: Clock::System,
            allowed: lines.iter().map(read).collect(),
            tokens: None,
            rate: RateLimiter::new(2),
        }
    }

    fn caller(name: &str) -> CallerIdentity {
        CallerIdentity {
            names: Arc::from([name.to_owned()]),
            address: IpAddr::from([127, 0, 0, 1]),
        }
    }

    #[test]
    fn what_no_line_allows_is_denied() {
        let (prod, test) = (
            Namespace::new("prod").unwrap(),
            Namespace::new("test").unwrap(),
        );
        let may = |gate: &Gate, who: &str, method: &str, namespace: &Namespace| {
            gate.authorize(&caller(who), method, namespace).is_ok()
        };
        assert!(!may(&gate(&[]), "game", "GetLinkedPod", &prod));
        let gate = gate(&[("game", "GetLinkedPod", "prod"), ("admin", "*", "*")]);
        assert!(may(&gate, "game", "GetLinkedPod", &prod));
        assert!(!may(&gate, "game", "SetLinkedPod", &prod));
        assert!(!may(&gate, "game", "GetLinkedPod", &test));
        assert!(!may(&gate, "other", "GetLinkedPod", &prod));
        assert!(may(&gate, "admin", "SetLinkedPod", &test));
    }

    #[test]
    fn rate_limit_refills_over_time() {
        let rate = RateLimiter::new(2);
        let at = |ms| Tick::ZERO.after(Duration::from_millis(ms));
        assert!(rate.allow("a", at(0)) && rate.allow("a", at(0)));
        assert!(!rate.allow("a", at(0)));
        assert!(rate.allow("b", at(0)));
        assert!(rate.allow("a", at(500)));
        assert!(!rate.allow("a", at(500)));
    }
}
