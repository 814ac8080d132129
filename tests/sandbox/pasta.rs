//! Networks of an ordinary user's instances, which pasta connects. They run on a machine made for them: a network namespace
//! with another machine within reach, a name server on its loopback interface, and a `/dev/net/tun` that is open to
//! everybody, as most machines have it.

use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use evenkeel::runtime::{Control, EnforcementState, Runtime, Support};
use evenkeel::spec::PortProtocol;
use evenkeel::state::{Instance, InstanceRef, Phase};

use crate::network::{Elsewhere, answer, answering, asked, echo, kill_supervisor, wait_until};
use crate::support::{PATIENCE, Sandbox, alive, is_root, keel, read_json, request, shell, skip};
use crate::unprivileged::Copies;

/// Set for the process that makes the machine.
const MACHINE: &str = "KEEL_TEST_PASTA_MACHINE";
/// Set where pasta must work.
pub const WITH: &str = "KEEL_TEST_WITH_PASTA";
/// Set where it can't be found.
const WITHOUT: &str = "KEEL_TEST_WITHOUT_PASTA";
/// What the name server answers.
const KNOWN: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 53);

#[test]
fn everything_holds_where_pasta_connects() {
    if !is_root() || std::env::var_os(MACHINE).is_some() {
        return;
    }
    if !Path::new("/usr/bin/pasta").exists() || !Path::new("/dev/net/tun").exists() {
        return skip("there is no pasta (package passt), or no /dev/net/tun");
    }
    let mut command = Command::new("unshare");
    command.args([
        "--net",
        "--mount",
        "sh",
        "-c",
        "ip link set lo up && exec \"$0\" --exact pasta::machine --nocapture",
    ]);
    command.arg(std::env::current_exe().unwrap()).env(MACHINE, "1").env("KEEL_TEST_PROGRAM", keel());
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "{text}");
}

/// The process that makes the machine: a test of no meaning of its own.
#[test]
fn machine() {
    if std::env::var_os(MACHINE).is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    cover(Path::new("/etc/resolv.conf"), &folder.path().join("resolv.conf"), |file| {
        std::fs::write(file, format!("nameserver {NAME_SERVER}\n")).unwrap();
    });
    cover(Path::new("/dev/net/tun"), &folder.path().join("tun"), |file| {
        assert!(Command::new("mknod").arg(file).args(["c", "10", "200"]).status().unwrap().success());
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o666)).unwrap();
    });
    let server = UdpSocket::bind((NAME_SERVER, 53)).unwrap();
    std::thread::spawn(move || serve_names(&server));
    let elsewhere = Elsewhere::start();
    let copies = Copies::new();
    let run = |filter: &[&str], name: &str, path: Option<&str>| {
        let mut command = copies.tests();
        command.args(filter).env(name, "1").env_remove(MACHINE);
        path.map(|path| command.env("PATH", path));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{filter:?}: {}", String::from_utf8_lossy(&output.stdout));
        print!("{}", String::from_utf8_lossy(&output.stdout));
    };
    run(&["pasta::", "visitors::"], WITH, None);
    let killed = "killed::a_supervisor_that_is_killed_at_any_instant_leaves_nothing_after_the_removal";
    run(&["--exact", killed], WITH, None);
    run(&["pasta::"], WITHOUT, Some("/nonexistent"));
    drop(elsewhere);
}

/// Mounts a file over another, for this process and those that it starts.
fn cover(place: &Path, file: &Path, make: impl FnOnce(&Path)) {
    make(file);
    assert!(Command::new("mount").arg("--bind").args([file, place]).status().unwrap().success());
}

