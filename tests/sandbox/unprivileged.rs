//! The same tests again as an ordinary user, where they run as root.

use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::support::{PATIENCE, REQUIRE_GROUPS, Sandbox, is_root, keel, rootfs, shell_in};

/// The user and group that own nothing.
const NOBODY: u32 = 65_534;

/// The tests and the program, where an ordinary user can use them.
pub struct Copies {
    folder: tempfile::TempDir,
}

impl Copies {
    pub fn new() -> Self {
        // The programs may lie where an ordinary user can't go.
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let copy = |from: &Path, name: &str| std::fs::copy(from, folder.path().join(name)).unwrap();
        copy(&std::env::current_exe().unwrap(), "tests");
        copy(&keel(), "keel");
        copy(&keel().parent().unwrap().join("examples/sandbox_probe"), "probe");
        let own = folder.path().join("tmp");
        std::fs::create_dir(&own).unwrap();
        chown(&own, Some(NOBODY), Some(NOBODY)).unwrap();
        Self { folder }
    }

    /// The tests as an ordinary user.
    pub fn tests(&self) -> Command {
        let own = self.folder.path().join("tmp");
        let mut command = Command::new(self.folder.path().join("tests"));
        command.current_dir(&own).env("TMPDIR", &own).env("KEEL_TEST_PROGRAM", self.folder.path().join("keel"));
        command.env("KEEL_TEST_PROBE", self.folder.path().join("probe")).uid(NOBODY).gid(NOBODY);
        command
    }
}

#[test]
fn everything_holds_for_an_ordinary_user_too() {
    if !is_root() {
        return;
    }
    let output = Copies::new().tests().output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn a_machine_that_covers_a_part_of_its_own_sys_shows_an_ordinary_user_no_more() {
    if !is_root() {
        return;
    }
    let copies = Copies::new();
    let tests = copies.tests();
    // As in a container; a new /sys would show what is covered, which the kernel refuses.
    let script = "mount -t tmpfs none /sys/firmware && exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(tests.get_program()).arg("isolation::");
    command.envs(tests.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = command.current_dir(copies.folder.path().join("tmp")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// Variable that tells an ordinary user's tests of a root file system that belongs to root.
const FOREIGN_ROOT: &str = "KEEL_TEST_FOREIGN_ROOT";

#[tokio::test]
async fn a_root_file_system_of_somebody_else_that_lacks_files_is_run_all_the_same() {
    if let Some(root) = std::env::var_os(FOREIGN_ROOT) {
        let sandbox = Sandbox::new();
        let script = "head -c 7 /etc/passwd; echo; test -s /etc/hosts && echo hosts; ls -d /proc/self /etc/motd /data; \
                      cat /etc/motd; readlink /etc/link; echo x > /data/file && cat /data/file; echo x 2>/dev/null > /bin/x || echo no";
        let yaml = shell_in(Path::new(&root), script) + "\nstorage: [{ type: tmpfs, target: /data }]";
        let instance = sandbox.run(&yaml).await;
        sandbox.ended(&instance.as_ref()).await;
        let output = sandbox.output(&instance.as_ref());
        let expected = "root:x:\nhosts\n/data\n/etc/motd\n/proc/self\nhello\n/nowhere\nx\nno\n";
        return assert_eq!(output, expected);
    }
    if !is_root() {
        return;
    }
    let copies = Copies::new();
    let root = rootfs(copies.folder.path());
    std::fs::write(root.join("etc/motd"), "hello\n").unwrap();
    std::os::unix::fs::symlink("/nowhere", root.join("etc/link")).unwrap();
    let name = "unprivileged::a_root_file_system_of_somebody_else_that_lacks_files_is_run_all_the_same";
    let output = copies.tests().args(["--exact", name]).env(FOREIGN_ROOT, &root).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// A control group of version 2 that was handed to an ordinary user.
struct Delegated(PathBuf);

impl Delegated {
    fn new() -> Option<Self> {
        let top = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(Path::new);
        let top = top.into_iter().find(|top| top.join("cgroup.controllers").exists())?;
        let dir = top.join(format!("keel-test-{}", std::process::id()));
        std::fs::create_dir(&dir).ok()?;
        for file in ["", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"] {
            chown(dir.join(file), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        Some(Self(dir))
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        for dir in [self.0.join("keel"), self.0.join("controller"), self.0.clone()] {
            let end = Instant::now() + PATIENCE;
            while dir.exists() && std::fs::remove_dir(&dir).is_err() && Instant::now() < end {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        }
    }
}

#[test]
fn limits_hold_for_an_ordinary_user_with_a_delegated_group_too() {
    if !is_root() {
        return;
    }
    let Some(delegated) = Delegated::new() else {
        return eprintln!("skipped: there are no control groups of version 2 here");
    };
    let copies = Copies::new();
    let tests = copies.tests();
    // A shell waits until it is moved, and becomes the tests then.
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "read word && exec \"$0\" limits::"]).arg(tests.get_program()).uid(NOBODY).gid(NOBODY);
    command.envs(tests.get_envs().filter_map(|(name, value)| Some((name, value?)))).env(REQUIRE_GROUPS, "1");
    command.current_dir(copies.folder.path().join("tmp")).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    std::fs::write(delegated.0.join("cgroup.procs"), child.id().to_string()).unwrap();
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(
        !delegated.0.join("keel").exists() || std::fs::remove_dir(delegated.0.join("keel")).is_ok(),
        "nothing is left"
    );
}
