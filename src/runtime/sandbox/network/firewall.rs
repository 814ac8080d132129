//! Packet filters of a deployment's network: one nf_tables table of its own, which is made, looked for and removed as a
//! whole. Nothing else in the machine's packet filter is touched.

use std::io;
use std::net::Ipv4Addr;

use netlink_packet_core::{DefaultNla, Emitable, NLA_F_NESTED, NLM_F_CREATE, NlasIterator};

use super::netlink::{Netlink, Request};
use super::subnet::Subnet;

/// Number of nf_tables among the parts of netfilter (`NFNL_SUBSYS_NFTABLES`).
const SUBSYSTEM: u16 = 10;
/// Begins and ends requests that are carried out together (`NFNL_MSG_BATCH_BEGIN`, `_END`).
const BATCH: (u16, u16) = (0x10, 0x11);
/// Tables of IPv4 (`NFPROTO_IPV4`).
const IPV4: u8 = 2;
/// The kernel removes the table when the socket that made it is closed (`NFT_TABLE_F_OWNER`, Linux 5.12).
const OWNED: u32 = 2;
/// Comment among the user data of a table (`NFTNL_UDATA_TABLE_COMMENT`).
const COMMENT: u8 = 0;
/// The register that all expressions here use (`NFT_REG_1`), and the one that takes verdicts (`NFT_REG_VERDICT`).
const REGISTER: u32 = 1;
const VERDICT: u32 = 0;
/// Bits of the states of connections (`NF_CT_STATE_BIT`): established and related.
const KNOWN_CONNECTION: u32 = 0b110;
/// The chain that forwarded packets pass, and the one in which addresses are translated.
const FORWARD: &str = "forward";
const POSTROUTING: &str = "postrouting";
/// Bytes of the header that all of netfilter has (`struct nfgenmsg`).
const NETFILTER_HEADER: usize = 4;
/// The number of rules among what is told of a chain (`NFTA_CHAIN_USE`).
const USE: u16 = 6;
/// What the names of chains begin with that stand for interfaces of a guard.
const FORWARDING: &str = "from-";
/// Size of a name of an interface in a register.
const NAME_SIZE: usize = 16;

/// Kinds of requests (`NFT_MSG_*`).
mod message {
    pub const NEW_TABLE: u16 = 0;
    pub const GET_TABLE: u16 = 1;
    pub const DELETE_TABLE: u16 = 2;
    pub const NEW_CHAIN: u16 = 3;
    pub const GET_CHAIN: u16 = 4;
    pub const NEW_RULE: u16 = 6;
}

/// What a table does.
#[derive(Debug, Clone, Copy)]
pub struct Table<'a> {
    /// Its name.
    pub name: &'a str,
    /// What it is for, for people who list it.
    pub comment: &'a str,
    /// The bridge of the network.
    pub bridge: &'a str,
    /// What the names of bridges of all deployments begin with.
    pub bridges: &'a str,
    /// Addresses of the network.
    pub subnet: Subnet,
    /// How long it stays.
    pub lifetime: Lifetime,
}

/// How long a table stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// Until it is removed.
    Lasting,
    /// Until the connection that made it is closed.
    Connection,
}

/// Makes a table, in place of one of the same name. Afterwards
///
/// - what leaves the network for elsewhere carries the machine's address,
/// - nobody outside begins a connection to an instance, and no other deployment's instance does,
/// - an instance sends by no address but one of its network.
///
/// # Errors
/// The kernel refuses; nothing was changed then.
pub fn make(kernel: &mut Netlink, table: &Table<'_>) -> io::Result<()> {
    let mut requests = new_table(table.name, table.comment, table.lifetime);
    requests.push(hooked_chain(table.name, POSTROUTING, "nat", (4, 100)));
    requests.push(hooked_chain(table.name, FORWARD, "filter", (2, 0)));
    requests.extend(rules(table).iter().map(|(chain, expressions)| rule(table.name, chain, expressions)));
    together(kernel, requests)
}

/// What keeps a machine that forwards packets for the sake of networks from forwarding others.
#[derive(Debug, Clone, Copy)]
pub struct Guard<'a> {
    /// Name of its table.
    pub name: &'a str,
    /// What it is for, for people who list it.
    pub comment: &'a str,
    /// What the names of bridges of all deployments begin with.
    pub bridges: &'a str,
    /// Interfaces whose packets the machine forwards all the same.
    pub forwarding: &'a [String],
}

