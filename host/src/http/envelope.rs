//! Around every request: its id, its span, its line in the log; and errors
//! become bodies here, since only here the id is known.

use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;
use tokio::time::Instant;
use tracing::Instrument;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use uuid::Uuid;

use super::error::ApiError;
use crate::cohort::behind_others;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The id of a request. The server's own: a client's could be used twice.
#[derive(Clone, Debug)]
pub struct RequestId(pub String);

/// Gives the request an id and the response its final form.
pub async fn wrap(mut request: Request, next: Next) -> Response {
    let id = format!("req_{}", Uuid::now_v7().simple());
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map(|path| path.as_str().to_owned());
    let route = route.as_deref().unwrap_or("none");
    let method = known(request.method());
    let span = tracing::info_span!(
        "request",
        otel.name = format!("{} {route}", method.unwrap_or("HTTP")),
        otel.kind = "server",
        request_id = id,
        http.request.method = method.unwrap_or("_OTHER"),
        http.route = route,
    );
    request.extensions_mut().insert(RequestId(id.clone()));
    let started = Instant::now();
    let work = async {
        let mut response = next.run(request).await;
        if let Some(error) = response.extensions_mut().remove::<ApiError>() {
            response = error.render(&id);
        }
        if let Ok(value) = HeaderValue::from_str(&id) {
            response.headers_mut().insert(REQUEST_ID, value);
        }
        // for the trace alone: a field that comes later has the log write all of them again
        tracing::Span::current().set_attribute(
            "http.response.status_code",
            i64::from(response.status().as_u16()),
        );
        tracing::debug!(
            status = response.status().as_u16(),
            latency_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            "answered"
        );
        // with the answers of others, so that each need not wake the client by itself
        behind_others().await;
        response
    };
    work.instrument(span).await
}

/// The method, if it is one that OpenTelemetry names: others are a client's own words, of
/// any length.
fn known(method: &Method) -> Option<&str> {
    let is_known = matches!(
        *method,
        Method::CONNECT
            | Method::DELETE
            | Method::GET
            | Method::HEAD
            | Method::OPTIONS
            | Method::PATCH
            | Method::POST
            | Method::PUT
            | Method::TRACE
    );
    is_known.then(|| method.as_str())
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;
    use axum::routing::get;
    use http_body_util::BodyExt;
    use tower::ServiceExt;
    use tower_http::catch_panic::CatchPanicLayer;

    use super::*;
    use crate::http::error::panicked;

    #[tokio::test]
    async fn a_panic_is_an_error_with_its_code_and_says_nothing_of_itself() {
        async fn fails() {
            panic!("a secret");
        }
        let router = Router::new()
            .route("/", get(fails))
            .layer(CatchPanicLayer::custom(panicked))
            .layer(axum::middleware::from_fn(wrap));
        let answer = router.oneshot(Request::new(Body::empty())).await.unwrap();
        assert_eq!(answer.status(), 500);
        let id = answer.headers()[REQUEST_ID].to_str().unwrap().to_owned();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let error = &body["error"];
        assert_eq!(
            (&error["code"], &error["request_id"]),
            (&"internal".into(), &id.into())
        );
        assert!(!body.to_string().contains("secret"), "{body}");
    }
}
