//! URLs, as far as a request needs them.

use super::Failure;

/// An absolute URL in the parts that `wasi:http` wants. The host checks them
/// again, strictly; this only takes them apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Url<'a> {
    pub(super) secure: bool,
    pub(super) authority: &'a str,
    pub(super) path_and_query: &'a str,
}

impl<'a> Url<'a> {
    pub(super) fn parse(url: &'a str) -> Result<Self, Failure> {
        let invalid = |why| Err(Failure::Invalid(format!("api_url {why}")));
        let (secure, rest) = if let Some(rest) = url.strip_prefix("https://") {
            (true, rest)
        } else if let Some(rest) = url.strip_prefix("http://") {
            (false, rest)
        } else {
            return invalid("starts with neither https:// nor http://");
        };
        let rest = rest.split_once('#').map_or(rest, |(before, _)| before);
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path_and_query) = rest.split_at(end);
        if authority.is_empty() {
            return invalid("names no host");
        }
        if authority.contains('@') {
            return invalid("must not hold a name or password");
        }
        Ok(Self {
            secure,
            authority,
            path_and_query: if path_and_query.is_empty() {
                "/"
            } else {
                path_and_query
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Failure, Url};

    #[test]
    fn urls_are_taken_apart() {
        let url = Url::parse("https://api.example:8443/v1/completions?v=1#top").unwrap();
        assert!(url.secure);
        assert_eq!(url.authority, "api.example:8443");
        assert_eq!(url.path_and_query, "/v1/completions?v=1");
        assert_eq!(Url::parse("http://[::1]:80").unwrap().path_and_query, "/");
        for bad in [
            "",
            "api.example/v1",
            "ftp://a/",
            "https://",
            "https:///v1",
            "https://u:p@a/",
        ] {
            assert!(matches!(Url::parse(bad), Err(Failure::Invalid(_))), "{bad}");
        }
    }
}
