//! The revision of a service: what changes it, what does not, and that it stays what it is for ever.

use std::collections::BTreeMap;

use evenkeel::spec::{DocumentKind, Revision, RuntimeKind, ServiceSpec, merge, parse};

/// The revisions of a document's services by name.
fn revisions(text: &str) -> BTreeMap<String, Revision> {
    let file = parse(text);
    assert_eq!(file.problems, [], "{text}");
    let merged = merge(&[("a.yaml".into(), file)]);
    assert_eq!(merged.problems, []);
    merged.deployments.into_values().flat_map(|d| d.services.into_values()).map(|s| (s.name, s.revision)).collect()
}

/// The revision of one service, given as the lines of its map.
fn revision(service: &str) -> Revision {
    let lines: String = service.lines().map(|line| format!("    {line}\n")).collect();
    revisions(&format!("version: v1\ndeployment: d\nservices:\n  web:\n{lines}")).remove("web").unwrap()
}

const FULL: &str = include_str!("golden/revisions.yaml");

/// The revisions of the services of [`FULL`], which was written when more was taken: images that its runtime can't run,
/// and a port of the machine for several replicas. The runtime is passed in, and the number of replicas is no part of a
/// template.
fn revisions_of_full() -> BTreeMap<String, Revision> {
    let taken = FULL
        .replacen("runtime: docker\n", "", 1)
        .replacen("max: 10\n", "max: 1\n", 1)
        .replacen("min: 2\n", "min: 1\n", 1);
    let file = parse(&taken);
    assert_eq!(file.problems, []);
    let services = file.documents.iter().flat_map(|document| match &document.kind {
        DocumentKind::Deployment(deployment) => deployment.services.values().collect::<Vec<_>>(),
        DocumentKind::Service { service, .. } => vec![service],
    });
    let revision = |spec: &ServiceSpec| Revision::of(spec, spec.runtime.or(Some(RuntimeKind::Docker)));
    services.map(|service| (service.name.clone(), revision(&service.spec))).collect()
}

/// These values are on instances that run. A change of one means that an upgrade of keel restarts them all:
/// never update a value here without another mark than `v1-` and a way for old instances to stay. `sandboxes` is a pool: another
/// revision has its free members made anew, and leaves alone those that a session has.
#[test]
fn revisions_are_what_they_always_were() {
    let golden = [
        ("image: { name: nginx }", "v1-9687599c942c05cf"),
        (
            "image: { name: host }\ncommand: { entrypoint: [/bin/sleep, 60] }\nenv: { A: 1.10, B: two }",
            "v1-43445cdd2469b616",
        ),
        (
            "image: { name: nginx }\nresources: { cpu: 1.5, memory: 1Gi }\nuser: 1000\nstop_signal: int\n\
             ulimits: { nofile: { soft: 1024 } }",
            "v1-3e07e045a5a50135",
        ),
        (
            "image: { name: nginx }\nendpoints: [{ name: http, protocol: http, port: 80, target_port: 8080 }]\n\
             storage: [{ type: bind, source: ./data, target: /data }, { type: tmpfs, target: /tmp, mode: 1777 }]",
            "v1-5d568df0033c86c2",
        ),
        (
            "image: { name: nginx }\nruntime: docker\nrtype: job\nlabels: { team: web }\nnetwork_mode: host",
            "v1-d1ec035f84ce4b8e",
        ),
    ];
    for (service, expected) in golden {
        assert_eq!(revision(service).to_string(), expected, "{service}");
    }
    let full: Vec<String> =
        revisions_of_full().into_iter().map(|(name, revision)| format!("{name} {revision}")).collect();
    assert_eq!(
        full,
        [
            "db v1-facef7c45b7f1576",
            "once v1-549f0e8f2b2b7ea7",
            "plugin v1-f249985ec0802f05",
            "report v1-b6f3122984b526d7",
            "sandboxes v1-da80fda7d38be199",
            "web v1-bcfc2e579512ba1b",
        ]
    );
}

