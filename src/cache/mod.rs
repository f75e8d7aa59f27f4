//! The local caches of links and tags.
//!
//! Libraries bound the number of entries; validity is decided here: every entry carries its own
//! expiry, compared with `now` as an argument.

mod links;
mod tags;

pub use links::{Entry, Key, LinkCache, Scope, Ticket};
pub use tags::TagCache;
