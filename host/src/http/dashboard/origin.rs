//! Whether a form came from another site. The session's cookie is
//! `SameSite=Strict` already; this also holds between the ports and subdomains
//! of one site, and for signing in, which needs no cookie.

use axum::http::uri::Authority;
use axum::http::{HeaderMap, Uri, header};

/// Whether a browser says that the request comes from a page that is not ours.
/// What is not a browser says nothing.
pub fn is_foreign(headers: &HeaderMap, uri: &Uri) -> bool {
    // browsers since 2023 tell; a proxy that rewrites `Host` does not disturb it
    if let Some(site) = headers.get("sec-fetch-site") {
        return site != "same-origin" && site != "none";
    }
    let Some(origin) = headers.get(header::ORIGIN) else {
        return false;
    };
    let origin = origin.to_str().ok().and_then(|text| text.parse().ok());
    let origin = origin.as_ref().and_then(Uri::authority);
    let host = headers.get(header::HOST);
    let host: Option<Authority> = host
        .and_then(|host| host.to_str().ok()?.parse().ok())
        // HTTP/2 has it in the URI
        .or_else(|| uri.authority().cloned());
    // `Origin: null` has no authority and is nobody's
    origin.is_none() || origin != host.as_ref()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn foreign(headers: &[(&'static str, &'static str)]) -> bool {
        let headers: HeaderMap = headers
            .iter()
            .map(|&(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect();
        is_foreign(&headers, &Uri::from_static("/login"))
    }

    #[test]
    fn our_own_pages_and_what_is_no_browser_are_not_foreign() {
        assert!(!foreign(&[("host", "localhost:8000")]));
        assert!(!foreign(&[
            ("host", "localhost:8000"),
            ("origin", "http://LOCALHOST:8000")
        ]));
        assert!(!foreign(&[("sec-fetch-site", "none")]));
        // a proxy in front: the browser knows better than `Host`
        assert!(!foreign(&[
            ("sec-fetch-site", "same-origin"),
            ("host", "127.0.0.1:8000"),
            ("origin", "https://models.example")
        ]));
    }

    #[test]
    fn other_sites_ports_and_subdomains_are_foreign() {
        for origin in [
            "http://evil.example",
            "http://localhost:9000",
            "http://localhost",
            "null",
            "",
            "\u{e4}",
        ] {
            assert!(
                foreign(&[("host", "localhost:8000"), ("origin", origin)]),
                "{origin}"
            );
        }
        assert!(foreign(&[("sec-fetch-site", "cross-site")]));
        assert!(foreign(&[
            ("sec-fetch-site", "same-site"),
            ("host", "a.example"),
            ("origin", "https://a.example")
        ]));
    }
}
