//! Fields of a spec that this version of the runtime does not honour. Each that was written becomes a condition.

use super::confinement::is_unconfined;
use crate::runtime::logfiles::LEAST_LOG_BYTES;
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
            | Storage::Workspace { .. }
            | Storage::Bind { .. }
            | Storage::Tmpfs { .. }
            | Storage::S3 { .. } => {}
        }
    }
}

fn process(spec: &ServiceSpec, found: &mut Vec<Condition>) {
    for (index, option) in spec.security_opt.iter().enumerate().filter(|(_, option)| !is_unconfined(option)) {
        let why = match option.split(['=', ':']).collect::<Vec<_>>()[..] {
            ["no-new-privileges"] | ["no-new-privileges", "true"] => continue,
            ["no-new-privileges", "false"] => {
                "programs never get more privileges by running another one here".to_owned()
            }
            _ => format!("{option} is not known here, only seccomp=unconfined and no-new-privileges are"),
        };
        found.push(unsupported(&format!("security_opt.{index}"), &why));
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
    let least = LEAST_LOG_BYTES;
    if logs.max_size_bytes.is_some_and(|bytes| bytes < least) {
        found
            .push(unsupported("logs.max_size_bytes", &format!("{least} bytes are kept at least, for some long lines")));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn told(fields: &str) -> Vec<String> {
        let spec = serde_yaml::from_str(&format!("image: {{name: host}}\n{fields}")).unwrap();
        conditions(&spec).into_iter().map(|one| one.message).collect()
    }

    #[test]
    fn what_of_security_opt_has_no_effect_is_told_entry_by_entry() {
        for known in ["seccomp=unconfined", "seccomp:unconfined", "no-new-privileges", "no-new-privileges:true"] {
            assert_eq!(told(&format!("security_opt: ['{known}']")), [""; 0], "{known}");
        }
        let found = told("security_opt: ['seccomp=unconfined', 'apparmor=x', 'no-new-privileges:false']");
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("security_opt.1") && found[0].contains("apparmor=x is not known"), "{found:?}");
        assert!(found[1].contains("security_opt.2") && found[1].contains("never get more privileges"), "{found:?}");
    }

    #[test]
    fn a_log_that_is_smaller_than_the_smallest_is_told() {
        assert_eq!(told("logs: {max_size_bytes: 327680}"), [""; 0]);
        assert!(told("logs: {max_size_bytes: 327679}")[0].contains("327680 bytes are kept at least"));
    }
}
