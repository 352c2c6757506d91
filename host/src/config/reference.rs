//! Components in registries.

/// What a `plugin` from a registry begins with.
pub(super) const SCHEME: &str = "oci://";

/// A component in an OCI registry, pinned: what is behind it never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Host, and port if it has one.
    pub registry: String,
    /// Path of the component there.
    pub repository: String,
    /// Digest of the manifest, `sha256:` and 64 hex digits.
    pub digest: String,
}

impl Reference {
    /// Reads `oci://registry/repository@sha256:…`. A tag before the digest is for
    /// people, and is left out.
    ///
    /// # Errors
    /// With what is wrong.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let text = text.strip_prefix(SCHEME).unwrap_or(text);
        let Some((name, digest)) = text.split_once('@') else {
            return Err(
                "must be pinned by a digest, as in oci://registry.example/repository@sha256:…: \
                        a tag may be another component tomorrow",
            );
        };
        let Some((registry, repository)) = name.split_once('/') else {
            return Err(
                "must name a registry and a repository, as in oci://registry.example/repository@sha256:…",
            );
        };
        let repository = match repository.rsplit_once(':') {
            Some((repository, _tag)) => repository,
            None => repository,
        };
        if !digest.strip_prefix("sha256:").is_some_and(is_sha256) {
            return Err("must be pinned by a digest of sha256: and 64 lower-case hex digits");
        }
        let is_host = |c: char| c.is_ascii_alphanumeric() || "-.:[]".contains(c);
        let is_path = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._/".contains(c);
        let is_named = !registry.is_empty() && !repository.is_empty();
        if !is_named || !registry.chars().all(is_host) || !repository.chars().all(is_path) {
            return Err("names no registry and repository");
        }
        Ok(Self {
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            digest: digest.to_owned(),
        })
    }
}

/// Whether `text` is a SHA-256 in lower-case hex.
pub(super) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::Reference;

    #[test]
    fn only_what_is_pinned_is_taken() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        for name in ["a.example/b", "a.example/b:1.0", "localhost:5000/b/c"] {
            let found = Reference::parse(&format!("oci://{name}@{digest}")).unwrap();
            assert_eq!(found.digest, digest);
            assert!(!found.repository.contains(':') && !found.repository.is_empty());
        }
        for bad in [
            "oci://a.example/b:1.0",
            "oci://a.example/b",
            "oci://a.example/b@sha256:0a",
            &format!("oci://a.example/b@{}", digest.to_uppercase()),
            &format!("oci://b@{digest}"),
            &format!("oci:///b@{digest}"),
            &format!("oci://a.example/@{digest}"),
            &format!("oci://a.example/B@{digest}"),
            &format!("oci://user:password@a.example/b@{digest}"),
            &format!("oci://a.example/b@md5:{digest}"),
        ] {
            assert!(Reference::parse(bad).is_err(), "{bad}");
        }
    }
}
