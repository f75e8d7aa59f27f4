//! What each kind of driver counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::calls::Calls;
use super::histogram::Histogram;
use super::names::{self, Metric};
use super::registry::Source;
use super::services::{ServiceNames, Services};
use super::sheet::Sheet;
use super::windows::Reading;
use crate::error::{Result, WriteOutcome};
use crate::id::{PodIndex, ServiceId};

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
            /// Name and present value of each counter.
            #[must_use]
            pub fn read(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($field), self.$field.load(Ordering::Relaxed)),)*]
            }
        }
    };
}

counters!(
    /// What a client driver counts.
    ClientStats {
        /// Computes that the local cache answered.
        cache_hits,
        /// Computes that the local cache could not answer.
        cache_misses,
        /// Look-ups that the local cache answered.
        lookup_hits,
        /// Look-ups that the local cache could not answer.
        lookup_misses,
        /// Computes and look-ups for which the cache held an answer that was not good any more.
        cache_stale,
        /// Entries that the program dropped or overwrote.
        cache_invalidations,
        /// Callers that shared another caller's question.
        flights_joined,
        /// Links that a compute made.
        links_made,
        /// Users moved away from a dead or shut-down pod.
        links_healed,
        /// Users left on a pod whose lease is over but whose death is not certain yet.
        owners_unsure,
        /// Choices made while every pod was over the overload limit.
        degraded_choices,
        /// Choices of the program's own function that failed or named no candidate.
        chooser_failures,
        /// Computes that found no pod.
        no_routable_pod,
        ;
        /// The link operations that the cache did not answer.
        operations: Calls = operations(),
        /// The links by service.
        services: Services = Services::default(),
    }
);

counters!(
    /// What a link cache counts.
    CacheStats {
        /// Entries that made room for others.
        evictions,
        /// Entries that were asked for and were over.
        ended,
    }
);

impl Source for CacheStats {
    fn report(&self, sheet: &mut Sheet) {
        let plain = [
            (&names::CACHE_EVICTIONS, &self.evictions),
            (&names::CACHE_STALE, &self.ended),
        ];
        put(sheet, &plain);
    }
}

counters!(
    /// What a state cache counts.
    StateStats {
        /// Readings of all pods of a service.
        refreshes,
        /// Readings that failed.
        refresh_failures,
        /// Unreadable states that were skipped.
        corrupt_states,
        /// Transitions that the channel brought.
        events,
        /// Times the channel was lost; polling bridged it.
        channel_losses,
        /// Times the channel could not be had.
        listen_failures,
        /// Refresh periods in which stale states were served.
        stale_periods,
        ;
        /// How services are called.
        services: Services = Services::default(),
    }
);

counters!(
    /// What a server driver counts.
    ServerStats {
        /// States published.
        published,
        /// Publications that failed.
        publish_failures,
        /// Renewals that failed and were tried again.
        renew_failures,
        /// Looks at the pod index that found an earlier process alive.
        index_busy,
        /// Leases that were lost: lapsed, declared dead, or taken by another process.
        leases_lost,
        /// Failures and time-outs of the load function; the last value was kept.
        load_failures,
        /// Failures and time-outs of drain hooks.
        drain_hook_failures,
        /// Workload states written.
        workloads_written,
        /// Workload states that could not be written.
        workload_failures,
        /// Users given up when the pod stopped.
        users_released,
        /// Users handed over when the pod stopped.
        users_handed_over,
        ;
        /// The link operations.
        operations: Calls = operations(),
        /// The links by service.
        services: Services = Services::default(),
        /// How long publications took that succeeded.
        publication: Histogram = Histogram::of(&names::PUBLICATION_DURATION),
        /// How much more than a period lay between two of them.
        lateness: Histogram = Histogram::of(&names::PUBLICATION_LATENESS),
        /// What was left of the lease when it was renewed.
        margin: Histogram = Histogram::of(&names::LEASE_MARGIN),
        /// How long stops took.
        drains: Histogram = Histogram::of(&names::DRAIN_DURATION),
    }
);

