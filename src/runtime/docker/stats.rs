//! What containers use.

use async_trait::async_trait;
use bollard::models::{
    ContainerBlkioStatEntry, ContainerBlkioStats, ContainerInspectResponse, ContainerMemoryStats,
    ContainerNetworkStats, ContainerStatsResponse,
};
use bollard::query_parameters::StatsOptionsBuilder;
use chrono::Utc;
use futures::StreamExt;

use super::engine::READ_DEADLINE;
use super::{DockerRuntime, Inner};
use crate::runtime::accepted::Held;
use crate::runtime::{ErrorKind, Result, RuntimeError, Stats, Uncounted, Usage};
use crate::state::{InstanceRef, Phase};

/// Billionths of a second in a microsecond.
const NANOS_PER_MICRO: u64 = 1000;

#[async_trait]
impl Stats for DockerRuntime {
    async fn stats(&self, instance: &InstanceRef) -> Result<Usage> {
        self.inner.stats(instance).await
    }
}

impl Inner {
    async fn stats(&self, instance: &InstanceRef) -> Result<Usage> {
        let what = format!("reading what {} uses", instance.id);
        let Some(found) = self.look(instance).await? else {
            return Err(RuntimeError::new(ErrorKind::NotFound, format!("{what}: it does not exist")));
        };
        if !matches!(found.phase, Phase::Running { .. } | Phase::Paused { .. }) {
            let message = format!("{what}: it does not run ({})", found.phase.name());
            return Err(RuntimeError::new(ErrorKind::Rejected, message));
        }
        let id = &instance.runtime_id;
        // One look: the engine then does not wait for a second one to compare with.
        let options = StatsOptionsBuilder::default().stream(false).one_shot(true).build();
        let (answer, container) = tokio::try_join!(
            self.engine.call(READ_DEADLINE, |docker| {
                let options = options.clone();
                async move { docker.stats(id, Some(options)).next().await.transpose() }
            }),
            self.inspection(id),
        )
        .map_err(|error| error.explain(&what))?;
        let accepted = accepted(&container, id);
        let limit = container.host_config.and_then(|host| host.memory);
        let gone = || RuntimeError::new(ErrorKind::NotFound, format!("{what}: it is gone"));
        answer.as_ref().map(|stats| Usage { accepted, ..usage(stats, limit) }).ok_or_else(gone)
    }
}

/// Connections that were accepted in the network of a container, where its process is one of this machine. Docker's embedded
/// name server listens in there too; it is asked by datagrams.
fn accepted(container: &ContainerInspectResponse, id: &str) -> std::result::Result<u64, Uncounted> {
    let mode = container.host_config.as_ref().and_then(|host| host.network_mode.as_deref()).unwrap_or_default();
    // The machine as an engine without root sees it has a network that no comparison of ours tells from a container's.
    if mode == "host" || mode.starts_with("container:") || mode.starts_with("ns:") {
        return Err(Uncounted::SharedNetwork);
    }
    let pid = container.state.as_ref().and_then(|state| state.pid).filter(|pid| *pid > 0).ok_or(Uncounted::Unseen)?;
    let process = Held::of(pid)?;
    // On another machine the number is somebody else's here.
    if !process.is_in_group(id) {
        return Err(Uncounted::Unseen);
    }
    process.accepted()
}

/// What an answer of the engine says. The limit of memory is the one that the container was made with: the answer says
/// how much the machine has where there is none.
pub(super) fn usage(stats: &ContainerStatsResponse, memory_limit: Option<i64>) -> Usage {
    let cpu = stats.cpu_stats.as_ref().and_then(|cpu| cpu.cpu_usage.as_ref()?.total_usage).unwrap_or(0);
    let memory = stats.memory_stats.as_ref();
    let pids = stats.pids_stats.as_ref();
    let (read, written) = stats.blkio_stats.as_ref().map_or((None, None), disk);
    let networks = stats.networks.as_ref();
    let bytes = |of: fn(&ContainerNetworkStats) -> Option<u64>| {
        networks.map(|networks| networks.values().filter_map(of).fold(0, u64::saturating_add))
    };
    Usage {
        cpu_usec: cpu / NANOS_PER_MICRO,
        memory: memory.and_then(in_use),
        memory_limit: memory_limit.and_then(|limit| u64::try_from(limit).ok()).filter(|limit| *limit > 0),
        pids: pids.and_then(|pids| pids.current),
        pids_limit: pids.and_then(|pids| pids.limit).filter(|limit| *limit > 0 && *limit < i64::MAX as u64),
        read_bytes: read,
        written_bytes: written,
        received_bytes: bytes(|network| network.rx_bytes),
        sent_bytes: bytes(|network| network.tx_bytes),
        ..Usage::nothing(stats.read.unwrap_or_else(Utc::now))
    }
}

/// Memory without cached files that are not in use, as `docker stats` shows it; the key is another one in each version of
/// control groups.
fn in_use(memory: &ContainerMemoryStats) -> Option<u64> {
    let cached = memory
        .stats
        .as_ref()
        .and_then(|stats| ["total_inactive_file", "inactive_file"].iter().find_map(|key| stats.get(*key).copied()));
    Some(memory.usage?.saturating_sub(cached.unwrap_or(0)))
}

/// Bytes read from and written to disks.
fn disk(stats: &ContainerBlkioStats) -> (Option<u64>, Option<u64>) {
    let Some(entries) = &stats.io_service_bytes_recursive else { return (None, None) };
    let sum = |operation: &str| {
        let of = |entry: &ContainerBlkioStatEntry| {
            entry.op.as_deref().is_some_and(|op| op.eq_ignore_ascii_case(operation)).then_some(entry.value).flatten()
        };
        Some(entries.iter().filter_map(of).fold(0, u64::saturating_add))
    };
    (sum("read"), sum("write"))
}
