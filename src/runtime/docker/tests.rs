//! Tables for the pure parts.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use bollard::models::{ContainerCreateBody, ContainerInspectResponse, ContainerSummaryStateEnum as Listed};
use serde_json::{Value, json};

use super::body::{Context, create_body, log_files};
use super::observe::{agrees, from_inspect};
use super::ping::Product;
use super::require::unmet;
use super::stats::usage;
use super::unsupported::unsupported;
use crate::runtime::{Capabilities, Control, CreateRequest, Support, Uncounted, Usage};
use crate::spec::ServiceSpec;
use crate::state::{EndedBy, Exit, ExitReason, InstanceId, Owner, Phase, StopPolicy};

fn owner() -> Owner {
    Owner("0123abcd".to_owned())
}

pub(super) fn id() -> InstanceId {
    InstanceId {
        deployment: "shop".to_owned(),
        service: "web".to_owned(),
        slot: 2,
        revision: "v1-0123456789abcdef".parse().unwrap(),
        attempt: 1,
        run: None,
    }
}

fn spec(fields: Value) -> ServiceSpec {
    let mut all = json!({ "image": { "name": "app:1" } });
    all.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    serde_json::from_value(all).unwrap()
}

fn body(fields: Value, has_init: bool) -> ContainerCreateBody {
    body_for(Product::Docker, fields, has_init)
}

fn body_for(product: Product, fields: Value, has_init: bool) -> ContainerCreateBody {
    let request = CreateRequest {
        id: id(),
        restarts: 3,
        streak: 1,
        spec: Arc::new(spec(fields)),
        env: BTreeMap::from([("B".to_owned(), "2".to_owned()), ("A".to_owned(), "x=y".to_owned())]),
        source: Some(PathBuf::from("/specs/shop.yaml")),
    };
    let log_files = log_files(product);
    let owner = owner();
    let context = Context {
        owner: &owner,
        image: "app:1",
        moved_from: None,
        has_init,
        weighs_io: true,
        log_files,
        blind: Default::default(),
    };
    create_body(&request, &context)
}

/// The part of a request at a JSON pointer.
fn part(fields: Value, pointer: &str) -> Value {
    serde_json::to_value(body(fields, true)).unwrap().pointer(pointer).cloned().unwrap_or(Value::Null)
}

