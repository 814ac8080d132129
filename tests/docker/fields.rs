//! Fields of a spec, seen from inside a container.

use evenkeel::runtime::io::ExecRequest;
use evenkeel::runtime::{
    Control, CreateRequest, EnforcementState, ErrorKind, Runtime, RuntimeEvent, Uncounted, Volumes,
};
use evenkeel::spec::PortProtocol;
use evenkeel::state::{ExitReason, Instance, Phase, StopPolicy};
use futures::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{Bench, IMAGE, PATIENCE, next};

const SLEEPS: &str = "command: {args: [sleep, '3600']}";

/// What a script inside prints, both streams together.
async fn inside(bench: &Bench, instance: &Instance, script: &str) -> String {
    let command = ["sh", "-c", &format!("{{ {script}; }} 2>&1")].map(str::to_owned).to_vec();
    let request = ExecRequest { command, ..ExecRequest::default() };
    let session = bench.runtime.exec().unwrap().exec(&instance.as_ref(), &request).await.unwrap();
    let output: Vec<_> = session.output.collect().await;
    let mut text = String::new();
    for piece in output {
        if let evenkeel::runtime::io::ExecOutput::Stdout(bytes) = piece.unwrap() {
            text.push_str(std::str::from_utf8(&bytes).unwrap());
        }
    }
    text.trim().to_owned()
}

async fn identity_and_limits_reach_the_process(bench: &Bench) {
    let yaml = "
command: {args: [sleep, '3600'], workdir: /tmp}
env: {WORD: hello}
user: '65534:65534'
extra_groups: ['4321']
hostname: named
read_only_root_fs: true
cap_drop: [ALL]
security_opt: [no-new-privileges]
ulimits: {nofile: {soft: 123, hard: 456}}
sysctls: {net.ipv4.ip_local_port_range: 20000 20100}
extra_hosts: ['somewhere:192.0.2.7']
dns: [192.0.2.53]
stop_signal: SIGUSR1
stop_grace_period: 1500ms
labels: {com.example.team: blue}
resources: {memory: 64Mi, pids_limit: 50, cpu: 0.5, cpu_shares: 512, oom_score_adj: 500}
";
    let running = bench.run(&bench.request("web", 0, yaml)).await;
    let script = "pwd; echo $WORD; id -u; id -G; hostname; touch /x; awk '/open files/ {print $4, $5}' /proc/1/limits; grep CapEff /proc/self/status; \
                  grep NoNewPrivs /proc/self/status; cat /proc/sys/net/ipv4/ip_local_port_range; \
                  grep -c '192.0.2.7.*somewhere' /etc/hosts; cat /proc/1/oom_score_adj";
    let seen = inside(bench, &running, script).await;
    let lines: Vec<_> = seen.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let expected = [
        "/tmp",
        "hello",
        "65534",
        "65534 4321",
        "named",
        "touch: /x: Read-only file system",
        "123 456",
        "CapEff: 0000000000000000",
        "NoNewPrivs: 1",
        "20000 20100",
        "1",
        "500",
    ];
    // Podman's runtime here gives no process limits: the machine may lack the right to.
    let unlimited = |index: usize| index == 6 && bench.is_podman();
    for (index, (line, expected)) in lines.iter().zip(expected).enumerate() {
        assert!(line == expected || unlimited(index), "{line:?} is not {expected:?} in {seen}");
    }
    assert_eq!(lines.len(), expected.len(), "{seen}");

    let told = |format: &str| bench.cli(&["inspect", "--format", format, &running.runtime_id]);
    let is_limited = told("{{len .HostConfig.Ulimits}}") == "1";
    let reasons: Vec<&str> = running.conditions.iter().map(|condition| condition.reason.as_str()).collect();
    assert_eq!(reasons, if is_limited { vec![] } else { vec!["NotOnPodman"] });
    assert!(is_limited || bench.is_podman());
    assert_eq!(told("{{.HostConfig.Memory}} {{.HostConfig.PidsLimit}} {{.HostConfig.CpuShares}}"), "67108864 50 512");
    assert_eq!(told("{{.HostConfig.RestartPolicy.Name}}").replace("no", ""), "");
    let label = |key: &str| told(&format!("{{{{index .Config.Labels \"{key}\"}}}}"));
    assert_eq!(label("com.example.team"), "blue");
    assert_eq!(label("com.docker.compose.project"), bench.deployment);
    assert_eq!(label("com.docker.compose.service"), "web");
    assert_eq!(label("com.docker.compose.container-number"), "1");
}

