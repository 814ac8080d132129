//! What engines leave out of a container in silence. Labels tell what was asked for, and an inspection what there is, so that
//! this is found out whoever looks, also when whoever created the container was cut off before it did. Pure.

use std::collections::HashMap;

use bollard::models::{ContainerInspectResponse, HostConfig};

use crate::spec::ServiceSpec;
use crate::state::{Condition, Instance};

/// Label that remembers the `resources.blkio_weight` that the container was created with.
const IO_WEIGHT: &str = "dev.evenkeel.io-weight";
/// Label that remembers that the container was created with graphics processors.
const GPU: &str = "dev.evenkeel.gpu";
/// Label that remembers the `ulimits` that the container was created with: `nofile=1024:4096,core=0:0`.
const ULIMITS: &str = "dev.evenkeel.ulimits";

/// Reason of the condition of a container that must not be started as it is.
const UNFIT: &str = "NotAsCreated";

/// What makes a container unfit to be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lost {
    /// The weight of disk traffic, as both engines do where the kernel has none.
    IoWeight,
    /// The graphics processors, as Podman does.
    Gpus,
}

impl Lost {
    const fn field(self) -> &'static str {
        match self {
            Self::IoWeight => "resources.blkio_weight",
            Self::Gpus => "resources.gpu",
        }
    }
}

/// Labels of what a spec asks for and an engine may leave out.
pub(super) fn labels(spec: &ServiceSpec, weighs_io: bool) -> impl Iterator<Item = (String, String)> {
    let resources = spec.resources.as_ref();
    let weight = resources.and_then(|resources| resources.blkio_weight).filter(|_| weighs_io);
    let limits = spec.ulimits.iter().map(|(name, limit)| (name, limit.bounds()));
    let limits: Vec<String> = limits.map(|(name, (soft, hard))| format!("{name}={soft}:{hard}")).collect();
    let labels = [
        (IO_WEIGHT, weight.map(|weight| weight.to_string())),
        (GPU, resources.and_then(|resources| resources.gpu.as_ref()).map(|_| "true".to_owned())),
        (ULIMITS, (!limits.is_empty()).then(|| limits.join(","))),
    ];
    labels.into_iter().filter_map(|(label, value)| Some((label.to_owned(), value?)))
}

/// What a container lacks that it must not be started without.
pub(super) fn lost(found: &ContainerInspectResponse) -> Option<Lost> {
    let none = HostConfig::default();
    let (labels, host) = (labels_of(found)?, found.host_config.as_ref().unwrap_or(&none));
    let has_weight = host.blkio_weight.unwrap_or_default() > 0;
    let has_devices = host.device_requests.as_ref().is_some_and(|all| !all.is_empty())
        || host.devices.as_ref().is_some_and(|all| !all.is_empty());
    if labels.contains_key(IO_WEIGHT) && !has_weight {
        Some(Lost::IoWeight)
    } else if labels.contains_key(GPU) && !has_devices {
        Some(Lost::Gpus)
    } else {
        None
    }
}

/// What is to be said of a container that lacks something.
pub(super) fn conditions(found: &ContainerInspectResponse) -> impl Iterator<Item = Condition> {
    let unfit = lost(found).map(|lost| {
        let message = format!("the engine left out {}, so it is created anew before it starts", lost.field());
        Condition::holds("Degraded", UNFIT, message)
    });
    let asked = labels_of(found).and_then(|labels| labels.get(ULIMITS)).map_or("", String::as_str);
    let missing: Vec<&str> = asked.split(',').filter(|limit| !limit.is_empty() && !has_limit(found, limit)).collect();
    let ulimits = (!missing.is_empty()).then(|| {
        let message = format!(
            "ulimits ({}) has no effect: this engine leaves it out, as Podman 4.3 does; set default_ulimits in its \
             containers.conf, or use Docker",
            missing.join(", ")
        );
        Condition::holds("UnsupportedField", "NotOnPodman", message)
    });
    unfit.into_iter().chain(ulimits)
}

/// Whether a container has a limit, as its label writes it. Podman names them as the kernel does, and says no limit in more
/// than one way.
fn has_limit(found: &ContainerInspectResponse, asked: &str) -> bool {
    let (name, bounds) = asked.split_once('=').unwrap_or((asked, ""));
    found.host_config.iter().flat_map(|host| host.ulimits.iter().flatten()).any(|limit| {
        let has = limit.name.as_deref().unwrap_or_default().to_ascii_lowercase();
        let value = |value: Option<i64>| value.unwrap_or_default();
        has.trim_start_matches("rlimit_") == name
            && (bounds.contains("-1") || bounds == format!("{}:{}", value(limit.soft), value(limit.hard)))
    })
}

/// Whether an instance must not be started as it was created.
pub(super) fn is_unfit(instance: &Instance) -> bool {
    instance.conditions.iter().any(|condition| condition.reason == UNFIT)
}

fn labels_of(found: &ContainerInspectResponse) -> Option<&HashMap<String, String>> {
    found.config.as_ref()?.labels.as_ref()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A container that was created for this spec, and has this.
    fn found(fields: &str, host: Value) -> ContainerInspectResponse {
        let spec: ServiceSpec = serde_yaml::from_str(&format!("image: {{name: app}}\n{fields}")).unwrap();
        let labels: HashMap<String, String> = labels(&spec, true).collect();
        serde_json::from_value(json!({ "Config": { "Labels": labels }, "HostConfig": host })).unwrap()
    }

    #[test]
    fn what_was_asked_for_and_is_not_there_is_lost() {
        let (weight, gpu) = ("resources: {blkio_weight: 300}", "resources: {gpu: {vendor: intel}}");
        for (fields, host, expected) in [
            (weight, json!({}), Some(Lost::IoWeight)),
            (weight, json!({ "BlkioWeight": 0 }), Some(Lost::IoWeight)),
            (weight, json!({ "BlkioWeight": 300 }), None),
            (gpu, json!({ "Devices": [], "DeviceRequests": null }), Some(Lost::Gpus)),
            (gpu, json!({ "Devices": [{ "PathOnHost": "/dev/dri" }] }), None),
            (gpu, json!({ "DeviceRequests": [{ "Count": 1 }] }), None),
            ("", json!({}), None),
        ] {
            assert_eq!(lost(&found(fields, host.clone())), expected, "{fields} {host}");
        }
    }

    #[test]
    fn limits_that_are_not_there_are_told() {
        let fields = "ulimits: {nofile: {soft: 1, hard: 2}, core: {soft: -1}}";
        let one = |name: &str, soft: i64, hard: i64| json!({ "Name": name, "Soft": soft, "Hard": hard });
        for (has, expected) in [
            (json!([]), Some("ulimits (core=-1:-1, nofile=1:2) has no effect: ")),
            (json!([one("nofile", 1, 2)]), Some("ulimits (core=-1:-1) has no effect: ")),
            (
                json!([one("RLIMIT_CORE", 9, 9), one("RLIMIT_NOFILE", 1, 3)]),
                Some("ulimits (nofile=1:2) has no effect: "),
            ),
            (json!([one("RLIMIT_CORE", 9, 9), one("RLIMIT_NOFILE", 1, 2)]), None),
        ] {
            let told = conditions(&found(fields, json!({ "Ulimits": has }))).next().map(|one| one.message);
            match expected {
                Some(expected) => assert!(told.as_ref().is_some_and(|told| told.starts_with(expected)), "{told:?}"),
                None => assert_eq!(told, None),
            }
        }
    }
}
