//! The contract of [`podlink::store::Store`]: one set of tests on every store.

mod clock_steps;
pub(crate) mod events;
mod forgotten;
mod inspections;
pub(crate) mod leases;
mod links;
mod offers;
mod owners;
mod simulated_time;
mod spoilt_fields;
mod spoilt_links;
mod step_reports;
mod stored_events;
mod stored_leases;
mod stored_links;
mod stored_owners;

/// Plays every named test once on each store.
macro_rules! on_every_store {
    ($($name:ident),+ $(,)?) => {
        mod memory {
            use crate::stage::Stage;
            $(#[tokio::test] async fn $name() { super::$name(Stage::memory().await).await; })+
        }
        $crate::contract::on_every_server!($($name),+);
    };
}

/// Plays every named test once on each server.
macro_rules! on_every_server {
    ($($name:ident),+ $(,)?) => {
        mod valkey {
            use crate::{server::Kind, stage::Stage};
            $(#[tokio::test] async fn $name() {
                super::$name(Stage::server(Kind::Valkey).await).await;
            })+
        }
        mod redis {
            use crate::{server::Kind, stage::Stage};
            $(#[tokio::test] async fn $name() {
                super::$name(Stage::server(Kind::Redis).await).await;
            })+
        }
    };
}

pub(crate) use on_every_server;
pub(crate) use on_every_store;
