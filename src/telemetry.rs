//! Every counter, in one place.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($(#[$doc:meta])* $type:ident { $($(#[$field_doc:meta])* $field:ident,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub struct $type {
            $($(#[$field_doc])* pub $field: AtomicU64,)+
        }

        impl $type {
            /// Name and present value of each counter.
            #[must_use]
            pub fn read(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($field), self.$field.load(Ordering::Relaxed)),)+]
            }
        }
    };
}

counters!(
    /// What a client driver counts.
    ClientStats {
        /// Computes that were asked for.
        computes,
        /// Answers from the local cache.
        cache_hits,
        /// Answers that had to be fetched.
        cache_misses,
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
    }
);

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
    }
);

counters!(
    /// What a server driver counts.
    ServerStats {
        /// States published.
        published,
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
    }
);

/// Adds one.
pub fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
