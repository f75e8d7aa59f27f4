//! The services of a server, routed by the path of the request.

use std::sync::Arc;

use http::{Request, Response};
use tonic::body::Body;
use tonic::service::Routes;
use tonic::service::interceptor::InterceptedService;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::HealthService;
use tower_service::Service as _;

use super::access::Gate;
use super::service::RouteHandler;
use crate::proto::DESCRIPTORS;
use crate::rpc::http2::IncomingBody;
use crate::rpc::messages::SERVICE_NAME;

/// Every service. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct ServiceStack(Arc<ServiceRoutes>);

#[derive(Debug)]
struct ServiceRoutes {
    route: RouteHandler,
    /// Health and, if wanted, the schema.
    others: Routes,
}

impl ServiceStack {
    pub(super) fn new(
        route: RouteHandler,
        health: HealthServer<HealthService>,
        reflection: bool,
        gate: Arc<Gate>,
    ) -> Self {
        // Only authenticated callers may read the schema.
        let authenticated = move |request: tonic::Request<()>| {
            gate.identify(request.metadata(), request.extensions())?;
            Ok(request)
        };
        let mut others = Routes::builder();
        others.add_service(health);
        // Both versions, because most tools still use the older one.
        if let (true, Ok(current), Ok(older)) =
            (reflection, schema().build_v1(), schema().build_v1alpha())
        {
            others.add_service(InterceptedService::new(current, authenticated.clone()));
            others.add_service(InterceptedService::new(older, authenticated));
        }
        let others = others.routes().prepare();
        Self(Arc::new(ServiceRoutes { route, others }))
    }

    /// The response to a request; errors are responses, too.
    pub(super) async fn call(&self, request: Request<IncomingBody>) -> Response<Body> {
        let path = request.uri().path().strip_prefix('/');
        let method = path.and_then(|path| path.strip_prefix(SERVICE_NAME)?.strip_prefix('/'));
        if let Some(method) = method.map(ToOwned::to_owned) {
            return self.0.route.serve(&method, request).await;
        }
        let response = self.0.others.clone().call(request.map(Body::new)).await;
        response.unwrap_or_else(|never| match never {})
    }
}

/// The reflection service, which returns the schema.
fn schema() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}
