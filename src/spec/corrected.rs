//! Fields whose value can't be honoured as it is written, and what holds instead.
//!
//! Such a field is shown as the condition `CorrectedField` on its service, and told by whoever checks or applies the spec;
//! its value is never replaced in silence.

use super::{CountOrPercent, MergedDeployment, MergedService, RType, ServiceSpec, Strategy, unsupported};

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
    let Some(rollout) = spec.rollout.as_ref().filter(|_| spec.rtype() == RType::Service) else { return Vec::new() };
    let is_zero =
        |share: Option<CountOrPercent>| matches!(share, Some(CountOrPercent::Count(0) | CountOrPercent::Percent(0)));
    let stands_still = is_zero(rollout.max_surge) && is_zero(rollout.max_unavailable);
    let mut fields = Vec::new();
    if stands_still && rollout.strategy() == Strategy::Rolling {
        let why = "one replica may be missing during a rollout, as `max_surge` and `max_unavailable` are both 0 and \
                   nothing could ever be replaced; write 1 for one of them";
        fields.push(CorrectedField { path: "rollout.max_unavailable", why });
    }
    fields
}

/// What whoever checks the specs of a deployment is to know of its services, each in a line with the place of its service:
/// fields of which something else holds, and targets of `scale` that do not count, since the number of replicas is another
/// one than they ask for.
pub fn corrections(deployment: &MergedDeployment) -> Vec<String> {
    let line = |service: &MergedService, path: &str, why: &str| {
        format!("{}:{}: services.{}.{path}: {why}", service.file.display(), service.position.line, service.name)
    };
    let of = |service: &MergedService| -> Vec<String> {
        let corrected = corrected(&service.spec).into_iter().map(|field| line(service, field.path, field.why));
        let fields = unsupported(&service.spec).into_iter().filter(|field| field.path.starts_with("scale.targets."));
        corrected.chain(fields.map(|field| line(service, &field.path, &field.why))).collect()
    };
    deployment.services.values().flat_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_rollout_that_would_stand_still_is_corrected() {
        let paths = |fields: &str| -> Vec<&'static str> {
            let spec: ServiceSpec = serde_yaml::from_str(&format!("image: {{name: nginx}}\n{fields}")).unwrap();
            corrected(&spec).into_iter().map(|field| field.path).collect()
        };
        assert_eq!(paths("rollout: {max_surge: 0, max_unavailable: 0}"), ["rollout.max_unavailable"]);
        assert_eq!(paths("rollout: {max_surge: 0%, max_unavailable: 0}"), ["rollout.max_unavailable"]);
        for fields in [
            "",
            "rollout: {max_surge: 0}",
            "rollout: {max_surge: 1, max_unavailable: 0}",
            "rollout: {max_surge: 0, max_unavailable: 0, strategy: recreate}",
            "rtype: job\nrollout: {max_surge: 0, max_unavailable: 0}",
        ] {
            assert_eq!(paths(fields), [""; 0], "{fields}");
        }
    }
}
