//! Subnets of IPv4, and the one that a deployment gets.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// Where subnets of deployments come from: a part of the private range 10.0.0.0/8 that neither Docker (172.17.0.0/12,
/// 192.168.0.0/16) nor Podman (10.88.0.0/15) gives away by itself.
const POOL: Subnet = Subnet { first: Ipv4Addr::new(10, 208, 0, 0), length: 12 };
/// Prefix length of a deployment's subnet: 1021 instances, as a bridge takes 1023 interfaces (`BR_PORT_BITS`).
const LENGTH: u8 = 22;

/// A range of addresses with a common beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// Its first address, which stands for the subnet itself.
    pub first: Ipv4Addr,
    /// Number of bits that all have in common, up to 32.
    pub length: u8,
}

impl Subnet {
    /// The subnet of this prefix length that an address is in.
    pub fn around(address: Ipv4Addr, length: u8) -> Self {
        let length = length.min(32);
        Self { first: Ipv4Addr::from_bits(address.to_bits() & mask(length)), length }
    }

    /// The mask of its common bits.
    pub fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(mask(self.length))
    }

    /// Whether an address is in it.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.length) == self.first.to_bits()
    }

    /// Whether any address is in both.
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.first) || other.contains(self.first)
    }

    /// The machine's own address in it: the first one that is not the subnet's.
    pub fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.first.to_bits() + 1)
    }

    /// Its last address, which stands for all of them.
    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.first.to_bits() | !mask(self.length))
    }

    /// Number of addresses that instances may have.
    pub fn room(self) -> u32 {
        self.broadcast().to_bits() - self.gateway().to_bits() - 1
    }

    /// The address of a number from 0 to less than [`room`](Self::room).
    pub fn address(self, number: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.gateway().to_bits() + 1 + number)
    }
}

fn mask(length: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)
}

/// The subnet for a network that overlaps none of those that are taken: the `start`th of the pool or the next one after
/// it, going round. Counting begins elsewhere for each network, so that it gets the same one again after a reboot.
pub fn choose(start: u64, taken: &[Subnet]) -> Option<Subnet> {
    let count = 1u64 << (LENGTH - POOL.length);
    let size = 1u64 << (32 - LENGTH);
    (0..count).find_map(|step| {
        let offset = u32::try_from((start.wrapping_add(step) % count) * size).ok()?;
        let subnet = Subnet { first: Ipv4Addr::from_bits(POOL.first.to_bits() + offset), length: LENGTH };
        taken.iter().all(|other| !other.overlaps(subnet)).then_some(subnet)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        let (first, length) = text.split_once('/').unwrap();
        Subnet { first: first.parse().unwrap(), length: length.parse().unwrap() }
    }

    #[test]
    fn a_subnet_has_a_gateway_a_broadcast_address_and_room_between_them() {
        let subnet = subnet("10.208.4.0/22");
        assert_eq!(subnet.gateway(), Ipv4Addr::new(10, 208, 4, 1));
        assert_eq!(subnet.broadcast(), Ipv4Addr::new(10, 208, 7, 255));
        assert_eq!((subnet.room(), subnet.mask()), (1021, Ipv4Addr::new(255, 255, 252, 0)));
        assert_eq!(subnet.address(0), Ipv4Addr::new(10, 208, 4, 2));
        assert_eq!(subnet.address(1020), Ipv4Addr::new(10, 208, 7, 254));
        assert!(subnet.contains(subnet.address(1020)) && !subnet.contains(Ipv4Addr::new(10, 208, 8, 0)));
    }

    #[test]
    fn subnets_overlap_where_one_is_in_the_other() {
        assert!(subnet("10.208.0.0/12").overlaps(subnet("10.210.0.0/24")));
        assert!(subnet("10.210.0.0/24").overlaps(subnet("10.208.0.0/12")));
        assert!(!subnet("10.208.0.0/22").overlaps(subnet("10.208.4.0/22")));
        assert!(subnet("0.0.0.0/0").overlaps(subnet("10.208.4.0/22")));
    }

    #[test]
    fn what_the_machine_routes_elsewhere_is_passed_over() {
        assert_eq!(choose(0, &[]), Some(subnet("10.208.0.0/22")));
        assert_eq!(choose(0, &[subnet("10.208.0.0/24"), subnet("10.208.7.7/32")]), Some(subnet("10.208.8.0/22")));
        assert_eq!(choose(3, &[]), Some(subnet("10.208.12.0/22")));
        assert_eq!(choose(1023, &[subnet("10.223.252.0/22")]), Some(subnet("10.208.0.0/22")));
        assert_eq!(choose(7, &[subnet("10.0.0.0/8")]), None);
    }
}
