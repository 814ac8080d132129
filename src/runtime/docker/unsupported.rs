//! Fields of a spec that a container engine can't honour. Pure.

use std::time::Duration;

use super::labels::replaced;
use super::limits::vendor;
use super::ping::Product;
use crate::spec::{Check, Destination, NetworkMode, SandboxNetwork, ServiceSpec, Storage};
use crate::state::Condition;

/// One condition for each field that is written and has no effect on Docker and Podman: `UnsupportedField`, or
/// `LabelReplaced` for a label. Fields that the controller honours itself, or that no runtime honours
/// ([`crate::spec::unsupported`]), are not its matter, and neither is `sandbox.require`, which is met or refused.
pub(super) fn unsupported(spec: &ServiceSpec, product: Option<Product>) -> Vec<Condition> {
    let mut found = Vec::new();
    let mut field = |path: &str, why: &str| {
        found.push(Condition::holds(
            "UnsupportedField",
            "NotOnDocker",
            format!("{path} has no effect on the docker runtime: {why}"),
        ));
    };
    if let Some(sandbox) = &spec.sandbox {
        let written = [
            ("allow_hosts", !sandbox.allow_hosts.is_empty()),
            ("readable", !sandbox.readable.is_empty()),
            ("writable", !sandbox.writable.is_empty()),
            ("seccomp", sandbox.seccomp.is_some()),
        ];
        for (name, _) in written.iter().filter(|(_, written)| *written) {
            field(&format!("sandbox.{name}"), "it confines instances of the sandbox runtime");
        }
    }
    network_fields(spec, &mut field);
    for (index, storage) in spec.storage.iter().enumerate() {
        storage_fields(index, storage, &mut field);
    }
    if spec.resources.as_ref().is_some_and(|resources| resources.disk.is_some()) {
        field("resources.disk", "few storage drivers of the engines hold a container to a size");
    }
    if let Some(gpu) = spec.resources.as_ref().and_then(|resources| resources.gpu.as_ref()) {
        if vendor(gpu) == "apple" {
            field("resources.gpu.vendor", "no container engine hands such a processor on");
        }
        let written = [
            ("mode", gpu.mode.is_some()),
            ("model", gpu.model.is_some()),
            ("scheduling", gpu.scheduling.is_some()),
            ("sharing", gpu.sharing.is_some()),
            ("distributed", gpu.distributed.is_some()),
        ];
        for (name, _) in written.iter().filter(|(_, written)| *written) {
            field(&format!("resources.gpu.{name}"), "the engine hands whole processors on, whichever it has");
        }
    }
    if let Some(logs) = &spec.logs {
        if logs.destination == Some(Destination::Memory) {
            field("logs.destination", "the engine keeps output in files");
        }
        if logs.retention_secs.is_some() {
            field("logs.retention_secs", "the engine rotates by size only; use logs.max_size_bytes");
        }
    }
    found.extend(replaced(spec));
    if product == Some(Product::Podman) {
        found.extend(differs_on_podman(spec));
    }
    found
}

/// Fields about ports and networks that a container without a network does not honour.
fn network_fields(spec: &ServiceSpec, field: &mut impl FnMut(&str, &str)) {
    if spec.network_access().mode() != NetworkMode::None {
        return;
    }
    if spec.network_mode() == NetworkMode::None && spec.sandbox_network() == Some(SandboxNetwork::Full) {
        field("sandbox.network", "network_mode: none is stricter and holds");
    }
    let written = [
        ("port_mappings", !spec.port_mappings.is_empty()),
        ("endpoints", !spec.endpoints.is_empty()),
        ("dns", !spec.dns.is_empty()),
    ];
    for (name, _) in written.iter().filter(|(_, written)| *written) {
        field(name, "the container has no network, and nothing outside reaches it");
    }
}

/// Time for which Podman keeps the monitor of a command that was run through its API (`exit_command_delay`).
const EXEC_KEPT: Duration = Duration::from_secs(300);

/// Most of them that nothing is said about; each is two small processes.
const MOST_KEPT: f64 = 30.0;

/// What Podman takes and does not do as Docker does.
fn differs_on_podman(spec: &ServiceSpec) -> Vec<Condition> {
    let differs = |message: String| Condition::holds("Degraded", "NotAsOnDocker", message);
    let gateway = spec.extra_hosts.iter().find(|host| host.ends_with(":host-gateway"));
    let gateway = gateway.map(|host| {
        differs(format!(
            "extra_hosts: Podman before 4.7 writes {host:?} as it stands, which resolves to nothing; use \
             host.containers.internal, or write the address"
        ))
    });
    let loses_names = !spec.dns.is_empty() && spec.network_access().mode() == NetworkMode::Default;
    let names = loses_names.then(|| {
        differs("dns: Podman may ask these servers alone, and then names of services do not resolve".to_owned())
    });
    let checks = spec.health.as_ref().filter(|health| matches!(health.check, Check::Command { .. }));
    let kept = checks.map(|health| EXEC_KEPT.as_secs_f64() / health.interval().as_secs_f64());
    let kept = kept.filter(|kept| *kept > MOST_KEPT).map(|kept| {
        differs(format!(
            "health.check: Podman keeps the monitor of each command for 5 min after its end, so about {kept:.0} of them \
             run at this interval; check by http or tcp, or set exit_command_delay in its containers.conf"
        ))
    });
    gateway.into_iter().chain(names).chain(kept).collect()
}

fn storage_fields(index: usize, storage: &Storage, field: &mut impl FnMut(&str, &str)) {
    match storage {
        Storage::Named { size, tier, name: _, target: _, readonly: _ } => {
            if size.is_some() {
                field(&format!("storage[{index}].size"), "the engine's local volumes have no limit");
            }
            if tier.is_some() {
                field(&format!("storage[{index}].tier"), "all volumes are local");
            }
        }
        Storage::Anonymous { tier: Some(_), target: _ } => {
            field(&format!("storage[{index}].tier"), "all volumes are local");
        }
        Storage::Anonymous { tier: None, .. }
        | Storage::Bind { .. }
        | Storage::Workspace { .. }
        | Storage::Tmpfs { .. }
        | Storage::S3 { .. } => {}
    }
}
