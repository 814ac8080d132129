//! Fields whose value can't be honoured as it is written, and what holds instead.
//!
//! Such a field is shown as the condition `CorrectedField` on its service, and told by whoever checks or applies the spec;
//! its value is never replaced in silence.

use super::{CountOrPercent, MergedDeployment, MergedService, RType, ServiceSpec, Storage, Strategy, unsupported};

/// A field of which something else holds than what is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CorrectedField {
    /// The field, seen from its service: `rollout.max_unavailable`.
    pub path: &'static str,
    /// What holds instead, and why.
    pub why: &'static str,
}

/// The fields of a service of which something else holds.
pub fn corrected(spec: &ServiceSpec) -> Vec<CorrectedField> {
    let mut fields = without_limit(spec);
    let Some(rollout) = spec.rollout.as_ref().filter(|_| spec.rtype() == RType::Service) else { return fields };
    let is_zero =
        |share: Option<CountOrPercent>| matches!(share, Some(CountOrPercent::Count(0) | CountOrPercent::Percent(0)));
    let stands_still = is_zero(rollout.max_surge) && is_zero(rollout.max_unavailable);
    if stands_still && rollout.strategy() == Strategy::Rolling {
        let why = "one replica may be missing during a rollout, as `max_surge` and `max_unavailable` are both 0 and \
                   nothing could ever be replaced; write 1 for one of them";
        fields.push(CorrectedField { path: "rollout.max_unavailable", why });
    } else if is_zero(rollout.max_unavailable) && spec.ends_first() {
        let why = "one replica may be missing during a rollout, as the old instance has to end before the new one starts: \
                   they would hold the same `host_port`, or write the same volume; where they may write it at once, write \
                   `max_surge`";
        fields.push(CorrectedField { path: "rollout.max_unavailable", why });
    }
    if rollout.strategy() == Strategy::Recreate && rollout.max_surge.is_some() && !is_zero(rollout.max_surge) {
        let why =
            "it has no effect with `strategy: recreate`: all old instances end before new ones start; leave it out";
        fields.push(CorrectedField { path: "rollout.max_surge", why });
    }
    fields
}

/// What is to be done at a limit that is not set.
fn without_limit(spec: &ServiceSpec) -> Vec<CorrectedField> {
    // A pool honours nothing of it, and a job has no such limit.
    let Some(lifecycle) = spec.lifecycle.as_ref().filter(|_| spec.pool.is_none() && spec.rtype() == RType::Service)
    else {
        return Vec::new();
    };
    let on_idle = CorrectedField {
        path: "lifecycle.on_idle",
        why: "it has no effect without `max_idle`: nothing counts as idle; write `max_idle: 30m`, or leave it out",
    };
    let on_expiry = CorrectedField {
        path: "lifecycle.on_expiry",
        why: "it has no effect without `max_lifetime`: nothing expires; write `max_lifetime: 24h`, or leave it out",
    };
    let written = [
        (on_idle, lifecycle.on_idle.is_some() && lifecycle.max_idle.is_none()),
        (on_expiry, lifecycle.on_expiry.is_some() && lifecycle.max_lifetime.is_none()),
    ];
    written.into_iter().filter(|(_, is_idle)| *is_idle).map(|(field, _)| field).collect()
}

/// Storage of a pool by which one session reaches what another one left, by its path seen from the service.
pub fn shared_storage(spec: &ServiceSpec) -> Vec<(String, &'static str)> {
    let is_shared = |storage: &Storage| match storage {
        Storage::Bind { readonly, .. } | Storage::Named { readonly, .. } => *readonly != Some(true),
        Storage::Anonymous { .. } | Storage::Tmpfs { .. } | Storage::Workspace { .. } | Storage::S3 { .. } => false,
    };
    let shared = spec.storage.iter().enumerate().filter(|(_, storage)| spec.pool.is_some() && is_shared(storage));
    let why = "all members of the pool have it and may write it: what one session writes there the next one reads; write \
               `readonly: true`, or an anonymous volume, which goes with each member";
    shared.map(|(index, _)| (format!("storage[{index}]"), why)).collect()
}

/// Whether a field that nothing honours makes another service of it than was asked for: one with other replicas, one that
/// can't start, or one that is no pool though sessions are declared, or a pool though a service's life is.
fn is_told(path: &str) -> bool {
    if ["session", "lifecycle"].contains(&path) {
        return true;
    }
    ["scale", "rollout", "restart_policy", "env"]
        .iter()
        .any(|field| path.strip_prefix(field).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '['])))
}

