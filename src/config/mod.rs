//! Every setting, as plain data: validated once when built, trusted afterwards.

mod rpc;
mod store;

use std::time::Duration;

use crate::error::{Error, Result};
use crate::id::{invalid, shown};
use crate::route::pick::Strategy;

pub use crate::op::LeaseTimes;
pub use rpc::{Allowed, Balance, PeerClientConfig, PeerServerConfig, PeerUrl, ServerTls};
pub use store::{ServerAddress, StoreAddress, StoreConfig, StoreEndpoint, TlsFiles};

/// Reads a number of seconds within a range, ends included.
///
/// # Errors
/// `InvalidParameter` that names the parameter, the value and the range.
pub fn seconds_within(what: &'static str, seconds: f64, least: f64, most: f64) -> Result<Duration> {
    if seconds.is_finite() && seconds >= least && seconds <= most {
        return Ok(Duration::from_secs_f64(seconds));
    }
    Err(invalid(
        what,
        &seconds.to_string(),
        &format!("{least} to {most} seconds"),
    ))
}

/// What happens to a user whose pod restarted as a new process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnRestart {
    /// The user stays with the pod index.
    SamePod,
    /// A pod is chosen again.
    BestPod,
}

impl OnRestart {
    /// The rule with this name.
    ///
    /// # Errors
    /// `InvalidParameter` that lists the names.
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "same_pod" => Ok(Self::SamePod),
            "best_pod" => Ok(Self::BestPod),
            _ => Err(invalid("on_restart", &shown(name), "same_pod or best_pod")),
        }
    }
}

/// The settings of a client driver.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// The TTL of a link that `compute` creates.
    pub link_ttl: Duration,
    /// How long an answer may be served from the local cache.
    pub cache_ttl: Duration,
    /// How many links the local cache holds.
    pub cache_capacity: u64,
    /// How a new user's pod is chosen.
    pub strategy: Strategy,
    /// The deadline of a call that sets none.
    pub timeout: Duration,
    /// What happens to a user whose pod restarted as a new process.
    pub on_restart: OnRestart,
}

impl ClientConfig {
    /// Validates the settings and how they relate.
    ///
    /// # Errors
    /// `InvalidParameter` that names the setting, or both settings.
    pub fn check(self) -> Result<Self> {
        within("link_ttl", self.link_ttl, 1.0, 3_153_600_000.0)?;
        within("cache_ttl", self.cache_ttl, 0.0, 3_153_600_000.0)?;
        within("timeout", self.timeout, 0.001, 3600.0)?;
        if self.cache_capacity == 0 {
            return Err(invalid("cache_capacity", "0", "at least 1 entry"));
        }
        if self.cache_ttl > self.link_ttl {
            return Err(relation(
                "cache_ttl",
                self.cache_ttl,
                "at most",
                "link_ttl",
                self.link_ttl,
            ));
        }
        Ok(self)
    }
}

/// The settings of a route info driver, and of the state cache inside a client driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteInfoConfig {
    /// How often the pods of a service in use are read.
    pub refresh: Duration,
    /// A READY pod above this load gets no new users while another one is below.
    pub overload_limit: Option<i64>,
    /// A service without a lookup for this long is no longer read.
    pub idle: Duration,
    /// While the store cannot be read, use the last known pods instead of letting leases expire.
    pub serve_stale: bool,
    /// How long a tag may be served from the local cache.
    pub tag_ttl: Duration,
}

impl RouteInfoConfig {
    /// Validates the settings.
    ///
    /// # Errors
    /// `InvalidParameter` that names the setting.
    pub fn check(self) -> Result<Self> {
        within("refresh", self.refresh, 0.01, 3600.0)?;
        within("idle", self.idle, 1.0, 86_400.0)?;
        within("tag_ttl", self.tag_ttl, 0.0, 86_400.0)?;
        if self.idle < self.refresh {
            return Err(relation(
                "idle",
                self.idle,
                "at least",
                "refresh",
                self.refresh,
            ));
        }
        Ok(self)
    }
}

/// What happens to the links that a pod still owns when it stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drain {
    /// They become routing hints for `link_grace`.
    Release,
    /// They are handed to other pods that take new users.
    Handover,
    /// They are not changed.
    Keep,
}

