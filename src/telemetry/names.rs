//! Every metric: its name, help text, labels and allowed label values. One table, used by the
//! scrape, the documentation and the tests.
//!
//! No label holds a uid. The values of a label are a list in this file, or are bounded: by the
//! application's configuration (peers, endpoints), or by a cap with an `other` behind it (services,
//! pods).

use crate::error::ErrorKind;
use crate::op::{CallName, OperationName};

/// The kind of a metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// It only increases, also when drivers are closed and dropped.
    Counter,
    /// It goes up and down. The values of several drivers are merged by this rule.
    Gauge(Merge),
    /// Counts in buckets with these upper bounds; the infinite one is implied.
    Histogram(&'static [f64]),
}

/// How gauges of several drivers are merged into one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Merge {
    /// The sum.
    Sum,
    /// The largest: all drivers measure the same thing.
    Most,
    /// The smallest.
    Least,
}

/// A label.
#[derive(Debug)]
pub struct Label {
    /// Its name.
    pub name: &'static str,
    /// Its allowed values.
    pub values: Values,
}

/// The allowed values of a label.
#[derive(Debug, Clone, Copy)]
pub enum Values {
    /// One of these.
    OneOf(fn() -> Vec<&'static str>),
    /// At most this many different values for each store, then `other`.
    AtMost(usize),
    /// As many as the application has configured.
    Configured,
}

/// A metric.
#[derive(Debug)]
pub struct Metric {
    /// The name of the metric family; a counter's series has `_total` appended.
    pub name: &'static str,
    /// Its kind.
    pub kind: Kind,
    /// Its help text.
    pub help: &'static str,
    /// Its labels, in order.
    pub labels: &'static [&'static Label],
}

impl Metric {
    /// The name up to the unit, and the unit, if it has one.
    #[must_use]
    pub fn parts(&self) -> (&'static str, Option<&'static str>) {
        const UNITS: [&str; 1] = ["seconds"];
        let unit = UNITS.into_iter().find(|unit| {
            let bare = self.name.strip_suffix(unit);
            bare.is_some_and(|bare| bare.ends_with('_'))
        });
        let length = unit.map_or(0, |unit| unit.len() + 1);
        (&self.name[..self.name.len() - length], unit)
    }
}

/// The label value of all services or pods beyond the cap.
pub const OTHER: &str = "other";
/// The number of services of one store that have series of their own.
pub const SERVICES_MAX: usize = 64;
/// The number of pods of one service that have series of their own.
pub const PODS_MAX: usize = 128;

/// The link operations. All lookups that the cache answers are counted as `get_linked_in_cache`.
pub const OPERATIONS: [&str; OperationName::LINKS.len()] =
    OperationName::texts(OperationName::LINKS);

/// The calls of the store.
pub const STORE_CALLS: [&str; CallName::ALL.len()] = CallName::texts(CallName::ALL);

/// The calls that a peer is asked for.
pub const PEER_METHODS: [&str; CallName::ALL.len()] = CallName::texts(CallName::ALL);

/// The application's hooks.
pub const HOOKS: [&str; 12] = [
    "strategy",
    "load",
    "drain",
    "lease_suspended",
    "lease_resumed",
    "lease_lost",
    "ownership_lost",
    "ownership_renewed",
    "pod_lost",
    "routing_state",
    "condition",
    "callback",
];

/// The windows of ratios and rates, with their lengths in seconds.
pub const WINDOWS: [(&str, u64); 3] = [("1m", 60), ("5m", 300), ("15m", 900)];

/// The outcomes of a call: ok, or the code of its error.
fn codes() -> Vec<&'static str> {
    let errors = ErrorKind::ALL.into_iter().map(ErrorKind::code);
    std::iter::once("ok").chain(errors).collect()
}

fn outcomes() -> Vec<&'static str> {
    std::iter::once("cached").chain(codes()).collect()
}

macro_rules! labels {
    ($($name:ident = $text:literal $values:expr;)+) => {
        $(static $name: Label = Label { name: $text, values: $values };)+
    };
}

