//! What somebody else changed of a container: limits (`docker update`), its name (`docker rename`), its network (`docker
//! network disconnect`). A label tells what it was created with, and an inspection what there is. Pure.
//!
//! An engine may report a value otherwise than it was asked for: Podman 4.3 takes a swap without limit and tells twice the
//! memory. What differs right after the creation is therefore marked in the label of the container that is made anew, so that
//! nothing is replaced for ever.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bollard::models::{ContainerInspectResponse, HostConfig, RestartPolicyNameEnum};

use super::names;
use crate::spec::{NetworkMode, ServiceSpec};
use crate::state::{Condition, InstanceId, Phase};

/// Label that remembers what the container was created with: `memory=67108864;cpu=500;?pids_limit`. What it does not name has no
/// limit, and what it marks by `?` is not compared. A container without it is compared with nothing.
pub(super) const CREATED_WITH: &str = "dev.evenkeel.created-with";

/// Stands before what is not compared.
const BLIND: char = '?';

/// Value of a network of the user's, which has more than one name: any network will do.
const ANY_NETWORK: &str = "*";

/// Billionths of a processor in a thousandth: engines round, and specs say no less.
const NANOS_PER_MILLI: i64 = 1_000_000;

/// What can be changed of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Field {
    Cpu,
    CpuPeriod,
    CpuQuota,
    CpuShares,
    CpusetCpus,
    CpusetMems,
    IoWeight,
    Memory,
    MemoryReservation,
    MemorySwap,
    Name,
    Network,
    PidsLimit,
    RestartPolicy,
}

impl Field {
    const ALL: [Self; 14] = [
        Self::Cpu,
        Self::CpuPeriod,
        Self::CpuQuota,
        Self::CpuShares,
        Self::CpusetCpus,
        Self::CpusetMems,
        Self::IoWeight,
        Self::Memory,
        Self::MemoryReservation,
        Self::MemorySwap,
        Self::Name,
        Self::Network,
        Self::PidsLimit,
        Self::RestartPolicy,
    ];

    /// As specs have it, where they do.
    const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::CpuPeriod => "cpu_period",
            Self::CpuQuota => "cpu_quota",
            Self::CpuShares => "cpu_shares",
            Self::CpusetCpus => "cpuset",
            Self::CpusetMems => "cpuset_mems",
            Self::IoWeight => "blkio_weight",
            Self::Memory => "memory",
            Self::MemoryReservation => "memory_reservation",
            Self::MemorySwap => "memory_swap",
            Self::Name => "name",
            Self::Network => "network",
            Self::PidsLimit => "pids_limit",
            Self::RestartPolicy => "restart_policy",
        }
    }

    /// A value in words.
    fn value(self, value: Option<&String>) -> String {
        match (self, value) {
            (_, None) => "unlimited".to_owned(),
            (Self::Memory | Self::MemoryReservation | Self::MemorySwap, Some(bytes)) => in_units(bytes),
            (Self::Cpu, Some(millis)) => format!("{millis}m"),
            (_, Some(value)) => value.clone(),
        }
    }

    /// What it is and what it was, in words.
    fn tell(self, is: Option<&String>, was: Option<&String>) -> String {
        format!("{} is {}, not {}", self.name(), self.value(is), self.value(was))
    }
}

/// Bytes in the largest unit that holds them whole.
fn in_units(bytes: &str) -> String {
    let Ok(count) = bytes.parse::<u64>() else { return bytes.to_owned() };
    let unit =
        [(30, "Gi"), (20, "Mi"), (10, "Ki")].into_iter().find(|(shift, _)| count > 0 && count % (1 << shift) == 0);
    unit.map_or_else(|| bytes.to_owned(), |(shift, unit)| format!("{}{unit}", count >> shift))
}

/// Values of what has one; what is absent has no limit.
type Values = BTreeMap<Field, String>;

