//! What a program inside sees and can do.

use evenkeel::runtime::Runtime;

use crate::support::{Sandbox, is_root, keel, request, shell};

#[tokio::test]
async fn a_program_sees_a_read_only_machine_and_its_own_places() {
    let sandbox = Sandbox::new();
    let (exit, output) = sandbox
        .script("hostname; touch /etc/x 2>/dev/null || echo read-only; touch /tmp/x && ls /tmp; echo $HOSTNAME")
        .await;
    assert_eq!(output, "web-0\nread-only\nx\nweb-0\n");
    assert_eq!(exit.code, Some(0));
}

#[tokio::test]
async fn a_program_sees_only_its_own_processes_and_devices() {
    let sandbox = Sandbox::new();
    let (_, output) = sandbox.script("echo $$; ls -d /proc/[0-9]* | wc -l; ls /dev").await;
    let devices = "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero";
    // The init process is 1 and the shell 2; a pipe of two makes four processes in all.
    let words = output.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words == format!("2 4 {devices}") || words == format!("2 3 {devices}"), "{words}");
}

/// The probe, as built with these tests.
fn probe_program() -> std::path::PathBuf {
    let target = keel().parent().unwrap().to_owned();
    let found = std::env::var_os("KEEL_TEST_PROBE").map(std::path::PathBuf::from);
    let path = found.unwrap_or_else(|| target.join("examples/sandbox_probe"));
    assert!(path.exists(), "{} is missing; cargo test builds it, or cargo build --examples", path.display());
    path
}

/// What the probe says inside, without what every machine may say otherwise.
async fn probed(more: &str, options: &str) -> std::collections::BTreeMap<String, String> {
    let sandbox = Sandbox::new();
    // A copy in a place that every user can read.
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::copy(probe_program(), folder.path().join("probe")).unwrap();
    let storage =
        format!("storage: [{{ type: bind, source: {}, target: /tmp/probe, readonly: true }}]", folder.path().display());
    let (exit, output) =
        sandbox.script_with(&format!("{storage}\n{more}"), &format!("exec /tmp/probe/probe {options}")).await;
    assert_eq!(exit.code, Some(0), "{output}");
    output
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(name, word)| (name.to_owned(), word.to_owned()))
        .collect()
}

/// Everything that the probe may say `yes` to.
fn possible(said: &std::collections::BTreeMap<String, String>) -> Vec<&str> {
    assert!(said.len() > 40, "all of it ran: {said:?}");
    said.iter().filter(|(_, word)| *word == "yes").map(|(name, _)| name.as_str()).collect()
}

#[tokio::test]
async fn a_program_without_a_network_can_do_nothing_to_the_machine() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let name = format!("keel-test-{}", std::process::id());
    let address =
        <std::os::unix::net::SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(&name).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind_addr(&address).unwrap();
    let options = format!(
        "--loopback {} --abstract {name} --signal {}",
        listener.local_addr().unwrap().port(),
        std::process::id()
    );
    let said = probed("sandbox: { network: none }", &options).await;
    // Its own processes may be traced, and root sends packets in its own empty network, as under Docker.
    let expected: &[&str] = if is_root() { &["kernel.ptrace", "net.packets"] } else { &["kernel.ptrace"] };
    assert_eq!(possible(&said), expected);
}

#[tokio::test]
async fn a_program_with_the_machines_network_reaches_no_abstract_socket() {
    let name = format!("keel-test-full-{}", std::process::id());
    let address =
        <std::os::unix::net::SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(&name).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind_addr(&address).unwrap();
    let said = probed("", &format!("--abstract {name}")).await;
    assert_eq!(said["net.host_abstract_socket"], "no");
}

#[tokio::test]
async fn the_strict_filter_forbids_ptrace_and_other_families_of_sockets() {
    let said = probed("sandbox: { network: none, seccomp: strict }", "").await;
    assert_eq!(possible(&said), Vec::<&str>::new());
}

