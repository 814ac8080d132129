//! Endpoints, ports, names and addresses.

use std::collections::HashSet;
use std::net::IpAddr;

use super::super::problem::{Step, steps};
use super::super::{Endpoint, EndpointProtocol, PortMapping, Scalar, Scale, ServiceSpec};
use super::Report;

pub(super) fn check(report: &mut Report<'_>, spec: &ServiceSpec) {
    endpoints(&mut report.within(&steps!["endpoints"]), &spec.endpoints);
    port_mappings(report, &spec.port_mappings);
    one_replica(report, spec);
    if let Some(hostname) = &spec.hostname
        && !is_host_name(hostname)
    {
        let message = format!("{hostname:?} is not a host name");
        report.problem_help(&steps!["hostname"], message, "use letters, digits and hyphens, joined by dots");
    }
    for (index, server) in spec.dns.iter().enumerate() {
        if server.parse::<IpAddr>().is_err() {
            let message = format!("{server:?} is not an IP address");
            report.problem_help(&steps!["dns", index], message, "write an address such as 1.1.1.1");
        }
    }
    for (index, line) in spec.extra_hosts.iter().enumerate() {
        if !is_extra_host(line) {
            let message = format!("{line:?} does not add a host");
            report.problem_help(&steps!["extra_hosts", index], message, "write NAME:ADDRESS or NAME:host-gateway");
        }
    }
    for (index, Scalar(port)) in spec.expose.iter().enumerate() {
        if !is_exposed(port) {
            let message = format!("{port:?} is not a port");
            report.problem_help(&steps!["expose", index], message, "write 8080, 8080/udp or 8000-8010");
        }
    }
    for (index, host) in spec.sandbox.iter().flat_map(|sandbox| &sandbox.allow_hosts).enumerate() {
        if !is_allowed_host(host.strip_prefix('!').unwrap_or(host)) {
            let message = format!("{host:?} is not a host");
            let help = "write a host such as example.org, *.example.org or example.org:443, or one to deny after !";
            report.problem_help(&steps!["sandbox", "allow_hosts", index], message, help);
        }
    }
}

/// Checks a list of endpoints; paths are seen from it.
pub(super) fn endpoints(report: &mut Report<'_>, endpoints: &[Endpoint]) {
    let mut names = HashSet::new();
    for (index, endpoint) in endpoints.iter().enumerate() {
        let path = steps![index, "name"];
        super::name(report, &path, &endpoint.name);
        if report.is_whole(&path) && !names.insert(&endpoint.name) {
            let message = format!("the endpoint {:?} is declared twice", endpoint.name);
            report.problem_help(&path, message, "give each endpoint of a service its own name");
        }
        if endpoint.path.as_ref().is_some_and(|path| !path.starts_with('/')) {
            report.problem_help(&steps![index, "path"], "a path must begin with /", "write / or /api");
        }
        if endpoint.host.as_ref().is_some_and(|host| !is_allowed_host(host)) {
            report.problem_help(
                &steps![index, "host"],
                "this is not a host name",
                "write example.org or *.example.org",
            );
        }
        let streams = matches!(endpoint.protocol, EndpointProtocol::Tcp | EndpointProtocol::Udp);
        for (key, written) in [("path", endpoint.path.is_some()), ("host", endpoint.host.is_some())] {
            if streams && written {
                let message = format!("`{key}` means nothing to a tcp or udp endpoint");
                report.problem_help(&steps![index, key], message, "leave it out, or write `protocol: http`");
            }
        }
        let timeout = endpoint.stream.as_ref().and_then(|stream| stream.session_timeout);
        if timeout.is_some_and(|timeout| timeout.get().is_zero()) {
            let path = steps![index, "stream", "session_timeout"];
            report.problem_help(&path, "`session_timeout` must be more than 0", "write a time such as 60s");
        }
    }
}

fn port_mappings(report: &mut Report<'_>, mappings: &[PortMapping]) {
    for (index, mapping) in mappings.iter().enumerate() {
        if mapping.host_ip().parse::<IpAddr>().is_err() {
            let message = format!("{:?} is not an IP address", mapping.host_ip());
            let help = "write 127.0.0.1 for this machine only, or 0.0.0.0 for everyone";
            report.problem_help(&steps!["port_mappings", index, "host_ip"], message, help);
        }
    }
}

/// A port of the machine is that of one instance.
fn one_replica(report: &mut Report<'_>, spec: &ServiceSpec) {
    let Some(many) = side_by_side(report, spec) else { return };
    for (index, mapping) in spec.port_mappings.iter().enumerate() {
        let path = steps!["port_mappings", index, "host_port"];
        let Some(port) = mapping.host_port.filter(|port| *port > 0 && report.is_whole(&path)) else { continue };
        let message = format!("port {port} can only be published by one replica, and {many}");
        let help = "leave `host_port` out, and each gets a free port; or write `expose: public` to an endpoint";
        report.problem_help(&path, message, help);
    }
}

/// What says that more than one instance may run side by side, if anything does.
fn side_by_side(report: &Report<'_>, spec: &ServiceSpec) -> Option<String> {
    let many = |path: &[Step], what: &str, count: u32| {
        (count > 1 && report.is_whole(path)).then(|| format!("`{what}` is {count}"))
    };
    let of_scale = || match spec.scale.as_ref()? {
        Scale::Fixed { replicas } => many(&steps!["scale", "replicas"], "scale.replicas", *replicas),
        Scale::Adaptive { max, .. } => many(&steps!["scale", "max"], "scale.max", *max),
        Scale::Manual => None,
    };
    let of_job = || many(&steps!["job", "parallelism"], "job.parallelism", spec.job.as_ref()?.parallelism?);
    let of_pool = || many(&steps!["pool", "max_total"], "pool.max_total", spec.pool.as_ref()?.max_total());
    of_scale().or_else(of_job).or_else(of_pool)
}

/// Letters, digits and hyphens joined by dots (RFC 1123, section 2.1), at most 253 characters.
fn is_host_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

/// A host name, an address, or a host name whose first label is `*`; with a port or without.
fn is_allowed_host(text: &str) -> bool {
    let bare = match text.rsplit_once(':') {
        Some((host, port)) if super::is_port(port) && !host.contains(':') => host,
        _ => text,
    };
    bare.parse::<IpAddr>().is_ok() || bare == "*" || is_host_name(bare.strip_prefix("*.").unwrap_or(bare))
}

/// `NAME:ADDRESS`, where IPv6 addresses may stand in brackets and `host-gateway` is the machine (as Docker
/// has it, which also takes `=` between the two).
fn is_extra_host(line: &str) -> bool {
    let Some((name, address)) = line.split_once(['=', ':']) else { return false };
    // Names with underscores are common among Compose services.
    let name_is_good = is_host_name(&name.replace('_', "-"));
    let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
    name_is_good && (address == "host-gateway" || bare.parse::<IpAddr>().is_ok())
}

fn is_exposed(text: &str) -> bool {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let ordered = match (first.parse::<u16>(), last.parse::<u16>()) {
        (Ok(first), Ok(last)) => 0 < first && first <= last,
        _ => false,
    };
    ordered && matches!(protocol, "tcp" | "udp" | "sctp")
}
