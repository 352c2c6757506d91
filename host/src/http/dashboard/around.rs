//! Around every page: forms of other sites are refused, errors become pages,
//! and the browser is told what a page may do.

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::{layout, origin};
use crate::http::envelope::RequestId;
use crate::http::error::ApiError;

/// What a page may do: show itself in our style and send forms to us.
const POLICY: &str = "default-src 'none'; style-src 'self'; img-src 'self' data:; \
                      form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

const HEADERS: [(HeaderName, HeaderValue); 4] = [
    (
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(POLICY),
    ),
    (
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    ),
    // not no-referrer, by which browsers send `Origin: null` with our own forms
    (
        header::REFERRER_POLICY,
        HeaderValue::from_static("same-origin"),
    ),
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
];

/// Answers with a page, come what may.
pub async fn wrap(request: Request, next: Next) -> Response {
    let id = request.extensions().get::<RequestId>().cloned();
    let is_form = request.method() == Method::POST;
    let mut response = if is_form && origin::is_foreign(request.headers(), request.uri()) {
        ApiError::cross_site().into_response()
    } else {
        next.run(request).await
    };
    if let Some(error) = response.extensions_mut().remove::<ApiError>() {
        response = page(error, id.as_ref().map_or("", |id| &id.0));
    }
    response.headers_mut().extend(HEADERS);
    response
}

/// The error as the API gives it, headers and line in the log included, with a
/// page for its body.
fn page(error: ApiError, request_id: &str) -> Response {
    let page = layout::error(&error, request_id).into_string();
    let mut response = error.render(request_id);
    *response.body_mut() = Body::from(page);
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/html; charset=utf-8"),
    );
    response
}
