//! The same run by an OCI runtime of the machine.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};

use super::timed;

/// Calls side by side, as the sandbox runtime's.
fn concurrency() -> usize {
    4 * std::thread::available_parallelism().map_or(1, usize::from)
}

/// Hides the second version of cgroups from this thread and what it starts, where the machine has both: Debian's crun
/// refuses such a machine.
fn hide_second_cgroups() {
    let unified = Path::new("/sys/fs/cgroup/unified");
    if !unified.exists() {
        return;
    }
    // SAFETY: only this thread leaves the mount namespace; nothing that is open refers to it.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.expect("mounts of its own");
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).expect("private mounts");
    let _ = unmount(unified, UnmountFlags::DETACH);
}

/// Does something on a thread that sees one version of cgroups.
fn apart<T: Send>(action: impl FnOnce() -> T + Send) -> T {
    let action = || {
        hide_second_cgroups();
        action()
    };
    std::thread::scope(|scope| scope.spawn(action).join().expect("a thread"))
}

pub struct Bundle {
    program: &'static str,
    folder: PathBuf,
    next: AtomicU32,
}

impl Bundle {
    /// A bundle for a program; `None` where it is not installed or can't run here.
    pub fn new(program: &'static str, folder: &Path, image: &Path) -> Option<Self> {
        let folder = folder.join(program);
        let bundle = Self { program, folder: folder.clone(), next: AtomicU32::new(0) };
        for command in ["true", "sleep"] {
            let place = folder.join(command);
            std::fs::create_dir_all(&place).ok()?;
            let made = place.join("config.json").exists()
                || Command::new(program)
                    .args(["spec", "--bundle"])
                    .arg(&place)
                    .status()
                    .is_ok_and(|status| status.success());
            if !made {
                println!("  {program} is not installed");
                return None;
            }
            let text = std::fs::read_to_string(place.join("config.json")).ok()?;
            let mut config: serde_json::Value = serde_json::from_str(&text).ok()?;
            config["process"]["terminal"] = false.into();
            config["process"]["args"] = if command == "true" { vec!["true"] } else { vec!["sleep", "100000"] }.into();
            config["process"].as_object_mut()?.remove("rlimits");
            config["root"]["path"] = image.display().to_string().into();
            config["linux"]["namespaces"]
                .as_array_mut()?
                .retain(|one| one["type"] != "network" && one["type"] != "cgroup");
            std::fs::write(place.join("config.json"), config.to_string()).ok()?;
        }
        let works = apart(|| bundle.run("true").status().is_ok_and(|status| status.success()));
        if !works {
            println!("  {program} can't run here");
        }
        works.then_some(bundle)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.program);
        if self.program == "crun" {
            command.arg("--cgroup-manager=disabled");
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn name(&self) -> String {
        format!("keel-bench-{}-{}", std::process::id(), self.next.fetch_add(1, Ordering::Relaxed))
    }

    fn run(&self, what: &str) -> Command {
        let mut command = self.command();
        command.args(["run", "--bundle"]).arg(self.folder.join(what)).arg(self.name());
        command
    }

    pub fn to_exit(&self) -> Duration {
        let mut command = self.run("true");
        let (took, status) = apart(|| timed(|| command.status()));
        assert!(status.expect("a run").success());
        took
    }

    pub fn many(&self, count: usize) -> Duration {
        let names: Vec<String> = (0..count).map(|_| self.name()).collect();
        let each = |action: &(dyn Fn(&str) + Sync)| {
            let next = AtomicU32::new(0);
            std::thread::scope(|scope| {
                for _ in 0..concurrency() {
                    scope.spawn(|| {
                        hide_second_cgroups();
                        while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                            action(name);
                        }
                    });
                }
            });
        };
        let (took, ()) = timed(|| {
            each(&|name| {
                let mut command = self.command();
                command.args(["run", "--detach", "--bundle"]).arg(self.folder.join("sleep")).arg(name);
                assert!(command.status().expect("a run").success());
            });
        });
        each(&|name| {
            let _ = self.command().args(["delete", "--force", name]).status();
        });
        took
    }
}
