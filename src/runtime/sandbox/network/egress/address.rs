//! Addresses that are not the internet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What an address belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Realm {
    /// The internet.
    Public,
    /// Somebody's own network: open where a rule names the very address.
    Private,
    /// The machine itself, its link, or a service of its cloud: never open.
    Closed,
}

/// Addresses of metadata services that lie in none of the closed ranges: Azure's.
const METADATA: &[Ipv4Addr] = &[Ipv4Addr::new(168, 63, 129, 16)];
/// Those that lie in private ranges: Alibaba's, Oracle's; and AWS's of IPv6.
const PRIVATE_METADATA: &[Ipv4Addr] = &[Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(192, 0, 0, 192)];
const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254);

/// What an address belongs to. One of IPv6 that stands for one of IPv4 belongs to what that does.
pub fn realm(address: IpAddr) -> Realm {
    match address {
        IpAddr::V4(address) => realm_v4(address),
        IpAddr::V6(address) => embedded(address).map_or_else(|| realm_v6(address), realm_v4),
    }
}

fn realm_v4(address: Ipv4Addr) -> Realm {
    let [a, b, c, _] = address.octets();
    let is_shared = a == 100 && (64..128).contains(&b);
    let is_benchmark = a == 198 && (b == 18 || b == 19);
    let is_protocol = (a, b, c) == (192, 0, 0);
    if a == 0
        || a >= 224
        || address.is_loopback()
        || address.is_link_local()
        || METADATA.contains(&address)
        || PRIVATE_METADATA.contains(&address)
    {
        Realm::Closed
    } else if address.is_private() || is_shared || is_benchmark || is_protocol {
        Realm::Private
    } else {
        Realm::Public
    }
}

fn realm_v6(address: Ipv6Addr) -> Realm {
    let first = address.segments()[0];
    let is_link_or_site = first & 0xff80 == 0xfe80;
    if address.is_unspecified()
        || address.is_loopback()
        || address.is_multicast()
        || is_link_or_site
        || address == METADATA_V6
    {
        Realm::Closed
    } else if address.is_unique_local() {
        Realm::Private
    } else if first & 0xe000 == 0x2000 && address.segments()[..2] != [0x2001, 0] {
        Realm::Public
    } else {
        // Not assigned, or a tunnel (Teredo) whose end can't be told.
        Realm::Closed
    }
}

/// The address of IPv4 behind one of IPv6: mapped, compatible, NAT64 (RFC 6052) or 6to4.
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let last = Ipv4Addr::from_bits(u32::try_from(address.to_bits() & u128::from(u32::MAX)).unwrap_or_default());
    match address.segments() {
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] if (high, low) > (0, 1) => Some(last),
        [0x0064, 0xff9b, 0, 0, 0, 0, ..] => Some(last),
        [0x2002, high, low, ..] => {
            let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
            Some(Ipv4Addr::new(a, b, c, d))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_belong_to_realms() {
        use Realm::{Closed, Private, Public};
        for (text, expected) in [
            ("1.1.1.1", Public),
            ("93.184.216.34", Public),
            ("172.32.0.1", Public),
            ("100.128.0.1", Public),
            ("2606:4700::1111", Public),
            ("10.0.0.1", Private),
            ("172.16.0.1", Private),
            ("172.31.255.255", Private),
            ("192.168.1.1", Private),
            ("100.64.0.1", Private),
            ("198.18.0.1", Private),
            ("fd12:3456::1", Private),
            ("0.0.0.0", Closed),
            ("0.1.2.3", Closed),
            ("127.0.0.1", Closed),
            ("127.255.255.254", Closed),
            ("169.254.169.254", Closed),
            ("168.63.129.16", Closed),
            ("100.100.100.200", Closed),
            ("192.0.0.192", Closed),
            ("224.0.0.1", Closed),
            ("255.255.255.255", Closed),
            ("240.0.0.1", Closed),
            ("::", Closed),
            ("::1", Closed),
            ("fe80::1", Closed),
            ("fec0::1", Closed),
            ("ff02::1", Closed),
            ("fd00:ec2::254", Closed),
            ("2001:0:4136:e378::1", Closed),
            ("100::1", Closed),
            ("::ffff:127.0.0.1", Closed),
            ("::ffff:10.0.0.1", Private),
            ("::ffff:1.1.1.1", Public),
            ("::127.0.0.1", Closed),
            ("64:ff9b::7f00:1", Closed),
            ("64:ff9b::a00:1", Private),
            ("64:ff9b::101:101", Public),
            ("64:ff9b:1::7f00:1", Closed),
            ("2002:7f00:1::", Closed),
            ("2002:a9fe:a9fe::1", Closed),
        ] {
            assert_eq!(realm(text.parse().unwrap()), expected, "{text}");
        }
    }
}
