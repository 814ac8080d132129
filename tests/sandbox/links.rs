//! Links that a program made lead nowhere outside of what it was given; those of the machine's users do.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use evenkeel::runtime::{ErrorKind, Runtime};
use evenkeel::state::Phase;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::support::{Sandbox, request, rootfs, shell, shell_in, without_namespaces};

/// A directory `ws` with `a/b` in it that programs write, a root file system, and a directory that is none of theirs.
struct Tree {
    _folder: tempfile::TempDir,
    top: PathBuf,
}

impl Tree {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let top = std::fs::canonicalize(folder.path()).unwrap();
        std::fs::create_dir_all(top.join("ws/a/b")).unwrap();
        rootfs(&top);
        std::fs::rename(top.join("rootfs"), top.join("outside")).unwrap();
        rootfs(&top);
        Self { _folder: folder, top }
    }

    fn path(&self, name: &str) -> String {
        self.top.join(name).display().to_string()
    }

    /// A script that puts a link to what is outside in the place of `ws/a/b`.
    fn replacing(&self) -> String {
        format!("cd {} && mv a old && mkdir a && ln -s {} a/b && exit 7", self.path("ws"), self.path("outside"))
    }

    /// Does the same from outside.
    fn replace(&self) {
        std::fs::rename(self.top.join("ws/a"), self.top.join("ws/old")).unwrap();
        std::fs::create_dir(self.top.join("ws/a")).unwrap();
        symlink(self.top.join("outside"), self.top.join("ws/a/b")).unwrap();
    }

    /// Services that name `path` in every way.
    fn naming(&self, path: &str) -> [(&'static str, String); 4] {
        let root = self.top.join("rootfs");
        [
            ("writable", shell("true") + &format!("\nsandbox: {{ writable: [{path}] }}")),
            ("readable", shell("true") + &format!("\nsandbox: {{ readable: [{path}] }}")),
            (
                "storage",
                shell_in(&root, "true") + &format!("\nstorage: [{{ type: bind, source: {path}, target: /x }}]"),
            ),
            ("image", shell_in(Path::new(path), "true")),
        ]
    }
}

#[tokio::test]
async fn a_link_that_a_program_made_is_followed_by_no_later_instance() {
    let (sandbox, tree) = (Sandbox::new(), Tree::new());
    let (ws, within) = (tree.path("ws"), tree.path("ws/a/b"));
    let yaml = shell(&tree.replacing()) + &format!("\nsandbox: {{ writable: [{ws}, {within}] }}");
    let instance = sandbox.run(&yaml).await.as_ref();
    assert_eq!(sandbox.ended(&instance).await.code, Some(7));
    assert!(tree.top.join("ws/a/b").is_symlink(), "{}", sandbox.output(&instance));
    let told = format!("the link {within} lies in {ws}, which programs may write");
    // Its next attempt, and a start of the same once more.
    let mut again = request(&yaml, 0);
    again.id.attempt = 1;
    let error = sandbox.runtime.create(&again).await.unwrap_err();
    assert!(error.kind == ErrorKind::Rejected && error.message.contains(&told), "{error}");
    let error = sandbox.runtime.start(&instance).await.unwrap_err();
    assert!(error.message.contains(&format!("{within} is a link")), "{error}");
    // Other services, also once the program that made it is gone.
    sandbox.runtime.remove(&instance).await.unwrap();
    for path in [&within, &format!("{within}/srv")] {
        for (field, yaml) in tree.naming(path) {
            let error = sandbox.reopen().create(&request(&yaml, 1)).await.unwrap_err();
            assert!(error.kind == ErrorKind::Rejected && error.message.contains(&told), "{field}: {error}");
            assert!(error.message.contains(field), "{field}: {error}");
        }
    }
    let yaml = shell("true") + &format!("\nsandbox: {{ writable: [{ws}] }}");
    let created = sandbox.runtime.create(&request(&yaml, 2)).await.unwrap();
    sandbox.runtime.start(&created.as_ref()).await.unwrap();
}

