//! What instances reach, and who reaches them. Networks of deployments need root and a machine that forwards packets;
//! so these tests run once more on a machine that has nothing but its loopback interface: a network namespace.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use evenkeel::runtime::{
    Control, CreateRequest, EnforcementState, Runtime, RuntimeEvent, Stats, StopRequest, Support, Volumes,
};
use evenkeel::spec::{PortProtocol, Signal};
use evenkeel::state::{Instance, InstanceRef, Phase, StopCause};
use futures::StreamExt;

use crate::limits::holder;
use crate::support::{
    PATIENCE, Sandbox, alive, has_own_network, is_root, keel, read_json, request, rootfs, shell, shell_in,
};

/// Set where networks of deployments must work.
pub const OWN_MACHINE: &str = "KEEL_TEST_NETWORK";

#[test]
fn everything_holds_on_a_machine_of_its_own_too() {
    if !is_root() || std::env::var_os(OWN_MACHINE).is_some() {
        return;
    }
    let tests = std::env::current_exe().unwrap();
    let output = Command::new("unshare")
        .args(["--net", "sh", "-c", "ip link set lo up && exec \"$0\" network:: visitors::"])
        .arg(tests)
        .env(OWN_MACHINE, "1")
        .env("KEEL_TEST_PROGRAM", keel())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// A runtime whose instances get networks of their deployments, where this machine can have them.
async fn networked() -> Option<Networked> {
    let sandbox = Sandbox::new();
    match sandbox.runtime.capabilities().await.unwrap().support(Control::ServiceNames) {
        Support::Enforced => Some(Networked(sandbox)),
        other => {
            assert!(std::env::var_os(OWN_MACHINE).is_none(), "{other:?}");
            eprintln!("skipped: {other:?}");
            None
        }
    }
}

/// An instance may advertise itself as a router; the machine must not take a route of it.
#[tokio::test]
async fn the_machine_speaks_no_ipv6_with_instances() {
    let Some(networked) = networked().await else { return };
    networked.run(&request(&shell("sleep 100"), 0)).await;
    let bridges = networked.interfaces(&[]);
    let names: Vec<&str> = bridges.iter().filter_map(|line| line.split(": ").nth(1)).collect();
    assert_eq!(names.len(), 1, "{bridges:?}");
    let switch = format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", names[0]);
    // A kernel without IPv6 has none.
    if let Ok(switch) = std::fs::read_to_string(switch) {
        assert_eq!(switch.trim(), "1");
    }
    networked.clear().await;
}

#[tokio::test]
async fn a_bridge_that_somebody_removed_is_made_again_with_its_instances_connected() {
    let Some(networked) = networked().await else { return };
    for slot in 0..2 {
        networked.run(&request(&shell("sleep 100"), slot)).await;
    }
    let before = networked.interfaces(&networked.of_instances());
    let of_bridge = |line: &&String| line.contains(": keel-");
    let bridge = before.iter().find(of_bridge).unwrap().split(": ").nth(1).unwrap().to_owned();
    let connected = || {
        let all = networked.interfaces(&networked.of_instances());
        all.iter().filter(|line| line.contains(&format!(" master {bridge} "))).count()
    };
    assert_eq!(connected(), 2, "{before:?}");
    let runtime = networked.0.reopen();
    let mut events = runtime.events().await.unwrap();
    assert!(Command::new("ip").args(["link", "delete", &bridge]).status().unwrap().success());
    assert_eq!(connected(), 0);
    runtime.list().await.unwrap();
    assert_eq!(connected(), 2);
    let told = async {
        loop {
            if let RuntimeEvent::Mended { deployment, message } = events.next().await.unwrap() {
                return (deployment, message);
            }
        }
    };
    let (deployment, message) = tokio::time::timeout(PATIENCE, told).await.unwrap();
    assert_eq!(deployment, "demo");
    assert!(message.contains("its bridge is gone") && message.contains("not connected"), "{message}");
    drop((events, runtime));
    networked.clear().await;
}

#[tokio::test]
async fn a_network_is_listed_until_it_is_torn_down_whether_or_not_anything_runs_in_it() {
    let Some(networked) = networked().await else { return };
    assert_eq!(networked.shared().await, Vec::<String>::new());
    let instance = networked.run(&request(&shell("true"), 0)).await;
    networked.0.ended(&instance.as_ref()).await;
    assert_eq!(networked.shared().await, ["demo"]);
    networked.0.runtime.remove(&instance.as_ref()).await.unwrap();
    assert_eq!(networked.shared().await, ["demo"]);
    networked.0.runtime.teardown("demo", Volumes::Keep).await.unwrap();
    assert_eq!(networked.shared().await, Vec::<String>::new());
}

/// A runtime with networks, which are removed with it.
struct Networked(Sandbox);

impl Networked {
    async fn run(&self, request: &CreateRequest) -> Instance {
        let created = self.0.runtime.create(request).await.unwrap();
        self.0.runtime.start(&created.as_ref()).await.unwrap()
    }

    async fn shared(&self) -> Vec<String> {
        self.0.reopen().list().await.unwrap().shared.into_iter().collect()
    }

    async fn said(&self, instance: &Instance) -> String {
        self.0.ended(&instance.as_ref()).await;
        self.0.output(&instance.as_ref())
    }

    /// Removes all instances and what they shared.
    async fn clear(self) {
        let (runtime, of_instances) = (&self.0.runtime, self.of_instances());
        for instance in runtime.list().await.unwrap().instances {
            runtime.remove(&instance.as_ref()).await.unwrap();
        }
        runtime.teardown("demo", Volumes::Remove).await.unwrap();
        assert_eq!(self.interfaces(&of_instances), Vec::<String>::new());
        assert_eq!(self.tables(), Vec::<String>::new());
        assert_eq!(std::fs::read_dir(self.0.root.path().join("sandbox/networks")).unwrap().count(), 0);
    }

    /// Interfaces of this root: its bridges by what they say about themselves, the others by what records say.
    fn interfaces(&self, of_instances: &[String]) -> Vec<String> {
        let listed = Command::new("ip").args(["-o", "link"]).output().unwrap();
        let listed = String::from_utf8(listed.stdout).unwrap();
        let owner = self.owner();
        let is_bridge = |line: &str| line.contains(&format!("alias {owner}"));
        let is_ours = |line: &&str| is_bridge(line) || of_instances.iter().any(|name| line.contains(name.as_str()));
        listed.lines().filter(is_ours).map(str::to_owned).collect()
    }

    /// Tables of packet filters of this root, by what they say about themselves.
    fn tables(&self) -> Vec<String> {
        let Ok(listed) = Command::new("nft").args(["list", "tables"]).output() else { return Vec::new() };
        let listed = String::from_utf8(listed.stdout).unwrap();
        let table =
            |line: &str| line.strip_prefix("table ip ").filter(|name| name.starts_with("keel-")).map(str::to_owned);
        let text = |name: &str| {
            let shown = Command::new("nft").args(["list", "table", "ip", name]).output().unwrap();
            String::from_utf8(shown.stdout).unwrap()
        };
        let owner = self.owner();
        listed.lines().filter_map(table).map(|name| text(&name)).filter(|text| text.contains(&owner)).collect()
    }

    fn owner(&self) -> String {
        format!("keel {}_", self.0.root.path().file_name().unwrap().to_string_lossy().replace('.', "test-"))
    }

    /// Interfaces that records name.
    fn of_instances(&self) -> Vec<String> {
        let instances = std::fs::read_dir(self.0.root.path().join("sandbox/instances")).unwrap().flatten();
        let record = |path: std::path::PathBuf| read_json(&path.join("record.json"));
        let name = |record: serde_json::Value| {
            record["launch"]["network"]["link"]["bridge"]["interface"].as_str().map(str::to_owned)
        };
        instances.filter_map(|entry| name(record(entry.path()))).collect()
    }
}

fn named(service: &str, slot: u32, yaml: &str) -> CreateRequest {
    let mut request = request(yaml, slot);
    request.id.service = service.into();
    request
}

/// A service that answers every connection to a port with a text.
pub fn answering(port: u16, text: &str) -> String {
    shell(&format!("while :; do echo {text} | /bin/busybox nc -l -p {port}; done"))
}

/// What a port of the machine answers, once it does.
pub fn answer(port: u16) -> String {
    let end = Instant::now() + PATIENCE;
    loop {
        let mut text = String::new();
        let read =
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).and_then(|mut stream| stream.read_to_string(&mut text));
        if read.is_ok() && !text.is_empty() {
            return text;
        }
        assert!(Instant::now() < end, "port {port} answers");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A script that asks until it is answered.
fn asking(host: &str, port: u16) -> String {
    format!("until /bin/busybox nc -w 1 {host} {port} 2>/dev/null; do /bin/busybox sleep 0.05; done")
}

#[tokio::test]
async fn instances_of_a_deployment_reach_each_other_by_name() {
    let Some(sandbox) = networked().await else { return };
    sandbox.run(&named("db", 0, &answering(7000, "data"))).await;
    for name in ["db", "0.db", "db-0"] {
        let client =
            sandbox.run(&named(&format!("by-{}", name.replace('.', "-")), 0, &shell(&asking(name, 7000)))).await;
        assert_eq!(sandbox.said(&client).await, "data\n", "{name}");
    }
    sandbox.clear().await;
}

#[tokio::test]
async fn names_are_known_below_a_mount_over_etc_and_a_file_in_their_place_is_told() {
    let Some(sandbox) = networked().await else { return };
    sandbox.run(&named("db", 0, &answering(7000, "data"))).await;
    let below = shell(&asking("db", 7000)) + "\nstorage: [{ type: tmpfs, target: /etc }]";
    let below = sandbox.run(&named("below", 0, &below)).await;
    assert_eq!(sandbox.said(&below).await, "data\n");
    let own = shell("sleep 100") + "\nstorage: [{ type: bind, source: /etc/hosts, target: /etc/hosts }]";
    let own = sandbox.run(&named("own", 0, &own)).await;
    for (instance, expected) in [(&below, None), (&own, Some("/etc/hosts of its own"))] {
        let told = sandbox.0.runtime.enforcement(&instance.as_ref()).await.unwrap();
        let names = told.into_iter().find(|one| one.control == Control::ServiceNames).unwrap();
        match (names.state, expected) {
            (EnforcementState::Enforced { .. }, None) => {}
            (EnforcementState::Degraded { why, .. }, Some(said)) => assert!(why.contains(said), "{why}"),
            (other, _) => panic!("{other:?}"),
        }
    }
    sandbox.clear().await;
}

#[tokio::test]
async fn another_deployment_is_out_of_reach() {
    let Some(sandbox) = networked().await else { return };
    let server = sandbox.run(&named("db", 0, &answering(7000, "data"))).await;
    let record = read_json(&sandbox.0.dir(&server.as_ref()).join("record.json"));
    let address = record["launch"]["network"]["link"]["bridge"]["address"].as_str().unwrap().to_owned();
    let sibling = sandbox.run(&named("sibling", 0, &shell(&asking(&address, 7000)))).await;
    assert_eq!(sandbox.said(&sibling).await, "data\n");
    let script = format!("/bin/busybox nc -w 1 {address} 7000 || echo refused");
    let mut stranger = named("stranger", 0, &shell(&script));
    stranger.id.deployment = "other".into();
    let stranger = sandbox.run(&stranger).await;
    let said = sandbox.said(&stranger).await;
    assert!(said.contains("refused\n") && !said.contains("data"), "{said}");
    sandbox.clear().await;
}

#[tokio::test]
async fn names_come_and_go_while_an_instance_looks() {
    let Some(sandbox) = networked().await else { return };
    let looking = "last=; while :; do now=$(/bin/busybox grep -c late-0 /etc/hosts); [ \"$now\" = \"$last\" ] || echo $now; \
                   last=$now; /bin/busybox sleep 0.02; done";
    let watcher = sandbox.run(&named("watcher", 0, &shell(looking))).await;
    sandbox.0.wrote(&watcher.as_ref(), "0\n").await;
    let late = sandbox.run(&named("late", 0, &shell("sleep 1000"))).await;
    sandbox.0.wrote(&watcher.as_ref(), "0\n1\n").await;
    sandbox.0.runtime.stop(&late.as_ref(), &now()).await.unwrap();
    sandbox.0.wrote(&watcher.as_ref(), "0\n1\n0\n").await;
    sandbox.clear().await;
}

fn now() -> StopRequest {
    StopRequest { signal: Signal::KILL, grace: Duration::ZERO, cause: StopCause::Retired }
}

#[tokio::test]
async fn an_instance_has_its_own_interface_with_traffic_of_its_own() {
    let Some(sandbox) = networked().await else { return };
    sandbox.run(&named("db", 0, &answering(7000, "data"))).await;
    let script = format!("ip -o -4 addr show eth0; ip route; {}; sleep 1000", asking("db", 7000));
    let client = sandbox.run(&named("client", 0, &shell(&script))).await;
    sandbox.0.wrote(&client.as_ref(), "data\n").await;
    let output = sandbox.0.output(&client.as_ref());
    assert!(output.contains("inet 10.2") && output.contains("/22"), "{output}");
    assert!(output.contains("default via 10.2"), "{output}");
    let usage = Stats::stats(&sandbox.0.runtime, &client.as_ref()).await.unwrap();
    assert!(usage.received_bytes > Some(0) && usage.sent_bytes > Some(0), "{usage:?}");
    sandbox.clear().await;
}

#[tokio::test]
async fn endpoints_are_reached_on_the_machine() {
    let sandbox = Sandbox::new();
    let endpoints = "\nendpoints: [{ name: http, protocol: http, port: 8099 }]";
    let yaml = shell("while :; do echo here | /bin/busybox nc -l -p $PORT 127.0.0.1; done") + endpoints;
    let instance = sandbox.run(&yaml).await;
    assert_eq!(answer(instance.ports[0].host_port), "here\n");
    // With interfaces of its own the program listens where the endpoint says.
    assert_eq!(instance.ports[0].container_port == 8099, has_own_network(&sandbox, &instance.as_ref()));
    assert_ne!(instance.ports[0].host_port, 8099);
    Networked(sandbox).clear().await;
}

#[tokio::test]
async fn every_kind_of_network_without_others_is_reached_as_far_as_it_says() {
    let sandbox = Sandbox::new();
    if sandbox.runtime.capabilities().await.unwrap().support(Control::NetworkIsolation) != Support::Enforced {
        return eprintln!("skipped: there are no network namespaces here");
    }
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let ports = format!("\nport_mappings: [{{ container_port: 7001, host_port: {free} }}]");
    let loopback = answering(7001, "inside") + &ports + "\nsandbox: { network: loopback }";
    let instance = sandbox.run(&loopback).await;
    assert_eq!((instance.ports[0].host_port, instance.ports[0].container_port), (free, 7001));
    assert_eq!(answer(free), "inside\n");

    let second = sandbox.runtime.create(&named("second", 0, &loopback)).await.unwrap();
    let error = sandbox.runtime.start(&second.as_ref()).await.unwrap_err().to_string();
    assert!(error.contains(&format!("port 7001 can't be published at 127.0.0.1:{free}")), "{error}");
    assert!(error.contains("choose another port_mappings host_port"), "{error}");

    sandbox.runtime.remove(&instance.as_ref()).await.unwrap();
    let none = answering(7001, "inside") + &ports + "\nsandbox: { network: none }";
    let instance = sandbox.run(&none).await;
    assert_eq!(instance.ports, vec![]);
    assert!(instance.conditions.iter().any(|one| one.reason == "PortMappings"), "{:?}", instance.conditions);
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, free)).is_err());
    Networked(sandbox).clear().await;
}

