//! Generated from proto/podlink/v1/route.proto and committed; `tests/rust/wire` generates it again
//! and compares. Never edited; only the codec is written by hand.

mod codec;

pub(crate) use codec::Codec;

/// Version 1 of the wire.
#[allow(
    clippy::all,
    clippy::pedantic,
    missing_docs,
    unreachable_pub,
    reason = "generated code has habits of its own"
)]
pub mod v1 {
    include!("podlink.v1.rs");
}

/// The schema as protoc would compile it: what server reflection serves.
pub(crate) const DESCRIPTORS: &[u8] = include_bytes!("podlink.v1.bin");
