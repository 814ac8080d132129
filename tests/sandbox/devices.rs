//! Devices: what is declared is there with what is allowed of it, and nothing else can be opened.

use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use evenkeel::runtime::io::{ExecOutput, ExecRequest};
use evenkeel::runtime::{ErrorKind, Runtime};
use futures::StreamExt;
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

use crate::support::{Sandbox, request, rootfs, shell, shell_in, with_own_mounts};

/// Number of the device that hands out loop devices: it can be opened by root, and opening it changes nothing.
const LOOP_CONTROL: (u32, u32) = (10, 237);
/// Number of a device like /dev/full.
const FULL: (u32, u32) = (1, 7);

/// A node of a device; none where this user may not make one.
fn node(folder: &Path, name: &str, (major, minor): (u32, u32)) -> Option<String> {
    let path = folder.join(name);
    let mode = Mode::from_raw_mode(0o666);
    match mknodat(CWD, &path, FileType::CharacterDevice, mode, makedev(major, minor)) {
        Ok(()) => Some(path.display().to_string()),
        Err(error) => {
            eprintln!("skipped: nodes can't be made here: {error}");
            None
        }
    }
}

/// A shell script that says which of read and write a node takes.
fn probing(path: &str) -> String {
    format!("(: <{path}) 2>/dev/null && echo read; (: >{path}) 2>/dev/null && echo write; true")
}

#[tokio::test]
async fn a_declared_node_is_there_and_one_that_is_made_can_not_be_opened() {
    let folder = tempfile::tempdir().unwrap();
    let Some(path) = node(folder.path(), "like-full", FULL) else { return };
    let sandbox = Sandbox::new();
    let more = format!("devices: [{{ path: {path} }}]\n");
    let script = format!(
        "{}; head -c 3 {path} | od -An -tx1; ls /dev | tr '\\n' ' '; echo; \
         mknod /dev/made c 1 7 && {{ (: </dev/made) 2>/dev/null && echo opened || echo closed; }}",
        probing(&path)
    );
    let (_, output) = sandbox.script_with(&more, &script).await;
    let devices = "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero ";
    assert_eq!(output, format!("read\nwrite\n 00 00 00\n{devices}\nclosed\n"));
}

#[tokio::test]
async fn a_machine_whose_random_is_urandom_runs_instances() {
    let script = "mount --bind /dev/urandom /dev/random";
    if !with_own_mounts(script, "devices::a_machine_whose_random_is_urandom_runs_instances") {
        return;
    }
    let sandbox = Sandbox::new();
    let controls = sandbox.runtime.capabilities().await.unwrap().controls;
    assert_eq!(controls[&evenkeel::runtime::Control::MountNamespace], evenkeel::runtime::Support::Enforced);
    let (_, output) = sandbox.script("head -c 3 /dev/random | wc -c; stat -c %t:%T /dev/random /dev/full").await;
    assert_eq!(output, "3\n1:9\n1:7\n");
}

#[tokio::test]
async fn a_machine_whose_usual_nodes_are_others_says_so_before_any_start() {
    let script = "mount --bind /dev/zero /dev/full";
    if !with_own_mounts(script, "devices::a_machine_whose_usual_nodes_are_others_says_so_before_any_start") {
        return;
    }
    let told = Sandbox::new().runtime.capabilities().await.unwrap();
    let support = &told.controls[&evenkeel::runtime::Control::MountNamespace];
    let told = format!("{support:?}");
    assert!(told.contains("opening /dev/full: /dev/full is the device c 1:5, and should be c 1:7"), "{told}");
}