/// The label of a container that is asked for like this. What is `blind` is not compared.
pub(super) fn label(host: &HostConfig, id: &InstanceId, network: &NetworkMode, blind: &BTreeSet<Field>) -> String {
    let mut values = limits(host);
    let network = match network {
        NetworkMode::Default => Some(names::network(&id.deployment)),
        NetworkMode::Bridge(_) => Some(ANY_NETWORK.to_owned()),
        NetworkMode::Host | NetworkMode::None | NetworkMode::Container(_) => None,
    };
    values.extend(network.map(|network| (Field::Network, network)));
    values.insert(Field::Name, id.runtime_name());
    let seen = values.iter().filter(|(field, _)| !blind.contains(field));
    let seen = seen.map(|(field, value)| format!("{}={value}", field.name()));
    let blind = blind.iter().map(|field| format!("{BLIND}{}", field.name()));
    seen.chain(blind).collect::<Vec<_>>().join(";")
}

/// What the engine is known to report otherwise than it is asked for: Podman gives a number of processes to what has no limit
/// of them.
pub(super) fn blind_on_podman(spec: &ServiceSpec) -> Option<Field> {
    let has_limit = spec.resources.as_ref().is_some_and(|resources| resources.pids_limit.is_some());
    (!has_limit).then_some(Field::PidsLimit)
}

/// What differs from what the container was created with, each with what to say of it.
pub(super) fn changes(found: &ContainerInspectResponse, id: &InstanceId) -> Vec<(Field, String)> {
    let label = found.config.as_ref().and_then(|config| config.labels.as_ref()?.get(CREATED_WITH));
    let (Some(label), Some(host)) = (label, &found.host_config) else { return Vec::new() };
    let was: HashMap<&str, String> = label
        .split(';')
        .filter_map(|part| part.split_once('='))
        .map(|(name, value)| (name, value.to_owned()))
        .collect();
    let blind: Vec<&str> = label.split(';').filter_map(|part| part.strip_prefix(BLIND)).collect();
    let mut is = limits(host);
    is.extend(found.name.as_ref().map(|name| (Field::Name, name.trim_start_matches('/').to_owned())));
    let differs = |field: Field| match (field, was.get(field.name())) {
        (Field::Network, was) => missing(found, id, was?),
        (_, was) => (is.get(&field) != was).then(|| field.tell(is.get(&field), was)),
    };
    let compared = Field::ALL.into_iter().filter(|field| !blind.contains(&field.name()));
    compared.filter_map(|field| Some((field, differs(field)?))).collect()
}

/// What is to be said of a container that is not in its network any more, or not by its service's name.
fn missing(found: &ContainerInspectResponse, id: &InstanceId, network: &str) -> Option<String> {
    let attached = found.network_settings.as_ref().and_then(|settings| settings.networks.as_ref());
    if network == ANY_NETWORK {
        let is_alone = attached.is_none_or(HashMap::is_empty);
        return is_alone.then(|| "it was taken off its network".to_owned());
    }
    let Some(endpoint) = attached.and_then(|attached| attached.get(network)) else {
        return Some(format!("it was taken off network {network}"));
    };
    let is_named = endpoint.aliases.iter().flatten().any(|alias| *alias == id.service);
    (!is_named).then(|| format!("it lost its names in network {network}"))
}

/// What is to be said of a container that somebody changed, while it is to run as it was created.
pub(super) fn condition(found: &ContainerInspectResponse, id: &InstanceId, phase: &Phase) -> Option<Condition> {
    if !matches!(phase, Phase::Created | Phase::Running { .. } | Phase::Paused { .. }) {
        return None;
    }
    let told: Vec<String> = changes(found, id).into_iter().map(|(_, told)| told).collect();
    (!told.is_empty()).then(|| Condition::changed_by_others(told.join("; ")))
}

