//! What instances use.

use std::fs;

use async_trait::async_trait;

use super::bounds::FILE_LIMIT;
use super::cgroup::{self, Members};
use super::connections::{self, Ports};
use super::layout::read_json;
use super::record::{Launch, Record, Run};
use super::{SandboxRuntime, checked_id, failed, not_found};
use crate::runtime::accepted::Held;
use crate::runtime::{ErrorKind, Result, RuntimeError, Stats, Uncounted, Usage};
use crate::spec::PortProtocol;
use crate::state::InstanceRef;

#[async_trait]
impl Stats for SandboxRuntime {
    async fn stats(&self, instance: &InstanceRef) -> Result<Usage> {
        let found = self.look(instance).await?.ok_or_else(|| not_found(instance))?;
        let Some(run) = found.run else {
            let phase = found.instance.phase.name();
            return Err(RuntimeError::new(
                ErrorKind::Rejected,
                format!("instance {} does not run ({phase}); it uses nothing", instance.id),
            ));
        };
        let (id, gone) = (checked_id(instance)?, not_found(instance));
        self.blocking("reading what an instance uses", FILE_LIMIT, move |inner| {
            let record = read_json::<Record>(&inner.dir(&id).record());
            let record = record.map_err(|error| failed("reading record.json", &error))?.ok_or(gone)?;
            let ports = record.ports.iter().filter(|port| port.protocol == PortProtocol::Tcp);
            let ports = ports.map(|port| port.container_port).collect();
            let connections = connections::open(
                run.program.pid,
                if record.launch.namespaces.net { Ports::All } else { Ports::Of(&ports) },
            );
            let accepted = accepted(&record.launch, &run);
            Ok(Usage { accepted, connections, ..usage(&record.launch, &run) })
        })
        .await
    }

    fn tells_connections(&self) -> bool {
        true
    }
}

fn accepted(launch: &Launch, run: &Run) -> std::result::Result<u64, Uncounted> {
    if !launch.namespaces.net {
        return Err(Uncounted::SharedNetwork);
    }
    if launch.network.egress.is_some() {
        return Err(Uncounted::EgressProxy);
    }
    Held::of(run.program.pid.into())?.accepted()
}

fn usage(launch: &Launch, run: &Run) -> Usage {
    let groups = &launch.groups;
    let members = match (groups.is_empty(), launch.namespaces.pid) {
        (false, _) => Members::Groups(groups.clone()),
        // What else the supervisor started works for the instance, and is not in it.
        (true, true) => Members::From(run.first.pid),
        (true, false) => Members::Below(run.supervisor.pid),
    };
    let mut usage = cgroup::usage(groups, &members);
    usage.memory_limit = usage.memory_limit.or(launch.memory_watch);
    let limit = launch.limits.iter().find(|limit| limit.resource == libc::RLIMIT_NPROC);
    // In a user namespace of its own such a limit counts the instance alone.
    usage.pids_limit = usage.pids_limit.or_else(|| limit.filter(|_| launch.namespaces.user)?.soft);
    // Interfaces of the machine tell nothing about one instance.
    if launch.namespaces.net
        && let Ok(text) = fs::read_to_string(format!("/proc/{}/net/dev", run.program.pid))
    {
        (usage.received_bytes, usage.sent_bytes) = traffic(&text).unzip();
    }
    usage
}

/// Bytes received and sent by all interfaces but loopback: columns 1 and 9 of `/proc/net/dev`. None where there is no
/// other: what is carried to and from such an instance does not pass one.
fn traffic(text: &str) -> Option<(u64, u64)> {
    let of_line = |line: &str| {
        let (name, numbers) = line.split_once(':').filter(|(name, _)| name.trim() != "lo")?;
        let numbers: Vec<u64> = numbers.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect();
        (!name.contains('|')).then_some((*numbers.first()?, *numbers.get(8)?))
    };
    let each = text.lines().filter_map(of_line);
    each.reduce(|(received, sent), (more, out)| (received + more, sent + out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_is_that_of_all_interfaces_but_loopback() {
        let text = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 9999 1 0 0 0 0 0 0 9999 1 0 0 0 0 0 0
  eth0: 1000 10 0 0 0 0 0 0 200 3 0 0 0 0 0 0
  eth1:5 1 0 0 0 0 0 0 7 1 0 0 0 0 0 0
";
        assert_eq!(traffic(text), Some((1005, 207)));
        assert_eq!(traffic("    lo: 9999 1 0 0 0 0 0 0 9999 1 0 0 0 0 0 0\n"), None);
    }
}
