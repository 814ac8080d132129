//! Workspaces: they go with their slots, whatever its last instance mounted, and what a removal left is found.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use evenkeel::runtime::{RemnantKind, Runtime, Volumes};

use crate::support::{Sandbox, request, rootfs, shell_in};

/// What ends at once in a slot, with this storage.
async fn ended(sandbox: &Sandbox, slot: u32, attempt: u32, storage: &str) -> evenkeel::state::InstanceRef {
    let root = sandbox.root.path().join("rootfs");
    let root = if root.exists() { root } else { rootfs(sandbox.root.path()) };
    let mut wanted = request(&format!("{}\nstorage: [{storage}]", shell_in(&root, "true")), slot);
    wanted.id.attempt = attempt;
    let created = sandbox.runtime.create(&wanted).await.unwrap();
    sandbox.runtime.start(&created.as_ref()).await.unwrap();
    sandbox.ended(&created.as_ref()).await;
    created.as_ref()
}

fn left(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries.map(|one| one.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

async fn lost(sandbox: &Sandbox) -> Vec<(PathBuf, String)> {
    let found = sandbox.runtime.remnants().unwrap().remnants().await.unwrap();
    let found = found.into_iter().filter(|one| one.kind == RemnantKind::Directory);
    found.map(|one| (PathBuf::from(one.name), one.reason)).collect()
}

async fn clear(sandbox: &Sandbox) {
    let remnants = sandbox.runtime.remnants().unwrap();
    for one in remnants.remnants().await.unwrap().iter().filter(|one| one.kind == RemnantKind::Directory) {
        remnants.clear(one).await.unwrap();
    }
}

#[tokio::test]
async fn a_workspace_goes_with_its_slot_although_its_last_instance_does_not_mount_it() {
    let sandbox = Sandbox::new();
    let folder = sandbox.root.path().join("sandbox/volumes/demo");
    let workspace = "{ type: workspace }";
    let beyond = ended(&sandbox, 1, 0, workspace).await;
    sandbox.runtime.remove(&beyond).await.unwrap();
    let first = ended(&sandbox, 0, 0, &format!("{workspace}, {{ type: named, name: data, target: /data }}")).await;
    let second = ended(&sandbox, 0, 1, "").await;
    sandbox.runtime.remove(&first).await.unwrap();
    assert_eq!(left(&folder), [".web.0.slot", ".web.1.slot", "data", "web.0", "web.1"]);
    // What lies beyond a slot that ends, and has no instance, has ended too.
    sandbox.runtime.remove_with_slot(&second, Volumes::Remove).await.unwrap();
    assert_eq!(left(&folder), ["data"]);
    // One before it has not, and one with another instance in its slot has not either.
    let first = ended(&sandbox, 0, 2, workspace).await;
    sandbox.runtime.remove(&first).await.unwrap();
    let (third, fourth) = (ended(&sandbox, 1, 3, workspace).await, ended(&sandbox, 1, 4, workspace).await);
    sandbox.runtime.remove_with_slot(&third, Volumes::Remove).await.unwrap();
    assert_eq!(left(&folder), [".web.0.slot", ".web.1.slot", "data", "web.0", "web.1"]);
    sandbox.runtime.remove(&fourth).await.unwrap();
    assert_eq!(lost(&sandbox).await, [], "an instance is to come into either slot");
    // What is kept is kept, from its next start on.
    let kept = ended(&sandbox, 0, 5, "{ type: workspace, keep: true }").await;
    sandbox.runtime.remove_with_slot(&kept, Volumes::Remove).await.unwrap();
    assert_eq!(left(&folder), ["data", "web.0"], "the one beyond has ended with it");
}

#[tokio::test]
async fn a_workspace_stays_where_its_slot_ends_by_a_declaration_that_keeps_it() {
    let sandbox = Sandbox::new();
    let folder = sandbox.root.path().join("sandbox/volumes/demo");
    let workspace = "{ type: workspace }";
    let zero = ended(&sandbox, 0, 0, workspace).await;
    let (one, two) = (ended(&sandbox, 1, 0, workspace).await, ended(&sandbox, 2, 0, workspace).await);
    fs::write(folder.join("web.1/file"), "mine").unwrap();
    sandbox.runtime.remove(&two).await.unwrap();
    sandbox.runtime.remove_with_slot(&one, Volumes::Keep).await.unwrap();
    assert_eq!(left(&folder), [".web.0.slot", "web.0", "web.1", "web.2"]);
    // Also when all that goes with its slot is gone, and for the next instance of the slot.
    sandbox.runtime.remove_with_slot(&zero, Volumes::Remove).await.unwrap();
    assert_eq!(left(&folder), ["web.1", "web.2"]);
    assert_eq!(fs::read_to_string(folder.join("web.1/file")).unwrap(), "mine");
}

#[tokio::test]
async fn what_a_slot_left_that_has_ended_is_nobody_elses() {
    let sandbox = Sandbox::new();
    let folder = sandbox.root.path().join("sandbox/volumes/demo");
    let first = ended(&sandbox, 0, 0, "{ type: workspace }").await;
    fs::write(folder.join("web.0/file"), "of its first life").unwrap();
    sandbox.runtime.remove(&first).await.unwrap();
    let again = ended(&sandbox, 0, 1, "{ type: workspace }").await;
    assert_eq!(left(&folder.join("web.0")), ["file"], "its slot has not ended");
    sandbox.runtime.remove(&again).await.unwrap();
    let mark = folder.join(".web.0.slot");
    let of_now = fs::read_to_string(&mark).unwrap();
    // As it is after a removal that was cut off.
    fs::write(&mark, of_now.replace("\"ended\":false", "\"ended\":true")).unwrap();
    ended(&sandbox, 0, 2, "{ type: workspace }").await;
    assert_eq!((left(&folder.join("web.0")), fs::read_to_string(&mark).unwrap()), (vec![], of_now));
}

#[tokio::test]
async fn what_a_removal_of_a_workspace_left_is_found_and_cleared_and_nothing_else_is() {
    let sandbox = Sandbox::new();
    let folder = sandbox.root.path().join("sandbox/volumes/demo");
    let one = ended(&sandbox, 0, 0, "{ type: workspace }, { type: named, name: data, target: /data }").await;
    let mark = folder.join(".web.0.slot");
    let text = fs::read_to_string(&mark).unwrap();
    // As it is between the removal of the instance and that of its workspace.
    fs::write(&mark, text.replace("\"ended\":false", "\"ended\":true")).unwrap();
    assert_eq!(lost(&sandbox).await, [], "its instance is there");
    sandbox.runtime.remove(&one).await.unwrap();
    let ends = (folder.join("web.0"), "its slot demo/web/0 has ended".to_owned());
    assert_eq!(lost(&sandbox).await, [ends]);
    let (old, fresh) = (folder.join(".web.3.new"), folder.join(".web.4.new"));
    for path in [&old, &fresh] {
        fs::create_dir_all(path.join("in")).unwrap();
    }
    fs::write(folder.join(".web.3.slot"), text.replace("\"ended\":false", "\"ended\":true").replace(":0", ":3"))
        .unwrap();
    fs::File::open(&old).unwrap().set_modified(SystemTime::now() - Duration::from_secs(3600)).unwrap();
    let cut_off = (old, "a call that made or removed it was cut off".to_owned());
    assert!(lost(&sandbox).await.contains(&cut_off));
    clear(&sandbox).await;
    assert_eq!(left(&folder), [".web.4.new", "data"]);
}