#[test]
fn each_field_has_its_place_in_the_request() {
    let table = [
        (json!({}), "/Env", json!(["A=x=y", "B=2"])),
        (json!({}), "/Hostname", json!("web-2")),
        (json!({}), "/StopSignal", json!("SIGTERM")),
        (json!({}), "/StopTimeout", json!(30)),
        (json!({"stop_grace_period": "1500ms"}), "/StopTimeout", json!(2)),
        (json!({}), "/HostConfig/RestartPolicy/Name", json!("no")),
        (json!({"restart_policy": {"kind": "always"}}), "/HostConfig/RestartPolicy/Name", json!("no")),
        (json!({}), "/HostConfig/Init", json!(true)),
        (json!({"init_container": false}), "/HostConfig/Init", json!(false)),
        (json!({}), "/HostConfig/LogConfig/Config", json!({"max-file": "5", "max-size": "20971520"})),
        (json!({"logs": {"max_size_bytes": 3}}), "/HostConfig/LogConfig/Config/max-size", json!("1")),
        (json!({}), "/HostConfig/NetworkMode", json!("keel_shop")),
        (json!({}), "/NetworkingConfig/EndpointsConfig/keel_shop/Aliases", json!(["web", "2.web"])),
        (json!({"network_mode": "none"}), "/HostConfig/NetworkMode", json!("none")),
        (json!({"network_mode": "none"}), "/NetworkingConfig", Value::Null),
        (json!({"pool": {}}), "/HostConfig/NetworkMode", json!("none")),
        (json!({"pool": {}}), "/NetworkingConfig", Value::Null),
        (json!({"pool": {}, "port_mappings": [{"container_port": 80}]}), "/HostConfig/PortBindings", Value::Null),
        (json!({"pool": {}, "network_mode": "bridge"}), "/HostConfig/NetworkMode", json!("bridge")),
        (json!({"sandbox": {"network": "loopback"}}), "/HostConfig/NetworkMode", json!("none")),
        (json!({"host_network": true}), "/HostConfig/NetworkMode", json!("host")),
        (json!({"network_mode": "bridge:mine"}), "/HostConfig/NetworkMode", json!("mine")),
        (json!({"network_mode": "container:abc"}), "/Hostname", Value::Null),
        (json!({"command": {"entrypoint": ["a"], "args": ["b"], "workdir": "/w"}}), "/Entrypoint", json!(["a"])),
        (json!({"command": {"args": []}}), "/Cmd", json!([])),
        (json!({"expose": [80, "53/udp"]}), "/HostConfig/PortBindings", Value::Null),
        (json!({"resources": {"cpu": "1.5"}}), "/HostConfig/NanoCpus", json!(1_500_000_000)),
        (json!({"resources": {"memory": "64Mi"}}), "/HostConfig/Memory", json!(64 << 20)),
        (json!({"resources": {"pids_limit": -1}}), "/HostConfig/PidsLimit", json!(-1)),
        (json!({"resources": {"cpuset": "0-1"}}), "/HostConfig/CpusetCpus", json!("0-1")),
        (json!({"resources": {"gpu": {"count": 2}}}), "/HostConfig/DeviceRequests/0/Count", json!(2)),
        (json!({"resources": {"gpu": {"vendor": "intel"}}}), "/HostConfig/Devices/0/PathOnHost", json!("/dev/dri")),
        (json!({"devices": [{"path": "/dev/fuse"}]}), "/HostConfig/Devices/0/CgroupPermissions", json!("rw")),
        (
            json!({"ulimits": {"nofile": {"soft": 9}}}),
            "/HostConfig/Ulimits/0",
            json!({"Name": "nofile", "Soft": 9, "Hard": 9}),
        ),
        (json!({"capabilities": ["NET_ADMIN"]}), "/HostConfig/CapAdd", json!(["NET_ADMIN"])),
        (json!({"cap_drop": ["ALL"]}), "/HostConfig/CapDrop", json!(["ALL"])),
        (
            json!({"port_mappings": [{"container_port": 80}]}),
            "/HostConfig/PortBindings/80~1tcp",
            json!([{"HostIp": "127.0.0.1", "HostPort": ""}]),
        ),
        (
            json!({"port_mappings": [{"container_port": 53, "protocol": "udp", "host_port": 5353, "host_ip": "0.0.0.0"}]}),
            "/HostConfig/PortBindings/53~1udp",
            json!([{"HostIp": "0.0.0.0", "HostPort": "5353"}]),
        ),
        (
            json!({"storage": [{"type": "bind", "source": "./data", "target": "/d", "readonly": true}]}),
            "/HostConfig/Mounts/0",
            json!({"Type": "bind", "Source": "/specs/./data", "Target": "/d", "ReadOnly": true}),
        ),
        (
            json!({"storage": [{"type": "named", "name": "db", "target": "/d"}]}),
            "/HostConfig/Mounts/0",
            json!({"Type": "volume", "Source": "shop_db", "Target": "/d"}),
        ),
        (
            json!({"storage": [{"type": "anonymous", "target": "/d"}]}),
            "/HostConfig/Mounts/0",
            json!({"Type": "volume", "Target": "/d"}),
        ),
        (json!({"storage": [{"type": "s3", "bucket": "b", "target": "/d"}]}), "/HostConfig/Mounts", Value::Null),
    ];
    for (fields, pointer, expected) in table {
        assert_eq!(part(fields.clone(), pointer), expected, "{pointer} of {fields}");
    }
}

#[test]
fn the_one_log_file_of_podman_may_hold_all() {
    let config = |product| {
        let host = body_for(product, json!({"logs": {"max_size_bytes": 1000}}), true).host_config.unwrap();
        let config = host.log_config.unwrap().config.unwrap();
        ["max-file", "max-size"].map(|name| config[name].clone())
    };
    assert_eq!(
        (config(Product::Docker), config(Product::Podman)),
        (["5", "200"].map(str::to_owned), ["1", "1000"].map(str::to_owned))
    );
}

#[test]
fn labels_carry_identity_and_what_other_tools_group_by() {
    let labels = body(json!({"labels": {"team": "blue", "dev.evenkeel.owner": "somebody"}}), false).labels.unwrap();
    let label = |key: &str| labels.get(key).map(String::as_str);
    assert_eq!(label("team"), Some("blue"));
    assert_eq!(label("dev.evenkeel.owner"), Some("0123abcd"));
    assert_eq!(label("com.docker.compose.project"), Some("shop"));
    assert_eq!(label("com.docker.compose.container-number"), Some("3"));
    assert_eq!(label("com.docker.compose.oneoff"), Some("False"));
    assert_eq!(label("com.docker.compose.project.config_files"), Some("/specs/shop.yaml"));
    assert_eq!(InstanceId::from_labels(label), Ok(id()));
    // The engine has no init program, and the spec wants one.
    assert!(labels.contains_key("dev.evenkeel.no-init"));
    assert!(!body(json!({"init_container": false}), false).labels.unwrap().contains_key("dev.evenkeel.no-init"));
}

