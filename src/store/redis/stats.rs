//! Counters of the connection's events.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of one store. They only increase.
#[derive(Debug, Default)]
pub struct Stats {
    connects: AtomicU64,
    failed_dials: AtomicU64,
    disconnects: AtomicU64,
    timeouts: AtomicU64,
    script_loads: AtomicU64,
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident, $count:ident;)+) => {
        impl Stats {
            $($(#[$doc])*
            #[must_use]
            pub fn $name(&self) -> u64 {
                self.$name.load(Ordering::Relaxed)
            }

            pub(super) fn $count(&self) {
                self.$name.fetch_add(1, Ordering::Relaxed);
            })+
        }
    };
}

counters! {
    /// Connections established.
    connects, count_connect;
    /// Attempts to connect that failed.
    failed_dials, count_failed_dial;
    /// Connections lost or retired.
    disconnects, count_disconnect;
    /// Calls that were sent and not answered in time.
    timeouts, count_timeout;
    /// Scripts sent with their source, because the server did not have them.
    script_loads, count_script_load;
}
