//! Ports of the machine that more than one service asks for.

use std::collections::BTreeMap;
use std::path::Path;

use super::super::document::Mark;
use super::super::{Endpoint, EndpointProtocol, Expose, PortMapping, PortProtocol, Problem};
use super::draft::{Draft, Part};
use super::{Findings, place};

/// Finds ports that more than one service asks for, over all deployments.
pub(super) fn check(drafts: &BTreeMap<&str, Draft<'_>>, findings: &mut Findings) {
    let services =
        drafts.iter().flat_map(|(deployment, draft)| draft.services.values().map(move |part| (deployment, part)));
    let claims: Vec<Claim<'_>> = services.flat_map(|(deployment, part)| claims_of(deployment, part)).collect();
    let mut by_port: BTreeMap<u16, Vec<&Claim<'_>>> = BTreeMap::new();
    for claim in &claims {
        by_port.entry(claim.port).or_default().push(claim);
    }
    for group in by_port.values() {
        for (index, claim) in group.iter().enumerate() {
            let other = group.iter().enumerate().find(|(i, other)| *i != index && claim.clashes(other));
            if let Some((_, other)) = other {
                findings.refuse(claim.deployment, claim.file, taken(claim, other));
            }
        }
    }
}

fn taken(claim: &Claim<'_>, other: &Claim<'_>) -> Problem {
    let message = format!(
        "port {} is also taken by {}/{} at {}",
        claim.port,
        other.deployment,
        other.service,
        place(other.file, other.mark.position)
    );
    Problem::new(claim.mark.position, claim.mark.path.clone(), message).with_help("choose another port for one of them")
}

/// A port of the machine that a service wants.
struct Claim<'a> {
    deployment: &'a str,
    service: &'a str,
    file: &'a Path,
    mark: &'a Mark,
    port: u16,
    kind: ClaimKind<'a>,
}

enum ClaimKind<'a> {
    Endpoint(&'a Endpoint),
    Mapping(&'a PortMapping),
}

impl Claim<'_> {
    fn clashes(&self, other: &Self) -> bool {
        match (&self.kind, &other.kind) {
            (ClaimKind::Endpoint(a), ClaimKind::Endpoint(b)) => endpoints_clash(a, b),
            (ClaimKind::Mapping(a), ClaimKind::Mapping(b)) => mappings_clash(a, b),
            (ClaimKind::Endpoint(endpoint), ClaimKind::Mapping(mapping))
            | (ClaimKind::Mapping(mapping), ClaimKind::Endpoint(endpoint)) => {
                (endpoint.protocol == EndpointProtocol::Udp)
                    == (mapping.protocol.unwrap_or_default() == PortProtocol::Udp)
            }
        }
    }
}

fn claims_of<'a>(deployment: &'a str, part: &Part<'a>) -> impl Iterator<Item = Claim<'a>> {
    let (name, file) = (part.name, part.file);
    let claim = move |mark, port, kind| Claim { deployment, service: name, file, mark, port, kind };
    let endpoints =
        part.service.into_iter().flat_map(|service| service.spec.endpoints.iter().zip(&service.marks.endpoints));
    let public = endpoints
        .filter(|(endpoint, _)| endpoint.expose == Some(Expose::Public))
        .filter_map(move |(endpoint, mark)| Some(claim(mark.as_ref()?, endpoint.port, ClaimKind::Endpoint(endpoint))));
    let mappings = part
        .service
        .into_iter()
        .flat_map(|service| service.spec.port_mappings.iter().zip(&service.marks.port_mappings));
    let published = mappings.filter_map(move |(mapping, mark)| {
        let port = mapping.host_port.filter(|port| *port > 0)?;
        Some(claim(mark.as_ref()?, port, ClaimKind::Mapping(mapping)))
    });
    public.chain(published)
}

/// Endpoints of HTTP share a port when host or path tells them apart; all others need one of their own.
fn endpoints_clash(a: &Endpoint, b: &Endpoint) -> bool {
    use EndpointProtocol::{Http, Https, Tcp, Udp, Websocket};
    match (a.protocol, b.protocol) {
        (Udp, Udp) => true,
        (Udp, _) | (_, Udp) => false,
        (Tcp, _) | (_, Tcp) => true,
        (Https, Http | Websocket) | (Http | Websocket, Https) => true,
        (Https, Https) | (Http | Websocket, Http | Websocket) => {
            a.host == b.host && a.path.as_deref().unwrap_or("/") == b.path.as_deref().unwrap_or("/")
        }
    }
}

fn mappings_clash(a: &PortMapping, b: &PortMapping) -> bool {
    let everywhere = |address: &str| matches!(address, "0.0.0.0" | "::");
    let (x, y) = (a.host_ip(), b.host_ip());
    a.protocol.unwrap_or_default() == b.protocol.unwrap_or_default() && (x == y || everywhere(x) || everywhere(y))
}
