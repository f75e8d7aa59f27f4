//! Every setting, as plain data: validated once when built, trusted afterwards.
//!
//! Each setting is defined by one row of a table; how settings relate is checked in `check`.

mod rpc;
mod setting;
mod store;

use std::time::Duration;

use crate::error::{Error, Result};
use crate::id::invalid;
use crate::route::address::AddressTemplate;
use crate::route::pick::Strategy;
use setting::SettingKind::{Choice, Count, Flag, Limit, Ratio, Seconds, SecondsOrNone, Text};
use setting::{choice, choices, settings};

pub use crate::op::LeaseTimes;
pub use rpc::{Allowed, Balance, PeerClientConfig, PeerServerConfig, PeerUrl, ServerTls};
pub use setting::{Setting, SettingKind, SettingType, SettingValue, SettingsGroup};
pub use store::{ServerAddress, StoreAddress, StoreConfig, StoreEndpoint, TlsFiles};

/// Every setting, by the Python class that has it.
#[must_use]
pub fn config_table() -> Vec<(&'static str, Vec<Setting>)> {
    vec![
        ("ClientConfig", ClientConfig::table()),
        ("RouteInfoConfig", RouteInfoDriverConfig::table()),
        ("ServerConfig", ServerConfig::table()),
        ("GrpcClientConfig", PeerClientConfig::table()),
        ("GrpcServerConfig", PeerServerConfig::table()),
        ("Store", store::OPTIONS_TABLE.to_vec()),
    ]
}

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

/// The most that a duration may be where there is no reason for less: a hundred years.
const HUNDRED_YEARS: f64 = 3_153_600_000.0;

/// The deadline of a call that sets none.
const CALL_TIMEOUT: SettingKind = Seconds {
    default: 2.0,
    least: 0.001,
    most: 3600.0,
};

choices! {
    /// What happens to a user whose pod restarted as a new process.
    pub enum OnRestart of "on_restart" {
        /// The user stays with the pod index.
        SamePod = "same_pod",
        /// A pod is chosen again.
        BestPod = "best_pod",
    }
}

choices! {
    /// What happens to the links that a pod still owns when it stops.
    pub enum Drain of "drain" {
        /// They become routing hints for `link_grace`.
        Release = "release",
        /// They are handed to other pods that take new users.
        Handover = "handover",
        /// They are not changed.
        Keep = "keep",
    }
}

choice! { Strategy { strategy => strategy.as_str() } }

/// The strategies that users can name; a function has another argument.
const STRATEGIES: &[&str] = &[
    Strategy::P2c.as_str(),
    Strategy::LeastLoad.as_str(),
    Strategy::RoundRobin.as_str(),
    Strategy::Weighted.as_str(),
    Strategy::Rendezvous.as_str(),
];

settings! {
    /// The settings of a client driver.
    #[derive(Debug, Clone)]
    pub struct ClientConfig {
        settings {
            /// How long a link made by `compute` lasts.
            link_ttl: Duration = Seconds { default: 300.0, least: 1.0, most: HUNDRED_YEARS },
            /// How long an answer may come from the local cache.
            cache_ttl: Duration = Seconds { default: 240.0, least: 0.0, most: HUNDRED_YEARS },
            /// How many links the local cache holds.
            cache_capacity: u64 = Count { default: 1_000_000, least: 1, most: i64::MAX },
            /// How a new user's pod is chosen.
            strategy: Strategy = Choice { default: "p2c", names: STRATEGIES },
            /// The deadline of a call that sets none.
            timeout: Duration = CALL_TIMEOUT,
            /// What happens to a user whose pod restarted as a new process.
            on_restart: OnRestart = Choice { default: "same_pod", names: OnRestart::NAMES },
            /// The address of a pod whose metadata has no `address`.
            address_template: AddressTemplate = Text { default: AddressTemplate::DEFAULT },
        }
    }
}

