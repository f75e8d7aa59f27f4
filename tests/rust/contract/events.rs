//! Events: what reaches a listener, who leads a service, and what a service says as a whole.
//!
//! That an event is *not* published is seen without waiting: an event of another service comes after
//! it on the same connection, so when that one is there, the first would be there too.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use podlink::config::LeaseTimes;
use podlink::error::{ErrorKind, WriteOutcome};
use podlink::id::{Incarnation, Namespace, ServiceId, ServiceName, Tag};
use podlink::op::{Begun, PodIdentity, Pods, Renewed};
use podlink::route::state::{PodState, Readiness, RoutingState, WorkloadState};
use podlink::store::Changes;

use super::leases::{TIMES, death, process, record, renew, service, started, state};
use crate::ask::Ask as _;
use crate::contract::on_every_store;
use crate::server::PATIENCE;
use crate::stage::{Stage, pod, service_id};

on_every_store!(
    a_join_a_routing_state_a_death_and_a_leave_are_told,
    a_pod_that_comes_back_from_the_dead_is_told,
    loads_and_renewals_are_not_told,
    what_happened_before_is_not_told,
    many_events_are_one,
    everybody_who_listens_is_told,
    whoever_leaves_is_not_counted,
    a_dropped_wait_loses_nothing,
    a_closed_store_ends_its_subscriptions,
    a_dropped_store_ends_its_subscriptions,
    a_call_that_comes_too_late_is_not_made,
    the_stores_clock_is_shown,
    a_lone_pod_leads,
    the_next_pod_leads_when_the_leader_dies,
    the_next_pod_leads_at_once_when_the_leader_stops,
    a_lower_pod_takes_the_lead,
    a_restarted_leader_leads_again,
    one_pod_leads_after_an_outage,
    services_have_leaders_of_their_own,
    a_workload_is_kept_until_its_time_is_over,
    a_tag_stands_for_the_service_that_was_set_last,
);

/// Leases that no test outlives, where none is to end.
pub(crate) const CALM: LeaseTimes = LeaseTimes {
    lease: Duration::from_secs(600),
    ..TIMES
};

pub(crate) async fn listen(stage: &Stage, service: &ServiceId) -> Changes {
    let listening = stage.store.subscribe(service, stage.deadline()).await;
    listening.unwrap()
}

/// Waits for an event; fails when none comes, or when the channel is lost.
pub(crate) async fn notified(changes: &mut Changes) {
    let notified = tokio::time::timeout(PATIENCE, changes.changed()).await;
    assert!(notified.expect("an event comes"), "the channel was lost");
}

/// Waits for the end of a subscription, whatever is published before.
pub(crate) async fn ended(changes: &mut Changes) {
    let end = async { while changes.changed().await {} };
    let ended = tokio::time::timeout(PATIENCE, end).await;
    ended.expect("the subscription ends");
}

fn other() -> ServiceId {
    service_id("ns", "other")
}

/// A pod joins a service that no other test knows, published on the same connection as all before.
async fn event_elsewhere(stage: &Stage) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let somewhere = service_id("ns", &format!("elsewhere{count}"));
    let mut elsewhere = listen(stage, &somewhere).await;
    join(stage, &somewhere, 0).await;
    notified(&mut elsewhere).await;
}

pub(crate) async fn join(stage: &Stage, service: &ServiceId, index: i64) -> Incarnation {
    let nonce = format!("{index}");
    let who = PodIdentity {
        service: service.clone(),
        ..process(index, &nonce, "")
    };
    let begun = stage.store.pod_begin(&who, TIMES, stage.deadline()).await;
    let Begun::Started(me) = begun.unwrap() else {
        panic!("no other process has the index");
    };
    let renewed = stage
        .store
        .pod_renew(service, &state(index, me), CALM, stage.deadline())
        .await;
    assert!(matches!(renewed.unwrap(), Renewed::Done { .. }));
    me
}

async fn keep(stage: &Stage, state: &PodState) {
    let (store, deadline) = (&stage.store, stage.deadline());
    let renewed = store.pod_renew(&service(), state, CALM, deadline).await;
    assert!(matches!(renewed.unwrap(), Renewed::Done { .. }));
}

async fn nothing_told(stage: &Stage, changes: &mut Changes) {
    event_elsewhere(stage).await;
    assert_eq!(changes.changed().now_or_never(), None, "nothing happened");
}

async fn pods(stage: &Stage) -> Pods {
    stage.pods(&service()).await
}