labels! {
    OPERATION = "operation" Values::OneOf(|| OPERATIONS.to_vec());
    OUTCOME = "outcome" Values::OneOf(outcomes);
    RESULT = "result" Values::OneOf(|| vec!["ok", "timeout", "error"]);
    CODE = "code" Values::OneOf(codes);
    CALL_OUTCOME = "outcome" Values::OneOf(codes);
    CALL = "call" Values::OneOf(|| STORE_CALLS.to_vec());
    DONE = "outcome" Values::OneOf(|| vec!["ok", "failed"]);
    WINDOW = "window" Values::OneOf(|| WINDOWS.map(|(name, _)| name).to_vec());
    NAMESPACE = "namespace" Values::AtMost(SERVICES_MAX);
    SERVICE = "service" Values::AtMost(SERVICES_MAX);
    POD = "pod" Values::AtMost(PODS_MAX);
    STANDING = "state" Values::OneOf(|| vec!["ready", "draining", "shutdown", "lapsed"]);
    CLAIM_OUTCOME = "outcome" Values::OneOf(|| vec!["made", "repeated", "not_owner", "failed"]);
    LOSS = "reason" Values::OneOf(|| vec!["taken", "removed", "lease_lost"]);
    FATE = "state" Values::OneOf(|| vec!["remaining", "released", "handed_over"]);
    PEER = "peer" Values::Configured;
    METHOD = "method" Values::OneOf(|| PEER_METHODS.to_vec());
    ENDPOINT = "endpoint" Values::Configured;
    CONDITION = "condition" Values::OneOf(|| {
        vec!["READY", "CONNECTING", "EJECTED", "NOT_SERVING", "DOWN"]
    });
    HOOK = "hook" Values::OneOf(|| HOOKS.to_vec());
    VERSION = "version" Values::OneOf(|| vec![env!("CARGO_PKG_VERSION")]);
}

/// From the 0.1 ms of a local store to longer than any deadline in practice.
const LATENCIES: &[f64] = &[
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0,
];
/// The scale of lease durations.
const LEASES: &[f64] = &[
    0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 10.0, 15.0, 30.0, 60.0,
];
const SIZES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

macro_rules! metrics {
    ($($name:ident = $kind:expr, $text:literal [$($label:ident),*] $help:literal;)+) => {
        $(
            #[doc = $help]
            pub static $name: Metric = Metric {
                name: $text,
                kind: $kind,
                help: $help,
                labels: &[$(&$label),*],
            };
        )+
        /// Every metric, in the order of the scrape.
        pub static ALL: &[&Metric] = &[$(&$name),+];
    };
}

use Kind::{Counter, Gauge, Histogram};
use Merge::{Least, Most, Sum};