/// The limits that an engine changes while a container runs.
fn limits(host: &HostConfig) -> Values {
    let number = |value: Option<i64>| value.filter(|value| *value > 0).map(|value| value.to_string());
    let text = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
    let has_cpu = number(host.nano_cpus).is_some();
    // An engine adds as much swap as there is memory where nothing else is asked for.
    let swap = match host.memory_swap {
        None | Some(0) => host.memory.and_then(|memory| memory.checked_mul(2)),
        asked => asked,
    };
    let millis = host.nano_cpus.map(|nanos| nanos.saturating_add(NANOS_PER_MILLI / 2) / NANOS_PER_MILLI);
    let all = [
        (Field::Cpu, number(millis)),
        // Podman writes the share of processors as these two.
        (Field::CpuPeriod, number(host.cpu_period).filter(|_| !has_cpu)),
        (Field::CpuQuota, number(host.cpu_quota).filter(|_| !has_cpu)),
        (Field::CpuShares, number(host.cpu_shares)),
        (Field::CpusetCpus, text(&host.cpuset_cpus)),
        (Field::CpusetMems, text(&host.cpuset_mems)),
        (Field::IoWeight, number(host.blkio_weight.map(i64::from))),
        (Field::Memory, number(host.memory)),
        (Field::MemoryReservation, number(host.memory_reservation)),
        (Field::MemorySwap, number(swap)),
        (Field::PidsLimit, number(host.pids_limit)),
        (Field::RestartPolicy, Some(restart_policy(host))),
    ];
    all.into_iter().filter_map(|(field, value)| Some((field, value?))).collect()
}