/// Answers every question with the same address.
fn serve_names(socket: &UdpSocket) {
    let mut question = [0; 512];
    while let Ok((length, client)) = socket.recv_from(&mut question) {
        let name_end = question[12..length].iter().position(|byte| *byte == 0).unwrap() + 12;
        let mut reply = question[..2].to_vec();
        reply.extend(b"\x81\x80\0\x01\0\x01\0\0\0\0");
        reply.extend(&question[12..name_end + 5]);
        reply.extend(b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04");
        reply.extend(KNOWN.octets());
        let _ = socket.send_to(&reply, client);
    }
}

/// A runtime whose instances are connected by pasta, where this machine is made for it.
fn connected() -> Option<Sandbox> {
    std::env::var_os(WITH).map(|_| Sandbox::new())
}

async fn said(sandbox: &Sandbox, yaml: &str) -> String {
    let instance = sandbox.run(yaml).await;
    assert_eq!(instance.conditions, []);
    sandbox.ended(&instance.as_ref()).await;
    let output = sandbox.output(&instance.as_ref());
    sandbox.runtime.remove(&instance.as_ref()).await.unwrap();
    output
}

#[tokio::test]
async fn an_instance_reaches_what_the_machine_does_by_an_interface_of_its_own() {
    let Some(sandbox) = connected() else { return };
    // It says nothing itself and does not end before: an older pasta repeats what is sent to a side that has ended.
    let asking = format!(
        "until /bin/busybox sleep 1 | /bin/busybox nc -w 2 {} 80 2>/dev/null; do /bin/busybox sleep 0.05; done",
        Elsewhere::ADDRESS
    );
    let script = format!("tail -n +3 /proc/net/dev | tr -d ' ' | cut -d: -f1 | sort; {asking}");
    let output = said(&sandbox, &shell(&script)).await;
    assert!(output.starts_with("eth0\nlo\n") && output.contains(&format!("{}:", Elsewhere::OWN)), "{output}");
}

#[tokio::test]
async fn names_resolve_by_the_name_server_on_the_machines_loopback_interface() {
    let Some(sandbox) = connected() else { return };
    let output = said(&sandbox, &shell("/bin/busybox nslookup -type=a some.test")).await;
    assert!(output.contains(&format!("Address: {KNOWN}")), "{output}");
}

/// A script that tries to connect to each of these addresses.
fn trying(addresses: &[&str], port: u16) -> String {
    let one = |address: &&str| {
        format!("/bin/busybox nc -w 1 {address} {port} </dev/null 2>/dev/null && echo reached {address}; ")
    };
    addresses.iter().map(one).collect::<String>() + "echo done"
}

#[tokio::test]
async fn what_listens_on_the_machine_is_out_of_reach_unless_it_is_asked_for() {
    let Some(sandbox) = connected() else { return };
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let all = ["127.0.0.1", "::1", "localhost", Elsewhere::OWN, Elsewhere::ADDRESS, "169.254.1.1"];
    assert_eq!(said(&sandbox, &shell(&trying(&all, port))).await, "done\n");
    assert!(listener.accept().is_err(), "nobody came");
    // It ends what it accepts, which the script waits for.
    listener.set_nonblocking(false).unwrap();
    let reached = std::thread::spawn(move || listener.accept().is_ok());
    let asked_for = "\nextra_hosts: ['machine:host-gateway']";
    let output = said(&sandbox, &(shell(&trying(&["127.0.0.1", "machine"], port)) + asked_for)).await;
    assert_eq!(output, "reached machine\ndone\n");
    assert!(reached.join().unwrap());
}

#[tokio::test]
async fn a_service_is_reached_by_another_at_its_published_port() {
    let Some(sandbox) = connected() else { return };
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let mapped = format!("\nport_mappings: [{{ container_port: 80, host_port: {port} }}]");
    let web = sandbox.run(&(answering(80, "here") + &mapped)).await;
    assert_eq!(answer(port), "here\n");
    let script =
        format!("until /bin/busybox nc -w 1 web {port} </dev/null 2>/dev/null; do /bin/busybox sleep 0.05; done");
    let yaml = shell(&script) + "\nextra_hosts: ['web:host-gateway']";
    let client = sandbox.runtime.create(&request(&yaml, 1)).await.unwrap();
    sandbox.runtime.start(&client.as_ref()).await.unwrap();
    sandbox.wrote(&client.as_ref(), "here\n").await;
    for instance in [web, client] {
        sandbox.runtime.remove(&instance.as_ref()).await.unwrap();
    }
}

#[tokio::test]
async fn ports_are_published_for_connections_and_datagrams_at_the_addresses_that_are_written() {
    let Some(sandbox) = connected() else { return };
    let fields = "\nendpoints: [{ name: http, protocol: http, port: 8099 }]\n\
                  port_mappings: [{ container_port: 8099, host_ip: 0.0.0.0 }]";
    let instance = sandbox.run(&(answering(8099, "here") + fields)).await;
    assert_eq!(instance.conditions, []);
    let [endpoint, mapped] = &instance.ports[..] else { panic!("{:?}", instance.ports) };
    assert_eq!((endpoint.container_port, endpoint.host_ip.as_str()), (8099, "127.0.0.1"));
    assert_eq!((mapped.container_port, mapped.host_ip.as_str()), (8099, "0.0.0.0"));
    assert_eq!([answer(endpoint.host_port), answer(mapped.host_port)], ["here\n", "here\n"]);
    let reaches = |port| TcpStream::connect((Elsewhere::OWN, port)).is_ok();
    assert!(reaches(mapped.host_port) && !reaches(endpoint.host_port));
    sandbox.runtime.remove(&instance.as_ref()).await.unwrap();
    let yaml = echo(7001) + "\nport_mappings: [{ container_port: 7001, protocol: udp }]";
    let instance = sandbox.run(&yaml).await;
    assert_eq!(instance.ports[0].protocol, PortProtocol::Udp);
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.connect((Ipv4Addr::LOCALHOST, instance.ports[0].host_port)).unwrap();
    assert!(asked(&socket, "word").contains("word"));
    sandbox.runtime.remove(&instance.as_ref()).await.unwrap();
}

#[tokio::test]
async fn stricter_networks_are_as_everywhere() {
    let Some(sandbox) = connected() else { return };
    for more in ["sandbox: { network: none }", "sandbox: { network: loopback }", "sandbox: { allow_hosts: [a.test] }"] {
        let (_, output) = sandbox.script_with(more, "tail -n +3 /proc/net/dev | wc -l").await;
        assert_eq!(output, "1\n", "{more}");
        let instance = sandbox.first().await;
        assert!(!note(&sandbox, &instance).exists());
        sandbox.runtime.remove(&instance).await.unwrap();
    }
    let (_, output) = sandbox.script_with("network_mode: host", "grep -c up0 /proc/net/dev").await;
    assert_eq!(output, "1\n");
}

fn note(sandbox: &Sandbox, instance: &InstanceRef) -> PathBuf {
    sandbox.dir(instance).join("pasta.json")
}

/// The process that connects an instance.
fn pasta(sandbox: &Sandbox, instance: &Instance) -> i32 {
    let note = read_json(&note(sandbox, &instance.as_ref()));
    i32::try_from(note["process"]["pid"].as_i64().unwrap()).unwrap()
}

fn kill(pid: i32) {
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL).unwrap();
}

