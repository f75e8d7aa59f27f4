//! Random histories against a model of a store, on every store.
//!
//! Operations go out in batches, as they come: what one of them names was read, or given, in an
//! earlier batch, so many a compare-and-set comes late. After each operation the user is read, and
//! in the end everything that is stored is compared.

mod act;
mod plan;
mod run;
mod shadow;

use std::cell::RefCell;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tokio::runtime::Runtime;

use crate::server::Kind;
use crate::stage::Stage;
use act::{Step, step};
use run::{play, warm_up};

/// So many steps has a history; a shorter one shows what is wrong.
const STEPS: std::ops::Range<usize> = 1..200;

fn explore(cases: u32, mut test: impl FnMut(&[Step]) -> Result<(), TestCaseError>) {
    let mut runner = TestRunner::new(Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 4000,
        ..Config::default()
    });
    let test = RefCell::new(&mut test);
    let strategy = proptest::collection::vec(step(), STEPS);
    runner
        .run(&strategy, |steps| test.borrow_mut()(&steps))
        .unwrap();
}

fn explore_server(kind: Kind) {
    let runtime = Runtime::new().unwrap();
    let stage = runtime.block_on(Stage::server(kind));
    let mut raw = stage.as_server().unwrap().raw();
    runtime.block_on(warm_up(&stage));
    explore(180, |steps| {
        raw.run(&["FLUSHALL"]);
        runtime.block_on(play(&stage, steps))
    });
}

#[test]
fn memory_does_what_the_model_does() {
    let runtime = Runtime::new().unwrap();
    explore(650, |steps| {
        runtime.block_on(async { play(&Stage::memory().await, steps).await })
    });
}

#[test]
fn valkey_does_what_the_model_does() {
    explore_server(Kind::Valkey);
}

#[test]
fn redis_does_what_the_model_does() {
    explore_server(Kind::Redis);
}
