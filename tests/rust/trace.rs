//! Spans: which are collected, and in which order. One test, because collecting is on or off for
//! the whole process.

use podlink::error::{Error, ErrorKind, Result};
use podlink::id::{LinkId, Namespace, ServiceId, ServiceName, Uid};
use podlink::trace::{self, AttributeValue, FinishedSpan, Spans, TraceContext};
use tracing::Instrument;
use tracing_subscriber::layer::SubscriberExt;

const SAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn link() -> LinkId {
    let namespace = Namespace::new("default").unwrap();
    let service = ServiceName::new("svc").unwrap();
    LinkId {
        service: ServiceId { namespace, service },
        uid: Uid::new("user123").unwrap(),
    }
}

async fn call(script: &'static str, answer: Result<u32>) -> Result<u32> {
    trace::observed(trace::store(script), async move { answer }).await
}

fn attribute(span: &FinishedSpan, name: &str) -> Option<AttributeValue> {
    let mut found = span.attributes.iter().filter(|(known, _)| *known == name);
    found.next().map(|(_, value)| value.clone())
}

fn text(value: &str) -> Option<AttributeValue> {
    Some(AttributeValue::Text(value.to_owned()))
}

async fn an_operation_is_one_trace() {
    let context = TraceContext::parse(SAMPLED, "vendor=1").unwrap();
    let operation = trace::operation(&context);
    let work = async {
        assert_eq!(trace::current(), Some(context.clone()));
        let placing = async {
            let _refused = call("get", Err(Error::new(ErrorKind::Timeout, "late"))).await;
            // A spawned task still belongs to the operation.
            let task = tokio::spawn(call("set_if_absent", Ok(1)).in_current_span());
            task.await.unwrap()
        };
        trace::observed(trace::place(&link()), placing).await
    };
    assert_eq!(work.instrument(operation).await.ok(), Some(1));
    let (traces, dropped) = trace::take();
    assert_eq!((traces.len(), dropped), (1, 0));
    assert_eq!(traces[0].context, Some(context));
    let [place, get, set] = &traces[0].spans[..] else {
        panic!("{:?}", traces[0].spans);
    };
    assert_eq!((place.number, place.parent), (1, 0));
    assert_eq!((get.number, get.parent), (2, 1));
    assert_eq!((set.number, set.parent), (3, 1));
    assert_eq!((get.name.as_str(), get.kind), ("get", "client"));
    assert_eq!(attribute(get, "podlink.outcome"), text("TIMEOUT"));
    assert_eq!(attribute(set, "podlink.outcome"), text("ok"));
    assert_eq!(attribute(place, "podlink.uid_hash"), text("e606e38b0d8c"));
    assert!(place.started_ns <= get.started_ns && place.lasted_ns >= set.lasted_ns);
    assert!(!format!("{traces:?}").contains("user123"));
}

async fn a_request_may_start_a_trace() {
    let namespace = Namespace::new("prod").unwrap();
    for context in [None, TraceContext::parse(SAMPLED, "")] {
        let span = trace::request("GetLinkedPod", &namespace, context.as_ref());
        let done = trace::observed(span, call("get", Ok(7))).await;
        assert_eq!(done.ok(), Some(7));
        let (traces, _) = trace::take();
        assert_eq!(traces[0].context, context);
        let names: Vec<_> = traces[0]
            .spans
            .iter()
            .map(|span| (&*span.name, span.kind))
            .collect();
        assert_eq!(names, [("GetLinkedPod", "server"), ("get", "client")]);
    }
}

async fn an_unsampled_context_is_only_propagated() {
    let context = TraceContext::parse(&SAMPLED.replace("-01", "-00"), "").unwrap();
    let work = async {
        assert!(trace::store("get").is_disabled());
        assert_eq!(trace::current(), Some(context.clone()));
    };
    work.instrument(trace::operation(&context)).await;
    assert_eq!(trace::take(), (vec![], 0));
}

async fn excess_spans_are_dropped_and_counted() {
    let context = TraceContext::parse(SAMPLED, "").unwrap();
    let many = async {
        for _ in 0..1000 {
            call("get", Ok(1)).await.unwrap();
        }
    };
    many.instrument(trace::operation(&context)).await;
    let (traces, dropped) = trace::take();
    assert_eq!((traces[0].spans.len(), dropped), (128, 872));
    for _ in 0..10_000 {
        let one = call("get", Ok(1)).instrument(trace::operation(&context));
        one.await.unwrap();
    }
    let (traces, dropped) = trace::take();
    assert_eq!((traces.len(), dropped), (8192, 10_000 - 8192));
}

#[tokio::test]
async fn spans_are_collected_while_collecting_is_on() {
    let subscriber = tracing_subscriber::registry().with(Spans);
    let _subscribed = tracing::subscriber::set_default(subscriber);
    assert!(trace::operation(&TraceContext::parse(SAMPLED, "").unwrap()).is_disabled());
    trace::collect(true);
    assert!(
        trace::store("get").is_disabled(),
        "it belongs to no operation"
    );
    an_operation_is_one_trace().await;
    a_request_may_start_a_trace().await;
    an_unsampled_context_is_only_propagated().await;
    excess_spans_are_dropped_and_counted().await;
    trace::collect(false);
    assert!(trace::operation(&TraceContext::parse(SAMPLED, "").unwrap()).is_disabled());
    assert_eq!(trace::take(), (vec![], 0));
}