/// Makes a table, in place of one of the same name, that drops what is forwarded from one interface to another, but for
/// what comes from networks or goes to them, which have rules of their own, and what comes from the interfaces that are
/// named. These can be asked for with [`is_forwarding`].
///
/// # Errors
/// The kernel refuses; nothing was changed then.
pub fn guard(kernel: &mut Netlink, guard: &Guard<'_>) -> io::Result<()> {
    let mut requests = new_table(guard.name, guard.comment, Lifetime::Lasting);
    requests.push(hooked_chain(guard.name, FORWARD, "filter", (2, 0)));
    for interface in guard.forwarding {
        let chain = [text(1, guard.name), text(3, &format!("{FORWARDING}{interface}"))];
        requests.push(request(message::NEW_CHAIN, NLM_F_CREATE, &chain));
    }
    requests.extend(guard_rules(guard).iter().map(|expressions| rule(guard.name, FORWARD, expressions)));
    together(kernel, requests)
}

/// The rules of a guard in their order.
fn guard_rules(guard: &Guard<'_>) -> Vec<Vec<DefaultNla>> {
    let networks = [Interface::In, Interface::Out].map(|side| side.compare(Compare::Equal, guard.bridges.as_bytes()));
    let others = guard.forwarding.iter().map(|name| Interface::In.compare(Compare::Equal, &whole_name(name)));
    let accepted = networks.into_iter().chain(others).map(|packets| [packets, verdict(true)].concat());
    accepted.chain([verdict(false)]).collect()
}

/// Whether a guard names an interface; false where there is no guard.
///
/// # Errors
/// The kernel does not tell.
pub fn is_forwarding(kernel: &mut Netlink, guard: &str, interface: &str) -> io::Result<bool> {
    let chain = [text(1, guard), text(3, &format!("{FORWARDING}{interface}"))];
    is_there(kernel.change(&[request(message::GET_CHAIN, 0, &chain)]))
}

/// Requests for an empty table, in place of one of the same name where it is lasting.
fn new_table(name: &str, comment: &str, lifetime: Lifetime) -> Vec<Request> {
    let flags = match lifetime {
        Lifetime::Lasting => 0,
        Lifetime::Connection => OWNED,
    };
    let named = text(1, name);
    let mut data = vec![COMMENT, u8::try_from(comment.len() + 1).unwrap_or(u8::MAX)];
    data.extend(comment.bytes().take(usize::from(u8::MAX) - 1));
    data.push(0);
    let new = [named.clone(), number(2, flags), DefaultNla::new(6, data)];
    let mut requests = Vec::new();
    if lifetime == Lifetime::Lasting {
        // Deleting what may not be there is an error; what was just made is.
        requests.push(request(message::NEW_TABLE, NLM_F_CREATE, std::slice::from_ref(&named)));
        requests.push(request(message::DELETE_TABLE, 0, &[named]));
    }
    requests.push(request(message::NEW_TABLE, NLM_F_CREATE, &new));
    requests
}

/// A chain of a kind that packets pass at a place, which has a number and a priority.
fn hooked_chain(table: &str, name: &str, kind: &str, (hook, priority): (u32, u32)) -> Request {
    let place = nested(4, &[number(1, hook), number(2, priority)]);
    request(message::NEW_CHAIN, NLM_F_CREATE, &[text(1, table), text(3, name), place, text(7, kind)])
}

fn rule(table: &str, chain: &str, expressions: &[DefaultNla]) -> Request {
    let rule = [text(1, table), text(2, chain), nested(4, expressions)];
    request(message::NEW_RULE, NLM_F_CREATE | netlink_packet_core::NLM_F_APPEND, &rule)
}