#[test]
fn the_way_of_writing_does_not_show() {
    let block = "image:\n  name: nginx\nenv:\n  A: '1'\n  B: two\nresources:\n  memory: 1Gi\ncommand:\n  args: [a, b]";
    let other = [
        "command: { args: ['a', \"b\"] }\nresources: { memory: 1024Mi }\nenv: { B: two, A: 1 }\nimage: { name: nginx }",
        "# comment\nimage: &image { name: docker.io/library/nginx:latest }\nx-image: *image\nenv:\n  <<: { B: two }\n  A: 1\n\
         command: { args: [a, b], entrypoint: }\nresources: { memory: 1073741824 }\ncap_add: []",
    ];
    for text in other {
        assert_eq!(revision(text), revision(block), "{text}");
    }
}

#[test]
fn fields_that_running_instances_take_as_they_are_do_not_change_the_revision() {
    let plain = revision("image: { name: nginx }");
    for line in [
        "scale: { mode: fixed, replicas: 7 }",
        "rollout: { max_surge: 2, min_ready: 5s, on_failure: pause }",
        "lifecycle: { max_idle: 1h, max_lifetime: 1d, on_expiry: terminate, delete_on_exit: true }",
        "restart_policy: { kind: no }",
        "errors: { on_panic: { action: isolate } }",
        "health: { check: { type: tcp, port: 80 } }",
        "stop_grace_period: 5s",
        "session: { idle_timeout: 1m }",
        "rtype: service",
        "x-note: anything",
    ] {
        assert_eq!(revision(&format!("image: {{ name: nginx }}\n{line}")), plain, "{line}");
    }
    assert_eq!(revision("image: { name: nginx, pull_policy: always }"), plain);
    let routes = "image: { name: nginx }\nendpoints: [{ name: a, protocol: http, port: 80, target_port: 80";
    assert_eq!(
        revision(&format!("{routes}, path: /x, host: h, expose: public }}]")),
        revision(&format!("{routes} }}]"))
    );
}

#[test]
fn how_large_a_pool_is_does_not_change_the_revision_of_its_members() {
    let pool = |numbers: &str| revision(&format!("image: {{ name: nginx }}\npool: {numbers}"));
    let plain = pool("{}");
    for numbers in ["{ min_warm: 2, max_warm: 3, max_total: 9 }", "{ warm_ttl: 1h, refill_rate: 2 }"] {
        assert_eq!(pool(numbers), plain, "{numbers}");
    }
    assert_eq!(revision("image: { name: nginx }\npool: {}\nsession: { idle_timeout: 1m }"), plain);
}

#[test]
fn fields_that_an_instance_is_made_of_change_the_revision() {
    let mut seen = BTreeMap::from([(revision("image: { name: nginx }"), "image")]);
    for line in [
        "command: { entrypoint: [sh] }",
        "command: { args: [sh] }",
        "command: { workdir: / }",
        "command: { entrypoint: [] }",
        "env: { A: 1 }",
        "env: { A: '' }",
        "env: { B: 1 }",
        "endpoints: [{ name: a, protocol: http, port: 80 }]",
        "endpoints: [{ name: a, protocol: http, port: 81 }]",
        "port_mappings: [{ container_port: 80 }]",
        "port_mappings: [{ container_port: 80, host_port: 80 }]",
        "init: { steps: [{ id: a, uses: init.run, with: { command: x } }] }",
        "resources: { cpu: 1 }",
        "resources: { memory: 1Gi }",
        "storage: [{ type: anonymous, target: /a }]",
        "storage: [{ type: workspace }]",
        "storage: [{ type: workspace, keep: true }]",
        "storage: [{ type: tmpfs, target: /a }]",
        "sandbox: { network: none }",
        "devices: [{ path: /dev/kvm }]",
        "capabilities: [NET_ADMIN]",
        "cap_drop: [NET_ADMIN]",
        "privileged: true",
        "security_opt: [no-new-privileges]",
        "user: nobody",
        "extra_groups: [video]",
        "read_only_root_fs: true",
        "ulimits: { nofile: { soft: 1 } }",
        "sysctls: { net.core.somaxconn: 1 }",
        "network_mode: host",
        "host_network: true",
        "hostname: h",
        "dns: [1.1.1.1]",
        "extra_hosts: ['a:1.1.1.1']",
        "pid_mode: host",
        "ipc_mode: host",
        "userns_mode: host",
        "cgroup_parent: /a",
        "expose: [80]",
        "stop_signal: INT",
        "logs: { max_size_bytes: 1 }",
        "labels: { a: b }",
        "tty: true",
        "stdin_open: true",
        "init_container: false",
        "network: { join: { mode: open } }",
        "node_mode: dedicated",
        "node_selector: { labels: { a: b } }",
        "platform: { os: linux, arch: amd64 }",
        "service_type: wasm_http",
        "rtype: job",
        "pool: { min_warm: 1 }",
        "runtime: docker",
    ] {
        let other = seen.insert(revision(&format!("image: {{ name: nginx }}\n{line}")), line);
        assert_eq!(other, None, "{line}");
    }
}

