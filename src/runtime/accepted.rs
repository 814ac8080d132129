//! Connections that instances accepted, as the kernel counts them for each network (proc_pid_net(5)): nothing of ours is in
//! the way of requests, so that one connection is what is counted of them, however many it carries.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::spec::SHARED_NETWORK;

/// Why nobody can tell how many connections an instance accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Uncounted {
    /// It has no network of its own.
    #[error("{SHARED_NETWORK}")]
    SharedNetwork,
    /// The egress proxy listens in its network, and connections to it can't be told from those to the program.
    #[error("what it asks for through the egress proxy of sandbox.allow_hosts would count as well")]
    EgressProxy,
    /// This machine shows no such process.
    #[error("its process can't be seen from here, as where the engine is on another machine")]
    Unseen,
    /// This user may not look.
    #[error("keel's user may not look at its process; run keel as root for that")]
    Refused,
    /// Its runtime says nothing of it.
    #[error("its runtime does not tell")]
    Untold,
}

/// A process that is held on to: what is read is never of a later one with the same number.
#[derive(Debug)]
pub struct Held {
    directory: File,
}

impl Held {
    /// The process with this number.
    ///
    /// # Errors
    /// `Unseen` when there is none.
    pub fn of(pid: i64) -> Result<Self, Uncounted> {
        let directory = File::open(format!("/proc/{pid}")).map_err(|_| Uncounted::Unseen)?;
        Ok(Self { directory })
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.directory.as_raw_fd()))
    }

    /// Whether the name of one of its control groups contains this.
    pub fn is_in_group(&self, part: &str) -> bool {
        !part.is_empty() && fs::read_to_string(self.path("cgroup")).is_ok_and(|groups| groups.contains(part))
    }

    /// Connections that were accepted in its network since that was made, those to addresses of loopback included.
    ///
    /// # Errors
    /// `SharedNetwork` when its network is this program's or that of the machine's first process, `Refused` when that can't be
    /// told, `Unseen` when it has ended.
    pub fn accepted(&self) -> Result<u64, Uncounted> {
        let network = |path: &Path| fs::read_link(path);
        let own = network(&self.path("ns/net")).map_err(|error| match error.kind() {
            std::io::ErrorKind::PermissionDenied => Uncounted::Refused,
            _ => Uncounted::Unseen,
        })?;
        let ours = network(Path::new("/proc/self/ns/net")).map_err(|_| Uncounted::Refused)?;
        // An ordinary user may not look at the first process, and has no instances in its network but those that are known to.
        let first = network(Path::new("/proc/1/ns/net")).ok();
        if own == ours || first.is_some_and(|first| own == first) {
            return Err(Uncounted::SharedNetwork);
        }
        let text = fs::read_to_string(self.path("net/snmp")).map_err(|_| Uncounted::Unseen)?;
        passive_opens(&text).ok_or(Uncounted::Untold)
    }
}

/// The number below `PassiveOpens` in the table of TCP: a line of names, and one of numbers.
fn passive_opens(text: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp:"));
    let (names, numbers) = (lines.next()?, lines.next()?);
    let column = names.split_ascii_whitespace().position(|name| name == "PassiveOpens")?;
    numbers.split_ascii_whitespace().nth(column)?.parse().ok()
}

/// Writes the number, or null where it is not known.
pub(super) fn serialize<S: Serializer>(accepted: &Result<u64, Uncounted>, to: S) -> Result<S::Ok, S::Error> {
    accepted.ok().serialize(to)
}

/// Reads what [`serialize`] wrote.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Result<u64, Uncounted>, D::Error> {
    Ok(Option::deserialize(from)?.ok_or(Uncounted::Untold))
}

/// What is told where nothing is written.
pub(super) const fn untold() -> Result<u64, Uncounted> {
    Err(Uncounted::Untold)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_column_is_found_by_its_name() {
        let text = "\
Ip: Forwarding DefaultTTL InReceives
Ip: 1 64 900
Tcp: RtoAlgorithm RtoMin RtoMax MaxConn ActiveOpens PassiveOpens AttemptFails
Tcp: 1 200 120000 -1 17 42 3
Udp: InDatagrams NoPorts
Udp: 5 6
";
        assert_eq!(passive_opens(text), Some(42));
        assert_eq!(passive_opens("Tcp: PassiveOpens ActiveOpens\nTcp: 8 9\n"), Some(8), "wherever it is");
        for broken in
            ["", "Tcp: ActiveOpens\nTcp: 1\n", "Tcp: ActiveOpens PassiveOpens\nTcp: 1\n", "Tcp: PassiveOpens\n"]
        {
            assert_eq!(passive_opens(broken), None, "{broken:?}");
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_network_of_the_machine_is_counted_for_nobody() {
        let me = Held::of(i64::from(std::process::id())).unwrap();
        assert_eq!(me.accepted(), Err(Uncounted::SharedNetwork));
        assert_eq!(Held::of(i64::MAX).err(), Some(Uncounted::Unseen));
        assert!(!me.is_in_group("no-such-group") && !me.is_in_group(""));
    }
}
