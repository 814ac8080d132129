//! A runtime on a root of its own, and requests for it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use evenkeel::runtime::sandbox::{RegistryOptions, SandboxConfig, SandboxRuntime};
use evenkeel::runtime::{CreateRequest, Runtime, StopRequest};
use evenkeel::spec::{ServiceSpec, Signal};
use evenkeel::state::{Exit, Instance, InstanceId, InstanceRef, Owner, Phase, StopCause};

pub use crate::namespaces::{skip, without_namespaces, without_namespaces_but_with};

/// Longest time that a test waits for something that takes milliseconds.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Variable by which the tests are told that there are control groups to use, so that none may be skipped.
pub const REQUIRE_GROUPS: &str = "KEEL_TEST_GROUPS";

/// The program under test.
pub fn keel() -> PathBuf {
    std::env::var_os("KEEL_TEST_PROGRAM").map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_keel")), PathBuf::from)
}

/// A runtime on a root of its own, whose instances are killed when it is dropped.
pub struct Sandbox {
    pub runtime: SandboxRuntime,
    pub root: tempfile::TempDir,
}

impl Sandbox {
    pub fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        Self { runtime: open(root.path(), &owner(root.path())), root }
    }

    /// One whose root is in a directory of this name.
    pub fn in_folder(name: &str) -> Self {
        let root = tempfile::Builder::new().prefix(name).tempdir().unwrap();
        Self { runtime: open(root.path(), &owner(root.path())), root }
    }

    /// One that talks to registries in a way of its own.
    pub fn with(registries: RegistryOptions) -> Self {
        let root = tempfile::tempdir().unwrap();
        let runtime = SandboxRuntime::open_with(config(root.path(), "test-owner"), registries).unwrap();
        Self { runtime, root }
    }

    /// Another runtime on the same root, as a restarted controller has it.
    pub fn reopen(&self) -> SandboxRuntime {
        open(self.root.path(), &owner(self.root.path()))
    }

    pub fn dir(&self, instance: &InstanceRef) -> PathBuf {
        self.root.path().join("sandbox/instances").join(&instance.runtime_id)
    }

    /// Creates and starts slot 0 of a service.
    pub async fn run(&self, yaml: &str) -> Instance {
        let created = self.runtime.create(&request(yaml, 0)).await.unwrap();
        self.runtime.start(&created.as_ref()).await.unwrap()
    }

    /// The first instance that there is.
    pub async fn first(&self) -> InstanceRef {
        self.runtime.list().await.unwrap().instances.remove(0).as_ref()
    }

    /// Runs a shell script to its end and returns how it ended and what it wrote.
    pub async fn script(&self, script: &str) -> (Exit, String) {
        self.script_with("", script).await
    }

    /// The same with further fields of the spec.
    pub async fn script_with(&self, more: &str, script: &str) -> (Exit, String) {
        let indented = script.replace('\n', "\n      ");
        let yaml = format!(
            "image: {{ name: host }}\ncommand:\n  entrypoint: [/bin/busybox, sh, -c]\n  args:\n    - |\n      {indented}\n{more}"
        );
        let instance = self.run(&yaml).await;
        let exit = self.ended(&instance.as_ref()).await;
        (exit, self.output(&instance.as_ref()))
    }

    /// Waits for the end of an instance.
    pub async fn ended(&self, instance: &InstanceRef) -> Exit {
        let wait = async {
            loop {
                if let Phase::Exited(exit) = self.find(instance).await.expect("it exists").phase {
                    return exit;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("it ends")
    }

    pub async fn find(&self, instance: &InstanceRef) -> Option<Instance> {
        let listing = self.runtime.list().await.unwrap();
        listing.instances.into_iter().find(|one| one.id == instance.id)
    }

    /// Waits until an instance has written this.
    pub async fn wrote(&self, instance: &InstanceRef, text: &str) {
        let wait = async {
            while !self.output(instance).contains(text) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("it writes");
    }

    /// What an instance wrote to both streams, without the stamps.
    pub fn output(&self, instance: &InstanceRef) -> String {
        let text = std::fs::read_to_string(self.dir(instance).join("logs/output.log")).unwrap_or_default();
        let written = |line: &str| {
            let mut parts = line.splitn(4, ' ').skip(2);
            let is_fragment = parts.next() == Some("P");
            parts.next().unwrap_or_default().to_owned() + if is_fragment { "" } else { "\n" }
        };
        text.lines().map(written).collect()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // A test that failed leaves instances; their supervisors are told to kill them.
        let Ok(entries) = std::fs::read_dir(self.root.path().join("sandbox/instances")) else { return };
        for entry in entries.flatten() {
            let read = |name: &str, field: &str| -> Option<i32> {
                let text = std::fs::read(entry.path().join(name)).ok()?;
                let value: serde_json::Value = serde_json::from_slice(&text).ok()?;
                i32::try_from(value.get(field)?.get("pid")?.as_i64()?).ok()
            };
            if !entry.path().join("exit.json").exists() {
                for field in ["first", "supervisor"] {
                    if let Some(pid) = read("run.json", field).and_then(rustix::process::Pid::from_raw) {
                        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                    }
                }
            }
            for group in groups_of(&entry.path()) {
                remove_group(&group);
            }
        }
        remove_networks(&self.root.path().join("sandbox/networks"));
    }
}

/// Removes bridges and packet filters that a test left, by the names that were written down.
fn remove_networks(folder: &Path) {
    for network in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let bridge = network.file_name().to_string_lossy().into_owned();
        for command in [["ip", "link", "delete", &bridge], ["nft", "delete table", "ip", &bridge]] {
            let _ = std::process::Command::new(command[0]).args(&command[1..]).stderr(Stdio::null()).status();
        }
    }
}

/// An owner that no other test has, as control groups of all owners are in one place.
pub fn owner(root: &Path) -> String {
    root.file_name().unwrap().to_string_lossy().replace('.', "test-")
}

pub fn open(root: &Path, owner: &str) -> SandboxRuntime {
    SandboxRuntime::open(config(root, owner)).unwrap()
}

fn config(root: &Path, owner: &str) -> SandboxConfig {
    SandboxConfig { root: root.join("sandbox"), supervisor: keel(), owner: Owner(owner.to_owned()), hidden: Vec::new() }
}

/// A request for one slot of a service, written as in a file.
pub fn request(yaml: &str, slot: u32) -> CreateRequest {
    let spec: ServiceSpec = serde_yaml::from_str(yaml).unwrap();
    let env: BTreeMap<String, String> = spec.env.iter().map(|(name, value)| (name.clone(), value.0.clone())).collect();
    CreateRequest {
        id: InstanceId {
            deployment: "demo".into(),
            service: "web".into(),
            slot,
            revision: "v1-0123456789abcdef".parse().unwrap(),
            attempt: 0,
            run: None,
        },
        restarts: 0,
        streak: 0,
        spec: Arc::new(spec),
        env,
        source: None,
    }
}

/// Directories of the control groups that the record of an instance names.
pub fn groups_of(dir: &Path) -> Vec<PathBuf> {
    let Ok(text) = std::fs::read(dir.join("record.json")) else { return Vec::new() };
    let Ok(record) = serde_json::from_slice::<serde_json::Value>(&text) else { return Vec::new() };
    let groups = &record["launch"]["groups"];
    let all = std::iter::once(&groups["unified"]).chain(groups["legacy"].as_array().into_iter().flatten());
    all.filter_map(|group| group["dir"].as_str().map(PathBuf::from)).collect()
}

/// Removes a control group once what is in it is gone.
fn remove_group(group: &Path) {
    let end = std::time::Instant::now() + PATIENCE;
    while group.exists() && std::time::Instant::now() < end {
        if std::fs::remove_dir(group).is_err() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Runs a test of this program again as root, with mounts of its own which a shell script changes first. Whether this is
/// that run.
pub fn with_own_mounts(script: &str, name: &str) -> bool {
    const INSIDE: &str = "KEEL_TEST_OWN_MOUNTS";
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    if !is_root() {
        return false;
    }
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "sh", "-c", &format!("{script} && exec \"$@\""), "sh"]);
    command.arg(std::env::current_exe().unwrap()).args(["--exact", name]).env(INSIDE, "1");
    let output = command.env("KEEL_TEST_PROGRAM", keel()).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    match told.contains("running 1 test") {
        true => assert!(output.status.success(), "{told}"),
        false => skip(&format!("no such mounts here: {}", String::from_utf8_lossy(&output.stderr))),
    }
    false
}

/// Whether an instance has interfaces of its own.
pub fn has_own_network(sandbox: &Sandbox, instance: &InstanceRef) -> bool {
    read_json(&sandbox.dir(instance).join("record.json"))["launch"]["namespaces"]["net"] == true
}

/// Whether the tests run as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A root file system with a static busybox and a user `web` in a folder.
pub fn rootfs(folder: &Path) -> PathBuf {
    let root = folder.join("rootfs");
    for name in ["bin", "etc", "srv"] {
        std::fs::create_dir_all(root.join(name)).unwrap();
    }
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for name in ["sh", "ls", "cat", "id", "touch", "mount", "hostname"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    std::fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n").unwrap();
    root
}

/// A service that runs this shell script in a root file system.
pub fn shell_in(root: &Path, script: &str) -> String {
    format!("image: {{ name: 'dir:{}' }}\ncommand: {{ entrypoint: [sh, -c, {script:?}] }}", root.display())
}

/// A service that runs this shell script.
pub fn shell(script: &str) -> String {
    format!("image: {{ name: host }}\ncommand: {{ entrypoint: [/bin/busybox, sh, -c, {script:?}] }}")
}

pub fn stop(signal: Signal, grace: Duration, cause: StopCause) -> StopRequest {
    StopRequest { signal, grace, cause }
}

/// Whether a process exists and has not ended.
pub fn alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| !rest.trim_start().starts_with(['Z', 'X'])))
}

pub fn read_json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}