metrics! {
    BUILD = Gauge(Most), "podlink_build_info" [VERSION]
        "Always 1; the label says which podlink this is.";

    // Are users routed, and how fast?
    OPERATIONS_TOTAL = Counter, "podlink_operations" [OPERATION, OUTCOME]
        "Link operations that have ended, by outcome: cached, ok (by the store or a peer), or an error's code.";
    OPERATION_DURATION = Histogram(LATENCIES), "podlink_operation_duration_seconds" [OPERATION, RESULT]
        "Duration of the link operations that the cache did not answer.";
    FLIGHTS_JOINED = Counter, "podlink_flights_joined" []
        "Callers that joined another caller's flight for the same user (single flight).";
    CACHE_HITS = Counter, "podlink_cache_hits" []
        "Computes and lookups that the cache answered.";
    CACHE_MISSES = Counter, "podlink_cache_misses" []
        "Computes and lookups that the cache could not answer.";
    CACHE_STALE = Counter, "podlink_cache_stale" []
        "Cache misses where the cache held an invalid entry: it had expired, or its pod was gone or restarted.";
    CACHE_EVICTIONS = Counter, "podlink_cache_evictions" []
        "Entries that were evicted to make room for others.";
    CACHE_INVALIDATIONS = Counter, "podlink_cache_invalidations" []
        "Entries that the application removed or overwrote.";
    CACHE_ENTRIES = Gauge(Sum), "podlink_cache_entries" []
        "Links that the cache holds.";
    CACHE_HIT_RATIO = Gauge(Most), "podlink_cache_hit_ratio" [WINDOW]
        "The share of computes and lookups that the cache answered, from 0 to 1; absent where there were none.";

    // What happens to links?
    LINKS_MADE = Counter, "podlink_links_made" [NAMESPACE, SERVICE]
        "Links created for new users.";
    LINKS_HEALED = Counter, "podlink_links_healed" [NAMESPACE, SERVICE, POD]
        "Users that a compute moved away from this pod, which was dead or had shut down.";
    LINKS_MOVED = Counter, "podlink_links_moved" [NAMESPACE, SERVICE, POD]
        "Users that this pod handed over to others when it stopped.";
    LINKS_RELEASED = Counter, "podlink_links_released" [NAMESPACE, SERVICE, POD]
        "Users that this pod released when it stopped.";
    LINKS_REFUSED = Counter, "podlink_links_refused" [NAMESPACE, SERVICE]
        "Computes that found no routable pod for their user.";
    OWNERS_UNSURE = Counter, "podlink_owners_unsure" []
        "Users kept on a pod whose lease has expired but whose death is not certified.";
    MISROUTED = Counter, "podlink_misrouted_reports" []
        "Times that the application reported a pod that said 'not mine'.";
    HINTS_REPLACED = Counter, "podlink_hints_replaced" []
        "Links without an owner that a compute moved away from a pod that had said 'not mine'.";
    REFUSALS = Gauge(Sum), "podlink_refusals" []
        "Users for whom a pod's 'not mine' is remembered.";
    DEGRADED_CHOICES = Counter, "podlink_degraded_choices" []
        "Pods chosen while every pod was over the overload limit.";
    STRATEGY_OVERLOADS = Counter, "podlink_strategy_overloads" []
        "Choices that podlink made because the application's strategy was too slow for all of them.";
    LINK_CORRUPT = Counter, "podlink_link_corrupt" []
        "Links that could not be read and were left out of batches and lists.";

    // What is known of the pods?
    PODS = Gauge(Most), "podlink_pods" [NAMESPACE, SERVICE, STANDING]
        "Pods by state, as this process sees them.";
    PODS_ROUTABLE = Gauge(Most), "podlink_routable_pods" [NAMESPACE, SERVICE]
        "Pods that take new users, as this process sees them.";
    PODS_AGE = Gauge(Most), "podlink_pods_age_seconds" [NAMESPACE, SERVICE]
        "How long ago the pods were last read.";
    STATE_REFRESHES = Counter, "podlink_state_refreshes" [DONE]
        "Readings of all pods of a service.";
    STATE_EVENTS = Counter, "podlink_state_events" []
        "Changes of pods that the store's channel published.";
    STATE_CORRUPT = Counter, "podlink_state_corrupt" []
        "States of pods that could not be read and were skipped.";
    STATE_STALE = Counter, "podlink_state_stale_periods" []
        "Refresh periods in which pods were served although the store could not be read.";
    CHANNEL_LOSSES = Counter, "podlink_channel_losses" []
        "Times that the channel of events was lost; polling bridged the gap.";
    LISTEN_FAILURES = Counter, "podlink_listen_failures" []
        "Failed attempts to open the channel of events.";

    // Is the store the cause?
    STORES = Gauge(Sum), "podlink_stores" []
        "Stores that are in use.";
    STORE_CONNECTED = Gauge(Sum), "podlink_store_connected" []
        "Stores that can be called at this moment: in memory, or with a connection that works.";
    STORE_CALLS_TOTAL = Counter, "podlink_store_calls" [CALL, CALL_OUTCOME]
        "Calls to the store that have ended, by outcome: ok, or an error's code. TIMEOUT: no answer in time.";
    STORE_CALL_DURATION = Histogram(LATENCIES), "podlink_store_call_duration_seconds" [CALL, RESULT]
        "Duration of calls to the store.";
    STORE_IN_FLIGHT = Gauge(Sum), "podlink_store_calls_in_flight" []
        "Calls to the store in flight.";
    STORE_UNKNOWN = Counter, "podlink_store_unknown_outcomes" [CALL]
        "Writes that failed and may have been applied nevertheless.";
    STORE_BATCH = Histogram(SIZES), "podlink_store_batch_size" [CALL]
        "Number of items in batch calls.";
    STORE_CONNECTS = Counter, "podlink_store_connects" []
        "Connections opened; each but the first of a store is a reconnect.";
    STORE_FAILED_DIALS = Counter, "podlink_store_failed_dials" []
        "Attempts to connect that failed.";
    STORE_DISCONNECTS = Counter, "podlink_store_disconnects" []
        "Connections lost or given up.";
    STORE_UNANSWERED = Counter, "podlink_store_unanswered_calls" []
        "Calls that were sent and not answered in time.";
    STORE_SCRIPT_LOADS = Counter, "podlink_store_script_loads" []
        "Scripts sent with their source, because the server did not have them.";

    // Is a peer the cause?
    PEER_CALLS = Counter, "podlink_peer_calls" [PEER, METHOD, CODE]
        "Calls to another namespace's peer that have ended, by outcome: ok, or an error's code.";
    PEER_CALL_DURATION = Histogram(LATENCIES), "podlink_peer_call_duration_seconds" [PEER, METHOD, RESULT]
        "Duration of calls to another namespace's peer, including retries.";
    PEER_ENDPOINTS = Gauge(Most), "podlink_peer_endpoints" [PEER, ENDPOINT, CONDITION]
        "1 for the condition that an endpoint is in, 0 for the others.";

    // How is this pod?
    PUBLICATIONS = Counter, "podlink_publications" [DONE]
        "States that this process's pods tried to publish, each a renewal of the lease.";
    PUBLICATION_DURATION = Histogram(LATENCIES), "podlink_publication_duration_seconds" []
        "Duration of successful publications.";
    PUBLICATION_LATENESS = Histogram(LEASES), "podlink_publication_lateness_seconds" []
        "How much longer than a period the gap between two publications was.";
    LEASE_MARGIN = Histogram(LEASES), "podlink_lease_margin_seconds" []
        "What was left of the lease, minus the guard, at renewal.";
    LEASE_LEFT = Gauge(Least), "podlink_lease_left_seconds" [NAMESPACE, SERVICE, POD]
        "What is left of the pod's lease now, minus the guard; 0 once it has expired.";
    LEASES_LOST = Counter, "podlink_leases_lost" []
        "Leases lost for good: declared dead, or the pod index taken by another process.";
    SUSPENSIONS = Counter, "podlink_lease_suspensions" []
        "Leases that were not renewed in time; what the pod owns then waits for a confirmation.";
    PROGRAM_STALLS = Counter, "podlink_program_stalls" []
        "Times that the event loop or thread of a pod's program did not answer within watchdog; the pod then took no new users until it did.";
    INDEX_BUSY = Counter, "podlink_index_busy" []
        "Attempts to take the pod index that found an earlier process alive.";
    CLOCK_STEPS = Counter, "podlink_clock_steps" []
        "Steps forward of the store's clock that this process's pods reported.";
    CLOCK_STEPS_UNBELIEVED = Counter, "podlink_clock_steps_unbelieved" []
        "Reports of such steps that the store did not believe, because only this pod makes them, again and again: the clock of its machine is wrong.";
    WORKLOAD_WRITES = Counter, "podlink_workload_writes" [DONE]
        "States of the whole service that this process's pods tried to write.";
    POD_LOAD = Gauge(Most), "podlink_pod_load" [NAMESPACE, SERVICE, POD]
        "The load that the pod publishes; lower is better.";
    OWNED_USERS = Gauge(Sum), "podlink_owned_users" [NAMESPACE, SERVICE, POD]
        "Users that the pod owns, confirmed or not.";
    CLAIMS = Counter, "podlink_claims" [CLAIM_OUTCOME]
        "Claims of users by this process's pods, by outcome.";
    OWNERSHIPS_LOST = Counter, "podlink_ownerships_lost" [LOSS]
        "Owned users that were lost, by reason.";
    REASSERTED = Counter, "podlink_ownerships_reasserted" []
        "Users claimed again by their owner, because the store had forgotten them.";
    VERIFIED = Counter, "podlink_ownerships_verified" []
        "Owned users that the store was asked about.";
    LATE_ANSWERS = Counter, "podlink_late_answers_refused" []
        "Claims that the store granted too late to count: the lease had ended, or the pod takes no users.";
    DRAINING = Gauge(Most), "podlink_draining" [NAMESPACE, SERVICE, POD]
        "1 while the pod is being stopped, otherwise 0.";
    DRAIN_USERS = Gauge(Most), "podlink_drain_users" [NAMESPACE, SERVICE, POD, FATE]
        "What happened to the users of a pod that is being stopped, or was.";
    DRAIN_DURATION = Histogram(LEASES), "podlink_drain_duration_seconds" []
        "Duration of stops.";

    // Are the application's hooks or loops the cause?
    HOOK_CALLS = Counter, "podlink_hook_calls" [HOOK]
        "Calls of the application's hooks.";
    HOOK_FAILURES = Counter, "podlink_hook_failures" [HOOK]
        "Calls of the application's hooks that raised, returned an invalid value or timed out.";
    HOOK_DURATION = Histogram(LATENCIES), "podlink_hook_duration_seconds" [HOOK]
        "Duration of the application's hooks; where podlink waits for the result, including the wait for their loop or thread.";
    BRIDGE_WAITING = Gauge(Most), "podlink_bridge_waiting" []
        "Results and hook calls that wait for a Python loop or thread, of the whole process.";
    BRIDGE_OPERATIONS = Gauge(Most), "podlink_bridge_operations" []
        "Operations in flight that Python code awaits, of the whole process.";
    BRIDGE_BATCH = Histogram(SIZES), "podlink_bridge_batch_size" []
        "Number of results and hook calls that a loop drained at once, of the whole process.";
    BRIDGE_WAKE_UPS = Counter, "podlink_bridge_wake_ups" []
        "Times that a loop or thread was woken, of the whole process.";
    BRIDGE_DROPPED = Counter, "podlink_bridge_dropped_calls" []
        "Hook calls dropped because their loop or thread did not keep up, of the whole process.";
}
