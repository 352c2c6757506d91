//! Networks of clients.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

/// The network that a text names, as `203.0.113.0/24`, `2001:db8::/32` or one
/// address. One of IPv4 addresses written as IPv6 is the IPv4 network, which is
/// how their clients are seen.
pub fn parse(text: &str) -> Option<IpNet> {
    let text = text.trim();
    let network = match text.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address),
        Err(_) => text.parse::<IpNet>().ok()?,
    };
    let mapped = match network {
        IpNet::V6(network) if network.prefix_len() >= 96 => {
            let address = network.addr().to_ipv4_mapped();
            address.and_then(|address| Ipv4Net::new(address, network.prefix_len() - 96).ok())
        }
        IpNet::V4(_) | IpNet::V6(_) => None,
    };
    Some(mapped.map_or(network, IpNet::V4).trunc())
}

/// Whether a client at this address is in one of the networks.
pub fn contain(networks: &[IpNet], client: IpAddr) -> bool {
    let client = client.to_canonical();
    networks.iter().any(|network| network.contains(&client))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read_as_people_write_them() {
        for (text, network) in [
            ("203.0.113.0/24", Some("203.0.113.0/24")),
            (" 203.0.113.7/24 ", Some("203.0.113.0/24")),
            ("203.0.113.7", Some("203.0.113.7/32")),
            ("2001:db8::/32", Some("2001:db8::/32")),
            ("2001:db8::1", Some("2001:db8::1/128")),
            ("::ffff:10.0.0.0/104", Some("10.0.0.0/8")),
            ("::ffff:10.0.0.1", Some("10.0.0.1/32")),
            ("0.0.0.0/0", Some("0.0.0.0/0")),
            ("203.0.113.0/33", None),
            ("203.0.113", None),
            ("example.com", None),
            ("", None),
        ] {
            let found = parse(text).map(|network| network.to_string());
            assert_eq!(found.as_deref(), network, "{text}");
        }
    }

    #[test]
    fn a_client_is_found_in_its_network_however_it_is_written() {
        let networks = ["10.0.0.0/8", "2001:db8::/32"].map(|text| parse(text).unwrap());
        for (client, is_in) in [
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("2001:db8::9", true),
            ("11.0.0.1", false),
            ("::ffff:11.0.0.1", false),
            ("2001:db9::9", false),
            // IPv4-compatible, which is another thing and long gone
            ("::10.1.2.3", false),
        ] {
            assert_eq!(
                contain(&networks, client.parse().unwrap()),
                is_in,
                "{client}"
            );
        }
        assert!(!contain(&[], "10.1.2.3".parse().unwrap()));
    }
}