async fn storage_is_mounted(bench: &Bench) {
    let host = tempfile::tempdir().unwrap();
    std::fs::write(host.path().join("file"), "from the machine\n").unwrap();
    let yaml = format!(
        "{SLEEPS}
storage:
  - {{type: bind, source: {}, target: /bound, readonly: true}}
  - {{type: named, name: data, target: /data}}
  - {{type: anonymous, target: /scratch}}
  - {{type: tmpfs, target: /memory, size: 1Mi}}
",
        host.path().display()
    );
    let running = bench.run(&bench.request("web", 0, &yaml)).await;
    let script = "cat /bound/file; touch /bound/x; echo kept > /data/kept; touch /scratch/x && echo scratch; \
                  grep -c ' /memory tmpfs' /proc/mounts";
    let seen = inside(bench, &running, script).await;
    assert_eq!(seen, "from the machine\ntouch: /bound/x: Read-only file system\nscratch\n1");

    let volumes = || bench.cli(&["volume", "ls", "--quiet"]).lines().map(str::to_owned).collect::<Vec<_>>();
    let named = format!("{}_data", bench.deployment);
    assert!(volumes().contains(&named));
    let anonymous = bench.cli(&[
        "inspect",
        "--format",
        "{{range .Mounts}}{{if eq .Destination \"/scratch\"}}{{.Name}}{{end}}{{end}}",
        &running.runtime_id,
    ]);
    assert!(volumes().contains(&anonymous), "{anonymous:?}");
    bench.runtime.remove(&running.as_ref()).await.unwrap();
    assert!(!volumes().contains(&anonymous));

    bench.runtime.teardown(&bench.deployment, Volumes::Keep).await.unwrap();
    let again = bench.run(&bench.request("web", 1, &yaml)).await;
    assert_eq!(inside(bench, &again, "cat /data/kept").await, "kept");
    bench.runtime.remove(&again.as_ref()).await.unwrap();
    bench.runtime.teardown(&bench.deployment, Volumes::Remove).await.unwrap();
    assert!(!volumes().contains(&named));
}

async fn a_missing_source_and_a_foreign_volume_are_told(bench: &Bench) {
    let missing = format!("storage: [{{type: bind, source: /no/such/source, target: /x}}]\n{SLEEPS}");
    let error = match bench.runtime.create(&bench.request("web", 0, &missing)).await {
        Ok(created) => bench.runtime.start(&created.as_ref()).await.unwrap_err(),
        Err(error) => error,
    };
    // Somebody may make it, and then the same request succeeds.
    assert_eq!(error.kind, ErrorKind::Failed, "{error}");
    assert!(error.message.contains("bind source path does not exist: /no/such/source"), "{error}");
    assert!(!std::path::Path::new("/no/such/source").exists());

    let foreign = format!("{}_data", bench.deployment);
    bench.cli(&["volume", "create", &foreign]);
    let named = format!("storage: [{{type: named, name: data, target: /data}}]\n{SLEEPS}");
    let error = bench.runtime.create(&bench.request("web", 1, &named)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NameTaken, "{error}");
    bench.cli(&["volume", "rm", &foreign]);
}

async fn a_required_control_is_enforced_or_the_create_refused(bench: &Bench) {
    let met = format!("sandbox: {{require: [pid_namespace, capability_drop]}}\n{SLEEPS}");
    bench.runtime.create(&bench.request("met", 0, &met)).await.unwrap();
    let unmet = format!("sandbox: {{require: [pid_namespace, read_only_root, activity]}}\n{SLEEPS}");
    let error = bench.runtime.create(&bench.request("unmet", 0, &unmet)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Rejected, "{error}");
    assert!(error.message.contains("read_only_root: ") && error.message.contains("activity: "), "{error}");
    let instances = bench.runtime.list().await.unwrap().instances;
    assert_eq!(instances.iter().map(|instance| instance.id.service.as_str()).collect::<Vec<_>>(), ["met"]);
}