#[tokio::test]
async fn a_link_in_a_volume_leads_no_other_volume_elsewhere_at_the_next_start() {
    let (sandbox, tree) = (Sandbox::new(), Tree::new());
    let script = "[ -L /data/x ] || { mv /data/x /data/y && ln -s /bin /data/x && exit 7; }";
    let volumes = "\nread_only_root_fs: true\nstorage: [{ type: named, name: a, target: /data }, { type: named, name: b, \
                   target: /data/x/bin }]";
    let root = tree.top.join("rootfs");
    std::fs::create_dir(root.join("data")).unwrap();
    let instance = sandbox.run(&(shell_in(&root, script) + volumes)).await.as_ref();
    assert_eq!(sandbox.ended(&instance).await.code, Some(7), "{}", sandbox.output(&instance));
    let error = sandbox.runtime.start(&instance).await.unwrap_err();
    assert!(error.message.contains("the link /data/x lies in /data, which the program may write"), "{error}");
}

/// Exchanges two paths all the time, until it is dropped.
struct Exchanging {
    ended: std::sync::Arc<std::sync::atomic::AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Exchanging {
    fn start(one: PathBuf, other: PathBuf) -> Self {
        let ended = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let until = std::sync::Arc::clone(&ended);
        let exchange = move || {
            while !until.load(std::sync::atomic::Ordering::Relaxed) {
                renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).unwrap();
            }
        };
        Self { ended, thread: Some(std::thread::spawn(exchange)) }
    }
}

