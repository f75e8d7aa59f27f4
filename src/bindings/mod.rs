//! The only room that knows Python. It translates: unwrap arguments, await the core, map the
//! error. All routing decisions are in other rooms.
//!
//! No thread of the runtime ever takes the GIL: results, hook calls and log records wait in queues
//! that Python threads empty (docs/decisions/0002).

mod admin;
mod answer;
mod argument;
mod batch;
mod calls;
mod client;
mod config;
mod counters;
mod error;
mod fork;
mod grpc_client;
mod grpc_server;
mod hook;
mod hook_call;
mod info;
mod known_pods;
mod log;
mod operations;
mod queue;
mod registration;
mod runtime;
mod server;
mod service;
mod store;
mod telemetry;
mod trace;
mod waker;

use pyo3::prelude::*;

/// A call is made of small things that live as long as it does: a tenth of its cost is allocation
/// (docs/decisions/0017).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The compiled half of podlink. `python/podlink/_podlink.pyi` describes it.
#[pymodule]
mod _podlink {
    #[pymodule_export]
    use super::admin::AdminCore;
    #[pymodule_export]
    use super::argument::{check_pod, check_timeout};
    #[pymodule_export]
    use super::batch::{UidBatch, UsersByPod};
    #[pymodule_export]
    use super::client::ClientCore;
    #[pymodule_export]
    use super::config::{
        ClientSettings, GrpcClientSettings, GrpcServerSettings, RouteInfoSettings, ServerSettings,
        config_table,
    };
    #[pymodule_export]
    use super::counters::{hook_called, hook_ended};
    #[pymodule_export]
    use super::error::error_codes;
    #[pymodule_export]
    use super::fork::after_fork_in_child;
    #[pymodule_export]
    use super::grpc_client::GrpcClientCore;
    #[pymodule_export]
    use super::grpc_server::GrpcServerCore;
    #[pymodule_export]
    use super::hook::start_coroutine;
    #[pymodule_export]
    use super::hook_call::HookReply;
    #[pymodule_export]
    use super::info::InfoCore;
    #[pymodule_export]
    use super::log::{set_log_filter, take_logs};
    #[pymodule_export]
    use super::operations::{link_operation_names, operation_names};
    #[pymodule_export]
    use super::queue::CompletionQueue;
    #[pymodule_export]
    use super::registration::Registration;
    #[pymodule_export]
    use super::server::ServerCore;
    #[pymodule_export]
    use super::service::ServiceCore;
    #[pymodule_export]
    use super::store::StoreCore;
    #[pymodule_export]
    use super::telemetry::{metrics_collect, metrics_table, metrics_text};
    #[pymodule_export]
    use super::trace::{collect_spans, hash_uid, start_traced, take_spans};
    use super::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
