//! What happened to the connection, as plain counters.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of one executor. They only rise.
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
    /// Connections made.
    connects, count_connect;
    /// Attempts to connect that failed.
    failed_dials, count_failed_dial;
    /// Connections lost or given up.
    disconnects, count_disconnect;
    /// Calls that were sent and not answered in time.
    timeouts, count_timeout;
    /// Scripts sent with their source, because the server did not know them.
    script_loads, count_script_load;
}
