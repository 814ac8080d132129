//! Mounting into sandboxes that run.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use evenkeel::runtime::io::{Exec, ExecOutput, ExecRequest};
use evenkeel::runtime::{ErrorKind, LateMounts, Runtime};
use evenkeel::state::{InstanceRef, LateMount, Volumes};
use futures::StreamExt;

use crate::support::{Sandbox, is_root, read_json, rootfs, shell_in, with_own_mounts};

/// A sandbox runtime with directories to show, where it can be root's.
struct Stage {
    sandbox: Sandbox,
    root: PathBuf,
    shown: PathBuf,
}

impl Stage {
    fn new() -> Option<Self> {
        // Mounting into what runs takes root.
        if !is_root() {
            return None;
        }
        let sandbox = Sandbox::new();
        let top = fs::canonicalize(sandbox.root.path()).unwrap();
        let (root, shown) = (rootfs(&top), top.join("shown"));
        fs::create_dir_all(shown.join("deep")).unwrap();
        fs::write(shown.join("file"), "from outside\n").unwrap();
        Some(Self { sandbox, root, shown })
    }

    /// Starts a program that does nothing.
    async fn idle(&self, fields: &str) -> InstanceRef {
        self.sandbox.run(&format!("{}\n{fields}", shell_in(&self.root, "busybox sleep 1000"))).await.as_ref()
    }

    fn path(&self, name: &str) -> String {
        self.shown.join(name).display().to_string()
    }

    fn mount(&self, name: &str, target: &str, readonly: bool) -> LateMount {
        LateMount { source: self.path(name), target: target.to_owned(), readonly }
    }

    async fn mounted(&self, instance: &InstanceRef, mounts: &[LateMount]) -> Result<(), (ErrorKind, String)> {
        let done = LateMounts::mount(&self.sandbox.runtime, instance, mounts).await;
        done.map_err(|error| (error.kind, error.message))
    }

    /// Why the program can't be shown what is in `shown` at a path.
    async fn refused(&self, instance: &InstanceRef, name: &str, target: &str) -> String {
        let (kind, why) = self.mounted(instance, &[self.mount(name, target, false)]).await.unwrap_err();
        // Where the instance as it was made does not allow it, nothing was changed.
        let is_by_spec = ["the program may not", "the pool's spec", "which is made for each", "it leads to the root"];
        let is_by_spec = is_by_spec.iter().any(|words| why.contains(words));
        assert!(kind == ErrorKind::Unsupported || (kind == ErrorKind::Rejected && !is_by_spec), "{kind:?}: {why}");
        why
    }

