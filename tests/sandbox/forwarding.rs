//! What a machine forwards that forwards packets for the sake of instances alone. Each test has a machine of its own, a
//! network namespace, with neighbours in further ones.

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use evenkeel::runtime::{Runtime, Volumes};
use evenkeel::state::InstanceRef;

use crate::support::{PATIENCE, Sandbox, alive, is_root, keel, read_json, request, shell};

const SWITCH: &str = "net.ipv4.ip_forward";

/// Runs a test of this program again on a machine of its own. Whether this is that run.
fn on_a_machine_of_its_own(name: &str) -> bool {
    const INSIDE: &str = "KEEL_TEST_FORWARDING";
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    if is_root() {
        let output = Command::new("unshare")
            .args(["--net", "--mount", "sh", "-c", "ip link set lo up && exec \"$@\"", "sh"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env(INSIDE, "1")
            .env("KEEL_TEST_PROGRAM", keel())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
    false
}

fn run(command: &str) -> bool {
    Command::new("sh").args(["-c", command]).stdout(Stdio::null()).status().unwrap().success()
}

/// A machine that reaches others through this one.
struct Neighbour {
    number: u32,
    machine: Child,
}

impl Neighbour {
    fn new(number: u32) -> Self {
        let script = format!(
            "read word; ip addr add 10.9.{number}.2/24 dev eth; ip link set eth up; \
             ip route add default via 10.9.{number}.1; exec sleep 1000"
        );
        let mut machine =
            Command::new("unshare").args(["--net", "sh", "-c", &script]).stdin(Stdio::piped()).spawn().unwrap();
        let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
        wait_until("it has its namespace", || namespace(&machine.id().to_string()) != namespace("self"));
        assert!(run(&format!(
            "ip link add out{number} type veth peer name eth netns {} && ip addr add 10.9.{number}.1/24 dev out{number} && \
             ip link set out{number} up",
            machine.id()
        )));
        machine.stdin.take().unwrap().write_all(b"go\n").unwrap();
        let made = Self { number, machine };
        wait_until("it is connected", || made.reaches(&format!("10.9.{number}.1")));
        made
    }

    fn address(&self) -> String {
        format!("10.9.{}.2", self.number)
    }

    fn reaches(&self, address: &str) -> bool {
        run(&format!("nsenter --net --target {} busybox ping -c 1 -W 1 {address} 2>/dev/null", self.machine.id()))
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        let _ = self.machine.kill();
        let _ = self.machine.wait();
    }
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn path(setting: &str) -> String {
    format!("/proc/sys/{}", setting.replace('.', "/"))
}

fn set(setting: &str, value: &str) {
    std::fs::write(path(setting), value).unwrap();
}

fn get(setting: &str) -> String {
    std::fs::read_to_string(path(setting)).unwrap().trim().to_owned()
}

fn guards() -> usize {
    let listed = Command::new("nft").args(["list", "tables"]).output().unwrap();
    String::from_utf8(listed.stdout).unwrap().matches("table ip keel-forwarding\n").count()
}

async fn start(sandbox: &Sandbox, slot: u32, script: &str) -> InstanceRef {
    let created = sandbox.runtime.create(&request(&shell(script), slot)).await.unwrap();
    sandbox.runtime.start(&created.as_ref()).await.unwrap().as_ref()
}

/// Whether an instance reaches an address.
async fn instance_reaches(sandbox: &Sandbox, slot: u32, address: &str) {
    let script = format!("until /bin/busybox ping -c 1 -W 1 {address} >/dev/null; do :; done; echo reached");
    let instance = start(sandbox, slot, &script).await;
    sandbox.ended(&instance).await;
    assert_eq!(sandbox.output(&instance), "reached\n");
}

async fn clear(sandbox: &Sandbox) {
    for instance in sandbox.runtime.list().await.unwrap().instances {
        sandbox.runtime.remove(&instance.as_ref()).await.unwrap();
    }
    sandbox.runtime.teardown("demo", Volumes::Remove).await.unwrap();
}

#[tokio::test]
async fn a_machine_that_forwarded_nothing_forwards_for_instances_alone_and_stops_with_the_last() {
    if !on_a_machine_of_its_own(
        "forwarding::a_machine_that_forwarded_nothing_forwards_for_instances_alone_and_stops_with_the_last",
    ) {
        return;
    }
    set(SWITCH, "0");
    let [one, two, three, four] = [1, 2, 3, 4].map(Neighbour::new);
    // These two forward on their own.
    for number in [3, 4] {
        set(&format!("net.ipv4.conf.out{number}.forwarding"), "1");
    }
    let as_before = || {
        assert!(!one.reaches(&two.address()) && !one.reaches(&three.address()));
        assert!(three.reaches(&four.address()), "they forwarded before");
    };
    as_before();
    let (sandbox, other) = (Sandbox::new(), Sandbox::new());
    let first = start(&sandbox, 0, "sleep 1000").await;
    assert_eq!((get(SWITCH).as_str(), guards()), ("1", 1));
    instance_reaches(&sandbox, 1, &two.address()).await;
    as_before();
    // Another installation needs it longer than the one that began, whose supervisor is killed.
    start(&other, 0, "sleep 1000").await;
    let run = read_json(&sandbox.dir(&first).join("run.json"));
    let pid = i32::try_from(run["supervisor"]["pid"].as_i64().unwrap()).unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL).unwrap();
    wait_until("the supervisor is gone", || !alive(pid));
    clear(&sandbox).await;
    assert_eq!((get(SWITCH).as_str(), guards()), ("1", 1));
    instance_reaches(&other, 1, &two.address()).await;
    clear(&other).await;
    assert_eq!((get(SWITCH).as_str(), guards()), ("0", 0));
    let own = [1, 2, 3, 4].map(|number| get(&format!("net.ipv4.conf.out{number}.forwarding")));
    assert_eq!(own, ["0", "0", "1", "1"]);
    as_before();
}

#[tokio::test]
async fn what_a_killed_controller_left_is_taken_back_or_completed() {
    if !on_a_machine_of_its_own("forwarding::what_a_killed_controller_left_is_taken_back_or_completed") {
        return;
    }
    let [one, two] = [1, 2].map(Neighbour::new);
    let sandbox = Sandbox::new();
    // Killed after it made the guard, and after it switched forwarding on as well.
    for switch in ["0", "1"] {
        set(SWITCH, switch);
        assert!(run("nft add table ip keel-forwarding"));
        clear(&sandbox).await;
        assert_eq!((get(SWITCH).as_str(), guards()), ("0", 0), "{switch}");
    }
    // Killed when it had switched it off and not removed the guard, while a network was made.
    start(&sandbox, 0, "sleep 1000").await;
    set(SWITCH, "0");
    instance_reaches(&sandbox, 1, &two.address()).await;
    assert_eq!((get(SWITCH).as_str(), guards()), ("1", 1));
    assert!(!one.reaches(&two.address()));
    clear(&sandbox).await;
    assert_eq!((get(SWITCH).as_str(), guards()), ("0", 0));
}

#[tokio::test]
async fn a_machine_that_forwards_already_is_left_as_it_is() {
    if !on_a_machine_of_its_own("forwarding::a_machine_that_forwards_already_is_left_as_it_is") {
        return;
    }
    set(SWITCH, "1");
    let [one, two] = [1, 2].map(Neighbour::new);
    let sandbox = Sandbox::new();
    instance_reaches(&sandbox, 0, &two.address()).await;
    assert_eq!((get(SWITCH).as_str(), guards()), ("1", 0));
    assert!(one.reaches(&two.address()));
    clear(&sandbox).await;
    assert_eq!((get(SWITCH).as_str(), guards()), ("1", 0));
    assert!(one.reaches(&two.address()));
}

/// A look at all instances, as every controller and command does it that begins.
async fn look(sandbox: &Sandbox) {
    let listing = sandbox.reopen().list().await.unwrap();
    assert!(listing.instances.iter().all(|one| one.conditions.iter().all(|condition| condition.kind != "Degraded")));
}

async fn start_in(sandbox: &Sandbox, deployment: &str, script: &str) -> InstanceRef {
    let mut request = request(&shell(script), 0);
    request.id.deployment = deployment.into();
    let created = sandbox.runtime.create(&request).await.unwrap();
    sandbox.runtime.start(&created.as_ref()).await.unwrap().as_ref()
}

/// Some distributions' rules begin with it.
const FLUSH: &str = "nft flush ruleset";

#[tokio::test]
async fn after_the_machine_s_packet_filter_was_cleared_the_guard_comes_back_and_goes_with_the_last_network() {
    if !on_a_machine_of_its_own(
        "forwarding::after_the_machine_s_packet_filter_was_cleared_the_guard_comes_back_and_goes_with_the_last_network",
    ) {
        return;
    }
    set(SWITCH, "0");
    let [one, two, three, four] = [1, 2, 3, 4].map(Neighbour::new);
    for number in [3, 4] {
        set(&format!("net.ipv4.conf.out{number}.forwarding"), "1");
    }
    let sandbox = Sandbox::new();
    start_in(&sandbox, "demo", "sleep 1000").await;
    assert!(run(FLUSH));
    assert!(one.reaches(&two.address()), "the machine is a router");
    look(&sandbox).await;
    assert_eq!((get(SWITCH).as_str(), guards()), ("1", 1));
    assert!(!one.reaches(&two.address()) && three.reaches(&four.address()), "as before");
    // Another deployment's start sees to it as well.
    assert!(run(FLUSH));
    start_in(&sandbox, "other", "sleep 1000").await;
    assert_eq!((get(SWITCH).as_str(), guards()), ("1", 1));
    assert!(!one.reaches(&two.address()));
    // Cleared a last time, with nobody looking before the end.
    assert!(run(FLUSH));
    for deployment in ["other", "demo"] {
        for instance in sandbox.runtime.list().await.unwrap().instances {
            if instance.id.deployment.as_str() == deployment {
                sandbox.runtime.remove(&instance.as_ref()).await.unwrap();
            }
        }
        sandbox.runtime.teardown(deployment, Volumes::Remove).await.unwrap();
    }
    assert_eq!((get(SWITCH).as_str(), guards()), ("0", 0));
    assert_eq!(["out1", "out3"].map(|name| get(&format!("net.ipv4.conf.{name}.forwarding"))), ["0", "1"]);
    assert!(!run("ip link show keel-forwarding 2>/dev/null"));
}

#[tokio::test]
async fn deployments_are_apart_again_after_the_machine_s_packet_filter_was_cleared() {
    if !on_a_machine_of_its_own("forwarding::deployments_are_apart_again_after_the_machine_s_packet_filter_was_cleared")
    {
        return;
    }
    let sandbox = Sandbox::new();
    let target = start_in(&sandbox, "demo", "sleep 1000").await;
    let record = read_json(&sandbox.dir(&target).join("record.json"));
    let address = record["launch"]["network"]["link"]["bridge"]["address"].as_str().unwrap().to_owned();
    let script =
        format!("while :; do /bin/busybox ping -c 1 -W 1 {address} >/dev/null && echo reached || echo apart; done");
    let other = start_in(&sandbox, "other", &script).await;
    sandbox.wrote(&other, "apart\n").await;
    assert!(!sandbox.output(&other).contains("reached"));
    assert!(run(FLUSH));
    sandbox.wrote(&other, "reached\n").await;
    look(&sandbox).await;
    let end = || sandbox.output(&other).ends_with("apart\napart\n");
    wait_until("they are apart", end);
}

/// Name of the bridge of an instance.
fn bridge(sandbox: &Sandbox, instance: &InstanceRef) -> String {
    let record = read_json(&sandbox.dir(instance).join("record.json"));
    record["launch"]["network"]["link"]["bridge"]["network"]["bridge"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn ipv6_that_came_back_on_a_bridge_is_switched_off_again_or_told() {
    if !on_a_machine_of_its_own("forwarding::ipv6_that_came_back_on_a_bridge_is_switched_off_again_or_told") {
        return;
    }
    let sandbox = Sandbox::new();
    let instance = start_in(&sandbox, "demo", "sleep 1000").await;
    let switch = format!("net.ipv6.conf.{}.disable_ipv6", bridge(&sandbox, &instance));
    set("net.ipv6.conf.all.disable_ipv6", "0");
    assert_eq!(get(&switch), "0");
    look(&sandbox).await;
    assert_eq!(get(&switch), "1");
    // Where it can't be switched off.
    set("net.ipv6.conf.all.disable_ipv6", "0");
    assert!(run("mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys"));
    let listing = sandbox.reopen().list().await.unwrap();
    let told = &listing.instances[0].conditions.iter().find(|one| one.reason == "NetworkUnfiltered").unwrap().message;
    assert!(told.contains("IPv6 is on at its bridge") && told.contains("Read-only file system"), "{told}");
    assert!(run("umount /proc/sys"));
    look(&sandbox).await;
    assert_eq!(get(&switch), "1");
}

#[tokio::test]
async fn a_packet_filter_of_which_rules_or_chains_are_missing_is_made_again() {
    if !on_a_machine_of_its_own("forwarding::a_packet_filter_of_which_rules_or_chains_are_missing_is_made_again") {
        return;
    }
    set(SWITCH, "0");
    let sandbox = Sandbox::new();
    let instance = start_in(&sandbox, "demo", "sleep 1000").await;
    let bridge = bridge(&sandbox, &instance);
    let listed = || Command::new("nft").args(["-s", "list", "ruleset"]).output().unwrap().stdout;
    let whole = String::from_utf8(listed()).unwrap();
    for (table, chain) in [(bridge.as_str(), "forward"), (&bridge, "postrouting"), ("keel-forwarding", "forward")] {
        for change in [
            format!("nft flush table ip {table}"),
            format!("nft flush chain ip {table} {chain}"),
            format!("nft flush chain ip {table} {chain} && nft delete chain ip {table} {chain}"),
        ] {
            assert!(run(&change), "{change}");
            assert_ne!(String::from_utf8(listed()).unwrap(), whole, "{change}");
            look(&sandbox).await;
            let again = String::from_utf8(listed()).unwrap();
            let sorted = |text: &str| {
                let mut tables: Vec<String> = text.split("\n}\n").map(str::to_owned).collect();
                tables.sort();
                tables
            };
            assert_eq!(sorted(&again), sorted(&whole), "{change}");
        }
    }
}

#[tokio::test]
async fn a_bridge_that_was_set_down_or_lost_its_address_has_it_again() {
    if !on_a_machine_of_its_own("forwarding::a_bridge_that_was_set_down_or_lost_its_address_has_it_again") {
        return;
    }
    let sandbox = Sandbox::new();
    let instance = start_in(&sandbox, "demo", "sleep 1000").await;
    let bridge = bridge(&sandbox, &instance);
    let shown = || {
        let output = Command::new("ip").args(["-br", "addr", "show", &bridge]).output().unwrap().stdout;
        let words: Vec<String> = String::from_utf8(output).unwrap().split_whitespace().map(str::to_owned).collect();
        words
    };
    let whole = shown();
    assert_eq!((whole[1].as_str(), whole.len()), ("UP", 3), "{whole:?}");
    for change in
        ["ip addr flush dev BRIDGE", "ip link set BRIDGE down", "ip link set BRIDGE down; ip addr flush dev BRIDGE"]
    {
        let change = change.replace("BRIDGE", &bridge);
        assert!(run(&change), "{change}");
        assert_ne!(shown(), whole, "{change}");
        look(&sandbox).await;
        wait_until("it is as it was", || shown() == whole);
    }
    // What starts next finds it whole too.
    assert!(run(&format!("ip addr flush dev {bridge}")));
    let mut second = request(&shell("sleep 1000"), 1);
    second.id.deployment = "demo".into();
    let created = sandbox.runtime.create(&second).await.unwrap();
    sandbox.runtime.start(&created.as_ref()).await.unwrap();
    wait_until("it is as it was", || shown() == whole);
}