#[test]
fn a_label_that_others_rely_on_is_replaced_and_named() {
    let written = json!({"labels": {
        "com.docker.compose.project": "other",
        "com.docker.compose.depends_on": "db",
        "dev.evenkeel.no-init": "true",
        "team": "blue",
    }});
    let labels = body(written.clone(), true).labels.unwrap();
    let label = |key: &str| labels.get(key).map(String::as_str);
    assert_eq!(label("com.docker.compose.project"), Some("shop"));
    assert_eq!(label("com.docker.compose.depends_on"), Some("db"));
    assert_eq!(label("dev.evenkeel.no-init"), None);
    let named: Vec<_> = unsupported(&spec(written), None)
        .into_iter()
        .map(|condition| (condition.kind, condition.message.split(' ').next().unwrap().to_owned()))
        .collect();
    let replaced = |key: &str| ("LabelReplaced".to_owned(), format!("labels.{key}"));
    assert_eq!(named, [replaced("com.docker.compose.project"), replaced("dev.evenkeel.no-init")]);
}

fn inspected(state: Value) -> ContainerInspectResponse {
    let labels: HashMap<_, _> = id().to_labels(&owner(), 3, 1, StopPolicy::default()).into_iter().collect();
    serde_json::from_value(json!({
        "Id": "c0ffee",
        "Created": "2026-11-21T01:00:00Z",
        "State": state,
        "Config": { "Labels": labels },
        "NetworkSettings": { "Ports": { "80/tcp": [{ "HostIp": "127.0.0.1", "HostPort": "8080" }], "81/tcp": null } },
    }))
    .unwrap()
}

const STARTED: &str = "2026-11-21T01:00:01Z";
const FINISHED: &str = "2026-11-21T01:00:09Z";
const NEVER: &str = "0001-01-01T00:00:00Z";

#[test]
fn each_state_becomes_a_phase() {
    let at = |text: &str| text.parse().unwrap();
    let coded = |code| Exit::from_code(code, Some(at(STARTED)), at(FINISHED));
    let ended = |code: i32| json!({"Status": "exited", "ExitCode": code, "StartedAt": STARTED, "FinishedAt": FINISHED});
    let with = |mut state: Value, key: &str, value: Value| {
        state[key] = value;
        state
    };
    let unrunnable = json!({"Status": "created", "Error": "no such program", "ExitCode": 127, "StartedAt": NEVER, "FinishedAt": NEVER});
    let table = [
        (json!({"Status": "created", "StartedAt": NEVER}), Phase::Created),
        (json!({"Status": "running", "StartedAt": STARTED}), Phase::Running { since: at(STARTED), ready: true }),
        (json!({"Status": "paused", "StartedAt": STARTED}), Phase::Paused { since: at(STARTED) }),
        (json!({"Status": "removing"}), Phase::Stopping),
        (ended(0), Phase::Exited(coded(0))),
        (ended(3), Phase::Exited(coded(3))),
        (with(ended(3), "Status", json!("dead")), Phase::Exited(coded(3))),
        (with(ended(137), "OOMKilled", json!(true)), Phase::Exited(coded(137).out_of_memory())),
        (unrunnable, Phase::Exited(Exit::runtime_error("no such program", at("2026-11-21T01:00:00Z")))),
        (json!({"Status": "restarting"}), Phase::Unknown { message: "restarting".to_owned() }),
    ];
    for (state, expected) in table {
        assert_eq!(from_inspect(&inspected(state.clone()), &owner()).unwrap().phase, expected, "{state}");
    }
    let killed = coded(143);
    assert_eq!((killed.signal.as_deref(), killed.reason), (Some("SIGTERM"), ExitReason::Signal));
    assert_eq!(killed.ended_by, EndedBy::Itself);
}