#[tokio::test]
async fn many_connections_are_handed_on_whole() {
    let sandbox = Sandbox::new();
    let yaml = shell("exec /bin/busybox nc -ll -p $PORT -e /bin/busybox cat")
        + "\nendpoints: [{ name: http, protocol: http, port: 8099 }]\nsandbox: { network: loopback }";
    let instance = sandbox.run(&yaml).await;
    let Some(binding) = instance.ports.first() else { return eprintln!("skipped: no network namespaces") };
    let port = binding.host_port;
    let echo = move |number: u8| {
        let sent = vec![number; 300_000];
        let end = Instant::now() + PATIENCE;
        loop {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
            let mut writer = stream.try_clone().unwrap();
            let to_send = sent.clone();
            let writing = std::thread::spawn(move || {
                let _ = writer.write_all(&to_send);
                let _ = writer.shutdown(std::net::Shutdown::Write);
            });
            let mut received = Vec::new();
            let _ = stream.read_to_end(&mut received);
            writing.join().unwrap();
            // It may not listen yet.
            if !received.is_empty() || Instant::now() > end {
                return received == sent;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    let all: Vec<_> = (0..20).map(|number| std::thread::spawn(move || echo(number))).collect();
    assert!(all.into_iter().all(|one| one.join().unwrap()));
    Networked(sandbox).clear().await;
}

/// A program that sends every datagram back, after its own name for whom it is from.
pub fn echo(port: u16) -> String {
    let program = format!(
        "use IO::Socket::INET; $s = IO::Socket::INET->new(LocalPort => {port}, Proto => 'udp'); \
         while (1) {{ $s->recv($text, 99); $s->send($s->peerport . ' ' . $text) }}"
    );
    format!("image: {{ name: host }}\ncommand: {{ entrypoint: [/usr/bin/perl, -e, {program:?}] }}")
}

/// Asks once more whenever there is no answer, as the program may not listen yet.
pub fn asked(socket: &UdpSocket, text: &str) -> String {
    let mut received = [0; 99];
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let end = Instant::now() + PATIENCE;
    loop {
        socket.send(text.as_bytes()).unwrap();
        match socket.recv(&mut received) {
            Ok(size) => return String::from_utf8_lossy(&received[..size]).into_owned(),
            Err(_) => assert!(Instant::now() < end, "{text} has no answer"),
        }
    }
}

#[tokio::test]
async fn datagrams_are_handed_on_and_each_client_gets_its_own_answers() {
    let sandbox = Sandbox::new();
    let support = sandbox.runtime.capabilities().await.unwrap().support(Control::NetworkIsolation);
    if support != Support::Enforced {
        return crate::support::skip(&format!("{support:?}"));
    }
    for (slot, fields) in [
        "port_mappings: [{ container_port: 7001, protocol: udp }]\nsandbox: { network: loopback }",
        "endpoints: [{ name: echo, protocol: udp, port: 7001 }]\nsandbox: { network: loopback }",
        "port_mappings: [{ container_port: 7001, protocol: udp }]\nnetwork_mode: bridge",
    ]
    .into_iter()
    .enumerate()
    {
        let request = request(&format!("{}\n{fields}", echo(7001)), u32::try_from(slot).unwrap());
        let created = sandbox.runtime.create(&request).await.unwrap();
        let instance = sandbox.runtime.start(&created.as_ref()).await.unwrap();
        // Where there are no networks of deployments, the last has the machine's.
        let Some(binding) = instance.ports.first() else {
            assert!(std::env::var_os(OWN_MACHINE).is_none(), "{:?}", instance.conditions);
            break;
        };
        assert_eq!((binding.protocol, binding.container_port), (PortProtocol::Udp, 7001), "{fields}");
        let client = || {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            socket.connect((Ipv4Addr::LOCALHOST, binding.host_port)).unwrap();
            socket
        };
        let clients = [client(), client()];
        let told = |round: u32| -> Vec<String> {
            let one = |(index, socket)| asked(socket, &format!("{index} {round}"));
            clients.iter().enumerate().map(one).collect()
        };
        let names = |answers: &[String]| -> Vec<String> {
            answers.iter().map(|answer| answer.split(' ').next().unwrap().to_owned()).collect()
        };
        let (first, second) = (told(1), told(2));
        assert_ne!(first[0], first[1]);
        for (index, answer) in first.iter().enumerate() {
            assert!(answer.ends_with(&format!("{index} 1")), "{answer} {fields}");
        }
        assert_eq!(names(&first), names(&second), "one flow for each");
        assert_ne!(names(&first)[0], names(&first)[1]);
    }
    Networked(sandbox).clear().await;
}

#[tokio::test]
async fn further_hosts_and_name_servers_are_seen_inside() {
    let folder = tempfile::tempdir().unwrap();
    let root = rootfs(folder.path());
    // As images have it whose files a service manager writes.
    std::os::unix::fs::symlink("../run/systemd/resolve/stub-resolv.conf", root.join("etc/resolv.conf")).unwrap();
    let fields = "\nextra_hosts: ['far:192.0.2.9']\ndns: [192.0.2.53]";
    for more in ["", "\nnetwork_mode: host", "\nnetwork_mode: none"] {
        for yaml in [shell("cat /etc/hosts /etc/resolv.conf"), shell_in(&root, "cat /etc/hosts /etc/resolv.conf")] {
            let sandbox = Sandbox::new();
            let instance = sandbox.run(&format!("{yaml}{fields}{more}")).await;
            sandbox.ended(&instance.as_ref()).await;
            let output = sandbox.output(&instance.as_ref());
            assert!(output.contains("192.0.2.9\tfar\n"), "{more}: {output}");
            assert!(output.contains("localhost"), "{more}: {output}");
            let asked = output.lines().filter(|line| line.starts_with("nameserver")).collect::<Vec<_>>();
            let told = instance.conditions.iter().any(|one| one.reason == "Dns");
            match more.ends_with("none") {
                false => assert_eq!((asked, told), (vec!["nameserver 192.0.2.53"], false), "{more}: {output}"),
                true => assert!(told && !asked.contains(&"nameserver 192.0.2.53"), "{more}: {output}"),
            }
            Networked(sandbox).clear().await;
        }
    }
}

#[tokio::test]
async fn an_image_has_the_machines_names_with_the_machines_network() {
    let folder = tempfile::tempdir().unwrap();
    let root = rootfs(folder.path());
    let sandbox = Sandbox::new();
    let yaml = shell_in(&root, "cat /etc/hosts /etc/resolv.conf; echo x 2>/dev/null > /etc/hosts || echo read-only");
    let instance = sandbox.run(&(yaml + "\nnetwork_mode: host")).await;
    sandbox.ended(&instance.as_ref()).await;
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let expected = read("/etc/hosts") + &read("/etc/resolv.conf") + "read-only\n";
    assert_eq!(sandbox.output(&instance.as_ref()), expected);
}

/// Another machine, which the first one reaches by the interface `up0` and its default route: it answers each
/// connection with the address that it comes from.
pub struct Elsewhere {
    machine: Child,
    _only: MutexGuard<'static, ()>,
}

/// There is one at a time.
static ELSEWHERE: Mutex<()> = Mutex::new(());

impl Elsewhere {
    pub const ADDRESS: &str = "198.51.100.2";
    pub const OWN: &str = "198.51.100.1";

    pub fn start() -> Self {
        let guard = ELSEWHERE.lock().unwrap_or_else(PoisonError::into_inner);
        let script = "read word; ip addr add 198.51.100.2/24 dev up1; ip link set up1 up; ip link set lo up; \
                      exec busybox nc -ll -p 80 -e sh -c 'echo $NCAT_REMOTE_ADDR; cat /proc/net/tcp | head -0; \
                      busybox netstat -tn | busybox grep :80'";
        let mut child = Command::new("unshare")
            .args(["--net", "sh", "-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // It has its namespace once it differs from this one.
        let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
        while namespace(&child.id().to_string()) == namespace("self") {
            std::thread::sleep(Duration::from_millis(1));
        }
        let commands = format!(
            "ip link add up0 type veth peer name up1 netns {} && ip addr add {}/24 dev up0 && ip link set up0 up && \
             ip route add default via {}",
            child.id(),
            Self::OWN,
            Self::ADDRESS
        );
        assert!(Command::new("sh").args(["-c", &commands]).status().unwrap().success());
        child.stdin.take().unwrap().write_all(b"go\n").unwrap();
        Self { machine: child, _only: guard }
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = self.machine.kill();
        let _ = self.machine.wait();
    }
}

#[tokio::test]
async fn what_leaves_the_machine_carries_its_address() {
    if std::env::var_os(OWN_MACHINE).is_none() {
        return;
    }
    let _elsewhere = Elsewhere::start();
    let Some(sandbox) = networked().await else { return };
    let client = sandbox.run(&named("client", 0, &shell(&asking(Elsewhere::ADDRESS, 80)))).await;
    let output = sandbox.said(&client).await;
    assert!(output.contains(&format!("{}:", Elsewhere::OWN)), "{output}");
    sandbox.clear().await;
}

#[tokio::test]
async fn killed_supervisors_leave_nothing_behind() {
    let Some(sandbox) = networked().await else { return };
    let endpoints = "\nendpoints: [{ name: http, protocol: http, port: 8099 }]";
    let instance = sandbox.run(&named("web", 0, &(answering(8099, "here") + endpoints))).await;
    let port = instance.ports[0].host_port;
    assert_eq!(answer(port), "here\n");
    assert_eq!(sandbox.interfaces(&sandbox.of_instances()).len(), 2);
    if let [table] = &sandbox.tables()[..] {
        assert_eq!(table.matches("masquerade").count(), 1, "{table}");
        assert!(table.contains("ct state established,related accept"), "{table}");
    }
    kill_supervisor(&sandbox.0, &instance.as_ref());
    let fails = || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err();
    wait_until("its port is closed", fails);
    let found = sandbox.0.find(&instance.as_ref()).await.unwrap();
    assert!(matches!(found.phase, Phase::Exited(_)));
    // Another one comes, and the first is started again: both know each other.
    let again = sandbox.0.runtime.start(&instance.as_ref()).await.unwrap();
    assert_eq!(again.ports[0].host_port, port);
    assert_eq!(answer(port), "here\n");
    let client = sandbox.run(&named("client", 0, &shell(&asking("web", 8099)))).await;
    assert_eq!(sandbox.said(&client).await, "here\n");
    kill_supervisor(&sandbox.0, &instance.as_ref());
    sandbox.clear().await;
}

#[tokio::test]
async fn a_supervisor_that_is_killed_at_any_instant_leaves_no_network_after_the_removal() {
    let Some(sandbox) = networked().await else { return };
    let yaml = answering(8099, "here") + "\nendpoints: [{ name: http, protocol: http, port: 8099 }]";
    let watcher = sandbox.run(&named("watcher", 0, &shell("sleep 1000"))).await;
    for round in 0..25_u32 {
        let created = sandbox.0.runtime.create(&named("web", round, &yaml)).await.unwrap();
        let (runtime, target) = (sandbox.0.reopen(), created.as_ref());
        let starting = tokio::spawn(async move { runtime.start(&target).await.map(drop) });
        let lock = sandbox.0.dir(&created.as_ref()).join("lock");
        let (end, mut supervisor) = (Instant::now() + PATIENCE, None);
        while supervisor.is_none() && !starting.is_finished() && Instant::now() < end {
            supervisor = holder(&lock);
            tokio::task::yield_now().await;
        }
        // A start takes some milliseconds; the kills are spread over them and what follows.
        tokio::time::sleep(Duration::from_micros(u64::from(round * round) * 60)).await;
        if let Some(supervisor) = supervisor.or_else(|| holder(&lock)).and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(supervisor, rustix::process::Signal::KILL);
        }
        let _ = starting.await.unwrap();
        let record = read_json(&sandbox.0.dir(&created.as_ref()).join("record.json"));
        let attachment = &record["launch"]["network"]["link"]["bridge"];
        let interface = attachment["interface"].as_str().unwrap().to_owned();
        sandbox.0.reopen().remove(&created.as_ref()).await.unwrap();
        // The kernel takes the rest of a namespace away in its own time.
        let is_gone = || !Command::new("ip").args(["link", "show", &interface]).output().unwrap().status.success();
        wait_until("the interface is gone", is_gone);
        let port = created.ports[0].host_port;
        wait_until("the port is closed", || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err());
        let dir = std::path::Path::new(attachment["network"]["dir"].as_str().unwrap());
        let hosts = std::fs::read_dir(dir.join("hosts")).unwrap().next().unwrap().unwrap().path();
        let hosts = std::fs::read_to_string(hosts).unwrap();
        assert!(hosts.contains("\twatcher-0 ") && !hosts.contains("web"), "round {round}: {hosts}");
        assert_eq!(std::fs::read_dir(dir.join("leases")).unwrap().count(), 1, "round {round}");
    }
    sandbox.0.runtime.remove(&watcher.as_ref()).await.unwrap();
    sandbox.clear().await;
}

pub fn kill_supervisor(sandbox: &Sandbox, instance: &InstanceRef) {
    let run = read_json(&sandbox.dir(instance).join("run.json"));
    let pid = |field: &str| i32::try_from(run[field]["pid"].as_i64().unwrap()).unwrap();
    let supervisor = rustix::process::Pid::from_raw(pid("supervisor")).unwrap();
    rustix::process::kill_process(supervisor, rustix::process::Signal::KILL).unwrap();
    wait_until("the supervisor is gone", || !alive(pid("supervisor")));
}

pub fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A script that asks the proxy for what a line of HTTP says, and shows the first line and the body of the answer.
fn proxied(request: &str) -> String {
    format!("printf '{request} HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n' | /bin/busybox nc 127.0.0.1 3128")
}

/// Runs scripts in one instance that may reach these hosts; each gives a part of what it wrote.
async fn with_hosts(rules: &str, scripts: &[String]) -> Option<Vec<String>> {
    let sandbox = Sandbox::new();
    if sandbox.runtime.capabilities().await.unwrap().support(Control::EgressFilter) != Support::Enforced {
        eprintln!("skipped: there are no network namespaces here");
        return None;
    }
    let script = scripts.join("; echo; echo ----; ");
    let yaml = shell(&script) + &format!("\nsandbox: {{ allow_hosts: [{rules}] }}");
    let instance = sandbox.run(&yaml).await;
    sandbox.ended(&instance.as_ref()).await;
    let output = sandbox.output(&instance.as_ref());
    sandbox.runtime.remove(&instance.as_ref()).await.unwrap();
    Some(output.split("----\n").map(str::to_owned).collect())
}

#[tokio::test]
async fn what_is_not_the_internet_is_closed_to_the_proxy_too() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let targets = [
        format!("CONNECT 127.0.0.1:{port}"),
        format!("CONNECT localhost:{port}"),
        format!("CONNECT 0.0.0.0:{port}"),
        format!("CONNECT [::1]:{port}"),
        format!("CONNECT [::ffff:127.0.0.1]:{port}"),
        format!("CONNECT 2130706433:{port}"),
        format!("CONNECT 0x7f.1:{port}"),
        format!("CONNECT 0177.0.0.1:{port}"),
        "CONNECT 169.254.169.254:80".to_owned(),
        "CONNECT 10.0.0.9:80".to_owned(),
        format!("GET http://127.0.0.1:{port}/"),
        format!("GET http://localhost:{port}/"),
    ];
    let scripts: Vec<String> = targets.iter().map(|target| proxied(target)).collect();
    let Some(answers) = with_hosts("'*', 127.0.0.1, localhost", &scripts).await else { return };
    assert_eq!(answers.len(), targets.len());
    for (target, answer) in targets.iter().zip(answers) {
        assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("private network"), "{target}: {answer}");
    }
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "nobody came");
}

#[tokio::test]
async fn rules_hold_and_there_is_no_other_way_out() {
    let direct = "ip -o link | /bin/busybox wc -l; echo $https_proxy $NO_PROXY".to_owned();
    let scripts = [proxied("CONNECT denied.test:443"), proxied("CONNECT other.test:443"), proxied("GET /here"), direct];
    let Some(answers) = with_hosts("'*.test', '!denied.test', example.org", &scripts).await else { return };
    assert!(answers[0].contains("403 Forbidden") && answers[0].contains("allow_hosts denies it"), "{}", answers[0]);
    assert!(answers[1].contains("502 Bad Gateway"), "no such name: {}", answers[1]);
    assert!(answers[2].contains("400 Bad Request"), "{}", answers[2]);
    assert_eq!(answers[3], "1\nhttp://127.0.0.1:3128 localhost,127.0.0.1,::1\n");
}

#[tokio::test]
async fn allowed_hosts_are_reached_by_tunnel_and_by_request() {
    if std::env::var_os(OWN_MACHINE).is_none() {
        return;
    }
    let _elsewhere = Elsewhere::start();
    let scripts =
        [proxied("CONNECT 198.51.100.2:80"), proxied("GET http://198.51.100.2/"), proxied("CONNECT 198.51.100.2:81")];
    let answers = with_hosts("'198.51.100.2:80'", &scripts).await.unwrap();
    assert!(answers[0].starts_with("HTTP/1.1 200 Connection established"), "{}", answers[0]);
    assert!(answers[0].contains("198.51.100.1:"), "it came from the machine: {}", answers[0]);
    assert!(answers[1].contains("198.51.100.1:"), "{}", answers[1]);
    assert!(answers[2].contains("403 Forbidden"), "{}", answers[2]);
    // The machine's own addresses are as closed as its loopback interface.
    let own = with_hosts("'*'", &[proxied("CONNECT 198.51.100.1:80")]).await.unwrap();
    assert!(own[0].contains("403 Forbidden"), "{}", own[0]);
}

#[tokio::test]
async fn helpers_end_with_their_supervisor() {
    let sandbox = Sandbox::new();
    let yaml =
        shell("sleep 1000") + "\nsandbox: { allow_hosts: [example.org] }\nport_mappings: [{ container_port: 7 }]";
    let instance = sandbox.run(&yaml).await;
    if instance.ports.is_empty() {
        return eprintln!("skipped: there are no network namespaces here");
    }
    let run = read_json(&sandbox.dir(&instance.as_ref()).join("run.json"));
    let supervisor = run["supervisor"]["pid"].as_i64().unwrap();
    let helpers = children_of(supervisor, &["keel-ports", "keel-egress"]);
    assert_eq!(helpers.len(), 2);
    if is_root() {
        // Their user runs nothing else, so nobody's processes are counted with theirs.
        let field = |pid: &i32| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap().trim().to_owned()
        };
        assert_eq!(helpers.iter().map(field).collect::<Vec<_>>(), ["65533\t65533\t65533\t65533"; 2]);
    }
    kill_supervisor(&sandbox, &instance.as_ref());
    wait_until("helpers are gone", || helpers.iter().all(|pid| !alive(*pid)));
    sandbox.runtime.remove(&instance.as_ref()).await.unwrap();
}