#[tokio::test]
async fn an_unconfined_program_has_no_filter() {
    let said = probed("sandbox: { network: none, seccomp: unconfined }", "").await;
    assert_eq!(said["files.leave_project"], "yes");
    assert!(possible(&said).contains(&"net.algorithms") || possible(&said).contains(&"net.packet_filter"), "{said:?}");
}

#[tokio::test]
async fn paths_that_are_not_opened_up_can_be_neither_read_nor_written() {
    // Not below /tmp, which an instance has for itself. An ordinary user may have no other place.
    let Ok(folder) = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")) else { return };
    let sandbox = Sandbox::new();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    for name in ["open", "closed", "given"] {
        std::fs::create_dir(folder.path().join(name)).unwrap();
        std::fs::write(folder.path().join(name).join("file"), name).unwrap();
    }
    let path = |name: &str| folder.path().join(name).display().to_string();
    let rules = format!("sandbox: {{ readable: [{}], writable: [{}] }}", path("open"), path("given"));
    let script = format!(
        "cat {open}/file; echo; cat {closed}/file 2>/dev/null || echo closed; echo new > {given}/file; \
         (echo x > {open}/file) 2>/dev/null || echo read-only",
        open = path("open"),
        closed = path("closed"),
        given = path("given")
    );
    let (_, output) = sandbox.script_with(&rules, &script).await;
    assert_eq!(output, "open\nclosed\nread-only\n");
    assert_eq!(std::fs::read_to_string(folder.path().join("given/file")).unwrap(), "new\n");
}

#[tokio::test]
async fn a_program_with_a_network_of_its_own_sees_no_interface_of_the_machine_in_sys() {
    let sandbox = Sandbox::new();
    // Where the kernel gives no /sys of its own there is none of the directories either.
    let script = "ls /sys/class/net /sys/devices/virtual/net 2>/dev/null | grep -v : | grep -v '^$' | grep -vx lo; \
                  cat /sys/devices/system/cpu/online | head -c 1; echo; touch /sys/x 2>/dev/null || echo read-only";
    let (_, output) = sandbox.script_with("sandbox: { network: none }", script).await;
    assert_eq!(output, "0\nread-only\n");
}

#[tokio::test]
async fn file_systems_that_the_machine_has_in_sys_are_not_shown() {
    let sandbox = Sandbox::new();
    let script = "for p in kernel/tracing kernel/debug kernel/security kernel/config fs/bpf fs/pstore firmware; do \
                  ls /sys/$p 2>&1 | grep -v 'No such file'; done; \
                  grep -q ' /sys/fs/cgroup' /proc/self/mountinfo && echo groups";
    for (slot, network) in [(0, "none"), (1, "full")] {
        let yaml = shell(script) + &format!("\nsandbox: {{ network: {network} }}");
        let created = sandbox.runtime.create(&request(&yaml, slot)).await.unwrap();
        sandbox.runtime.start(&created.as_ref()).await.unwrap();
        sandbox.ended(&created.as_ref()).await;
        assert_eq!(sandbox.output(&created.as_ref()), "groups\n", "{network}");
    }
}

#[tokio::test]
async fn a_path_in_a_directory_that_the_instance_has_for_itself_is_read_where_it_is_named() {
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::write(folder.path().join("file"), "from the machine\n").unwrap();
    let sandbox = Sandbox::new();
    let path = folder.path().display();
    let script =
        format!("cat {path}/file; touch {path}/x 2>/dev/null || echo read-only; touch /tmp/own && ls /tmp/own");
    let (_, output) = sandbox.script_with(&format!("sandbox: {{ readable: ['{path}'] }}"), &script).await;
    assert_eq!(output, "from the machine\nread-only\n/tmp/own\n");
    let missing = shell("true") + "\nsandbox: { readable: [/tmp/keel-test-missing/x] }";
    let error = sandbox.runtime.create(&request(&missing, 1)).await.unwrap_err();
    assert!(error.message.starts_with("sandbox.readable: /tmp/keel-test-missing/x can't be opened up"), "{error}");
}