impl ClientConfig {
    /// Validates the settings and how they relate.
    ///
    /// # Errors
    /// `InvalidParameter` that names the setting, or both settings.
    pub fn check(self) -> Result<Self> {
        self.check_each()?;
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

settings! {
    /// How pods are read: the settings of the state cache in a route info driver or client driver.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct RouteInfoConfig {
        settings {
            /// How often the pods of a service in use are read.
            refresh: Duration = Seconds { default: 1.0, least: 0.01, most: 3600.0 },
            /// A READY pod above this load gets no new users while another one is below.
            overload_limit: Option<i64> = Limit,
            /// After this long without a lookup a service is no longer read.
            idle: Duration = Seconds { default: 600.0, least: 1.0, most: 86_400.0 },
            /// While the store cannot be read, use the last known pods instead of letting leases
            /// expire.
            serve_stale: bool = Flag { default: false },
            /// How long a tag may come from the local cache.
            tag_ttl: Duration = Seconds { default: 60.0, least: 0.0, most: 86_400.0 },
        }
    }
}

impl RouteInfoConfig {
    /// Validates the settings and how they relate.
    ///
    /// # Errors
    /// `InvalidParameter` that names the setting, or both settings.
    pub fn check(self) -> Result<Self> {
        self.check_each()?;
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

settings! {
    /// The settings of a route info driver.
    ///
    /// Drivers share what they read of a foreign namespace if `states` is equal, so that has only
    /// settings that change the reading.
    #[derive(Debug, Clone)]
    pub struct RouteInfoDriverConfig {
        parts {
            /// How pods are read.
            states: RouteInfoConfig,
        }
        settings {
            /// How long the program's own clients may cache a link; the driver only reports it.
            link_cache_ttl: Duration = Seconds { default: 240.0, least: 0.0, most: f64::INFINITY },
            /// The deadline of a call that sets none.
            timeout: Duration = CALL_TIMEOUT,
        }
    }
}

impl RouteInfoDriverConfig {
    /// Validates the settings and how they relate.
    ///
    /// # Errors
    /// `InvalidParameter` that names the setting, or both settings.
    pub fn check(mut self) -> Result<Self> {
        self.check_each()?;
        self.states = self.states.check()?;
        Ok(self)
    }
}

settings! {
    impl LeaseTimes {
        /// How long a renewal is proof of life.
        lease: Duration = Seconds { default: 10.0, least: 0.1, most: 3600.0 },
        /// How long after its lease a pod may not be declared dead.
        grace: Duration = Seconds { default: 5.0, least: 0.0, most: 3600.0 },
        /// A longer silence of all pods counts as an outage of the store.
        gap: Duration = Seconds { default: 4.0, least: 0.01, most: 3600.0 },
    }
}

settings! {
    /// The settings of a server driver.
    #[derive(Debug, Clone)]
    pub struct ServerConfig {
        parts {
            /// The durations of the lease.
            times: LeaseTimes,
        }
        settings {
            /// How often the lease is renewed and the state published.
            renew: Duration = Seconds { default: 2.0, least: 0.01, most: 3600.0 },
            /// The pod stops acting this much before its lease ends.
            guard: Duration = Seconds { default: 1.0, least: 0.0, most: 3600.0 },
            /// The share of the CPU in the published load, 0 to 1.
            cpu_factor: f64 = Ratio { default: 0.7 },
            /// How long a removed link stays as a routing hint.
            link_grace: Duration = Seconds { default: 60.0, least: 0.0, most: HUNDRED_YEARS },
            /// What happens to the links that the pod still owns when it stops.
            drain: Drain = Choice { default: "release", names: Drain::NAMES },
            /// How long a stop may take that sets no deadline.
            stop_deadline: Duration = Seconds { default: 25.0, least: 0.001, most: 3600.0 },
            /// A pod whose program has not answered for this long takes no new users.
            watchdog: Option<Duration> = SecondsOrNone { default: 5.0, least: 0.1, most: 3600.0 },
            /// The deadline of a call that sets none.
            timeout: Duration = CALL_TIMEOUT,
        }
    }
}

impl ServerConfig {
    /// Validates the settings and how they relate (docs/decisions/0006).
    ///
    /// # Errors
    /// `InvalidParameter` that names the setting, or both settings.
    pub fn check(self) -> Result<Self> {
        self.check_each()?;
        let LeaseTimes { lease, grace, gap } = self.times;
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
        ServerConfig::defaults().unwrap()
    }

    #[test]
    fn defaults_are_within_their_limits() {
        assert!(ClientConfig::defaults().unwrap().check().is_ok());
        assert!(RouteInfoDriverConfig::defaults().unwrap().check().is_ok());
        assert!(server_config().check().is_ok());
        assert!(PeerServerConfig::defaults().unwrap().check().is_ok());
        let mut client = PeerClientConfig::defaults().unwrap();
        client.endpoints = vec![PeerUrl::parse("grpc://h:1").unwrap()];
        assert!(client.check().is_ok());
    }

    fn reads_back<T: SettingType>(setting: &Setting, given: SettingValue<'_>) -> bool {
        T::read(setting, given).unwrap().value() == given
    }

    #[test]
    fn every_choice_is_parsed() {
        let all = config_table().into_iter().flat_map(|(_, table)| table);
        for setting in all {
            let Choice { default, names } = setting.kind else {
                continue;
            };
            assert!(names.contains(&default), "{}", setting.name);
            for name in names {
                let given = SettingValue::Text(name);
                let reads = match setting.name {
                    "strategy" => reads_back::<Strategy>,
                    "on_restart" => reads_back::<OnRestart>,
                    "drain" => reads_back::<Drain>,
                    "balance" => reads_back::<Balance>,
                    other => unreachable!("{other} has no type here"),
                };
                assert!(reads(&setting, given), "{given}");
            }
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
