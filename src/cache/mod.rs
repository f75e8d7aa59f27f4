//! What this process remembers.
//!
//! Libraries bound the number of entries; what may be believed is decided here: every entry
//! carries its own end, judged with `now` as an argument.

mod links;
mod tags;

pub use links::{Entry, Key, LinkCache, Scope, Ticket};
pub use tags::TagCache;