async fn end(stage: &Stage, index: i64, me: Incarnation) {
    let ended = stage
        .store
        .pod_end(&service(), pod(index), me, stage.deadline())
        .await;
    assert!(ended.unwrap());
}

async fn a_join_a_routing_state_a_death_and_a_leave_are_told(stage: Stage) {
    let mut changes = listen(&stage, &service()).await;
    let me = started(&stage, 0, "a").await;
    let mut mine = state(0, me);
    renew(&stage, &mine).await;
    notified(&mut changes).await;
    for routing in [
        RoutingState::DenyNewCall,
        RoutingState::Ready,
        RoutingState::Shutdown,
    ] {
        mine.routing_state = routing;
        renew(&stage, &mine).await;
        notified(&mut changes).await;
    }
    assert_eq!(death(&stage, 0).await, me);
    notified(&mut changes).await;
    let me = started(&stage, 0, "b").await;
    renew(&stage, &state(0, me)).await;
    notified(&mut changes).await;
    end(&stage, 0, me).await;
    notified(&mut changes).await;
    nothing_told(&stage, &mut changes).await;
}

async fn a_pod_that_comes_back_from_the_dead_is_told(stage: Stage) {
    let me = started(&stage, 0, "a").await;
    renew(&stage, &state(0, me)).await;
    let mut changes = listen(&stage, &service()).await;
    let lapsed = async || {
        let record = record(&stage, 0).await.expect("its state stays");
        record.lease_left.is_zero().then_some(())
    };
    stage.until("the lease is over", lapsed).await;
    assert_eq!(
        changes.changed().now_or_never(),
        None,
        "a lease ends in silence"
    );
    // No client had asked for a certificate, so it lives again.
    renew(&stage, &state(0, me)).await;
    notified(&mut changes).await;
}

async fn loads_and_renewals_are_not_told(stage: Stage) {
    let me = started(&stage, 0, "a").await;
    let mut mine = state(0, me);
    keep(&stage, &mine).await;
    let mut changes = listen(&stage, &service()).await;
    keep(&stage, &mine).await;
    mine.load_state += 1;
    keep(&stage, &mine).await;
    mine.metadata.insert("version".to_owned(), "2".to_owned());
    keep(&stage, &mine).await;
    nothing_told(&stage, &mut changes).await;
}

async fn what_happened_before_is_not_told(stage: Stage) {
    join(&stage, &service(), 0).await;
    let mut changes = listen(&stage, &service()).await;
    nothing_told(&stage, &mut changes).await;
    join(&stage, &service(), 1).await;
    notified(&mut changes).await;
}

async fn many_events_are_one(stage: Stage) {
    let mut changes = listen(&stage, &service()).await;
    for index in 0..20 {
        join(&stage, &service(), index).await;
    }
    event_elsewhere(&stage).await;
    notified(&mut changes).await;
    assert_eq!(changes.changed().now_or_never(), None);
    join(&stage, &service(), 20).await;
    notified(&mut changes).await;
}

async fn everybody_who_listens_is_told(stage: Stage) {
    let mut first = listen(&stage, &service()).await;
    let mut second = listen(&stage, &service()).await;
    join(&stage, &service(), 0).await;
    notified(&mut first).await;
    notified(&mut second).await;
    drop(first);
    join(&stage, &service(), 1).await;
    notified(&mut second).await;
    // A client that subscribes again is notified again.
    let mut third = listen(&stage, &service()).await;
    join(&stage, &service(), 2).await;
    notified(&mut second).await;
    notified(&mut third).await;
}

async fn whoever_leaves_is_not_counted(stage: Stage) {
    assert_eq!(pods(&stage).await.watchers, 0);
    let changes = listen(&stage, &service()).await;
    let elsewhere = listen(&stage, &other()).await;
    assert_eq!(pods(&stage).await.watchers, 1);
    drop(changes);
    let forgotten = async || (pods(&stage).await.watchers == 0).then_some(());
    stage.until("no subscriber is counted", forgotten).await;
    drop(elsewhere);
    // All have left, and the next one can subscribe.
    let mut changes = listen(&stage, &service()).await;
    assert_eq!(pods(&stage).await.watchers, 1);
    join(&stage, &service(), 0).await;
    notified(&mut changes).await;
}