#[tokio::test]
async fn less_than_all_is_kept_by_the_control_group() {
    let folder = tempfile::tempdir().unwrap();
    let Some(path) = node(folder.path(), "control", LOOP_CONTROL) else { return };
    let sandbox = Sandbox::new();
    let enforced = {
        let controls = sandbox.runtime.capabilities().await.unwrap().controls;
        controls[&evenkeel::runtime::Control::Devices] == evenkeel::runtime::Support::Enforced
    };
    for (fields, expected) in [
        ("", "read\nwrite\n"),
        (", write: false", "read\n"),
        (", read: false", "write\n"),
        (", read: false, write: false", ""),
    ] {
        let more = format!("devices: [{{ path: {path}{fields} }}]\n");
        let (_, output) = sandbox.script_with(&more, &probing(&path)).await;
        let instance = sandbox.first().await;
        if enforced {
            assert_eq!(output, expected, "{fields}");
        } else if !fields.is_empty() {
            let conditions = sandbox.runtime.list().await.unwrap().instances[0].conditions.clone();
            assert!(conditions.iter().any(|one| one.message.starts_with("devices has no effect")), "{conditions:?}");
        }
        sandbox.runtime.remove(&instance).await.unwrap();
    }
    let has_groups = std::fs::read_to_string("/proc/mounts").unwrap().lines().any(|line| line.contains(" cgroup"));
    let is_root = rustix::process::geteuid().is_root();
    assert!(enforced || !is_root || !has_groups, "root can limit devices in either version");
}

#[tokio::test]
async fn commands_that_are_run_inside_are_held_to_the_same_devices() {
    let folder = tempfile::tempdir().unwrap();
    let Some(path) = node(folder.path(), "control", LOOP_CONTROL) else { return };
    let sandbox = Sandbox::new();
    let support = sandbox.runtime.capabilities().await.unwrap().support(evenkeel::runtime::Control::Devices);
    if support != evenkeel::runtime::Support::Enforced {
        return crate::support::skip(&format!("{support:?}"));
    }
    let yaml = format!(
        "image: {{ name: host }}\ncommand: {{ entrypoint: [sleep, '1000'] }}\ndevices: [{{ path: {path}, write: false }}]\n"
    );
    let instance = sandbox.run(&yaml).await;
    let command = ["sh", "-c", &probing(&path)].map(str::to_owned).to_vec();
    let request = ExecRequest { command, ..ExecRequest::default() };
    let session = sandbox.runtime.exec().unwrap().exec(&instance.as_ref(), &request).await.unwrap();
    let outputs: Vec<ExecOutput> = session.output.map(Result::unwrap).collect().await;
    assert_eq!(outputs, [ExecOutput::Stdout("read\n".into()), ExecOutput::Exit(0)]);
    sandbox.runtime.remove(&instance.as_ref()).await.unwrap();
}

#[tokio::test]
async fn what_is_no_device_is_refused() {
    let sandbox = Sandbox::new();
    let yaml = "image: { name: host }\ncommand: { entrypoint: [sleep, '1'] }\ndevices: [{ path: /etc/passwd }]\n";
    let error = sandbox.runtime.create(&request(yaml, 0)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Rejected);
    assert!(error.message.contains("/etc/passwd is no device"), "{error}");
    let yaml = "image: { name: host }\ncommand: { entrypoint: [sleep, '1'] }\nresources: { gpu: { count: 99 } }\n";
    let error = sandbox.runtime.create(&request(yaml, 0)).await.unwrap_err();
    assert!(error.message.contains("99 of nvidia are asked for, and this machine has"), "{error}");
}

/// What a program could change of a node outside.
fn state(path: &str) -> (u32, u32, i64, i64) {
    let data = std::fs::metadata(path).unwrap();
    (data.mode(), data.uid(), data.ctime(), data.ctime_nsec())
}

#[tokio::test]
async fn nodes_of_the_machine_are_used_and_never_changed() {
    let folder = tempfile::tempdir().unwrap();
    let Some(declared) = node(folder.path(), "like-full", FULL) else { return };
    let usual = ["null", "zero", "full", "random", "urandom", "tty"].map(|name| format!("/dev/{name}"));
    let nodes: Vec<String> = usual.into_iter().chain([declared.clone()]).collect();
    let before: Vec<_> = nodes.iter().map(|path| state(path)).collect();
    let more = format!("\ndevices: [{{ path: {declared} }}]");
    // What is masked is covered by a node too. The permissions are those that the nodes have.
    let script = format!(
        "for node in {} /proc/keys /proc/kcore; do chmod 666 $node && echo changed $node; touch $node && echo touched $node; \
         done 2>/dev/null; for node in /dev/null /dev/zero {declared}; do (: >$node) || echo closed; done",
        nodes.join(" ")
    );
    let root = rootfs(folder.path());
    let with_image = script.replace("chmod", "busybox chmod").replace("touch $", "busybox touch $");
    for (slot, yaml) in (0..).zip([shell(&script), shell_in(&root, &with_image)]) {
        let created = sandbox_run(&(yaml + &more), slot).await;
        assert_eq!(created, "", "{slot}");
    }
    let after: Vec<_> = nodes.iter().map(|path| state(path)).collect();
    assert_eq!(before, after);
}