#[tokio::test]
async fn pasta_ends_with_its_instance_and_with_its_supervisor() {
    let Some(sandbox) = connected() else { return };
    for is_killed in [false, true] {
        let instance = sandbox.run(&shell("sleep 1000")).await;
        let pasta = pasta(&sandbox, &instance);
        let name = std::fs::read_to_string(format!("/proc/{pasta}/comm")).unwrap();
        assert!(name.starts_with("pas"), "pasta, or the passt that it is made of: {name}");
        if is_killed {
            kill_supervisor(&sandbox, &instance.as_ref());
            wait_until("pasta is gone", || !alive(pasta));
        }
        sandbox.runtime.remove(&instance.as_ref()).await.unwrap();
        assert!(!alive(pasta), "killed: {is_killed}");
    }
}

#[tokio::test]
async fn a_killed_pasta_is_started_again() {
    let Some(sandbox) = connected() else { return };
    let script = "while :; do grep -q eth0 /proc/net/dev && echo there || echo gone; sleep 0.02; done";
    let instance = sandbox.run(&shell(script)).await;
    let first = pasta(&sandbox, &instance);
    kill(first);
    let last = || sandbox.output(&instance.as_ref()).lines().last().unwrap_or_default().to_owned();
    wait_until("it is missed", || sandbox.output(&instance.as_ref()).contains("gone\n"));
    wait_until("another one connects", || last() == "there" && pasta(&sandbox, &instance) != first);
    let phase = sandbox.find(&instance.as_ref()).await.unwrap().phase;
    assert!(matches!(phase, Phase::Running { .. }), "{phase:?}");
    sandbox.runtime.remove(&instance.as_ref()).await.unwrap();
}