/// What whoever checks the specs of a deployment is to know of its services, each in a line with the place of its service:
/// fields of which something else holds, storage that sessions share, and fields that nothing honours, where the service is
/// another one than they ask for.
pub fn corrections(deployment: &MergedDeployment) -> Vec<String> {
    let line = |service: &MergedService, path: &str, why: &str| {
        format!("{}:{}: services.{}.{path}: {why}", service.file.display(), service.position.line, service.name)
    };
    let of = |service: &MergedService| -> Vec<String> {
        let corrected = corrected(&service.spec).into_iter().map(|field| line(service, field.path, field.why));
        let shared = shared_storage(&service.spec).into_iter().map(|(path, why)| line(service, &path, why));
        let fields = unsupported(&service.spec).into_iter().filter(|field| is_told(&field.path));
        let ignored = fields.map(|field| line(service, &field.path, &field.why));
        corrected.chain(shared).chain(ignored).collect()
    };
    deployment.services.values().flat_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_rollout_that_can_not_be_as_it_is_written_is_corrected() {
        let paths = |fields: &str| -> Vec<&'static str> {
            let spec: ServiceSpec = serde_yaml::from_str(&format!("image: {{name: nginx}}\n{fields}")).unwrap();
            corrected(&spec).into_iter().map(|field| field.path).collect()
        };
        assert_eq!(paths("rollout: {max_surge: 0, max_unavailable: 0}"), ["rollout.max_unavailable"]);
        assert_eq!(paths("rollout: {max_surge: 0%, max_unavailable: 0}"), ["rollout.max_unavailable"]);
        let storage = "storage: [{type: named, name: db, target: /data}]\n";
        assert_eq!(paths(&format!("{storage}rollout: {{max_unavailable: 0}}")), ["rollout.max_unavailable"]);
        for fields in [
            "",
            &format!("{storage}rollout: {{max_surge: 1, max_unavailable: 0}}"),
            &format!("{storage}rollout: {{max_unavailable: 0}}\nscale: {{mode: fixed, replicas: 2}}"),
            &format!("{storage}rollout: {{max_unavailable: 0, strategy: recreate}}"),
            "rollout: {max_surge: 0}",
            "rollout: {max_surge: 1, max_unavailable: 0}",
            "rollout: {max_surge: 0, max_unavailable: 0, strategy: recreate}",
            "rtype: job\nrollout: {max_surge: 0, max_unavailable: 0}",
            "lifecycle: {max_idle: 1m, on_idle: suspend, max_lifetime: 1h, on_expiry: terminate}",
        ] {
            assert_eq!(paths(fields), [""; 0], "{fields}");
        }
        assert_eq!(paths("rollout: {max_surge: 2, strategy: recreate}"), ["rollout.max_surge"]);
        assert_eq!(paths("lifecycle: {max_lifetime: 1h, on_idle: stop}"), ["lifecycle.on_idle"]);
        assert_eq!(paths("lifecycle: {max_idle: 1h, on_expiry: recycle}"), ["lifecycle.on_expiry"]);
    }

    #[test]
    fn a_field_that_makes_another_service_than_was_asked_for_is_told_and_another_is_not() {
        let told = |fields: &str| -> Vec<String> {
            let text =
                format!("version: v1\ndeployment: d\nservices:\n  w:\n    image: {{name: nginx}}\n    {fields}\n");
            let merged = crate::spec::merge(&[("a.yaml".into(), crate::spec::parse(&text))]);
            merged.deployments.values().flat_map(corrections).collect()
        };
        let starts = |fields: &str, start: &str| {
            let lines = told(fields);
            assert!(lines.len() == 1 && lines[0].starts_with(&format!("a.yaml:4: services.w.{start}: ")), "{lines:?}");
        };
        starts("scale: {mode: adaptive, min: 2, max: 3}", "scale.targets");
        starts("env: {A: $S:foo}", "env.A");
        starts("session: {idle_timeout: 1m}", "session");
        starts("pool: {}\n    lifecycle: {max_lifetime: 1h}", "lifecycle");
        starts("rtype: job\n    restart_policy: {kind: always}", "restart_policy.kind");
        assert_eq!(told("platform: linux/arm64"), [""; 0]);
        assert_eq!(told("scale: {mode: adaptive, min: 2, max: 3, targets: {cpu: 70}}"), [""; 0]);
    }

    #[test]
    fn what_the_members_of_a_pool_share_and_may_write_is_told() {
        let paths = |fields: &str| -> Vec<String> {
            let spec: ServiceSpec = serde_yaml::from_str(&format!("image: {{name: nginx}}\n{fields}")).unwrap();
            shared_storage(&spec).into_iter().map(|(path, _)| path).collect()
        };
        let storage = "storage:
- {type: anonymous, target: /a}
- {type: named, name: n, target: /n}
- {type: named, name: m, target: /m, readonly: true}
- {type: bind, source: /s, target: /s}
- {type: bind, source: /t, target: /t, readonly: true}
- {type: tmpfs, target: /u}\n";
        assert_eq!(paths(&format!("pool: {{}}\n{storage}")), ["storage[1]", "storage[3]"]);
        assert_eq!(paths(storage), [""; 0], "replicas share it on purpose");
    }
}