async fn a_dropped_wait_loses_nothing(stage: Stage) {
    let mut changes = listen(&stage, &service()).await;
    assert_eq!(changes.changed().now_or_never(), None);
    join(&stage, &service(), 0).await;
    event_elsewhere(&stage).await;
    assert_eq!(changes.changed().now_or_never(), Some(true));
}

async fn a_closed_store_ends_its_subscriptions(stage: Stage) {
    let mut changes = listen(&stage, &service()).await;
    stage.store.close().await;
    ended(&mut changes).await;
    assert!(!changes.changed().await, "and it stays so");
    let error = stage.store.subscribe(&service(), stage.deadline()).await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Closed);
}

async fn a_dropped_store_ends_its_subscriptions(stage: Stage) {
    let mut changes = listen(&stage, &service()).await;
    drop(stage.store);
    ended(&mut changes).await;
}

async fn a_call_that_comes_too_late_is_not_made(stage: Stage) {
    // Connected, or it might be the connection that is late.
    stage.store.ping(stage.deadline()).await.unwrap();
    let (store, late) = (&stage.store, stage.too_late());
    let (namespace, tag) = (&service().namespace, Tag::new("blue").unwrap());
    let reads = [
        store
            .subscribe(&service(), late)
            .await
            .map(drop)
            .unwrap_err(),
        store.workload(&service(), late).await.unwrap_err(),
        store.tag(namespace, &tag, late).await.unwrap_err(),
    ];
    for error in reads {
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, None));
    }
    let (mine, ttl) = (workload(3), Duration::from_secs(60));
    let name = &service().service;
    let set = store.set_tag(namespace, &tag, name, late).await;
    let writes = [
        set.unwrap_err(),
        store
            .set_workload(&service(), &mine, ttl, late)
            .await
            .unwrap_err(),
    ];
    for error in writes {
        let not_sent = Some(WriteOutcome::NotSent);
        assert_eq!(
            (error.kind(), error.outcome()),
            (ErrorKind::Timeout, not_sent)
        );
    }
}

async fn the_stores_clock_is_shown(stage: Stage) {
    let before = pods(&stage).await.now_ms;
    assert!(before > 1_700_000_000_000, "milliseconds since 1970");
    join(&stage, &service(), 0).await;
    let stamped = record(&stage, 0).await.unwrap().state.update_time;
    let after = pods(&stage).await.now_ms;
    assert!(
        (before..=after).contains(&stamped),
        "{before} {stamped} {after}"
    );
}

/// Renews for a long time; says whether the pod leads.
pub(crate) async fn leads(stage: &Stage, state: &PodState) -> bool {
    leads_for(stage, state, CALM).await
}

async fn leads_for(stage: &Stage, state: &PodState, times: LeaseTimes) -> bool {
    let (store, deadline) = (&stage.store, stage.deadline());
    match store.pod_renew(&service(), state, times, deadline).await {
        Ok(Renewed::Done { leads, .. }) => leads,
        lost => panic!("the pod is alive: {lost:?}"),
    }
}

async fn a_lone_pod_leads(stage: Stage) {
    let me = started(&stage, 7, "a").await;
    assert!(leads(&stage, &state(7, me)).await);
    assert!(leads(&stage, &state(7, me)).await, "and goes on");
}

async fn the_next_pod_leads_when_the_leader_dies(stage: Stage) {
    let zero = state(0, started(&stage, 0, "a").await);
    let one = state(1, started(&stage, 1, "b").await);
    let two = state(2, started(&stage, 2, "c").await);
    let lease = Duration::from_secs(2);
    assert!(leads_for(&stage, &zero, LeaseTimes { lease, ..TIMES }).await);
    assert!(!leads(&stage, &two).await && !leads(&stage, &one).await);
    // The death need not be certified: a lease that is over is enough.
    let leader = async || (leads(&stage, &two).await || leads(&stage, &one).await).then_some(());
    stage.until("another pod leads", leader).await;
    // Either of the two may be quicker; the lower one leads from its next renewal on.
    assert!(leads(&stage, &one).await);
    assert!(!leads(&stage, &two).await);
}

async fn the_next_pod_leads_at_once_when_the_leader_stops(stage: Stage) {
    let zero = started(&stage, 0, "a").await;
    let one = started(&stage, 1, "b").await;
    assert!(leads(&stage, &state(0, zero)).await);
    assert!(!leads(&stage, &state(1, one)).await);
    end(&stage, 0, zero).await;
    assert!(leads(&stage, &state(1, one)).await);
    // The end of a pod that does not lead changes nothing.
    let two = started(&stage, 2, "c").await;
    assert!(!leads(&stage, &state(2, two)).await);
    end(&stage, 2, two).await;
    let three = started(&stage, 3, "d").await;
    assert!(!leads(&stage, &state(3, three)).await);
    assert!(leads(&stage, &state(1, one)).await);
}

