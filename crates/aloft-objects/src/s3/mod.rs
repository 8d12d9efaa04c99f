//! The S3 protocol on top of [`Objects`], for whoever speaks it: the SDK in a task, a presigned URL in a browser, a
//! data frame library.
//!
//! `s3s` parses requests and verifies signatures; this module decides who may do what, and does it. A request is
//! answered only if it is signed (version 4, in headers or in the query) with credentials of this store's
//! [`Keys`](crate::Keys), and stays within their [`Scope`](crate::Scope). It is a path-style endpoint: mount it at
//! [`routes`] next to whatever else the port serves.
//!
//! Not offered, and refused by name: versions, ACLs, tags, bucket management, browser form uploads, copying parts,
//! and conditional overwrites (`If-Match` on a write).

mod body;
mod caller;
mod condition;
mod drain;
mod error;
mod gate;
mod ops;

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderValue, StatusCode, header};
use s3s::{
    Body,
    config::{S3Config, StaticConfigProvider},
    service::{S3Service, S3ServiceBuilder},
};

use crate::store::Objects;

/// The largest XML request is a deletion of 1000 keys of 1024 bytes, each of which XML may blow up.
const XML_BYTES_MAX: usize = 8 << 20;
/// Browser form uploads are refused, but `s3s` reads their fields before it asks.
const FORM_BYTES_MAX: usize = 16 << 10;

/// The S3 endpoint as a tower service. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Endpoint {
    service: S3Service,
}

/// Serves `objects` over S3.
pub fn endpoint(objects: Objects) -> Endpoint {
    let mut config = S3Config::default();
    config.xml_max_body_size = XML_BYTES_MAX;
    config.form_max_field_size = FORM_BYTES_MAX;
    config.form_max_fields_size = FORM_BYTES_MAX;
    config.form_max_parts = 32;
    let mut builder = S3ServiceBuilder::new(ops::Operations::new(objects.clone()));
    builder.set_config(Arc::new(StaticConfigProvider::new(Arc::new(config))));
    builder.set_auth(gate::Gate::new(objects.keys().clone()));
    builder.set_access(gate::Gate::new(objects.keys().clone()));
    Endpoint { service: builder.build() }
}

/// The paths, in axum's syntax, that belong to the endpoint of `bucket`.
pub fn routes(bucket: &str) -> [String; 3] {
    [format!("/{bucket}"), format!("/{bucket}/"), format!("/{bucket}/{{*key}}")]
}

impl<B> tower::Service<http::Request<B>> for Endpoint
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let (parts, body) = request.into_parts();
        let body = drain::Drained::new(body);
        let rest = body.clone();
        let answer = tower::Service::call(&mut self.service, http::Request::from_parts(parts, body));
        Box::pin(async move {
            let answer = answer.await;
            if answer.as_ref().is_ok_and(|response| !response.status().is_success()) {
                rest.drain().await;
            }
            let mut response = answer.unwrap_or_else(|error| {
                tracing::error!(?error, "could not write an S3 response");
                let mut response = http::Response::new(Body::empty());
                *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                response
            });
            // Objects share their origin with the console, so nothing in them may run as part of it.
            let headers = response.headers_mut();
            headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
            headers.insert(
                header::CONTENT_SECURITY_POLICY,
                HeaderValue::from_static("sandbox allow-scripts allow-popups allow-downloads"),
            );
            Ok(response)
        })
    }
}
