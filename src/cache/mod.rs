//! The local caches of links and tags, and the table of refusals.
//!
//! Libraries bound the number of entries; validity is decided here: every entry carries its own
//! expiry, compared with `now` as an argument.

mod links;
mod refusals;
mod tags;

pub use links::{Entry, Key, LinkCache, Revision, Scope, Ticket};
pub use refusals::Refusals;
pub use tags::TagCache;