/// Kernels without the BFQ scheduler have no weight; engines drop it then, and only the container shows it.
async fn a_weight_of_disk_traffic_is_applied_or_told(bench: &Bench) {
    let weighed = format!("resources: {{blkio_weight: 300}}\n{SLEEPS}");
    let required = format!("sandbox: {{require: [io_limit]}}\n{weighed}");
    let required = bench.runtime.create(&bench.request("required", 0, &required)).await;
    let created = match bench.runtime.create(&bench.request("web", 0, &weighed)).await {
        Ok(created) => created,
        // Podman's OCI runtimes refuse what they can't apply.
        Err(error) => return assert_eq!(error.kind, required.unwrap_err().kind),
    };
    let told = bench.runtime.enforcement(&created.as_ref()).await.unwrap();
    let told = told.into_iter().find(|one| one.control == Control::IoLimit).unwrap();
    assert_eq!(told.requested.as_deref(), Some("weight 300"));
    let set: u16 =
        bench.cli(&["inspect", "--format", "{{.HostConfig.BlkioWeight}}", &created.runtime_id]).trim().parse().unwrap();
    match set {
        0 => {
            let error = required.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Rejected, "{error}");
            assert!(error.message.contains("io_limit: the machine's kernel"), "{error}");
            assert!(matches!(told.state, EnforcementState::Absent { .. }), "{told:?}");
            assert!(created.conditions.iter().any(|condition| condition.reason == "NoIoWeight"), "{created:?}");
            let listed = bench.runtime.list().await.unwrap().instances;
            assert_eq!(listed, std::slice::from_ref(&created), "nothing stays of the one that was refused");
        }
        set => {
            assert_eq!(set, 300);
            assert!(required.is_ok(), "{required:?}");
            assert_eq!(created.conditions, []);
        }
    }
}

/// A container whose creator was cut off before it looked at what the engine had made of it.
async fn what_lacks_what_it_was_created_with_is_not_started(bench: &Bench) {
    let labels = |request: &CreateRequest| {
        let created = request.id.to_labels(bench.owner(), 0, 0, StopPolicy::default());
        let lost = [("dev.evenkeel.gpu".to_owned(), "true".to_owned())];
        created.into_iter().chain(lost).flat_map(|(key, value)| ["--label".to_owned(), format!("{key}={value}")])
    };
    let request = bench.request("web", 0, SLEEPS);
    let create = || {
        let name = request.id.runtime_name();
        let words: Vec<String> =
            ["create", "--name", &name].map(str::to_owned).into_iter().chain(labels(&request)).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).chain([IMAGE, "sleep", "3600"]).collect();
        bench.cli(&words);
    };
    create();
    let left = bench.runtime.list().await.unwrap().instances.remove(0);
    let error = bench.runtime.start(&left.as_ref()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound, "{error}");
    assert_eq!(bench.runtime.list().await.unwrap().instances, []);
    create();
    let error = bench.runtime.create(&request).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Rejected, "{error}");
    assert_eq!(bench.runtime.list().await.unwrap().instances, []);
}

async fn graphics_processors_are_handed_on_or_refused(bench: &Bench) {
    let wants = format!("resources: {{gpu: {{count: 1, vendor: nvidia}}}}\n{SLEEPS}");
    let request = bench.request("web", 0, &wants);
    // The machines of tests have none: Docker finds out at the start.
    let error = match bench.runtime.create(&request).await {
        Ok(created) => bench.runtime.start(&created.as_ref()).await.unwrap_err(),
        Err(error) => {
            assert_eq!(bench.runtime.list().await.unwrap().instances, []);
            assert_eq!(error.kind, ErrorKind::Rejected);
            error
        }
    };
    let expected = if bench.is_podman() { "resources.gpu: this engine" } else { "device driver" };
    assert!(error.message.contains(expected), "{error}");
}

async fn what_podman_does_otherwise_is_told(bench: &Bench) {
    let health = "health: {interval: 5s, check: {type: command, command: 'true'}}";
    let yaml = format!("dns: [9.9.9.9]\nextra_hosts: ['gw:host-gateway', 'a:10.0.0.1']\n{health}\n{SLEEPS}");
    let told = bench.runtime.unsupported(&bench.request("web", 0, &yaml).spec);
    let told: Vec<&str> = told.iter().map(|one| one.message.split(':').next().unwrap()).collect();
    assert_eq!(told, if bench.is_podman() { vec!["extra_hosts", "dns", "health.check"] } else { Vec::new() });
}

async fn names_of_services_resolve(bench: &Bench) {
    let first = bench.run(&bench.request("web", 0, SLEEPS)).await;
    let second = bench.run(&bench.request("web", 1, SLEEPS)).await;
    let client = bench.run(&bench.request("client", 0, SLEEPS)).await;
    let address = async |instance: &Instance| inside(bench, instance, "hostname -i").await;
    let (first, second) = (address(&first).await, address(&second).await);
    // Podman's name server answers a moment after the first container of a network has started.
    let ask = "for try in 1 2 3 4 5; do answer=$(nslookup NAME 2>&1) && break; sleep 1; done; echo \"$answer\"";
    let resolved = async |name: &str| inside(bench, &client, &ask.replace("NAME", name)).await;
    let one = resolved("1.web").await;
    assert!(one.contains(&second) && !one.contains(&format!("{first}\n")), "{one} is not {second}");
    let all = resolved("web").await;
    assert!(all.contains(&first) && all.contains(&second), "{all} is not {first} and {second}");
}