#[tokio::test]
async fn a_helper_that_is_killed_is_started_again() {
    let sandbox = Sandbox::new();
    // Its port tells what the proxy answers.
    let script = format!("while :; do {} | /bin/busybox nc -l -p 7001; done", proxied("GET /here"));
    let yaml = shell(&script) + "\nsandbox: { allow_hosts: [example.org] }\nport_mappings: [{ container_port: 7001 }]";
    let instance = sandbox.run(&yaml).await;
    let Some(port) = instance.ports.first().map(|binding| binding.host_port) else {
        return eprintln!("skipped: there are no network namespaces here");
    };
    let run = read_json(&sandbox.dir(&instance.as_ref()).join("run.json"));
    let supervisor = run["supervisor"]["pid"].as_i64().unwrap();
    for name in ["keel-ports", "keel-egress"] {
        assert!(answer(port).contains("400 Bad Request"));
        let [old] = children_of(supervisor, &[name])[..] else { panic!("{name}") };
        rustix::process::kill_process(rustix::process::Pid::from_raw(old).unwrap(), rustix::process::Signal::KILL)
            .unwrap();
        wait_until("it is gone", || !alive(old));
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("clients wait meanwhile");
        wait_until(name, || matches!(children_of(supervisor, &[name])[..], [new] if new != old));
        // The first may have been asked before.
        assert!([answer(port), answer(port)].iter().all(|text| text.contains("400 Bad Request")), "{name}");
    }
    sandbox.runtime.remove(&instance.as_ref()).await.unwrap();
}

/// Processes of these names whose parent is the given one.
fn children_of(parent: i64, names: &[&str]) -> Vec<i32> {
    let stat = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let is_one = |pid: &i32| {
        let stat = stat(*pid);
        names.iter().any(|name| stat.contains(&format!("({name})")))
            && stat.rsplit(')').next().and_then(|rest| rest.split(' ').nth(2)) == Some(&parent.to_string())
    };
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_one).collect()
}