counters!(
    /// What is counted of the calls of a store.
    StoreStats {
        /// Calls that wait for their answer.
        in_flight,
        ;
        /// The calls by script or read.
        calls: Calls = Calls::new(
            &names::STORE_CALLS, &names::STORE_CALLS_TOTAL, &names::STORE_CALL_DURATION,
        ),
        /// Writes of which nobody knows whether they happened, by call.
        unknown: [AtomicU64; names::STORE_CALLS.len()] =
            std::array::from_fn(|_| AtomicU64::new(0)),
        /// How many items calls for many items carried, by call.
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
    if !cfg!(feature = "unmetered") {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

fn of(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn put(sheet: &mut Sheet, counters: &[(&'static Metric, &AtomicU64)]) {
    for (metric, counter) in counters {
        sheet.count(metric, &[], of(counter));
    }
}

/// What went well, and what failed.
fn put_done(sheet: &mut Sheet, metric: &'static Metric, ok: u64, failed: u64) {
    sheet.count(metric, &["ok"], ok);
    sheet.count(metric, &["failed"], failed);
}

impl ClientStats {
    /// A compute made a link.
    pub fn link_made(&self, service: &ServiceId) {
        count(&self.links_made);
        count(&self.services.tally(service).made);
    }

    /// A compute moved a user away from this pod.
    pub fn link_healed(&self, service: &ServiceId, from: PodIndex) {
        count(&self.links_healed);
        self.services.tally(service).healed(from);
    }

    /// A compute found no pod.
    pub fn link_refused(&self, service: &ServiceId) {
        count(&self.no_routable_pod);
        count(&self.services.tally(service).refused);
    }
}

impl Source for ClientStats {
    fn report(&self, sheet: &mut Sheet) {
        let reading = self.reading();
        sheet.count(&names::CACHE_HITS, &[], reading.hits);
        sheet.count(&names::CACHE_MISSES, &[], reading.misses);
        let plain = [
            (&names::CACHE_STALE, &self.cache_stale),
            (&names::CACHE_INVALIDATIONS, &self.cache_invalidations),
            (&names::FLIGHTS_JOINED, &self.flights_joined),
            (&names::OWNERS_UNSURE, &self.owners_unsure),
            (&names::DEGRADED_CHOICES, &self.degraded_choices),
        ];
        put(sheet, &plain);
        let cached = [
            ("compute_linked_pod", &self.cache_hits),
            ("get_linked_in_cache", &self.lookup_hits),
        ];
        for (name, counter) in cached {
            sheet.count(&names::OPERATIONS_TOTAL, &[name, "cached"], of(counter));
        }
        self.operations.report(sheet, &[]);
        self.services.report(sheet);
    }

    fn take_names(&self, names: &Arc<ServiceNames>) {
        self.services.take_names(names);
    }

    fn reading(&self) -> Reading {
        let (ended, errors) = self.operations.totals();
        let (links_made, links_healed) = self.services.totals();
        Reading {
            hits: of(&self.cache_hits) + of(&self.lookup_hits),
            misses: of(&self.cache_misses) + of(&self.lookup_misses),
            operations: ended + of(&self.cache_hits) + of(&self.lookup_hits),
            errors,
            links_made,
            links_healed,
            ..Reading::default()
        }
    }
}

impl Source for StateStats {
    fn report(&self, sheet: &mut Sheet) {
        let (all, failed) = (of(&self.refreshes), of(&self.refresh_failures));
        put_done(
            sheet,
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
        put(sheet, &plain);
    }

    fn take_names(&self, names: &Arc<ServiceNames>) {
        self.services.take_names(names);
    }
}

impl Source for ServerStats {
    fn report(&self, sheet: &mut Sheet) {
        let (ok, failed) = (of(&self.published), of(&self.publish_failures));
        put_done(sheet, &names::PUBLICATIONS, ok, failed);
        let (ok, failed) = (of(&self.workloads_written), of(&self.workload_failures));
        put_done(sheet, &names::WORKLOAD_WRITES, ok, failed);
        let plain = [
            (&names::LEASES_LOST, &self.leases_lost),
            (&names::INDEX_BUSY, &self.index_busy),
        ];
        put(sheet, &plain);
        sheet.spread(&names::PUBLICATION_DURATION, &[], &self.publication);
        sheet.spread(&names::PUBLICATION_LATENESS, &[], &self.lateness);
        sheet.spread(&names::LEASE_MARGIN, &[], &self.margin);
        sheet.spread(&names::DRAIN_DURATION, &[], &self.drains);
        self.operations.report(sheet, &[]);
        self.services.report(sheet);
    }

    fn take_names(&self, names: &Arc<ServiceNames>) {
        self.services.take_names(names);
    }

    fn reading(&self) -> Reading {
        let (operations, errors) = self.operations.totals();
        Reading {
            operations,
            errors,
            ..Reading::default()
        }
    }
}

impl StoreStats {
    /// A call has ended.
    pub fn ended<T>(&self, call: &'static str, took: Duration, outcome: &Result<T>) {
        self.calls.ended(call, took, outcome);
        let unknown = outcome
            .as_ref()
            .err()
            .and_then(crate::error::Error::outcome);
        if unknown == Some(WriteOutcome::Unknown)
            && let Some(at) = place(call)
        {
            count(&self.unknown[at]);
        }
    }

    /// A call for so many items is made.
    pub fn batch(&self, call: &'static str, items: usize) {
        if let Some(at) = place(call) {
            self.batches[at].size(items);
        }
    }
}

fn place(call: &'static str) -> Option<usize> {
    names::STORE_CALLS.iter().position(|known| *known == call)
}

impl Source for StoreStats {
    fn report(&self, sheet: &mut Sheet) {
        self.calls.report(sheet, &[]);
        #[allow(clippy::cast_precision_loss, reason = "nobody makes that many calls")]
        sheet.level(&names::STORE_IN_FLIGHT, &[], of(&self.in_flight) as f64);
        let calls = names::STORE_CALLS
            .iter()
            .zip(&self.unknown)
            .zip(&self.batches);
        for ((call, unknown), batches) in calls {
            if of(unknown) > 0 || matches!(*call, "set_if_absent" | "relink") {
                sheet.count(&names::STORE_UNKNOWN, &[call], of(unknown));
            }
            if batches.read().count() > 0 {
                sheet.spread(&names::STORE_BATCH, &[call], batches);
            }
        }
    }

    fn reading(&self) -> Reading {
        let (store_calls, store_errors) = self.calls.totals();
        Reading {
            store_calls,
            store_errors,
            ..Reading::default()
        }
    }
}

/// What is counted of the calls of one peer.
#[derive(Debug)]
pub struct PeerStats {
    peer: String,
    /// The calls by method.
    pub calls: Calls,
}

impl PeerStats {
    /// No calls yet.
    #[must_use]
    pub fn new(peer: &str) -> Self {
        let (count, duration) = (&names::PEER_CALLS, &names::PEER_CALL_DURATION);
        Self {
            peer: peer.to_owned(),
            calls: Calls::new(&names::PEER_METHODS, count, duration),
        }
    }
}

impl Source for PeerStats {
    fn report(&self, sheet: &mut Sheet) {
        self.calls.report(sheet, &[&self.peer]);
    }
}

counters!(
    /// What is counted of the bridge between the runtime and Python's loops and threads.
    BridgeStats {
        /// Results and hook calls that wait to be taken.
        waiting,
        /// Operations that Python code waits for.
        operations,
        /// Times that a loop or thread was woken.
        wake_ups,
        /// Hook calls that were dropped because nobody took those before.
        dropped,
        ;
        /// How much was taken at once.
        batches: Histogram = Histogram::of(&names::BRIDGE_BATCH),
    }
);

impl BridgeStats {
    /// Begins anew: in a forked child, say.
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

impl Source for BridgeStats {
    #[allow(
        clippy::cast_precision_loss,
        reason = "gauges are shown, not counted on"
    )]
    fn report(&self, sheet: &mut Sheet) {
        sheet.level(&names::BRIDGE_WAITING, &[], of(&self.waiting) as f64);
        sheet.level(&names::BRIDGE_OPERATIONS, &[], of(&self.operations) as f64);
        sheet.count(&names::BRIDGE_WAKE_UPS, &[], of(&self.wake_ups));
        sheet.count(&names::BRIDGE_DROPPED, &[], of(&self.dropped));
        sheet.spread(&names::BRIDGE_BATCH, &[], &self.batches);
    }
}

/// What is counted of the program's own functions.
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
    /// A function is called.
    pub fn called(&self, hook: &'static str) {
        if let Some(counts) = self.of(hook) {
            count(&counts.calls);
        }
    }

    /// A function has ended, and how.
    pub fn ended(&self, hook: &'static str, took: Duration, well: bool) {
        if let Some(counts) = self.of(hook) {
            counts.duration.time(took);
            if !well {
                count(&counts.failures);
            }
        }
    }

    /// Begins anew: in a forked child, say.
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

impl Source for HookStats {
    fn report(&self, sheet: &mut Sheet) {
        for (hook, counts) in names::HOOKS.iter().zip(&self.0) {
            if of(&counts.calls) == 0 {
                continue;
            }
            sheet.count(&names::HOOK_CALLS, &[hook], of(&counts.calls));
            sheet.count(&names::HOOK_FAILURES, &[hook], of(&counts.failures));
            if counts.duration.read().count() > 0 {
                sheet.spread(&names::HOOK_DURATION, &[hook], &counts.duration);
            }
        }
    }
}