async fn the_network_is_told_by_its_name(bench: &Bench) {
    let created = bench.runtime.create(&bench.request("web", 0, SLEEPS)).await.unwrap();
    let told = bench.runtime.enforcement(&created.as_ref()).await.unwrap();
    let network = told.iter().find(|one| one.control == Control::NetworkIsolation).unwrap();
    assert_eq!(network.requested.as_deref(), Some(&*format!("keel_{}", bench.deployment)));
    let names = told.iter().find(|one| one.control == Control::ServiceNames).unwrap();
    assert!(!matches!(names.state, EnforcementState::NotRequested { .. }), "{names:?}");
}

async fn ports_are_published_and_told(bench: &Bench) {
    let yaml = "
command: {args: [sh, -c, 'while :; do echo hello | nc -l -p 8080; done']}
port_mappings: [{container_port: 8080}, {container_port: 53, protocol: udp}]
";
    let request = bench.request("web", 0, yaml);
    let running = bench.run(&request).await;
    let told: Vec<_> = running.ports.iter().map(|port| (port.container_port, port.protocol, &*port.host_ip)).collect();
    assert_eq!(told, [(53, PortProtocol::Udp, "127.0.0.1"), (8080, PortProtocol::Tcp, "127.0.0.1")]);
    assert!(running.ports.iter().all(|port| port.host_port > 1024), "{:?}", running.ports);
    assert_eq!(bench.runtime.list().await.unwrap().instances, std::slice::from_ref(&running));
    // With an event stream the list comes from memory, and must say the same.
    let _events = bench.runtime.events().await.unwrap();
    for _ in 0..2 {
        assert_eq!(bench.runtime.list().await.unwrap().instances, std::slice::from_ref(&running));
    }

    let fixed = |slot| {
        let port = running.ports[1].host_port;
        bench.request("fixed", slot, &format!("port_mappings: [{{container_port: 80, host_port: {port}}}]\n{SLEEPS}"))
    };
    let error = try_run(bench, &fixed(0)).await.unwrap_err();
    assert!(error.contains("already") && error.contains("fixed/0"), "{error}");
}

async fn accepted_connections_are_counted_in_its_own_network_alone(bench: &Bench) {
    let stats = bench.runtime.stats().unwrap();
    let accepted = async |instance: &Instance| stats.stats(&instance.as_ref()).await.unwrap().accepted;
    let serves =
        "command: {args: [sh, -c, 'exec busybox httpd -f -p 8080 -h /tmp']}\nport_mappings: [{container_port: 8080}]";
    let running = bench.run(&bench.request("web", 0, serves)).await;
    assert_eq!(accepted(&running).await, Ok(0));
    let (port, end) = (running.ports[0].host_port, tokio::time::Instant::now() + PATIENCE);
    let mut served = 0;
    while served < 3 {
        assert!(tokio::time::Instant::now() < end, "it serves");
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        // The engine's own process may take what nobody listens to yet.
        let _ = stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        served += u64::from(!answer.is_empty());
    }
    assert_eq!(accepted(&running).await, Ok(3));
    let shares = bench.run(&bench.request("host", 0, &format!("network_mode: host\n{SLEEPS}"))).await;
    assert_eq!(accepted(&shares).await, Err(Uncounted::SharedNetwork));
    let joins = format!("network_mode: 'container:{}'\n{SLEEPS}", running.runtime_id);
    let joins = bench.run(&bench.request("joined", 0, &joins)).await;
    assert_eq!(accepted(&joins).await, Err(Uncounted::SharedNetwork));
}

async fn try_run(bench: &Bench, request: &CreateRequest) -> Result<Instance, String> {
    let created = bench.runtime.create(request).await.map_err(|error| error.message)?;
    bench.runtime.start(&created.as_ref()).await.map_err(|error| error.message)
}

async fn running_out_of_memory_is_told(bench: &Bench) {
    let yaml = "
command: {args: [sh, -c, 'x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done']}
resources: {memory: 16Mi, memory_swap: 16Mi}
";
    let request = bench.request("hungry", 0, yaml);
    bench.run(&request).await;
    let ended = bench.until_ended(&request.id).await;
    let Phase::Exited(exit) = &ended.phase else { panic!("{ended:?}") };
    assert_eq!(exit.code, Some(137));
    // Podman 4.3 does not notice it where control groups are those of version 1.
    if bench.is_podman() {
        return;
    }
    // A busy engine tells of the end before it tells why.
    let reason = bench.until(&request.id, |found| match &found.phase {
        Phase::Exited(exit) if exit.oom_killed => Some(exit.reason),
        _ => None,
    });
    assert_eq!(reason.await, ExitReason::OomKilled);
}

