//! The drivers on a store that fails on request, in time that the test moves.

mod explain;
mod faulty;
mod info;
mod lease;
mod lifecycle;
mod placer;
mod world;
