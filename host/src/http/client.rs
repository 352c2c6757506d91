//! Where a request comes from: the other end of its connection, or what a
//! proxy says that the operator trusts.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::HeaderMap;
use axum::http::request::Parts;
use ipnet::IpNet;

use super::AppState;

const FORWARDED_FOR: &str = "x-forwarded-for";

/// The client's address; IPv4 as such, also where it came by an IPv6 socket.
#[derive(Clone, Copy, Debug)]
pub struct ClientAddress(pub IpAddr);

impl FromRequestParts<AppState> for ClientAddress {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Infallible> {
        let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>();
        // every connection has one; an address that no client has opens nothing
        let peer = peer.map_or(Ipv4Addr::UNSPECIFIED.into(), |peer| peer.0.ip());
        Ok(Self(client(peer, &parts.headers, &state.trusted_proxies)))
    }
}

/// The first address that is not a trusted proxy's, going back from the peer
/// through `X-Forwarded-For` from its end: each proxy adds there whom it was
/// called by, and what stands further left may be anybody's invention. Where an
/// entry cannot be read, it is the proxy that wrote it.
fn client(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let mut client = peer.to_canonical();
    let lines = headers.get_all(FORWARDED_FOR).iter().rev();
    let entries = lines.flat_map(|line| line.to_str().unwrap_or("?").rsplit(','));
    for entry in entries {
        if !trusted.iter().any(|network| network.contains(&client)) {
            break;
        }
        let Some(address) = address(entry.trim()) else {
            break;
        };
        client = address.to_canonical();
    }
    client
}

/// An address as proxies write it, perhaps with a port.
fn address(text: &str) -> Option<IpAddr> {
    let with_port = || text.parse::<SocketAddr>().map(|address| address.ip());
    text.parse().or_else(|_| with_port()).ok()
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn a_proxy_is_believed_where_it_is_trusted() {
        let trusted = ["10.0.0.0/8", "2001:db8::/32"].map(|text| text.parse().unwrap());
        for (peer, lines, expected) in [
            ("198.51.100.1", &["203.0.113.9"][..], "198.51.100.1"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["203.0.113.9"], "203.0.113.9"),
            ("::ffff:10.0.0.1", &["203.0.113.9"], "203.0.113.9"),
            ("10.0.0.1", &["::ffff:203.0.113.9"], "203.0.113.9"),
            ("2001:db8::1", &["2001:db9::7"], "2001:db9::7"),
            // from the right, past those trusted; what the client made up is not reached
            (
                "10.0.0.1",
                &["1.1.1.1, 203.0.113.9, 10.0.0.2"],
                "203.0.113.9",
            ),
            (
                "10.0.0.1",
                &["1.1.1.1", "203.0.113.9,10.0.0.2"],
                "203.0.113.9",
            ),
            (
                "10.0.0.1",
                &["203.0.113.9", "10.0.0.3", "10.0.0.2"],
                "203.0.113.9",
            ),
            ("10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            ("10.0.0.1", &["203.0.113.9:4711"], "203.0.113.9"),
            ("10.0.0.1", &["[2001:db9::7]:4711"], "2001:db9::7"),
            ("10.0.0.1", &["203.0.113.9, unknown"], "10.0.0.1"),
            ("10.0.0.1", &["203.0.113.9, unknown, 10.0.0.2"], "10.0.0.2"),
            ("10.0.0.1", &["203.0.113.9", ""], "10.0.0.1"),
            ("10.0.0.1", &["203.0.113.9", "é"], "10.0.0.1"),
        ] {
            let mut headers = HeaderMap::new();
            for line in lines {
                let value = HeaderValue::from_bytes(line.as_bytes()).unwrap();
                headers.append(FORWARDED_FOR, value);
            }
            let found = client(peer.parse().unwrap(), &headers, &trusted);
            assert_eq!(found.to_string(), expected, "{peer} {lines:?}");
            let alone = client(peer.parse().unwrap(), &headers, &[]);
            assert_eq!(alone, peer.parse::<IpAddr>().unwrap().to_canonical());
        }
    }
}
