//! Fields that are understood and that nothing honours yet, on any runtime.
//!
//! Such a field is shown as the condition `UnsupportedField` on its service; it is never dropped in silence.
//! What only some runtimes can't do, they report themselves.

use super::{
    DeclaredDeployment, RType, RestartKind, Scalar, Scale, ScaleTargets, ServiceSpec, Storage, problem::display_path,
    problem::steps,
};

/// A field that has no effect yet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct UnsupportedField {
    /// The field, seen from its service (or deployment): `lifecycle.max_idle`.
    pub path: String,
    /// What does not happen, and what happens instead.
    pub why: String,
}

impl UnsupportedField {
    fn new(path: impl Into<String>, why: &str) -> Self {
        Self { path: path.into(), why: why.to_owned() }
    }
}

/// Why requests can't be counted for an instance that is in the network of something else.
pub const SHARED_NETWORK: &str = "it shares its network, and nobody can tell whose connections are counted there";

/// The target of requests of a service whose requests are not counted, and for which reason.
pub fn uncounted_requests(targets: &ScaleTargets, why: &str) -> UnsupportedField {
    let instead = match targets.cpu.is_some() || targets.memory.is_some() {
        true => "the other targets add replicas, and nothing takes any away",
        false => "there is no other target, so the number of replicas stays",
    };
    UnsupportedField::new("scale.targets.rps", &format!("requests are not counted: {why}; {instead}"))
}

/// The fields of a service that nothing honours yet.
pub fn unsupported(spec: &ServiceSpec) -> Vec<UnsupportedField> {
    let mut fields = Vec::new();
    let mut add = |written: bool, path: &str, why: &str| {
        if written {
            fields.push(UnsupportedField::new(path, why));
        }
    };
    let ends = spec.rtype() != RType::Service;
    let again = matches!(spec.restart_kind(), RestartKind::Always | RestartKind::UnlessStopped);
    add(
        ends && again,
        "restart_policy.kind",
        "a job is not started again after a success; it is retried as with on_failure",
    );
    add(
        ends && spec.rollout.is_some(),
        "rollout",
        "a job is not rolled out; its next run is made from what is declared",
    );
    match &spec.scale {
        Some(_) if ends => {
            add(true, "scale", "a job has no replicas; job.completions and job.parallelism say how many")
        }
        None | Some(Scale::Fixed { .. } | Scale::Manual) => {}
        Some(Scale::Adaptive { min, targets, .. }) => {
            add(*min == 0, "scale.min", "nothing would wake a service of which nothing runs; one replica does");
            let targets = targets.unwrap_or_default();
            let no_target = targets.cpu.is_none() && targets.memory.is_none() && targets.rps.is_none();
            const UNSCALED: &str = "there is no target, so the number of replicas stays; write `targets: { cpu: 70 }`";
            add(no_target, "scale.targets", UNSCALED);
            let requests = uncounted_requests(&targets, SHARED_NETWORK);
            add(targets.rps.is_some() && spec.network_access().is_shared(), &requests.path, &requests.why);
            let limited = spec.resources.as_ref().is_some_and(|resources| resources.memory.is_some());
            let unmeasured = targets.memory.is_some() && !limited;
            add(unmeasured, "scale.targets.memory", "there is no `resources.memory` that it is a part of; write one");
        }
    }
    add(!spec.endpoints.is_empty(), "endpoints", "nothing listens on their ports yet");
    add(spec.session.is_some() && spec.pool.is_none(), "session", "only a pool has sessions; write `pool: {}`");
    let lives_by_pool = spec.pool.is_some() && spec.lifecycle.is_some();
    add(lives_by_pool, "lifecycle", "members of a pool live by `pool.warm_ttl` and by the timeouts of `session`");
    let lifecycle = spec.lifecycle.as_ref().filter(|_| ends);
    const UNLIMITED: &str = "a job has no such limit; job.active_deadline ends a run that takes longer";
    add(lifecycle.is_some_and(|one| one.on_idle.is_some()), "lifecycle.on_idle", UNLIMITED);
    add(lifecycle.is_some_and(|one| one.on_expiry.is_some()), "lifecycle.on_expiry", UNLIMITED);
    const PLACEMENT: &str = "there is one machine; instances are not placed by this";
    add(spec.network.is_some(), "network", "there are no overlay networks; a deployment has one network");
    add(spec.node_mode.is_some(), "node_mode", PLACEMENT);
    add(spec.node_selector.is_some(), "node_selector", PLACEMENT);
    add(spec.platform.is_some(), "platform", "images of this machine's platform are used");
    add(spec.service_type.is_some(), "service_type", "every service runs as a program in an instance");
    add(spec.wasm.is_some(), "wasm", "WebAssembly modules are not run");
    for (index, storage) in spec.storage.iter().enumerate() {
        if let Storage::S3 { .. } = storage {
            let path = display_path(&steps!["storage", index]);
            fields.push(UnsupportedField::new(path, "buckets are not mounted; Docker and Podman start the instance without it, the sandbox runtime refuses it"));
        }
    }
    for (name, Scalar(value)) in &spec.env {
        if value.starts_with("$S:") {
            let path = display_path(&steps!["env", name]);
            fields.push(UnsupportedField::new(path, "secrets are not read yet"));
        }
    }
    fields
}

/// The fields of a deployment, outside of its services, that nothing honours yet.
pub(super) fn unsupported_in(deployment: &DeclaredDeployment) -> Vec<UnsupportedField> {
    let DeclaredDeployment { externals, tunnels, api, .. } = deployment;
    [
        (!externals.is_empty(), "externals", "nothing listens for them yet"),
        (!tunnels.is_empty(), "tunnels", "there are no tunnels between machines"),
        (api.is_some(), "api", "keel's own socket is not configured by specs"),
    ]
    .into_iter()
    .filter(|(written, _, _)| *written)
    .map(|(_, path, why)| UnsupportedField::new(path, why))
    .collect()
}