impl Drain {
    /// The rule with this name.
    ///
    /// # Errors
    /// `InvalidParameter` that lists the names.
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "release" => Ok(Self::Release),
            "handover" => Ok(Self::Handover),
            "keep" => Ok(Self::Keep),
            _ => Err(invalid("drain", &shown(name), "release, handover or keep")),
        }
    }
}

/// The settings of a server driver.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// The durations of the lease.
    pub times: LeaseTimes,
    /// How often the lease is renewed and the state published.
    pub renew: Duration,
    /// The pod stops acting this much before its lease ends.
    pub guard: Duration,
    /// The share of the CPU in the published load, 0 to 1.
    pub cpu_factor: f64,
    /// How long a removed link stays as a routing hint.
    pub link_grace: Duration,
    /// What happens to the links that the pod still owns when it stops.
    pub drain: Drain,
    /// The deadline of a call that sets none.
    pub timeout: Duration,
}

impl ServerConfig {
    /// Validates the settings and how they relate (docs/decisions/0006).
    ///
    /// # Errors
    /// `InvalidParameter` that names the setting, or both settings.
    pub fn check(self) -> Result<Self> {
        let LeaseTimes { lease, grace, gap } = self.times;
        within("lease", lease, 0.1, 3600.0)?;
        within("grace", grace, 0.0, 3600.0)?;
        within("gap", gap, 0.01, 3600.0)?;
        within("renew", self.renew, 0.01, 3600.0)?;
        within("guard", self.guard, 0.0, 3600.0)?;
        within("link_grace", self.link_grace, 0.0, 3_153_600_000.0)?;
        within("timeout", self.timeout, 0.001, 3600.0)?;
        if !(0.0..=1.0).contains(&self.cpu_factor) {
            return Err(invalid(
                "cpu_factor",
                &self.cpu_factor.to_string(),
                "0 to 1",
            ));
        }
        if self.guard >= lease {
            return Err(relation("guard", self.guard, "below", "lease", lease));
        }
        let usable = lease - self.guard;
        if self.renew >= usable {
            return Err(relation(
                "renew",
                self.renew,
                "below",
                "lease - guard",
                usable,
            ));
        }
        if gap < self.renew * 2 {
            return Err(relation(
                "gap",
                gap,
                "at least",
                "2 × renew",
                self.renew * 2,
            ));
        }
        if grace < gap {
            return Err(relation("grace", grace, "at least", "gap", gap));
        }
        Ok(self)
    }
}

fn within(what: &'static str, value: Duration, least: f64, most: f64) -> Result<()> {
    seconds_within(what, value.as_secs_f64(), least, most).map(|_| ())
}

fn relation(
    what: &'static str,
    value: Duration,
    rule: &str,
    other: &str,
    limit: Duration,
) -> Error {
    let seconds = Duration::as_secs_f64;
    invalid(
        what,
        &format!("{} s", seconds(&value)),
        &format!("{rule} {other} ({} s)", seconds(&limit)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server_config() -> ServerConfig {
        let seconds = Duration::from_secs;
        ServerConfig {
            times: LeaseTimes {
                lease: seconds(10),
                grace: seconds(5),
                gap: seconds(4),
            },
            renew: seconds(2),
            guard: seconds(1),
            cpu_factor: 0.7,
            link_grace: seconds(60),
            drain: Drain::Release,
            timeout: seconds(2),
        }
    }

    #[test]
    fn conflicting_settings_are_rejected_with_both_names() {
        assert!(server_config().check().is_ok());
        let mut config = server_config();
        config.times.grace = Duration::from_secs(3);
        let text = config.check().unwrap_err().to_string();
        assert!(text.contains("grace") && text.contains("gap"), "{text}");
        let mut config = server_config();
        config.times.gap = Duration::from_secs(3);
        let text = config.check().unwrap_err().to_string();
        assert!(text.contains("gap") && text.contains("renew"), "{text}");
        let mut config = server_config();
        config.renew = Duration::from_secs(9);
        let text = config.check().unwrap_err().to_string();
        assert!(
            text.contains("renew") && text.contains("lease - guard"),
            "{text}"
        );
    }
}