async fn sandbox_run(yaml: &str, slot: u32) -> String {
    let sandbox = Sandbox::new();
    let created = sandbox.runtime.create(&request(yaml, slot)).await.unwrap();
    sandbox.runtime.start(&created.as_ref()).await.unwrap();
    sandbox.ended(&created.as_ref()).await;
    sandbox.output(&created.as_ref())
}

#[tokio::test]
async fn a_declared_node_is_the_device_that_it_was_when_the_instance_was_created() {
    let folder = tempfile::tempdir().unwrap();
    let Some(path) = node(folder.path(), "declared", FULL) else { return };
    let other = node(folder.path(), "other", LOOP_CONTROL).unwrap();
    let link = folder.path().join("link").display().to_string();
    symlink("declared", &link).unwrap();
    let yaml =
        |path: &str| shell(&format!("head -c 1 {path} | od -An -tx1")) + &format!("\ndevices: [{{ path: {path} }}]");
    let sandbox = Sandbox::new();
    let direct = sandbox.runtime.create(&request(&yaml(&path), 0)).await.unwrap().as_ref();
    let linked = sandbox.runtime.create(&request(&yaml(&link), 1)).await.unwrap().as_ref();
    // A link leads where it led.
    std::fs::remove_file(&link).unwrap();
    symlink(&other, &link).unwrap();
    sandbox.runtime.start(&linked).await.unwrap();
    sandbox.ended(&linked).await;
    assert_eq!(sandbox.output(&linked), " 00\n");
    // Another device in its place.
    std::fs::rename(&path, folder.path().join("moved")).unwrap();
    std::fs::rename(&other, &path).unwrap();
    let error = sandbox.runtime.start(&direct).await.unwrap_err();
    let told = format!("{path} is the device c 10:237, and should be c 1:7");
    assert!(error.kind == ErrorKind::Failed && error.message.contains(&told), "{error}");
    // A link in its place.
    std::fs::rename(&path, &other).unwrap();
    symlink(&other, &path).unwrap();
    let error = sandbox.runtime.start(&direct).await.unwrap_err();
    assert!(error.kind == ErrorKind::Failed && error.message.contains(&format!("{path} is a link")), "{error}");
}

#[tokio::test]
async fn a_node_where_a_program_may_write_is_no_device_to_declare() {
    let folder = tempfile::tempdir().unwrap();
    let top = std::fs::canonicalize(folder.path()).unwrap();
    std::fs::create_dir(top.join("ws")).unwrap();
    let Some(path) = node(&top.join("ws"), "declared", FULL) else { return };
    let sandbox = Sandbox::new();
    let ws = top.join("ws").display().to_string();
    let device = format!("\ndevices: [{{ path: {path} }}]");
    let writing = format!("\nsandbox: {{ writable: [{ws}] }}");
    let told = format!("{path} lies in {ws}, which programs may write");
    // The program itself, and a later one of another service.
    for (slot, yaml) in (0..).zip([device.clone() + &writing, writing, device]) {
        match sandbox.runtime.create(&request(&(shell("true") + &yaml), slot)).await {
            Ok(_) => assert_eq!(slot, 1),
            Err(error) => {
                assert!(error.kind == ErrorKind::Rejected && error.message.contains(&told), "{slot}: {error}")
            }
        }
    }
    assert_eq!(sandbox.runtime.list().await.unwrap().instances.len(), 1);
}
