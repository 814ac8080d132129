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

/// The address that one stands for: that of IPv4 behind one of IPv6, else itself.
pub fn meant(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(six) => embedded(six).map_or(address, IpAddr::V4),
        IpAddr::V4(_) => address,
    }
}

/// Whether a name ends with a number, so that it is an address of IPv4 or nothing (the host parser of the URL standard).
pub fn is_number(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or_default();
    last.starts_with(|first: char| first.is_ascii_digit()) && number(last).is_some()
}

/// The address of IPv4 that numbers stand for, in any of the ways that inet_aton(3) reads and resolvers take: one to four
/// of them, decimal, octal or hexadecimal, of which the last one fills what is left.
pub fn of_numbers(name: &str) -> Option<Ipv4Addr> {
    let numbers = name.split('.').map(number).collect::<Option<Vec<u64>>>()?;
    let (last, first) = numbers.split_last()?;
    let room = 32u32.checked_sub(8 * u32::try_from(first.len()).ok()?).filter(|room| *room > 0)?;
    let high = first.iter().try_fold(0u64, |bits, byte| (*byte < 256).then_some(bits << 8 | byte))?;
    let bits = (*last < 1u64 << room).then_some(high << room | last)?;
    Some(Ipv4Addr::from_bits(u32::try_from(bits).ok()?))
}

fn number(text: &str) -> Option<u64> {
    let digits = |text: &str, radix| {
        let are_digits = text.chars().all(|letter| letter.is_digit(radix));
        // No more than what can't be in an address anyway.
        are_digits.then(|| u64::from_str_radix(text, radix).unwrap_or(u64::MAX))
    };
    match (text.strip_prefix("0x"), text.strip_prefix('0')) {
        (Some(""), _) | (None, Some("")) => Some(0),
        (Some(hexadecimal), _) => digits(hexadecimal, 16),
        (None, Some(octal)) => digits(octal, 8).or_else(|| digits(octal, 10).map(|_| u64::MAX)),
        (None, None) if text.is_empty() => None,
        (None, None) => digits(text, 10),
    }
}

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
    fn numbers_are_addresses_as_resolvers_read_them() {
        for (name, address) in [
            ("2130706433", Some("127.0.0.1")),
            ("0x7f.1", Some("127.0.0.1")),
            ("0177.0.0.1", Some("127.0.0.1")),
            ("1.2.3", Some("1.2.0.3")),
            ("0", Some("0.0.0.0")),
            ("0x", Some("0.0.0.0")),
            ("1.2.3.256", None),
            ("256.1", None),
            ("08.0.0.1", None),
            ("4294967296", None),
            ("99999999999999999999999", None),
            ("1.2.3.4.5", None),
        ] {
            assert!(is_number(name), "{name}");
            assert_eq!(of_numbers(name).map(|address| address.to_string()).as_deref(), address, "{name}");
        }
        for name in ["example.org", "1.example", "x1", "1x", "0xg", ""] {
            assert!(!is_number(name), "{name}");
        }
    }

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
