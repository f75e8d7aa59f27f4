//! Looking at leases without touching them: what `inspect` foretells comes true, and it changes
//! nothing that a later call could notice.

use std::time::Duration;

use podlink::id::Incarnation;
use podlink::op::Inspection;
use podlink::route::link::{Certificate, Foretold};

use super::leases::{TIMES, certify, death, records, renew, service, started, state};
use crate::ask::Ask as _;
use crate::contract::on_every_store;
use crate::server::PATIENCE;
use crate::stage::{Stage, pod};

on_every_store!(
    nobody_is_foretold_nothing,
    a_living_pods_death_is_foretold_for_after_its_grace,
    a_certificate_is_foretold_and_not_written,
    an_outage_is_foretold_and_left_for_others_to_notice,
);

/// Looks, and makes sure that a server holds afterwards what it held before.
async fn inspect(stage: &Stage) -> Inspection {
    let everything = || stage.as_server().map(|server| server.raw().everything());
    let before = everything();
    let found = stage.store.inspect(&service(), stage.deadline()).await;
    assert_eq!(everything(), before);
    *found.unwrap()
}

async fn foretold(stage: &Stage, index: i64) -> Option<Foretold> {
    let found = inspect(stage).await;
    found.certificates.get(&pod(index)).copied()
}

async fn nobody_is_foretold_nothing(stage: Stage) {
    let found = inspect(&stage).await;
    assert!(found.pods.records.is_empty() && found.certificates.is_empty());
    assert!(found.pods.now_ms > 0);
    assert_eq!(certify(&stage, 0).await, Certificate::Unknown);
}

async fn a_living_pods_death_is_foretold_for_after_its_grace(stage: Stage) {
    let me = started(&stage, 3, "a").await;
    renew(&stage, &state(3, me)).await;
    let found = inspect(&stage).await;
    let record = &found.pods.records[0];
    assert_eq!(
        (record.state.pod_id, record.state.incarnation),
        (pod(3), me)
    );
    match found.certificates[&pod(3)] {
        Foretold {
            certificate: Certificate::Alive { incarnation, left },
            written: false,
        } => {
            assert_eq!(incarnation, me);
            assert_eq!(left, record.lease_left + TIMES.grace);
        }
        other => panic!("it has just renewed: {other:?}"),
    }
    if stage.as_server().is_none() {
        // Time stands still here, so both say the very same.
        assert_eq!(found.pods.records, records(&stage).await);
        let certificate = certify(&stage, 3).await;
        assert_eq!(found.certificates[&pod(3)].certificate, certificate);
    }
}

async fn a_certificate_is_foretold_and_not_written(stage: Stage) {
    let me = started(&stage, 0, "a").await;
    renew(&stage, &state(0, me)).await;
    let due = Foretold {
        certificate: Certificate::Dead(me),
        written: false,
    };
    let is_due = async || {
        // A client keeps the store's clock going, or the wait would be an outage.
        records(&stage).await;
        (foretold(&stage, 0).await == Some(due)).then_some(())
    };
    stage.until("the certificate is due", is_due).await;
    assert_eq!(foretold(&stage, 0).await, Some(due));
    assert_eq!(certify(&stage, 0).await, Certificate::Dead(me));
    let written = Foretold {
        written: true,
        ..due
    };
    assert_eq!(foretold(&stage, 0).await, Some(written));
}

async fn an_outage_is_foretold_and_left_for_others_to_notice(stage: Stage) {
    let silence = Duration::from_millis(700);
    let me = started(&stage, 0, "a").await;
    renew(&stage, &state(0, me)).await;
    let record = &inspect(&stage).await.pods.records[0];
    assert_eq!(record.silence(), None);
    assert!(record.renewal.left > Duration::ZERO && record.renewal.age < TIMES.lease);
    // Longer than lease and grace: without the outage the pod would be dead.
    stage.silence(silence).await;
    for _ in 0..2 {
        let found = inspect(&stage).await;
        let record = &found.pods.records[0];
        assert!(record.lease_left > Duration::ZERO);
        let silent = record.silence().expect("one look cannot judge it");
        assert!(
            silent >= silence && silent < silence + PATIENCE,
            "{silent:?}"
        );
        let certificate = found.certificates[&pod(0)].certificate;
        assert!(
            matches!(certificate, Certificate::Alive { left, .. } if left > TIMES.grace),
            "{certificate:?}"
        );
    }
    let noticed = certify(&stage, 0).await;
    assert!(matches!(noticed, Certificate::Alive { .. }), "{noticed:?}");
    // So it is while clients read, until the pod renews, or the hold is over.
    let record = &records(&stage).await[0];
    assert!(record.lease_left > Duration::ZERO);
    assert!(record.silence() >= Some(silence));
    renew(&stage, &state(0, me)).await;
    let record = &records(&stage).await[0];
    assert_eq!(record.silence(), None);
    assert!(death(&stage, 0).await > Incarnation::NONE);
}