fn restart_policy(host: &HostConfig) -> String {
    let name = host.restart_policy.as_ref().and_then(|policy| policy.name);
    name.filter(|name| *name != RestartPolicyNameEnum::EMPTY).unwrap_or(RestartPolicyNameEnum::NO).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::tests::id;
    use super::*;

    const NAME: &str = "/shop_web_2_01234567_1";

    /// What is said of a container that was created for these limits in this network, and has this.
    fn told(asked: Value, network: &NetworkMode, blind: &[Field], has: Value) -> Vec<String> {
        let asked: HostConfig = serde_json::from_value(asked).unwrap();
        let label = label(&asked, &id(), network, &blind.iter().copied().collect());
        let mut found = json!({ "Name": NAME, "HostConfig": {}, "Config": { "Labels": { CREATED_WITH: label } } });
        found.as_object_mut().unwrap().extend(has.as_object().unwrap().clone());
        changes(&serde_json::from_value(found).unwrap(), &id()).into_iter().map(|(_, told)| told).collect()
    }

    #[test]
    fn limits_are_compared_with_what_was_asked_for_and_not_with_what_engines_add() {
        const MI: i64 = 1 << 20;
        let none: &[&str] = &[];
        let memory = json!({ "Memory": 64 * MI });
        for (asked, has, expected) in [
            (memory.clone(), json!({ "Memory": 64 * MI, "MemorySwap": 128 * MI, "MemorySwappiness": -1 }), none),
            (memory.clone(), json!({ "Memory": 64 * MI }), none),
            (
                memory.clone(),
                json!({ "Memory": 256 * MI, "MemorySwap": 512 * MI }),
                &["memory is 256Mi, not 64Mi", "memory_swap is 512Mi, not 128Mi"],
            ),
            (memory.clone(), json!({ "Memory": 64 * MI, "MemorySwap": -1 }), &["memory_swap is unlimited, not 128Mi"]),
            (json!({ "Memory": 64 * MI, "MemorySwap": -1 }), json!({ "Memory": 64 * MI, "MemorySwap": -1 }), none),
            (
                json!({}),
                json!({ "Memory": 1000, "MemorySwap": 2000 }),
                &["memory is 1000, not unlimited", "memory_swap is 2000, not unlimited"],
            ),
            (json!({}), json!({ "Memory": 0, "CpuShares": 0, "PidsLimit": null, "CpusetCpus": "" }), none),
            (json!({ "PidsLimit": -1 }), json!({ "PidsLimit": 0 }), none),
            (json!({ "PidsLimit": 50 }), json!({ "PidsLimit": 0 }), &["pids_limit is unlimited, not 50"]),
            (json!({ "CpusetCpus": "0,2" }), json!({ "CpusetCpus": "1" }), &["cpuset is 1, not 0,2"]),
            // Podman has a share of processors in three fields, rounded.
            (
                json!({ "NanoCpus": 333_000_000 }),
                json!({ "NanoCpus": 332_999_999, "CpuQuota": 33_300, "CpuPeriod": 100_000 }),
                none,
            ),
            (json!({ "NanoCpus": 500_000_000 }), json!({ "NanoCpus": 1_500_000_000 }), &["cpu is 1500m, not 500m"]),
            (json!({}), json!({ "CpuQuota": 5000 }), &["cpu_quota is 5000, not unlimited"]),
            (
                json!({ "CpuShares": 512, "BlkioWeight": 10, "MemoryReservation": 1024 }),
                json!({}),
                &[
                    "cpu_shares is unlimited, not 512",
                    "blkio_weight is unlimited, not 10",
                    "memory_reservation is unlimited, not 1Ki",
                ],
            ),
            (json!({ "RestartPolicy": { "Name": "no" } }), json!({ "RestartPolicy": { "Name": "" } }), none),
            (json!({}), json!({ "RestartPolicy": { "Name": "always" } }), &["restart_policy is always, not no"]),
        ] {
            let told = told(asked.clone(), &NetworkMode::Host, &[], json!({ "HostConfig": has }));
            assert_eq!(told, expected, "{asked} {has}");
        }
    }

    #[test]
    fn a_name_and_a_network_are_missed_where_the_container_was_given_them() {
        let networks = |all: Value| json!({ "NetworkSettings": { "Networks": all } });
        let ours = |aliases: Value| networks(json!({ "keel_shop": { "Aliases": aliases } }));
        let (own, named) = (NetworkMode::Default, NetworkMode::Bridge(Some("mine".to_owned())));
        let off = "it was taken off network keel_shop";
        for (mode, has, expected) in [
            (&own, ours(json!(["web", "2.web", "0123456789ab"])), None),
            (&own, ours(json!(["0123456789ab"])), Some("it lost its names in network keel_shop")),
            (&own, ours(Value::Null), Some("it lost its names in network keel_shop")),
            (&own, networks(json!({})), Some(off)),
            (&own, networks(json!({ "other": {} })), Some(off)),
            (&own, json!({}), Some(off)),
            (&named, networks(json!({ "mine": {} })), None),
            (&named, networks(json!({})), Some("it was taken off its network")),
            (&NetworkMode::Bridge(None), networks(json!({ "podman": {} })), None),
            (&NetworkMode::None, networks(json!({ "none": {} })), None),
            (&NetworkMode::Host, networks(json!({})), None),
            (&NetworkMode::Container("abc".to_owned()), json!({}), None),
            (&NetworkMode::Host, json!({ "Name": "other" }), Some("name is other, not shop_web_2_01234567_1")),
        ] {
            let told = told(json!({}), mode, &[], has.clone());
            assert_eq!(told.first().map(String::as_str), expected, "{mode} {has}");
        }
    }

    #[test]
    fn what_the_engine_reports_otherwise_and_what_has_no_label_is_not_compared() {
        let (asked, has) =
            (json!({ "CpuShares": 7 }), json!({ "HostConfig": { "CpuShares": 9, "NanoCpus": 4_000_000 } }));
        let told_but = |blind: &[Field]| told(asked.clone(), &NetworkMode::Host, blind, has.clone());
        assert_eq!(told_but(&[Field::CpuShares]), ["cpu is 4m, not unlimited"]);
        assert_eq!(told_but(&[Field::CpuShares, Field::Cpu]), [""; 0]);
        let older = json!({ "Name": "other", "HostConfig": { "Memory": 5 }, "Config": { "Labels": {} } });
        assert_eq!(changes(&serde_json::from_value(older).unwrap(), &id()), []);
    }

    #[test]
    fn only_what_is_to_run_as_it_was_created_is_told_of() {
        let label = label(&HostConfig::default(), &id(), &NetworkMode::None, &BTreeSet::new());
        let found = json!({ "Name": "/other", "HostConfig": {}, "Config": { "Labels": { CREATED_WITH: label } } });
        let found: ContainerInspectResponse = serde_json::from_value(found).unwrap();
        let what =
            |phase| condition(&found, &id(), &phase).and_then(|one| one.is_changed_by_others().map(str::to_owned));
        let since = chrono::DateTime::UNIX_EPOCH;
        let told = Some("name is other, not shop_web_2_01234567_1".to_owned());
        for phase in [Phase::Created, Phase::Running { since, ready: false }, Phase::Paused { since }] {
            assert_eq!(what(phase), told);
        }
        assert_eq!(what(Phase::Stopping), None);
        assert_eq!(what(Phase::Exited(crate::state::Exit::from_code(0, None, since))), None);
    }
}
