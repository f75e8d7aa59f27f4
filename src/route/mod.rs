//! Decisions: pure functions and value types. No I/O, no lock, and `now` is an argument.

pub mod address;
pub mod clock_step;
pub mod explain;
pub mod link;
pub mod load;
pub mod pick;
pub mod plan;
pub mod snapshot;
pub mod state;