#[test]
fn an_end_is_never_before_its_start() {
    let odd = json!({"Status": "exited", "ExitCode": 0, "StartedAt": FINISHED, "FinishedAt": STARTED});
    let Phase::Exited(exit) = from_inspect(&inspected(odd), &owner()).unwrap().phase else { panic!("not exited") };
    assert_eq!(Some(exit.finished_at), exit.started_at);
}

#[test]
fn an_inspection_gives_the_whole_instance() {
    let state = json!({"Status": "running", "StartedAt": STARTED, "Pid": 42});
    let instance = from_inspect(&inspected(state.clone()), &owner()).unwrap();
    assert_eq!((instance.id, instance.runtime_id.as_str()), (id(), "c0ffee"));
    assert_eq!((instance.restarts, instance.streak, instance.pid), (3, 1, Some(42)));
    let ports: Vec<_> = instance.ports.iter().map(|port| (port.container_port, port.host_port)).collect();
    assert_eq!(ports, [(80, 8080)]);
    assert!(from_inspect(&inspected(state), &Owner("another".to_owned())).is_err());
}

#[test]
fn memory_holds_only_while_the_list_agrees() {
    let now = STARTED.parse().unwrap();
    let running = Phase::Running { since: now, ready: true };
    let exited = Phase::Exited(Exit::from_code(0, None, now));
    assert!(agrees(Some(Listed::RUNNING), &running));
    assert!(agrees(Some(Listed::EXITED), &exited));
    assert!(!agrees(Some(Listed::EXITED), &running));
    assert!(!agrees(Some(Listed::RUNNING), &exited));
    assert!(!agrees(Some(Listed::EMPTY), &running));
    // Docker lists what could not be run as created: what is remembered of it comes from an inspection each time.
    assert!(!agrees(Some(Listed::CREATED), &exited));
}

#[test]
fn what_has_no_effect_is_named() {
    let named = |fields: Value| -> Vec<String> {
        let conditions = unsupported(&spec(fields), None);
        assert!(conditions.iter().all(|condition| condition.kind == "UnsupportedField"));
        conditions.iter().map(|condition| condition.message.split(' ').next().unwrap().to_owned()).collect()
    };
    assert!(named(json!({"env": {"A": 1}, "resources": {"memory": "1Gi"}, "user": "nobody"})).is_empty());
    assert_eq!(
        named(json!({"sandbox": {"network": "none", "seccomp": "strict", "require": ["seccomp"]}})),
        ["sandbox.seccomp"]
    );
    let ports = json!([{"container_port": 80}]);
    assert_eq!(named(json!({"pool": {}, "port_mappings": ports})), ["port_mappings"]);
    assert_eq!(named(json!({"port_mappings": ports})), Vec::<String>::new());
    assert_eq!(named(json!({"network_mode": "none", "sandbox": {"network": "full"}})), ["sandbox.network"]);
    // What no runtime honours is named once, with the spec.
    assert!(named(json!({"platform": {"os": "linux", "arch": "amd64"}, "network": {"join": {"mode": "open"}}, "node_mode": "shared"})).is_empty());
    assert_eq!(
        named(json!({"storage": [
            {"type": "tmpfs", "target": "/t"},
            {"type": "s3", "bucket": "b", "target": "/s"},
            {"type": "named", "name": "n", "target": "/n", "size": "1Gi", "tier": "local"},
        ]})),
        ["storage[2].size", "storage[2].tier"]
    );
    assert_eq!(named(json!({"resources": {"disk": "1Gi"}})), ["resources.disk"]);
    assert_eq!(
        named(json!({"resources": {"gpu": {"vendor": "apple", "model": "M"}}})),
        ["resources.gpu.vendor", "resources.gpu.model"]
    );
    assert_eq!(
        named(json!({"logs": {"destination": "memory", "retention_secs": 5}})),
        ["logs.destination", "logs.retention_secs"]
    );
}

#[test]
fn calls_at_once_stay_far_from_what_locks_the_engine_up() {
    assert_eq!([1, 2, 4, 64].map(super::concurrency), [2, 4, 8, 8]);
}

