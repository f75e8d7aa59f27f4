//! The counters of each kind of driver.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::calls::Calls;
use super::histogram::Histogram;
use super::names::{self, Metric};
use super::registry::MetricSource;
use super::services::{ServiceCounters, ServiceNames};
use super::snapshot::MetricsSnapshot;
use super::windows::WindowReading;
use crate::error::{Result, WriteOutcome};
use crate::id::{PodIndex, ServiceId};
use crate::op::CallName;

macro_rules! counters {
    ($(#[$doc:meta])* $type:ident {
        $($(#[$field_doc:meta])* $field:ident,)*
        $(; $($(#[$part_doc:meta])* $part:ident: $part_type:ty = $made:expr,)+)?
    }) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $type {
            $($(#[$field_doc])* pub $field: AtomicU64,)*
            $($($(#[$part_doc])* pub $part: $part_type,)+)?
        }

        impl Default for $type {
            fn default() -> Self {
                Self {
                    $($field: AtomicU64::new(0),)*
                    $($($part: $made,)+)?
                }
            }
        }

        impl $type {
            /// Name and current value of each counter.
            #[must_use]
            pub fn read(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($field), self.$field.load(Ordering::Relaxed)),)*]
            }
        }
    };
}

counters!(
    /// The counters of a client driver.
    ClientStats {
        /// Computes that the local cache answered.
        cache_hits,
        /// Computes that the local cache could not answer.
        cache_misses,
        /// Lookups that the local cache answered.
        lookup_hits,
        /// Lookups that the local cache could not answer.
        lookup_misses,
        /// Computes and lookups for which the cache held an answer that was no longer valid.
        cache_stale,
        /// Entries that the application removed or overwrote.
        cache_invalidations,
        /// Callers that joined another caller's flight (single flight).
        flights_joined,
        /// Links that a compute created.
        links_made,
        /// Users moved away from a dead or shut-down pod.
        links_healed,
        /// Users kept on a pod whose lease has expired but whose death is not certified.
        owners_unsure,
        /// Reports of pods that said "not mine".
        misrouted,
        /// Links without an owner that were moved away from a pod that had said "not mine".
        hints_replaced,
        /// Choices made while every pod was over the overload limit.
        degraded_choices,
        /// Calls of the application's strategy that failed or returned no candidate.
        chooser_failures,
        /// Choices that podlink made because the application's strategy was too slow for all of them.
        chooser_overloads,
        /// Computes that found no routable pod.
        no_routable_pod,
        /// Links with a value that no pod wrote, which were left out of batches and lists.
        corrupt_links,
        ;
        /// The link operations that the cache did not answer.
        operations: Calls = operations(),
        /// The links by service.
        services: ServiceCounters = ServiceCounters::default(),
    }
);

counters!(
    /// The counters of a link cache.
    CacheStats {
        /// Entries that were evicted.
        evictions,
        /// Entries that had expired at lookup.
        ended,
    }
);

impl MetricSource for CacheStats {
    fn report(&self, snapshot: &mut MetricsSnapshot) {
        let plain = [
            (&names::CACHE_EVICTIONS, &self.evictions),
            (&names::CACHE_STALE, &self.ended),
        ];
        put(snapshot, &plain);
    }
}

counters!(
    /// The counters of a state cache.
    StateStats {
        /// Readings of all pods of a service.
        refreshes,
        /// Readings that failed.
        refresh_failures,
        /// Unreadable states that were skipped.
        corrupt_states,
        /// Events received from the channel.
        events,
        /// Lost channels; polling bridged the gap.
        channel_losses,
        /// Failed attempts to open the channel.
        listen_failures,
        /// Refresh periods that served stale states.
        stale_periods,
        ;
        /// The label values of services.
        services: ServiceCounters = ServiceCounters::default(),
    }
);

counters!(
    /// The counters of a server driver.
    ServerStats {
        /// States published.
        published,
        /// Publications that failed.
        publish_failures,
        /// Renewals that failed and were retried.
        renew_failures,
        /// Attempts to take the pod index that found an earlier process alive.
        index_busy,
        /// Leases lost for good: declared dead, or the pod index taken by another process.
        leases_lost,
        /// Leases that were not renewed in time; what is owned then waits for a confirmation.
        suspensions,
        /// Claims that made a user this process's own.
        claims_made,
        /// Claims of a user that the process owned already, by the same token.
        claims_repeated,
        /// Claims of a user that another pod holds.
        claims_not_owner,
        /// Claims that failed, or were refused before they were sent.
        claims_failed,
        /// Answers that came too late to count: the lease had ended, or the pod takes no users.
        late_answers,
        /// Owned users that the store was asked about.
        verified,
        /// Users claimed again, because the store had forgotten them.
        reasserted,
        /// Users lost to another process.
        lost_taken,
        /// Users whose links were removed or overwritten.
        lost_removed,
        /// Users lost with the lease.
        lost_with_lease,
        /// Failures and timeouts of the hooks of leases and ownership.
        ownership_hook_failures,
        /// Steps of the store's clock that were reported and believed.
        clock_steps,
        /// Reported steps of the store's clock that the store did not believe.
        clock_steps_unbelieved,
        /// Times that the program did not answer, and the pod published DENY_NEW_CALL.
        program_stalls,
        /// Failures and timeouts of the load function; the last value was kept.
        load_failures,
        /// Failures and timeouts of drain hooks.
        drain_hook_failures,
        /// Workload states written.
        workloads_written,
        /// Workload states that could not be written.
        workload_failures,
        /// Users released when the pod stopped.
        users_released,
        /// Users handed over when the pod stopped.
        users_handed_over,
        ;
        /// The link operations.
        operations: Calls = operations(),
        /// The links by service.
        services: ServiceCounters = ServiceCounters::default(),
        /// The duration of successful publications.
        publication: Histogram = Histogram::of(&names::PUBLICATION_DURATION),
        /// How much longer than a period the gap between two publications was.
        lateness: Histogram = Histogram::of(&names::PUBLICATION_LATENESS),
        /// What was left of the lease at renewal.
        margin: Histogram = Histogram::of(&names::LEASE_MARGIN),
        /// The duration of stops.
        drains: Histogram = Histogram::of(&names::DRAIN_DURATION),
    }
);

counters!(
    /// The counters of the calls to a store.
    StoreStats {
        /// Calls in flight.
        in_flight,
        ;
        /// The calls by script or read.
        calls: Calls = Calls::new(
            &names::STORE_CALLS, &names::STORE_CALLS_TOTAL, &names::STORE_CALL_DURATION,
        ),
        /// Writes with an unknown outcome, by call.
        unknown: [AtomicU64; names::STORE_CALLS.len()] =
            std::array::from_fn(|_| AtomicU64::new(0)),
        /// The number of items of batch calls, by call.
        batches: [Histogram; names::STORE_CALLS.len()] =
            std::array::from_fn(|_| Histogram::of(&names::STORE_BATCH)),
    }
);

fn operations() -> Calls {
    let (count, duration) = (&names::OPERATIONS_TOTAL, &names::OPERATION_DURATION);
    Calls::new(&names::OPERATIONS, count, duration)
}

/// Adds one.
pub fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn of(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn put(snapshot: &mut MetricsSnapshot, counters: &[(&'static Metric, &AtomicU64)]) {
    for (metric, counter) in counters {
        snapshot.count(metric, &[], of(counter));
    }
}

/// Adds successes and failures.
fn put_done(snapshot: &mut MetricsSnapshot, metric: &'static Metric, ok: u64, failed: u64) {
    snapshot.count(metric, &["ok"], ok);
    snapshot.count(metric, &["failed"], failed);
}

impl ClientStats {
    /// Counts a link that a compute created.
    pub fn link_made(&self, service: &ServiceId) {
        count(&self.links_made);
        count(&self.services.tally(service).made);
    }

    /// Counts a user that a compute moved away from this pod.
    pub fn link_healed(&self, service: &ServiceId, from: PodIndex) {
        count(&self.links_healed);
        self.services.tally(service).healed(from);
    }

    /// Counts a compute that found no routable pod.
    pub fn link_refused(&self, service: &ServiceId) {
        count(&self.no_routable_pod);
        count(&self.services.tally(service).refused);
    }
}

impl MetricSource for ClientStats {
    fn report(&self, snapshot: &mut MetricsSnapshot) {
        let reading = self.reading();
        snapshot.count(&names::CACHE_HITS, &[], reading.hits);
        snapshot.count(&names::CACHE_MISSES, &[], reading.misses);
        let plain = [
            (&names::CACHE_STALE, &self.cache_stale),
            (&names::CACHE_INVALIDATIONS, &self.cache_invalidations),
            (&names::FLIGHTS_JOINED, &self.flights_joined),
            (&names::OWNERS_UNSURE, &self.owners_unsure),
            (&names::MISROUTED, &self.misrouted),
            (&names::HINTS_REPLACED, &self.hints_replaced),
            (&names::DEGRADED_CHOICES, &self.degraded_choices),
            (&names::STRATEGY_OVERLOADS, &self.chooser_overloads),
            (&names::LINK_CORRUPT, &self.corrupt_links),
        ];
        put(snapshot, &plain);
        let cached = [
            ("compute_linked_pod", &self.cache_hits),
            ("get_linked_in_cache", &self.lookup_hits),
        ];
        for (name, counter) in cached {
            snapshot.count(&names::OPERATIONS_TOTAL, &[name, "cached"], of(counter));
        }
        self.operations.report(snapshot, &[]);
        self.services.report(snapshot);
    }

    fn take_names(&self, names: &Arc<ServiceNames>) {
        self.services.take_names(names);
    }

    fn reading(&self) -> WindowReading {
        let (ended, errors) = self.operations.totals();
        let (links_made, links_healed) = self.services.totals();
        WindowReading {
            hits: of(&self.cache_hits) + of(&self.lookup_hits),
            misses: of(&self.cache_misses) + of(&self.lookup_misses),
            operations: ended + of(&self.cache_hits) + of(&self.lookup_hits),
            errors,
            links_made,
            links_healed,
            ..WindowReading::default()
        }
    }
}

impl MetricSource for StateStats {
    fn report(&self, snapshot: &mut MetricsSnapshot) {
        let (all, failed) = (of(&self.refreshes), of(&self.refresh_failures));
        put_done(
            snapshot,
            &names::STATE_REFRESHES,
            all.saturating_sub(failed),
            failed,
        );
        let plain = [
            (&names::STATE_EVENTS, &self.events),
            (&names::STATE_CORRUPT, &self.corrupt_states),
            (&names::STATE_STALE, &self.stale_periods),
            (&names::CHANNEL_LOSSES, &self.channel_losses),
            (&names::LISTEN_FAILURES, &self.listen_failures),
        ];
        put(snapshot, &plain);
    }

    fn take_names(&self, names: &Arc<ServiceNames>) {
        self.services.take_names(names);
    }
}

impl MetricSource for ServerStats {
    fn report(&self, snapshot: &mut MetricsSnapshot) {
        let (ok, failed) = (of(&self.published), of(&self.publish_failures));
        put_done(snapshot, &names::PUBLICATIONS, ok, failed);
        let (ok, failed) = (of(&self.workloads_written), of(&self.workload_failures));
        put_done(snapshot, &names::WORKLOAD_WRITES, ok, failed);
        let plain = [
            (&names::LEASES_LOST, &self.leases_lost),
            (&names::INDEX_BUSY, &self.index_busy),
            (&names::SUSPENSIONS, &self.suspensions),
            (&names::LATE_ANSWERS, &self.late_answers),
            (&names::VERIFIED, &self.verified),
            (&names::REASSERTED, &self.reasserted),
            (&names::CLOCK_STEPS, &self.clock_steps),
            (&names::CLOCK_STEPS_UNBELIEVED, &self.clock_steps_unbelieved),
            (&names::PROGRAM_STALLS, &self.program_stalls),
        ];
        put(snapshot, &plain);
        let claims = [
            ("made", &self.claims_made),
            ("repeated", &self.claims_repeated),
            ("not_owner", &self.claims_not_owner),
            ("failed", &self.claims_failed),
        ];
        for (outcome, counter) in claims {
            snapshot.count(&names::CLAIMS, &[outcome], of(counter));
        }
        let losses = [
            ("taken", &self.lost_taken),
            ("removed", &self.lost_removed),
            ("lease_lost", &self.lost_with_lease),
        ];
        for (reason, counter) in losses {
            snapshot.count(&names::OWNERSHIPS_LOST, &[reason], of(counter));
        }
        snapshot.spread(&names::PUBLICATION_DURATION, &[], &self.publication);
        snapshot.spread(&names::PUBLICATION_LATENESS, &[], &self.lateness);
        snapshot.spread(&names::LEASE_MARGIN, &[], &self.margin);
        snapshot.spread(&names::DRAIN_DURATION, &[], &self.drains);
        self.operations.report(snapshot, &[]);
        self.services.report(snapshot);
    }

    fn take_names(&self, names: &Arc<ServiceNames>) {
        self.services.take_names(names);
    }

    fn reading(&self) -> WindowReading {
        let (operations, errors) = self.operations.totals();
        WindowReading {
            operations,
            errors,
            ..WindowReading::default()
        }
    }
}

impl StoreStats {
    /// Counts a call that has ended.
    pub fn ended<T>(&self, call: CallName, took: Duration, outcome: &Result<T>) {
        self.calls.ended(call.as_str(), took, outcome);
        let unknown = outcome
            .as_ref()
            .err()
            .and_then(crate::error::Error::outcome);
        if unknown == Some(WriteOutcome::Unknown) {
            count(&self.unknown[call as usize]);
        }
    }

    /// Counts the items of a batch call.
    pub fn batch(&self, call: CallName, items: usize) {
        self.batches[call as usize].size(items);
    }
}

impl MetricSource for StoreStats {
    fn report(&self, snapshot: &mut MetricsSnapshot) {
        self.calls.report(snapshot, &[]);
        #[allow(
            clippy::cast_precision_loss,
            reason = "there are never that many calls"
        )]
        snapshot.level(&names::STORE_IN_FLIGHT, &[], of(&self.in_flight) as f64);
        let calls = names::STORE_CALLS
            .iter()
            .zip(&self.unknown)
            .zip(&self.batches);
        for ((call, unknown), batches) in calls {
            if of(unknown) > 0 || matches!(*call, "set_if_absent" | "relink") {
                snapshot.count(&names::STORE_UNKNOWN, &[call], of(unknown));
            }
            if batches.read().count() > 0 {
                snapshot.spread(&names::STORE_BATCH, &[call], batches);
            }
        }
    }

    fn reading(&self) -> WindowReading {
        let (store_calls, store_errors) = self.calls.totals();
        WindowReading {
            store_calls,
            store_errors,
            ..WindowReading::default()
        }
    }
}

/// The counters of the calls to one peer.
#[derive(Debug)]
pub struct PeerStats {
    peer: String,
    /// The calls by method.
    pub calls: Calls,
}

impl PeerStats {
    /// Empty counters.
    #[must_use]
    pub fn new(peer: &str) -> Self {
        let (count, duration) = (&names::PEER_CALLS, &names::PEER_CALL_DURATION);
        Self {
            peer: peer.to_owned(),
            calls: Calls::new(&names::PEER_METHODS, count, duration),
        }
    }
}

impl MetricSource for PeerStats {
    fn report(&self, snapshot: &mut MetricsSnapshot) {
        self.calls.report(snapshot, &[&self.peer]);
    }
}

counters!(
    /// The counters of the bridge between the runtime and Python's loops and threads.
    BridgeStats {
        /// Results and hook calls that wait in queues.
        waiting,
        /// Operations that Python code awaits.
        operations,
        /// Wake-ups of loops and threads.
        wake_ups,
        /// Hook calls dropped because the queue was full.
        dropped,
        ;
        /// The number of items in one drain.
        batches: Histogram = Histogram::of(&names::BRIDGE_BATCH),
    }
);

impl BridgeStats {
    /// Sets all counters to zero, as in a forked child.
    pub fn reset(&self) {
        for counter in [
            &self.waiting,
            &self.operations,
            &self.wake_ups,
            &self.dropped,
        ] {
            counter.store(0, Ordering::Relaxed);
        }
        self.batches.reset();
    }
}

impl MetricSource for BridgeStats {
    #[allow(clippy::cast_precision_loss, reason = "gauges are only displayed")]
    fn report(&self, snapshot: &mut MetricsSnapshot) {
        snapshot.level(&names::BRIDGE_WAITING, &[], of(&self.waiting) as f64);
        snapshot.level(&names::BRIDGE_OPERATIONS, &[], of(&self.operations) as f64);
        snapshot.count(&names::BRIDGE_WAKE_UPS, &[], of(&self.wake_ups));
        snapshot.count(&names::BRIDGE_DROPPED, &[], of(&self.dropped));
        snapshot.spread(&names::BRIDGE_BATCH, &[], &self.batches);
    }
}

/// The counters of the application's hooks.
#[derive(Debug)]
pub struct HookStats([HookCounts; names::HOOKS.len()]);

#[derive(Debug)]
struct HookCounts {
    calls: AtomicU64,
    failures: AtomicU64,
    duration: Histogram,
}

impl Default for HookStats {
    fn default() -> Self {
        Self(std::array::from_fn(|_| HookCounts {
            calls: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            duration: Histogram::of(&names::HOOK_DURATION),
        }))
    }
}

impl HookStats {
    /// Counts a call of a hook.
    pub fn called(&self, hook: &'static str) {
        if let Some(counts) = self.of(hook) {
            count(&counts.calls);
        }
    }

    /// Counts the end of a hook call, and whether it succeeded.
    pub fn ended(&self, hook: &'static str, took: Duration, well: bool) {
        if let Some(counts) = self.of(hook) {
            counts.duration.time(took);
            if !well {
                count(&counts.failures);
            }
        }
    }

    /// Sets all counters to zero, as in a forked child.
    pub fn reset(&self) {
        for counts in &self.0 {
            counts.calls.store(0, Ordering::Relaxed);
            counts.failures.store(0, Ordering::Relaxed);
            counts.duration.reset();
        }
    }

    fn of(&self, hook: &'static str) -> Option<&HookCounts> {
        let at = names::HOOKS.iter().position(|known| *known == hook);
        at.map(|at| &self.0[at])
    }
}

impl MetricSource for HookStats {
    fn report(&self, snapshot: &mut MetricsSnapshot) {
        for (hook, counts) in names::HOOKS.iter().zip(&self.0) {
            if of(&counts.calls) == 0 {
                continue;
            }
            snapshot.count(&names::HOOK_CALLS, &[hook], of(&counts.calls));
            snapshot.count(&names::HOOK_FAILURES, &[hook], of(&counts.failures));
            if counts.duration.read().count() > 0 {
                snapshot.spread(&names::HOOK_DURATION, &[hook], &counts.duration);
            }
        }
    }
}