    /// What a shell script inside writes.
    async fn inside(&self, instance: &InstanceRef, script: &str) -> String {
        let command = ["sh", "-c", script].map(str::to_owned).to_vec();
        let request = ExecRequest { command, ..ExecRequest::default() };
        let session = Exec::exec(&self.sandbox.runtime, instance, &request).await.unwrap();
        let pieces: Vec<_> = session.output.collect().await;
        let text = pieces.into_iter().map(|piece| match piece.unwrap() {
            ExecOutput::Stdout(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
            _ => String::new(),
        });
        text.collect()
    }
}

/// Mounts of the machine that this test could have made: at or of something in its folder. Others come and go.
fn mounts_of_the_machine(stage: &Stage) -> Vec<String> {
    let all = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let own = stage.shown.parent().unwrap().to_str().unwrap();
    all.lines().filter(|line| line.contains(own)).map(str::to_owned).collect()
}

#[tokio::test]
async fn a_directory_and_a_file_are_shown_to_what_runs_and_are_left_as_they_are() {
    let Some(stage) = Stage::new() else { return };
    let instance = stage.idle("").await;
    let before = mounts_of_the_machine(&stage);
    let mounts = [
        stage.mount("", "/new/rw/ro", true),
        stage.mount("deep", "/new/rw", false),
        stage.mount("file", "/etc/one", true),
    ];
    stage.mounted(&instance, &mounts).await.unwrap();
    let script = "cat /new/rw/ro/file /etc/one; echo inside > /new/rw/written; ls /new/rw; \
                  for f in /new/rw/ro/x /etc/one; do echo x 2>/dev/null > $f || echo refused; done; \
                  busybox grep -c ' /new/rw.*[wo],nosuid,nodev' /proc/self/mountinfo";
    let told = stage.inside(&instance, script).await;
    assert_eq!(told, "from outside\nfrom outside\nro\nwritten\nrefused\nrefused\n2\n");
    assert_eq!(fs::read_to_string(stage.path("deep/written")).unwrap(), "inside\n");
    assert_eq!(mounts_of_the_machine(&stage), before);
    assert!(!stage.root.join("new").exists(), "the image is as it was");

    stage.sandbox.runtime.remove(&instance).await.unwrap();
    stage.sandbox.runtime.teardown("demo", Volumes::Remove).await.unwrap();
    assert_eq!(fs::read_to_string(stage.path("file")).unwrap(), "from outside\n");
    assert_eq!(fs::read_to_string(stage.path("deep/written")).unwrap(), "inside\n");
    assert!(!stage.sandbox.dir(&instance).exists());
}

#[tokio::test]
async fn a_target_stays_inside_and_is_no_place_of_the_kernel() {
    let Some(stage) = Stage::new() else { return };
    symlink("/../../../../../escaped", stage.root.join("srv/out")).unwrap();
    fs::create_dir(stage.root.join("srv/real")).unwrap();
    for (name, to) in [("p", "/proc"), ("d", "../dev/null"), ("r", "/"), ("t", "real")] {
        symlink(to, stage.root.join("srv").join(name)).unwrap();
    }
    let outside = Path::new("/escaped");
    let instance =
        stage.idle("storage: [{ type: tmpfs, target: /taken }, { type: tmpfs, target: /srv/t/linked }]").await;
    stage.mounted(&instance, &[stage.mount("", "/srv/out/here", true)]).await.unwrap();
    assert_eq!(stage.inside(&instance, "cat /escaped/here/file").await, "from outside\n");
    assert!(!outside.exists());
    for (name, target, why) in [
        ("", "/srv/p", "mounts[0].target: nothing can be mounted at /srv/p: it leads to /proc"),
        ("", "/srv/p/self", "it leads to /proc"),
        ("file", "/srv/d", "it leads to /dev/null"),
        ("", "/srv/r", "it leads to the root"),
        ("", "/taken/", "the pool's spec mounts something there already"),
        ("", "/srv/real/linked", "the pool's spec mounts something there already"),
        ("", "/etc/passwd", "one is a directory and the other a file"),
        ("file", "/srv", "one is a directory and the other a file"),
        ("", "/etc/passwd/below", "Not a directory"),
    ] {
        let told = stage.refused(&instance, name, target).await;
        assert!(told.contains(why), "{target}: {told}");
    }
}

/// Nor may it hide the names of the network, or a link on the way to them.
#[tokio::test]
async fn a_target_hides_no_file_about_names() {
    let Some(stage) = Stage::new() else { return };
    fs::create_dir(stage.root.join("srv/names")).unwrap();
    symlink("/srv/names/servers", stage.root.join("etc/resolv.conf")).unwrap();
    symlink("/etc", stage.root.join("srv/etc")).unwrap();
    let names = "network_mode: host\nextra_hosts: ['far:192.0.2.9']\ndns: [192.0.2.53]";
    let instance = stage.idle(names).await;
    for (name, target, hidden) in [
        ("", "/etc", "/etc/hosts"),
        ("", "/srv/etc/", "/etc/hosts"),
        ("file", "/etc/hosts", "/etc/hosts"),
        ("", "/srv/names", "/etc/resolv.conf"),
    ] {
        let told = stage.refused(&instance, name, target).await;
        let expected = format!(
            "mounts[0].target: nothing can be mounted at {target}: it would hide {hidden}, which is made for each sandbox; \
             name another path"
        );
        assert_eq!(told, expected);
    }
    stage.mounted(&instance, &[stage.mount("file", "/etc/one", true)]).await.unwrap();
    let told = stage.inside(&instance, "cat /etc/one /etc/hosts /etc/resolv.conf").await;
    for seen in ["from outside\n", "192.0.2.9\tfar\n", "nameserver 192.0.2.53\n"] {
        assert!(told.contains(seen), "{told}");
    }
    // Without any of its own, there is none to hide.
    stage.sandbox.runtime.remove(&instance).await.unwrap();
    let plain = stage.idle("network_mode: host").await;
    let has_files = !read_json(&stage.sandbox.dir(&plain).join("record.json"))["launch"]["network"]["files"]
        .as_array()
        .is_none_or(Vec::is_empty);
    let told = stage.mounted(&plain, &[stage.mount("", "/etc", true)]).await;
    assert_eq!(told.is_ok(), !has_files, "{told:?}");
}

#[tokio::test]
async fn mounts_of_which_one_would_hide_the_other_by_a_link_are_refused_with_both_targets() {
    let Some(stage) = Stage::new() else { return };
    symlink("/run", stage.root.join("srv/run")).unwrap();
    for (one, real) in [("/run/x", "/run/x"), ("/run/x/y", "/run/x/y")] {
        let instance = stage.idle("").await;
        let mounts = [stage.mount("deep", one, true), stage.mount("", "/srv/run/x", true)];
        let (kind, told) = stage.mounted(&instance, &mounts).await.unwrap_err();
        let expected = format!(
            "mounts[1].target: nothing can be mounted at /srv/run/x: it leads to /run/x, and would hide what is mounted at \
             {one}, which leads to {real}"
        );
        assert_eq!((kind, told), (ErrorKind::Rejected, expected));
        stage.sandbox.runtime.remove(&instance).await.unwrap();
    }
    let instance = stage.idle("").await;
    let mounts = [stage.mount("", "/run/x", true), stage.mount("deep", "/srv/run/x/deep", true)];
    stage.mounted(&instance, &mounts).await.unwrap();
    assert_eq!(stage.inside(&instance, "cat /run/x/file").await, "from outside\n", "what lies below it hides nothing");
}

#[tokio::test]
async fn what_can_not_be_made_or_reached_is_refused_with_the_reason() {
    let Some(stage) = Stage::new() else { return };
    let closed = stage.idle("read_only_root_fs: true").await;
    let told = stage.refused(&closed, "", "/new").await;
    assert!(told.contains("mounts[0].target") && told.contains("what lies above is read-only"), "{told}");
    stage.mounted(&closed, &[stage.mount("", "/srv", true)]).await.unwrap();
    assert_eq!(stage.inside(&closed, "cat /srv/file").await, "from outside\n");
    stage.sandbox.runtime.remove(&closed).await.unwrap();

    let limited = stage.idle("sandbox: { readable: [/srv], writable: [/work], require: [landlock] }").await;
    let told = stage.refused(&limited, "", "/data").await;
    assert!(told.contains("the program may not read there"), "{told}");
    let told = stage.refused(&limited, "", "/srv/rw").await;
    assert!(told.contains("the program may not write there"), "{told}");
    stage.mounted(&limited, &[stage.mount("", "/srv/ro", true)]).await.unwrap();
    assert_eq!(stage.inside(&limited, "cat /srv/ro/file").await, "from outside\n");
}

#[tokio::test]
async fn sources_that_no_program_may_see_are_refused_with_their_field() {
    let Some(stage) = Stage::new() else { return };
    let instance = stage.idle("").await;
    rustix::fs::mknodat(
        rustix::fs::CWD,
        stage.shown.join("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    symlink(stage.sandbox.root.path().join("sandbox"), stage.shown.join("state")).unwrap();
    for (name, kind, why) in [
        ("nope", ErrorKind::Failed, "can't be mounted: No such file or directory"),
        ("pipe", ErrorKind::Rejected, "neither a directory nor a file"),
        ("../sandbox/instances", ErrorKind::Rejected, "where Evenkeel keeps its state"),
        ("state", ErrorKind::Rejected, "it lies in "),
        ("..", ErrorKind::Rejected, "it holds "),
    ] {
        let mounts = [stage.mount("", "/a", true), stage.mount(name, "/b", true)];
        let (found, told) = stage.mounted(&instance, &mounts).await.unwrap_err();
        assert_eq!(found, kind, "{name}: {told}");
        assert!(told.starts_with("mounts[1].source: ") && told.contains(why), "{name}: {told}");
        let checked = stage.sandbox.runtime.check_mounts(&mounts).await.unwrap_err().message;
        assert_eq!(checked, told);
    }
    assert_eq!(stage.inside(&instance, "ls -d /a /b 2>/dev/null").await, "", "nothing was mounted or made");

    // What a program may write from now on is not trusted to hold links.
    stage.mounted(&instance, &[stage.mount("deep", "/rw", false)]).await.unwrap();
    stage.inside(&instance, "ln -s /etc /rw/link 2>/dev/null || busybox ln -s /etc /rw/link").await;
    let (_, told) = stage.mounted(&instance, &[stage.mount("deep/link", "/c", true)]).await.unwrap_err();
    assert!(told.contains("deep, which programs may write, so it may lead anywhere"), "{told}");
}

#[tokio::test]
async fn nothing_is_mounted_into_what_does_not_run() {
    let Some(stage) = Stage::new() else { return };
    let created =
        stage.sandbox.runtime.create(&crate::support::request(&shell_in(&stage.root, "true"), 0)).await.unwrap();
    let told = stage.refused(&created.as_ref(), "", "/a").await;
    assert!(told.contains("does not run"), "{told}");
    stage.sandbox.runtime.remove(&created.as_ref()).await.unwrap();
    let (kind, _) = stage.mounted(&created.as_ref(), &[stage.mount("", "/a", true)]).await.unwrap_err();
    assert_eq!(kind, ErrorKind::NotFound);
}

#[tokio::test]
async fn what_is_mounted_later_on_the_machine_or_inside_shows_on_its_own_side_alone() {
    let name = "late_mounts::what_is_mounted_later_on_the_machine_or_inside_shows_on_its_own_side_alone";
    if !with_own_mounts("mount --make-rshared /", name) {
        return;
    }
    let Some(stage) = Stage::new() else { return };
    let instance = stage.idle("privileged: true").await;
    stage.mounted(&instance, &[stage.mount("", "/seen", false)]).await.unwrap();
    let there = stage.path("deep");
    let mount =
        |arguments: &[&str]| assert!(Command::new(arguments[0]).args(&arguments[1..]).status().unwrap().success());
    mount(&["mount", "-t", "tmpfs", "late", &there]);
    fs::write(stage.path("deep/late"), "").unwrap();
    assert_eq!(stage.inside(&instance, "ls /seen/deep").await, "");
    mount(&["umount", &there]);
    let before = mounts_of_the_machine(&stage);
    let told = stage.inside(&instance, "mount -t tmpfs inner /seen/deep && touch /seen/deep/x && ls /seen/deep").await;
    assert_eq!(told, "x\n");
    assert_eq!((mounts_of_the_machine(&stage), fs::read_dir(&there).unwrap().count()), (before, 0));
}

#[tokio::test]
async fn nothing_is_mounted_into_mounts_that_the_program_has_every_right_over() {
    let Some(stage) = Stage::new() else { return };
    let script = "exec busybox unshare -U -r -m busybox sleep 1000";
    let fields = "sandbox: {seccomp: unconfined}";
    let started = stage.sandbox.run(&format!("{}\n{fields}", shell_in(&stage.root, script))).await;
    let pid = started.pid.unwrap();
    let owner = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/user")).unwrap();
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while owner(&pid.to_string()) == owner("self") {
        assert!(std::time::Instant::now() < end, "it makes a user namespace");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let done = stage.mounted(&started.as_ref(), &[stage.mount("", "/tmp/ro", true)]).await;
    let (_, why) = done.unwrap_err();
    assert!(why.contains("its program has made mounts of its own"), "{why}");
    assert_eq!(fs::read_to_string(stage.shown.join("file")).unwrap(), "from outside\n");
}
