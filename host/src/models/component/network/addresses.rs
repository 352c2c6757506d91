//! Addresses that a plugin's requests may go to.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper_util::client::legacy::connect::dns::Name;
use tower::{BoxError, Service};

/// Resolves names to public addresses only, so that no name reaches into the
/// operator's own network, the machine itself or a cloud's metadata service. The
/// connection goes to exactly these addresses: checking a name and resolving it
/// again would leave room for another answer.
///
/// Only names that the operator has granted are asked for, and who grants
/// `localhost` means this machine. An address instead of a name is never asked for.
#[derive(Clone)]
pub(super) struct PublicAddresses {
    /// Leaves private addresses in.
    pub(super) allow_private: bool,
}

/// All addresses of a name are private.
#[derive(Debug, thiserror::Error)]
#[error("{0} has no public address")]
pub(super) struct Prohibited(String);

type Resolving<T> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send>>;

impl Service<Name> for PublicAddresses {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = BoxError;
    type Future = Resolving<Self::Response>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let is_exempt = self.allow_private || name.as_str() == "localhost";
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let allowed: Vec<SocketAddr> = found
                .filter(|address| is_exempt || is_public(address.ip()))
                .collect();
            if allowed.is_empty() {
                return Err(Prohibited(name.as_str().to_owned()).into());
            }
            Ok(allowed.into_iter())
        })
    }
}

fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let special = ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_multicast()
        || ip.is_documentation()
        || a == 0
        || a >= 240
        // shared by a provider's customers
        || (a == 100 && b & 0b1100_0000 == 64)
        || (a, b, c) == (192, 0, 0)
        // benchmarks
        || (a == 198 && b & 0b1111_1110 == 18);
    !special
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    if let Some(v4) = ip.to_ipv4_mapped() {
        return is_public_v4(v4);
    }
    let [a, b, ..] = ip.segments();
    // everything in use is in 2000::/3; in it lie documentation and the tunnels
    // Teredo and 6to4, which hold an IPv4 address
    a & 0xe000 == 0x2000
        && (a, b) != (0x2001, 0)
        && (a, b) != (0x2001, 0xdb8)
        && a != 0x2002
        && a & 0xfff0 != 0x3ff0
}

#[cfg(test)]
mod tests {
    use super::{BoxError, Prohibited, PublicAddresses, Service, is_public};

    /// A name that leads to this machine and is not `localhost`: the resolver of the
    /// operating system takes an address for a name too.
    const HERE: &str = "127.0.0.1";

    async fn resolve(name: &str, allow_private: bool) -> Result<usize, BoxError> {
        let mut resolver = PublicAddresses { allow_private };
        let found = resolver.call(name.parse().unwrap()).await;
        found.map(Iterator::count)
    }

    #[tokio::test]
    async fn a_private_name_needs_permission() {
        let error = resolve(HERE, false).await.unwrap_err();
        assert!(error.is::<Prohibited>(), "{error}");
        assert_eq!(resolve(HERE, true).await.unwrap(), 1);
        assert!(resolve("localhost", false).await.unwrap() > 0);
    }

    #[test]
    fn private_addresses_are_known() {
        for private in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "192.0.0.8",
            "192.168.1.1",
            "198.18.0.1",
            "203.0.113.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "2001::1",
            "2001:db8::1",
            "2002::1",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "ff02::1",
        ] {
            assert!(!is_public(private.parse().unwrap()), "{private}");
        }
        for public in [
            "1.1.1.1",
            "100.128.0.1",
            "172.32.0.1",
            "2606:4700::1111",
            "::ffff:8.8.8.8",
        ] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
    }
}