async fn a_frozen_container_is_told_and_stopped(bench: &Bench) {
    let running = bench.run(&bench.request("web", 0, SLEEPS)).await;
    bench.cli(&["pause", &running.runtime_id]);
    let listing = bench.runtime.list().await.unwrap();
    assert_eq!(listing.instances[0].phase.name(), "paused");
    let grace = std::time::Duration::from_secs(20);
    let stopped = bench.runtime.stop(&running.as_ref(), &crate::harness::stop(grace)).await.unwrap().unwrap();
    let Phase::Exited(exit) = &stopped.phase else { panic!("{stopped:?}") };
    assert_eq!(exit.code, Some(143));
}

async fn a_frozen_container_runs_on(bench: &Bench) {
    let running = bench.run(&bench.request("web", 0, SLEEPS)).await;
    let suspend = bench.runtime.suspend().unwrap();
    let mut events = bench.runtime.events().await.unwrap();
    // The stream opens when it likes; until then the list tells.
    assert_eq!(bench.runtime.list().await.unwrap().instances, std::slice::from_ref(&running));
    bench.cli(&["pause", &running.runtime_id]);
    next(&mut events, |event| match event {
        RuntimeEvent::Changed(changed) => (changed.phase.name() == "paused").then_some(()),
        _ => None,
    })
    .await;
    assert_eq!(suspend.resume(&running.as_ref()).await.unwrap(), running);
    assert_eq!(suspend.resume(&running.as_ref()).await.unwrap(), running, "one that is not frozen is success");
    assert_eq!(bench.runtime.list().await.unwrap().instances, std::slice::from_ref(&running));
    bench.runtime.remove(&running.as_ref()).await.unwrap();
    assert_eq!(suspend.resume(&running.as_ref()).await.unwrap_err().kind, ErrorKind::NotFound);
}

async fn a_network_that_somebody_removed_is_made_again(bench: &Bench) {
    if bench.is_podman() {
        return eprintln!("skipped: Podman does not remove a network that a container is to join");
    }
    let created = bench.runtime.create(&bench.request("web", 0, SLEEPS)).await.unwrap();
    bench.cli(&["network", "rm", &format!("keel_{}", bench.deployment)]);
    let running = bench.runtime.start(&created.as_ref()).await.unwrap();
    assert!(running.phase.is_ready(), "{running:?}");
}

async fn members_of_a_pool_reach_nobody_unless_it_is_written(bench: &Bench) {
    let interfaces = "ls /sys/class/net";
    let service = bench.run(&bench.request("web", 0, SLEEPS)).await;
    assert_eq!(inside(bench, &service, interfaces).await, "eth0\nlo");
    let pool = format!("{SLEEPS}\npool: {{}}\n");
    let fields = [
        ("python", pool.clone(), "lo"),
        ("alone", format!("{SLEEPS}\nsandbox: {{network: none}}\n"), "lo"),
        ("open", format!("{pool}sandbox: {{network: full}}\n"), "eth0\nlo"),
    ];
    for (name, yaml, expected) in fields {
        let instance = bench.run(&bench.request(name, 0, &yaml)).await;
        assert_eq!(inside(bench, &instance, interfaces).await, expected, "{name}");
        assert_eq!(instance.conditions, [], "{name}");
    }
    let member = bench.request("python", 1, &format!("{pool}port_mappings: [{{container_port: 80}}]\n"));
    let member = bench.run(&member).await;
    assert_eq!(member.ports, []);
}

crate::on_both_engines!(
    members_of_a_pool_reach_nobody_unless_it_is_written,
    identity_and_limits_reach_the_process,
    storage_is_mounted,
    a_missing_source_and_a_foreign_volume_are_told,
    a_required_control_is_enforced_or_the_create_refused,
    a_weight_of_disk_traffic_is_applied_or_told,
    what_lacks_what_it_was_created_with_is_not_started,
    graphics_processors_are_handed_on_or_refused,
    what_podman_does_otherwise_is_told,
    names_of_services_resolve,
    the_network_is_told_by_its_name,
    ports_are_published_and_told,
    accepted_connections_are_counted_in_its_own_network_alone,
    running_out_of_memory_is_told,
    a_frozen_container_is_told_and_stopped,
    a_frozen_container_runs_on,
    a_network_that_somebody_removed_is_made_again,
);
