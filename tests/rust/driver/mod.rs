//! The drivers on a store that fails on request, in time that the test moves.

mod clock_steps;
mod explain;
mod faulty;
mod info;
mod lapses;
mod lease;
mod lifecycle;
mod misrouted;
mod owned_drain;
mod ownership;
mod placer;
mod protocol;
mod watchdog;
mod world;
