//! Files about names where mounts of the instance's own cover their directories.

use std::os::unix::fs::symlink;
use std::path::Path;

use evenkeel::runtime::Runtime;

use crate::support::{Sandbox, request, rootfs, shell, shell_in};

const READ: &str = "cat /etc/hosts /etc/resolv.conf";
/// A name and a name server of its own, with the machine's network.
const NAMES: &str = "\nnetwork_mode: host\nextra_hosts: ['far:192.0.2.9']\ndns: [192.0.2.53]";

/// What a service wrote, and whether it saw the name and the name server.
async fn seen(yaml: &str) -> (bool, bool, String) {
    let sandbox = Sandbox::new();
    let instance = sandbox.run(&format!("{yaml}{NAMES}")).await;
    sandbox.ended(&instance.as_ref()).await;
    let output = sandbox.output(&instance.as_ref());
    sandbox.runtime.remove(&instance.as_ref()).await.unwrap();
    (output.contains("192.0.2.9\tfar\n"), output.contains("nameserver 192.0.2.53\n"), output)
}

fn folder(within: &Path, name: &str) -> String {
    let path = within.join(name);
    std::fs::create_dir(&path).unwrap();
    path.display().to_string()
}

#[tokio::test]
async fn they_are_seen_below_a_mount_over_etc() {
    let outside = tempfile::tempdir().unwrap();
    let root = rootfs(outside.path());
    let bind = folder(outside.path(), "bind");
    for storage in [
        "type: tmpfs, target: /etc".to_owned(),
        "type: named, name: data, target: /etc".to_owned(),
        "type: anonymous, target: /etc/".to_owned(),
        format!("type: bind, source: {bind}, target: /etc"),
    ] {
        for yaml in [shell_in(&root, READ), shell(READ)] {
            let (name, server, output) = seen(&format!("{yaml}\nstorage: [{{ {storage} }}]")).await;
            assert!(name && server, "{storage}: {output}");
        }
    }
    let length = |name: &str| std::fs::metadata(Path::new(&bind).join(name)).unwrap().len();
    assert_eq!(
        (length("hosts"), length("resolv.conf")),
        (0, 0),
        "as Docker has it, empty files are made to mount over"
    );
}

#[tokio::test]
async fn so_they_are_where_a_link_leads_below_a_mount() {
    let outside = tempfile::tempdir().unwrap();
    let root = rootfs(outside.path());
    symlink("../run/systemd/resolve/stub-resolv.conf", root.join("etc/resolv.conf")).unwrap();
    let yaml = shell_in(&root, READ) + "\nstorage: [{ type: tmpfs, target: /run }]";
    let (name, server, output) = seen(&yaml).await;
    assert!(name && server, "{output}");
}

#[tokio::test]
async fn a_file_that_the_spec_mounts_in_their_place_wins() {
    let outside = tempfile::tempdir().unwrap();
    let root = rootfs(outside.path());
    let own = outside.path().join("own");
    std::fs::write(&own, "its own\n").unwrap();
    let file = format!("{{ type: bind, source: {}, target: /etc/hosts }}", own.display());
    for storage in [format!("[{file}]"), format!("[{file}, {{ type: tmpfs, target: /etc }}]")] {
        let (name, server, output) = seen(&format!("{}\nstorage: {storage}", shell_in(&root, READ))).await;
        assert!(output.starts_with("its own\n") && !name && server, "{storage}: {output}");
    }
}

#[tokio::test]
async fn a_read_only_mount_needs_files_to_show_them_over() {
    let outside = tempfile::tempdir().unwrap();
    let root = rootfs(outside.path());
    let bind = folder(outside.path(), "bind");
    let yaml =
        format!("{}\nstorage: [{{ type: bind, source: {bind}, target: /etc, readonly: true }}]", shell_in(&root, READ));
    let sandbox = Sandbox::new();
    let created = sandbox.runtime.create(&request(&format!("{yaml}{NAMES}"), 0)).await.unwrap();
    let error = sandbox.runtime.start(&created.as_ref()).await.unwrap_err();
    for said in ["mounted at /etc", "/etc/hosts", "Read-only", "create an empty file"] {
        assert!(error.message.contains(said), "{error}");
    }
    for name in ["hosts", "resolv.conf"] {
        std::fs::write(Path::new(&bind).join(name), "").unwrap();
    }
    let (name, server, output) = seen(&yaml).await;
    assert!(name && server, "{output}");
}

/// Whoever may write to a volume does not choose by a link in it what is mounted over what.
#[tokio::test]
async fn a_link_in_a_mount_is_not_followed() {
    let outside = tempfile::tempdir().unwrap();
    let root = rootfs(outside.path());
    let bind = folder(outside.path(), "bind");
    let (link, own) = (Path::new(&bind).join("hosts"), "its own\n");
    std::fs::write(root.join("srv/own"), own).unwrap();
    symlink("/srv/own", &link).unwrap();
    let script = "cat /etc/hosts /srv/own; ls /srv; cat /etc/resolv.conf";
    let yaml = shell_in(&root, script) + &format!("\nstorage: [{{ type: bind, source: {bind}, target: /etc }}]");
    let (name, server, output) = seen(&yaml).await;
    assert!(output.starts_with(&own.repeat(2)) && !name && server, "{output}");

    std::fs::remove_file(&link).unwrap();
    symlink("/srv/made", &link).unwrap();
    let sandbox = Sandbox::new();
    let created = sandbox.runtime.create(&request(&format!("{yaml}{NAMES}"), 0)).await.unwrap();
    let error = sandbox.runtime.start(&created.as_ref()).await.unwrap_err();
    for said in ["mounted at /etc", "/etc/hosts", "a link that leads to nothing", "put an empty file in its place"] {
        assert!(error.message.contains(said), "{error}");
    }
}

#[tokio::test]
async fn the_machines_are_seen_below_a_mount_over_its_etc() {
    let ends_with = |network: &str| format!("{}\nstorage: [{{ type: tmpfs, target: /etc }}]\n{network}", shell(READ));
    let output = async |yaml: &str| {
        let sandbox = Sandbox::new();
        let instance = sandbox.run(yaml).await;
        sandbox.ended(&instance.as_ref()).await;
        let output = sandbox.output(&instance.as_ref());
        sandbox.runtime.remove(&instance.as_ref()).await.unwrap();
        output
    };
    let machine = ["/etc/hosts", "/etc/resolv.conf"].map(|path| std::fs::read_to_string(path).unwrap()).concat();
    assert_eq!(output(&ends_with("network_mode: host")).await, machine);
    let alone = output(&ends_with("network_mode: none")).await;
    assert!(alone.contains("127.0.0.1\tlocalhost") && !alone.contains("No such file"), "{alone}");
}