/// A change of security domain at its execution may free a program from the end of its parent.
#[tokio::test]
async fn a_pasta_that_outlived_its_supervisor_is_ended_by_the_next_start_and_by_the_removal() {
    let Some(sandbox) = connected() else { return };
    let instance = sandbox.run(&shell("sleep 1000")).await;
    for is_removed in [false, true] {
        let mut survivor = Command::new("sleep").arg("1000").spawn().unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", survivor.id())).unwrap();
        let start: u64 = stat.rsplit(')').next().unwrap().split(' ').nth(20).unwrap().parse().unwrap();
        let path = note(&sandbox, &instance.as_ref());
        let mut text = read_json(&path);
        kill_supervisor(&sandbox, &instance.as_ref());
        text["process"] = serde_json::json!({ "pid": survivor.id(), "start": start });
        std::fs::write(&path, text.to_string()).unwrap();
        if is_removed {
            sandbox.runtime.remove(&instance.as_ref()).await.unwrap();
        } else {
            sandbox.runtime.start(&instance.as_ref()).await.unwrap();
        }
        let end = Instant::now() + PATIENCE;
        while survivor.try_wait().unwrap().is_none() {
            assert!(Instant::now() < end, "removed: {is_removed}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[tokio::test]
async fn it_is_told_how_instances_are_connected() {
    let Some(sandbox) = connected() else { return };
    let capabilities = sandbox.runtime.capabilities().await.unwrap();
    assert_eq!(capabilities.support(Control::NetworkIsolation), Support::Enforced);
    assert!(capabilities.by[&Control::NetworkIsolation].ends_with("network full: pasta"), "{capabilities:?}");
    let Support::Absent { why } = capabilities.support(Control::ServiceNames) else { panic!("{capabilities:?}") };
    assert!(why.starts_with("instances have networks of their own, which pasta connects"), "{why}");
    let instance = sandbox.run(&(shell("sleep 1000") + "\ndepends: [{ service: db }]")).await;
    assert_eq!(instance.conditions.iter().map(|one| one.reason.as_str()).collect::<Vec<_>>(), ["ServicesApart"]);
    let told = sandbox.runtime.enforcement(&instance.as_ref()).await.unwrap();
    let network = told.into_iter().find(|one| one.control == Control::NetworkIsolation).unwrap();
    assert_eq!(network.state, EnforcementState::Enforced { by: "network namespace connected by pasta".to_owned() });
    sandbox.runtime.remove(&instance.as_ref()).await.unwrap();
}

#[tokio::test]
async fn without_pasta_an_instance_shares_the_machines_network() {
    if std::env::var_os(WITHOUT).is_none() {
        return;
    }
    let sandbox = Sandbox::new();
    let endpoint = "\nendpoints: [{ name: http, protocol: http, port: 8099 }]";
    let script = "/bin/busybox grep -q up0 /proc/net/dev && while :; do echo here | /bin/busybox nc -l -p $PORT; done";
    let instance = sandbox.run(&(shell(script) + endpoint)).await;
    assert_eq!(instance.conditions, []);
    assert_eq!(instance.ports[0].container_port, instance.ports[0].host_port);
    assert_eq!(answer(instance.ports[0].host_port), "here\n");
    assert!(!note(&sandbox, &instance.as_ref()).exists());
    let Support::Absent { why } = sandbox.runtime.capabilities().await.unwrap().support(Control::ServiceNames) else {
        panic!("an ordinary user has no bridges");
    };
    assert!(why.contains("pasta (package passt) is not installed"), "{why}");
    sandbox.runtime.remove(&instance.as_ref()).await.unwrap();
}