async fn a_lower_pod_takes_the_lead(stage: Stage) {
    // Ten comes before nine in the alphabet only.
    let ten = state(10, started(&stage, 10, "a").await);
    let nine = state(9, started(&stage, 9, "b").await);
    assert!(leads(&stage, &ten).await);
    assert!(leads(&stage, &nine).await);
    assert!(!leads(&stage, &ten).await);
    assert!(leads(&stage, &nine).await);
}

async fn a_restarted_leader_leads_again(stage: Stage) {
    let first = state(0, started(&stage, 0, "a").await);
    let one = state(1, started(&stage, 1, "b").await);
    assert!(leads_for(&stage, &first, TIMES).await);
    assert_eq!(death(&stage, 0).await, first.incarnation);
    assert!(leads(&stage, &one).await);
    let second = state(0, started(&stage, 0, "c").await);
    // The dead take nothing.
    assert!(!matches!(renew(&stage, &first).await, Renewed::Done { .. }));
    assert!(leads(&stage, &one).await);
    assert!(leads(&stage, &second).await);
    assert!(!leads(&stage, &one).await);
}

async fn one_pod_leads_after_an_outage(stage: Stage) {
    let zero = state(0, started(&stage, 0, "a").await);
    let one = state(1, started(&stage, 1, "b").await);
    assert!(leads_for(&stage, &zero, TIMES).await);
    stage.silence((TIMES.lease + TIMES.grace) * 3).await;
    // The pod that renews first leads until the lowest does.
    assert!(leads(&stage, &one).await);
    assert!(leads(&stage, &zero).await);
    assert!(!leads(&stage, &one).await);
}

async fn services_have_leaders_of_their_own(stage: Stage) {
    let me = started(&stage, 0, "a").await;
    assert!(leads(&stage, &state(0, me)).await);
    let there = state(5, join(&stage, &other(), 5).await);
    let (store, deadline) = (&stage.store, stage.deadline());
    let renewed = store.pod_renew(&other(), &there, CALM, deadline).await;
    assert!(matches!(
        renewed.unwrap(),
        Renewed::Done { leads: true, .. }
    ));
}

fn workload(ready_replicas: u32) -> WorkloadState {
    WorkloadState {
        state: Readiness::Ready,
        replicas: 3,
        ready_replicas,
        update_time: 1_700_000_000_123,
    }
}

async fn a_workload_is_kept_until_its_time_is_over(stage: Stage) {
    let store = &stage.store;
    let read = async || store.workload(&service(), stage.deadline()).await.unwrap();
    let write = async |workload: &WorkloadState, ttl| {
        let (mine, deadline) = (service(), stage.deadline());
        let written = store.set_workload(&mine, workload, ttl, deadline).await;
        written.unwrap();
    };
    assert_eq!(read().await, None);
    write(&workload(1), Duration::from_secs(60)).await;
    write(&workload(3), Duration::from_secs(60)).await;
    assert_eq!(read().await, Some(workload(3)));
    let there = store.workload(&other(), stage.deadline()).await;
    assert_eq!(there.unwrap(), None, "another service has its own");
    write(&workload(2), Duration::from_millis(50)).await;
    let gone = async || read().await.is_none().then_some(());
    stage.until("the workload has disappeared", gone).await;
}

async fn a_tag_stands_for_the_service_that_was_set_last(stage: Stage) {
    let store = &stage.store;
    let [here, there] = ["ns", "ns2"].map(|name| Namespace::new(name).unwrap());
    let [blue, green] = ["blue", "green"].map(|tag| Tag::new(tag).unwrap());
    let [one, two] = ["one", "two"].map(|name| ServiceName::new(name).unwrap());
    let read = async |namespace, tag| store.tag(namespace, tag, stage.deadline()).await.unwrap();
    assert_eq!(read(&here, &blue).await, None);
    for service in [&one, &one, &two] {
        let set = store.set_tag(&here, &blue, service, stage.deadline()).await;
        assert!(set.unwrap());
        assert_eq!(read(&here, &blue).await.as_ref(), Some(service));
    }
    assert_eq!(read(&there, &blue).await, None);
    assert_eq!(read(&here, &green).await, None);
}
