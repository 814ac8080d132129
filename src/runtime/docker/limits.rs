//! Limits, devices and graphics processors of a container. Pure.

use bollard::models::{DeviceMapping, DeviceRequest, HostConfig, ResourcesUlimits};

use crate::spec::{Bytes, Device, Gpu, ServiceSpec};

/// Thousandths of a CPU to Docker's billionths.
const NANOS_PER_MILLI: u64 = 1_000_000;

/// Writes the limits of a spec into the engine's part of the request.
pub(super) fn apply(spec: &ServiceSpec, host: &mut HostConfig) {
    let resources = spec.resources.clone().unwrap_or_default();
    host.nano_cpus = resources.cpu.and_then(|cpu| i64::try_from(cpu.millis.checked_mul(NANOS_PER_MILLI)?).ok());
    host.memory = resources.memory.map(bytes);
    host.memory_reservation = resources.memory_reservation.map(bytes);
    host.memory_swap = resources.memory_swap.map(bytes);
    host.memory_swappiness = resources.memory_swappiness.map(i64::from);
    host.pids_limit = resources.pids_limit;
    host.cpu_shares = resources.cpu_shares.map(i64::from);
    host.cpuset_cpus = resources.cpuset;
    host.blkio_weight = resources.blkio_weight;
    host.oom_score_adj = resources.oom_score_adj.map(i64::from);
    host.oom_kill_disable = resources.oom_kill_disable;
    let mut devices: Vec<_> = spec.devices.iter().map(device).collect();
    if let Some(gpu) = &resources.gpu {
        match vendor(gpu) {
            "amd" => devices.extend(["/dev/kfd", "/dev/dri"].map(node)),
            "intel" => devices.push(node("/dev/dri")),
            "nvidia" => host.device_requests = Some(vec![nvidia(gpu)]),
            _ => {}
        }
    }
    host.devices = (!devices.is_empty()).then_some(devices);
    let ulimits: Vec<_> = spec.ulimits.iter().map(|(name, limit)| ulimit(name, limit.bounds())).collect();
    host.ulimits = (!ulimits.is_empty()).then_some(ulimits);
}

/// Who made the graphics processor.
pub(super) fn vendor(gpu: &Gpu) -> &str {
    gpu.vendor.as_deref().unwrap_or("nvidia")
}

fn bytes(bytes: Bytes) -> i64 {
    i64::try_from(bytes.0).unwrap_or(i64::MAX)
}

fn ulimit(name: &str, (soft, hard): (i64, i64)) -> ResourcesUlimits {
    ResourcesUlimits { name: Some(name.to_owned()), soft: Some(soft), hard: Some(hard) }
}

fn device(device: &Device) -> DeviceMapping {
    let Device { path, read, write, mknod } = device;
    let allowed = [(read.unwrap_or(true), 'r'), (write.unwrap_or(true), 'w'), (mknod.unwrap_or(false), 'm')];
    DeviceMapping {
        path_on_host: Some(path.clone()),
        path_in_container: Some(path.clone()),
        cgroup_permissions: Some(allowed.iter().filter(|(allowed, _)| *allowed).map(|(_, letter)| *letter).collect()),
    }
}

fn node(path: &str) -> DeviceMapping {
    device(&Device { path: path.to_owned(), read: None, write: None, mknod: None })
}

fn nvidia(gpu: &Gpu) -> DeviceRequest {
    DeviceRequest {
        driver: Some("nvidia".to_owned()),
        count: Some(i64::from(gpu.count.unwrap_or(1))),
        capabilities: Some(vec![vec!["gpu".to_owned()]]),
        ..DeviceRequest::default()
    }
}