#[test]
fn a_runtime_counts_the_same_on_the_deployment_and_on_the_service() {
    let own = "version: v1\ndeployment: d\nservices: { web: { image: { name: nginx }, runtime: docker } }";
    let shared = "version: v1\ndeployment: d\nruntime: docker\nservices: { web: { image: { name: nginx } } }";
    let joined = "version: v1\ndeployment: d\nruntime: docker\nservices: {}\n---\n\
                  service: web\ndeployment: d\nimage: { name: nginx }";
    assert_eq!(revisions(own), revisions(shared));
    assert_eq!(revisions(own), revisions(joined));
    assert_ne!(revisions(own)["web"], revision("image: { name: nginx }"));
}

#[test]
fn a_runtime_that_is_written_down_or_left_out_gives_an_equivalent_revision_on_it() {
    let service = |line: &str| {
        let text = format!(
            "version: v1\ndeployment: d\nservices:\n  web:\n    image: {{ name: docker-archive:./root.tar }}\n{line}"
        );
        let mut merged = merge(&[("/specs/a.yaml".into(), parse(&text))]);
        merged.deployments.remove("d").unwrap().services.remove("web").unwrap()
    };
    let left_out = service("");
    for runtime in [RuntimeKind::Sandbox, RuntimeKind::Docker, RuntimeKind::Kubernetes] {
        let written = service(&format!("    runtime: {runtime}\n"));
        assert_eq!(written.equivalents, BTreeMap::from([(runtime, left_out.revision.clone())]));
        assert_eq!(left_out.equivalents.get(&runtime), Some(&written.revision));
    }
    assert_eq!(left_out.equivalents.len(), 3);
}

#[test]
fn parsing_alone_gives_the_revision_that_merging_gives() {
    let text = include_str!("valid/everything.yaml");
    let file = parse(text);
    let DocumentKind::Deployment(deployment) = &file.documents[0].kind else { panic!("not a deployment") };
    let parsed: BTreeMap<_, _> =
        deployment.services.iter().map(|(name, service)| (name.clone(), service.revision.clone())).collect();
    assert_eq!(parsed, revisions(text));
}

#[test]
fn nothing_is_empty_text_however_it_is_spelled() {
    let empty = revision("image: { name: host }\nenv: { A: '' }");
    for nothing in [
        "env: { A: }",
        "env: { A: null }",
        "env: { A: Null }",
        "env: { A: NULL }",
        "env: { A: ~ }",
        "env: { A: !!null '' }",
    ] {
        assert_eq!(revision(&format!("image: {{ name: host }}\n{nothing}")), empty, "{nothing}");
    }
    let text = revision("image: { name: host }\nenv: { A: 'null' }");
    assert_ne!(text, empty, "a text in quotes is what it says");
}