impl Drop for Exchanging {
    fn drop(&mut self) {
        self.ended.store(true, std::sync::atomic::Ordering::Relaxed);
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

#[tokio::test]
async fn a_link_that_comes_and_goes_leads_no_mount_elsewhere() {
    let (sandbox, tree) = (Sandbox::new(), Tree::new());
    let root = tree.top.join("rootfs");
    for name in ["data", "srv/deep"] {
        std::fs::create_dir(root.join(name)).unwrap();
    }
    // Another service has the first of the volumes too, and writes it.
    let volume = sandbox.root.path().join("sandbox/volumes/demo/a");
    std::fs::create_dir_all(volume.join("x/deep")).unwrap();
    symlink("/srv", volume.join("y")).unwrap();
    let storage =
        "\nstorage: [{ type: named, name: a, target: /data }, { type: named, name: b, target: /data/x/deep }]";
    let yaml = shell_in(&root, "cat /proc/self/mountinfo") + storage;
    let created = sandbox.runtime.create(&request(&yaml, 0)).await.unwrap().as_ref();
    let _exchanging = Exchanging::start(volume.join("x"), volume.join("y"));
    let mut ended = 0;
    for _ in 0..40 {
        match sandbox.runtime.start(&created).await {
            Ok(_) => {
                sandbox.ended(&created).await;
                ended += 1;
            }
            Err(error) => {
                let is_told = ["which the program may write", "leads elsewhere"].map(|why| error.message.contains(why));
                assert!(is_told.contains(&true), "{error}");
            }
        }
    }
    let output = sandbox.output(&created);
    assert!(ended > 0 && output.contains(" /data "), "{ended} of the starts succeeded");
    let elsewhere = output.lines().filter(|line| line.split(' ').nth(4).is_some_and(|at| at.starts_with("/srv")));
    assert_eq!(elsewhere.collect::<Vec<_>>(), Vec::<&str>::new());
}

#[tokio::test]
async fn a_link_of_a_program_that_a_mount_lets_write_is_not_followed_either() {
    let (sandbox, tree) = (Sandbox::new(), Tree::new());
    let (ws, root) = (tree.path("ws"), tree.top.join("rootfs"));
    let script = format!("cd /ws && busybox rmdir a/b && busybox ln -s {} a/b", tree.path("outside"));
    for read_only in [true, false] {
        let storage = format!("\nstorage: [{{ type: bind, source: {ws}, target: /ws, readonly: {read_only} }}]");
        let instance = sandbox.run(&(shell_in(&root, &script) + &storage)).await.as_ref();
        assert_eq!(sandbox.ended(&instance).await.code == Some(0), !read_only);
        sandbox.runtime.remove(&instance).await.unwrap();
    }
    for (field, yaml) in tree.naming(&tree.path("ws/a/b")) {
        let error = sandbox.runtime.create(&request(&yaml, 1)).await.unwrap_err();
        assert!(error.kind == ErrorKind::Rejected && error.message.contains("lies in"), "{field}: {error}");
    }
}

#[tokio::test]
async fn a_link_that_comes_after_the_creation_is_refused_and_named() {
    let (sandbox, tree) = (Sandbox::new(), Tree::new());
    rootfs(&tree.top.join("ws/a/b"));
    let within = tree.path("ws/a/b/rootfs");
    let mut created = Vec::new();
    for (slot, (field, yaml)) in (0..).zip(tree.naming(&within)) {
        created.push((field, sandbox.runtime.create(&request(&yaml, slot)).await.unwrap()));
    }
    tree.replace();
    rootfs(&tree.top.join("outside"));
    for (field, instance) in created {
        // Where there is no overlay the root was copied when it was created.
        let is_copied = instance.conditions.iter().any(|condition| condition.reason == "RootCopied");
        match sandbox.runtime.start(&instance.as_ref()).await {
            Ok(_) => assert!(field == "image" && is_copied, "{field}"),
            Err(error) => {
                assert_eq!(error.kind, ErrorKind::Failed, "{field}: a next attempt looks anew");
                assert!(error.message.contains(&format!("{} is a link", tree.path("ws/a/b"))), "{field}: {error}");
            }
        }
    }
}

#[tokio::test]
async fn links_of_the_machines_users_are_followed_as_they_were_when_the_instance_was_created() {
    let (sandbox, tree) = (Sandbox::new(), Tree::new());
    let link = tree.path("link");
    symlink(tree.path("ws"), &link).unwrap();
    symlink("rootfs", tree.path("image")).unwrap();
    std::fs::write(tree.top.join("ws/file"), "shown\n").unwrap();
    let storage = format!("\nstorage: [{{ type: bind, source: {link}, target: /x }}]");
    for (slot, yaml) in (0..).zip([
        shell(&format!("cat {link}/file; echo w > {link}/w")) + &format!("\nsandbox: {{ writable: [{link}] }}"),
        shell(&format!("cat {link}/file; echo w > {link}/w")) + &format!("\nsandbox: {{ readable: [{link}] }}"),
        shell_in(&tree.top.join("image"), "cat /x/file; echo w > /x/w") + &storage,
    ]) {
        let created = sandbox.runtime.create(&request(&yaml, slot)).await.unwrap();
        std::fs::remove_file(&link).unwrap();
        symlink(tree.path("outside"), &link).unwrap();
        let is_readable_alone = slot == 1;
        let started = sandbox.runtime.start(&created.as_ref()).await.unwrap();
        sandbox.ended(&started.as_ref()).await;
        let output = sandbox.output(&started.as_ref());
        // A link in a directory that the instance sees for itself leads where it led; one that it sees leads elsewhere.
        if !is_readable_alone {
            assert!(output.starts_with("shown\n"), "{slot}: {output}");
        }
        assert_eq!(std::fs::remove_file(tree.top.join("ws/w")).is_ok(), !is_readable_alone, "{slot}");
        assert!(!tree.top.join("outside/w").exists(), "{slot}");
        std::fs::remove_file(&link).unwrap();
        symlink(tree.path("ws"), &link).unwrap();
    }
}

#[tokio::test]
async fn without_namespaces_links_of_programs_open_nothing_either() {
    if !without_namespaces("links::without_namespaces_links_of_programs_open_nothing_either") {
        return;
    }
    let (sandbox, tree) = (Sandbox::new(), Tree::new());
    let (ws, within) = (tree.path("ws"), tree.path("ws/a/b"));
    let yaml = |script: &str| shell(script) + &format!("\nsandbox: {{ writable: [{ws}, {within}] }}");
    let waiting = sandbox.runtime.create(&request(&yaml("true"), 1)).await.unwrap();
    let instance = sandbox.run(&yaml(&tree.replacing())).await.as_ref();
    assert_eq!(sandbox.ended(&instance).await.code, Some(7), "{}", sandbox.output(&instance));
    let mut again = request(&yaml("true"), 0);
    again.id.attempt = 1;
    let error = sandbox.runtime.create(&again).await.unwrap_err();
    assert!(error.kind == ErrorKind::Rejected && error.message.contains("lies in"), "{error}");
    let error = sandbox.runtime.start(&waiting.as_ref()).await.unwrap_err();
    assert!(error.message.contains(&format!("{within} is a link")), "{error}");
    let phase = sandbox.find(&waiting.as_ref()).await.unwrap().phase;
    assert!(!matches!(phase, Phase::Running { .. }), "{phase:?}");
}
