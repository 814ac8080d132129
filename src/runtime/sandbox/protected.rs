//! Paths inside that nothing may be mounted over: directories of the kernel, and what the runtime puts into `/dev`. Whoever
//! decides what is at these has a say in what the runtime itself opens, and can undo what hides and protects parts of them.

use std::path::{Component, Path};

use super::rootfs::DEVICES;

/// Directories that are the kernel's as a whole.
const OF_KERNEL: &[&str] = &["proc", "sys"];
/// The directory of devices. Further paths may be mounted in it, such as `/dev/log`, and `/dev/shm` may be replaced.
const DEV: &str = "dev";
/// Terminals of the instance, in [`DEV`].
const TERMINALS: &str = "pts";

/// The path that keeps a mount from an absolute path without links, as it is that path or lies in it. `devices` are further
/// devices of the instance.
pub fn protecting(path: &Path, devices: &[String]) -> Option<String> {
    let mut names = path.components().filter_map(|component| match component {
        Component::Normal(name) => name.to_str(),
        _ => None,
    });
    match (names.next()?, names.next()) {
        (first, _) if OF_KERNEL.contains(&first) => Some(format!("/{first}")),
        (DEV, None) => Some(format!("/{DEV}")),
        (DEV, Some(name)) if name == TERMINALS || DEVICES.iter().any(|(usual, _)| *usual == name) => {
            Some(format!("/{DEV}/{name}"))
        }
        _ => devices.iter().find(|device| path.starts_with(device)).cloned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_of_the_kernel_and_devices_are_protected_and_nothing_else() {
        let devices = ["/dev/net/tun".to_owned()];
        for (path, by) in [
            ("/dev", Some("/dev")),
            ("/dev/", Some("/dev")),
            ("/dev/null", Some("/dev/null")),
            ("/dev/pts/0", Some("/dev/pts")),
            ("/dev/net/tun", Some("/dev/net/tun")),
            ("/proc", Some("/proc")),
            ("/proc/sys/kernel", Some("/proc")),
            ("//sys/./fs/cgroup", Some("/sys")),
            ("/dev/shm", None),
            ("/dev/shm/x", None),
            ("/dev/mqueue", None),
            ("/dev/log", None),
            ("/dev/net", None),
            ("/device", None),
            ("/srv/dev", None),
            ("/", None),
        ] {
            assert_eq!(protecting(Path::new(path), &devices).as_deref(), by, "{path}");
        }
    }
}
