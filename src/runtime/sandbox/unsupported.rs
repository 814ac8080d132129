//! Fields of a spec that this version of the runtime does not honour. Each that was written becomes a condition.

use super::confinement::is_unconfined;
use crate::spec::{Destination, NetworkMode, SandboxNetwork, ServiceSpec, Storage, StorageTier};
use crate::state::Condition;

/// Type of a condition that names a field which has no effect.
pub const UNSUPPORTED_FIELD: &str = "UnsupportedField";

/// A condition for a field that has no effect.
pub fn unsupported(field: &str, why: &str) -> Condition {
    let reason: String = field
        .split(['.', '_'])
        .filter_map(|word| {
            let mut letters = word.chars().filter(|letter| letter.is_ascii_alphanumeric());
            letters.next().map(|first| first.to_ascii_uppercase().to_string() + &letters.collect::<String>())
        })
        .collect();
    Condition::holds(UNSUPPORTED_FIELD, &reason, format!("{field} has no effect on the sandbox runtime: {why}"))
}

/// Conditions for every field that was written and has no effect.
pub fn conditions(spec: &ServiceSpec) -> Vec<Condition> {
    let mut found = Vec::new();
    namespaces(spec, &mut found);
    sandbox(spec, &mut found);
    storage(spec, &mut found);
    process(spec, &mut found);
    placement(spec, &mut found);
    found
}

fn namespaces(spec: &ServiceSpec, found: &mut Vec<Condition>) {
    let shares = "an instance has namespaces of its own";
    for (written, field) in [
        (spec.pid_mode.is_some(), "pid_mode"),
        (spec.ipc_mode.as_deref().is_some_and(|mode| mode != "private"), "ipc_mode"),
        (spec.userns_mode.is_some(), "userns_mode"),
    ] {
        if written {
            found.push(unsupported(field, shares));
        }
    }
}

fn sandbox(spec: &ServiceSpec, found: &mut Vec<Condition>) {
    let Some(sandbox) = &spec.sandbox else { return };
    if sandbox.network == Some(SandboxNetwork::Full) && spec.network_mode() == NetworkMode::None {
        found.push(unsupported("sandbox.network", "network_mode: none is stricter and holds"));
    }
}

fn storage(spec: &ServiceSpec, found: &mut Vec<Condition>) {
    for (index, storage) in spec.storage.iter().enumerate() {
        match storage {
            Storage::Named { tier: Some(tier), .. } | Storage::Anonymous { tier: Some(tier), .. }
                if *tier != StorageTier::Local =>
            {
                found.push(unsupported(&format!("storage.{index}.tier"), "volumes are local directories"));
            }
            Storage::Named { .. }
            | Storage::Anonymous { .. }
            | Storage::Bind { .. }
            | Storage::Tmpfs { .. }
            | Storage::S3 { .. } => {}
        }
    }
}

fn process(spec: &ServiceSpec, found: &mut Vec<Condition>) {
    let is_known = |option: &String| option.starts_with("no-new-privileges") || is_unconfined(option);
    if !spec.security_opt.iter().all(is_known) {
        found.push(unsupported(
            "security_opt",
            "only seccomp=unconfined and no-new-privileges, which always holds, are known",
        ));
    }
    if spec.privileged == Some(true) {
        found.push(Condition::holds(
            "Degraded",
            "DevicesNotAll",
            "privileged: true gives every capability and takes the system-call filter away; of the machine's devices, the \
             instance has those that `devices` names",
        ));
    }
    let Some(logs) = &spec.logs else { return };
    if logs.destination == Some(Destination::Memory) {
        found.push(unsupported("logs.destination", "output is kept in files"));
    }
    if logs.retention_secs.is_some() {
        found.push(unsupported("logs.retention_secs", "output is bounded by size and goes with its instance"));
    }
}

fn placement(spec: &ServiceSpec, found: &mut Vec<Condition>) {
    if spec.cgroup_parent.is_some() {
        found.push(unsupported("cgroup_parent", "control groups of instances lie below keel's own"));
    }
}