/// Whether a table is there with all its chains and rules. Rules are counted: nobody changes one by chance.
///
/// # Errors
/// The kernel does not tell.
pub fn is_whole(kernel: &mut Netlink, table: &Table<'_>) -> io::Result<bool> {
    let rules = rules(table);
    for chain in [POSTROUTING, FORWARD] {
        if rules_in(kernel, table.name, chain)? != Some(rules.iter().filter(|(of, _)| *of == chain).count()) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether a guard is there with its rules, which let the packets of these interfaces pass and perhaps of more.
///
/// # Errors
/// The kernel does not tell.
pub fn is_guard_whole(kernel: &mut Netlink, name: &str, forwarding: &[String]) -> io::Result<bool> {
    let least = guard_rules(&Guard { name, comment: "", bridges: "", forwarding }).len();
    Ok(rules_in(kernel, name, FORWARD)?.is_some_and(|rules| rules >= least))
}

/// Number of the rules of a chain; `None` where there is no such chain.
fn rules_in(kernel: &mut Netlink, table: &str, chain: &str) -> io::Result<Option<usize>> {
    let asked = request(message::GET_CHAIN, 0, &[text(1, table), text(3, chain)]);
    match kernel.ask(&asked, |_, body| used(body)) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        told => told,
    }
}

/// How often a chain is used, which is once for each rule where no other chain leads to it.
fn used(body: &[u8]) -> Option<usize> {
    let mut told = NlasIterator::new(body.get(NETFILTER_HEADER..)?).filter_map(Result::ok);
    let value = told.find(|attribute| attribute.kind() == USE)?.value().first_chunk().copied()?;
    usize::try_from(u32::from_be_bytes(value)).ok()
}

/// Whether there is a table of this name.
///
/// # Errors
/// The kernel does not tell.
pub fn exists(kernel: &mut Netlink, name: &str) -> io::Result<bool> {
    is_there(kernel.change(&[request(message::GET_TABLE, 0, &[text(1, name)])]))
}

fn is_there(asked: io::Result<()>) -> io::Result<bool> {
    match asked {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes a table; one that is gone is as good.
///
/// # Errors
/// The kernel refuses.
pub fn remove(kernel: &mut Netlink, name: &str) -> io::Result<()> {
    match together(kernel, vec![request(message::DELETE_TABLE, 0, &[text(1, name)])]) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

/// The rules of a table in their order, by chain.
fn rules(table: &Table<'_>) -> Vec<(&'static str, Vec<DefaultNla>)> {
    let (from, to) = (Interface::In, Interface::Out);
    let own = |side: Interface| side.compare(Compare::Equal, &whole_name(table.bridge));
    vec![
        (
            POSTROUTING,
            [
                source(Compare::Equal, table.subnet),
                to.compare(Compare::NotEqual, &whole_name(table.bridge)),
                vec![expression("masq", &[])],
            ]
            .concat(),
        ),
        (FORWARD, [own(from), source(Compare::NotEqual, table.subnet), verdict(false)].concat()),
        // Between instances of one deployment, where the machine has bridged packets filtered like routed ones.
        (FORWARD, [own(from), own(to), verdict(true)].concat()),
        (FORWARD, [own(from), to.compare(Compare::Equal, table.bridges.as_bytes()), verdict(false)].concat()),
        (FORWARD, [own(to), known_connection(), verdict(true)].concat()),
        (FORWARD, [own(to), verdict(false)].concat()),
    ]
}

/// Which interface of a packet is meant; the number is the kernel's (`NFT_META_IIFNAME`, `_OIFNAME`).
#[derive(Debug, Clone, Copy)]
enum Interface {
    In = 6,
    Out = 7,
}

/// A comparison (`NFT_CMP_*`).
#[derive(Debug, Clone, Copy)]
enum Compare {
    Equal = 0,
    NotEqual = 1,
}

impl Interface {
    /// Goes on where the name compares; fewer than all of its bytes are its beginning.
    fn compare(self, how: Compare, name: &[u8]) -> Vec<DefaultNla> {
        vec![expression("meta", &[number(1, REGISTER), number(2, self as u32)]), compare(how, name)]
    }
}

fn whole_name(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(NAME_SIZE, 0);
    bytes
}

/// Goes on where the sender's address compares.
fn source(how: Compare, subnet: Subnet) -> Vec<DefaultNla> {
    // Four bytes at offset 12 of the network header (base 1).
    let load = [number(1, REGISTER), number(2, 1), number(3, 12), number(4, 4)];
    vec![expression("payload", &load), masked(&subnet.mask().octets()), compare(how, &subnet.first.octets())]
}

/// Goes on for packets of connections that are known, which the other side began.
fn known_connection() -> Vec<DefaultNla> {
    vec![
        expression("ct", &[number(1, REGISTER), number(2, 0)]),
        masked(&KNOWN_CONNECTION.to_ne_bytes()),
        compare(Compare::NotEqual, &[0; 4]),
    ]
}

fn masked(mask: &[u8; 4]) -> DefaultNla {
    let none = Ipv4Addr::UNSPECIFIED.octets();
    let parts = [number(1, REGISTER), number(2, REGISTER), number(3, 4), data(4, mask), data(5, &none)];
    expression("bitwise", &parts)
}

fn compare(how: Compare, value: &[u8]) -> DefaultNla {
    expression("cmp", &[number(1, REGISTER), number(2, how as u32), data(3, value)])
}

fn verdict(accepts: bool) -> Vec<DefaultNla> {
    let code = nested(2, &[number(1, u32::from(accepts))]);
    vec![expression("immediate", &[number(1, VERDICT), nested(2, &[code])])]
}

/// One step of a rule.
fn expression(name: &str, parts: &[DefaultNla]) -> DefaultNla {
    nested(1, &[text(1, name), nested(2, parts)])
}

fn number(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_be_bytes().to_vec())
}

fn text(kind: u16, value: &str) -> DefaultNla {
    DefaultNla::new(kind, [value.as_bytes(), &[0]].concat())
}

fn data(kind: u16, value: &[u8]) -> DefaultNla {
    nested(kind, &[DefaultNla::new(1, value.to_vec())])
}

fn nested(kind: u16, parts: &[DefaultNla]) -> DefaultNla {
    DefaultNla::new(kind | NLA_F_NESTED, bytes_of(parts))
}

fn bytes_of(parts: &[DefaultNla]) -> Vec<u8> {
    let mut bytes = vec![0; parts.buffer_len()];
    parts.emit(&mut bytes);
    bytes
}

/// A request with the header that all of netfilter has (`struct nfgenmsg`).
fn request(kind: u16, flags: u16, attributes: &[DefaultNla]) -> Request {
    Request::new(SUBSYSTEM << 8 | kind, flags, [vec![IPV4, 0, 0, 0], bytes_of(attributes)].concat())
}

/// Carries requests out together, or none of them.
fn together(kernel: &mut Netlink, mut requests: Vec<Request>) -> io::Result<()> {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    requests.insert(0, Request::unanswered(BATCH.0, vec![0, 0, high, low]));
    requests.push(Request::unanswered(BATCH.1, vec![0, 0, high, low]));
    kernel.change(&requests)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_big_endian_and_texts_end_with_a_zero() {
        assert_eq!(bytes_of(&[number(2, 7)]), [[8, 0, 2, 0], [0, 0, 0, 7]].concat());
        assert_eq!(bytes_of(&[text(1, "abc")]), [[8, 0, 1, 0], *b"abc\0"].concat());
    }

    #[test]
    fn a_name_of_an_interface_fills_its_register() {
        assert_eq!(whole_name("keel-0123456789"), *b"keel-0123456789\0");
        assert_eq!(whole_name("lo").len(), NAME_SIZE);
    }

    #[test]
    fn addresses_are_translated_once_and_every_other_rule_filters() {
        let subnet = Subnet { first: Ipv4Addr::new(10, 208, 0, 0), length: 22 };
        let table = Table {
            name: "keel-x",
            comment: "",
            bridge: "keel-x",
            bridges: "keel-",
            subnet,
            lifetime: Lifetime::Lasting,
        };
        let chains: Vec<&str> = rules(&table).iter().map(|(chain, _)| *chain).collect();
        assert_eq!(chains, ["postrouting", "forward", "forward", "forward", "forward", "forward"]);
    }

    #[test]
    fn the_number_of_rules_is_found_among_what_is_told_of_a_chain() {
        let told = |attributes: &[DefaultNla]| used(&[vec![IPV4, 0, 0, 0], bytes_of(attributes)].concat());
        assert_eq!(told(&[text(1, "keel-x"), number(5, 1), number(6, 5), text(7, "filter")]), Some(5));
        assert_eq!(told(&[text(1, "keel-x"), number(5, 1)]), None);
        assert_eq!(used(&[]), None);
    }

    #[test]
    fn a_guard_accepts_networks_and_what_was_forwarded_before_and_drops_all_else() {
        let forwarding = ["eth1".to_owned()];
        let rules = guard_rules(&Guard { name: "g", comment: "", bridges: "keel-", forwarding: &forwarding });
        let accepted = |packets: Vec<DefaultNla>| [packets, verdict(true)].concat();
        let networks = [Interface::In, Interface::Out].map(|side| accepted(side.compare(Compare::Equal, b"keel-")));
        let before = accepted(Interface::In.compare(Compare::Equal, &whole_name("eth1")));
        assert_eq!(rules, [&networks[..], &[before, verdict(false)]].concat());
    }
}