#[test]
fn usage_is_read_from_both_versions_of_control_groups() {
    let old = json!({
        "read": "2026-01-02T03:04:05.000000006Z",
        "cpu_stats": {"cpu_usage": {"total_usage": 5_000_999_u64}},
        "memory_stats": {"usage": 900, "limit": 8000, "stats": {"inactive_file": 1, "total_inactive_file": 300}},
        "pids_stats": {"current": 3, "limit": 64},
        "blkio_stats": {"io_service_bytes_recursive": [
            {"major": 8, "minor": 0, "op": "Read", "value": 10}, {"major": 8, "minor": 0, "op": "Write", "value": 20},
            {"major": 9, "minor": 0, "op": "Read", "value": 1}, {"major": 9, "minor": 0, "op": "Total", "value": 31},
        ]},
        "networks": {"eth0": {"rx_bytes": 7, "tx_bytes": 8}, "eth1": {"rx_bytes": 1, "tx_bytes": 1}},
    });
    let found = usage(&serde_json::from_value(old).unwrap(), Some(1000));
    let expected = Usage {
        at: "2026-01-02T03:04:05.000000006Z".parse().unwrap(),
        cpu_usec: 5000,
        memory: Some(600),
        memory_limit: Some(1000),
        pids: Some(3),
        pids_limit: Some(64),
        read_bytes: Some(11),
        written_bytes: Some(20),
        received_bytes: Some(8),
        sent_bytes: Some(9),
        accepted: Err(Uncounted::Untold),
        connections: None,
    };
    assert_eq!(found, expected);
    let new = json!({
        "memory_stats": {"usage": 900, "limit": 8000, "stats": {"inactive_file": 100}},
        "pids_stats": {"current": 3, "limit": u64::MAX},
        "blkio_stats": {"io_service_bytes_recursive": [{"op": "read", "value": 5}]},
    });
    let found = usage(&serde_json::from_value(new).unwrap(), Some(0));
    assert_eq!((found.memory, found.memory_limit, found.pids_limit), (Some(800), None, None));
    assert_eq!((found.read_bytes, found.received_bytes), (Some(5), None));
}

#[test]
fn a_required_control_is_met_by_the_container_or_named() {
    let engine = Capabilities {
        version: "test".to_owned(),
        controls: [
            Control::PidNamespace,
            Control::NetworkIsolation,
            Control::ReadOnlyRoot,
            Control::MemoryLimit,
            Control::PidsLimit,
            Control::Seccomp,
            Control::CapabilityDrop,
            Control::User,
        ]
        .map(|control| (control, Support::Enforced))
        .into(),
        ..Capabilities::default()
    };
    let unmet = |require: Value, mut fields: Value| -> Vec<String> {
        fields["sandbox"]["require"] = require;
        let named = unmet(&spec(fields), &engine);
        named.iter().map(|why| why.split(':').next().unwrap().to_owned()).collect()
    };
    let table = [
        (json!(["pid_namespace", "network_isolation", "seccomp", "capability_drop"]), json!({}), vec![]),
        (json!(["pid_namespace"]), json!({"pid_mode": "host"}), vec!["pid_namespace"]),
        (json!(["network_isolation"]), json!({"host_network": true}), vec!["network_isolation"]),
        (json!(["network_isolation"]), json!({"sandbox": {"network": "none"}}), vec![]),
        (json!(["network_isolation"]), json!({"pool": {}}), vec![]),
        (json!(["seccomp", "capability_drop"]), json!({"privileged": true}), vec!["seccomp", "capability_drop"]),
        (json!(["seccomp"]), json!({"security_opt": ["seccomp=unconfined"]}), vec!["seccomp"]),
        (json!(["seccomp"]), json!({"sandbox": {"seccomp": "strict"}}), vec!["seccomp"]),
        (json!(["read_only_root", "user"]), json!({}), vec!["read_only_root", "user"]),
        (json!(["read_only_root", "user"]), json!({"read_only_root_fs": true, "user": "1000:1000"}), vec![]),
        (json!(["user"]), json!({"user": "0:0"}), vec!["user"]),
        (json!(["user"]), json!({"user": "00"}), vec!["user"]),
        (json!(["user"]), json!({"user": "+0:5"}), vec!["user"]),
        (json!(["memory_limit", "pids_limit"]), json!({}), vec!["memory_limit", "pids_limit"]),
        (json!(["memory_limit", "pids_limit"]), json!({"resources": {"memory": "1Gi", "pids_limit": 9}}), vec![]),
        (json!(["pids_limit"]), json!({"resources": {"pids_limit": -1}}), vec!["pids_limit"]),
        // The engine of this test lacks them all.
        (json!(["cpu_limit", "suspend", "io_limit"]), json!({}), vec!["cpu_limit", "suspend", "io_limit"]),
    ];
    for (require, fields, expected) in table {
        assert_eq!(unmet(require.clone(), fields.clone()), expected, "{require} with {fields}");
    }
}
