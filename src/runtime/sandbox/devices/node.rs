//! Nodes of the machine's devices: which device each stands for is written down when an instance is created, and what is
//! shown at its start is that device or nothing.

use std::fmt;
use std::fs::Metadata;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;

use rustix::fs::{FileType, Stat, fstat, major, minor};
use serde::{Deserialize, Serialize};

use super::DeviceKind;
use crate::runtime::sandbox::links;
use crate::runtime::sandbox::rootfs::clone_place;
use crate::runtime::sandbox::sys::{MountAttributes, set_mount_attributes};

/// What no instance may do to a node of the machine. A node that can't be written as a file can be opened for writing as a
/// device all the same; its permissions, owner and times stay what they are.
const KEPT: MountAttributes = MountAttributes { read_only: true, no_suid: true, no_dev: false };

/// A device as the kernel knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceId {
    /// Kind.
    pub kind: DeviceKind,
    /// Number of the driver.
    pub major: u32,
    /// Number of the device.
    pub minor: u32,
}

impl DeviceId {
    /// A character device.
    pub const fn character(major: u32, minor: u32) -> Self {
        Self { kind: DeviceKind::Character, major, minor }
    }

    /// The device that a node stands for; `None` where it is none.
    pub fn of(data: &Metadata) -> Option<Self> {
        let kind = data.file_type();
        let kind = match () {
            () if kind.is_char_device() => DeviceKind::Character,
            () if kind.is_block_device() => DeviceKind::Block,
            () => return None,
        };
        Some(Self { kind, major: major(data.rdev()), minor: minor(data.rdev()) })
    }

    fn of_open(stat: &Stat) -> Option<Self> {
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::CharacterDevice => DeviceKind::Character,
            FileType::BlockDevice => DeviceKind::Block,
            _ => return None,
        };
        Some(Self { kind, major: major(stat.st_rdev), minor: minor(stat.st_rdev) })
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            DeviceKind::Character => 'c',
            DeviceKind::Block => 'b',
        };
        write!(f, "{kind} {}:{}", self.major, self.minor)
    }
}

/// A node of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its path, without links.
    pub path: PathBuf,
    /// What it stands for.
    pub device: DeviceId,
}

impl Node {
    /// A mount of the node alone, attached nowhere, through which the device can be used and the node not changed.
    ///
    /// # Errors
    /// It is not there, there is a link on the way, or it stands for something else by now.
    pub fn mount(&self) -> io::Result<OwnedFd> {
        let place = links::open(&self.path)?;
        match DeviceId::of_open(&fstat(&place)?) {
            Some(device) if device == self.device => {}
            Some(other) => return Err(self.changed(&format!("the device {other}"))),
            None => return Err(self.changed("no device")),
        }
        let tree = clone_place(&place)?;
        set_mount_attributes(tree.as_fd(), KEPT, true)?;
        Ok(tree)
    }

    fn changed(&self, into: &str) -> io::Error {
        let (path, device) = (self.path.display(), self.device);
        io::Error::new(io::ErrorKind::InvalidInput, format!("{path} is {into}, and should be {device}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_stands_for_one_device() {
        let null = DeviceId::of(&std::fs::metadata("/dev/null").unwrap());
        assert_eq!(null, Some(DeviceId::character(1, 3)));
        assert_eq!(DeviceId::of(&std::fs::metadata("/dev").unwrap()), None);
        let block = DeviceId { kind: DeviceKind::Block, major: 7, minor: 1 };
        assert_eq!((DeviceId::character(1, 3).to_string(), block.to_string()), ("c 1:3".into(), "b 7:1".into()));
    }

    #[test]
    fn what_stands_for_something_else_is_not_mounted() {
        for (path, device, told) in [
            ("/dev/null", DeviceId::character(1, 5), "/dev/null is the device c 1:3, and should be c 1:5"),
            ("/proc/self/comm", DeviceId::character(1, 3), "is a link"),
            ("/proc/version", DeviceId::character(1, 3), "/proc/version is no device, and should be c 1:3"),
        ] {
            let error = Node { path: path.into(), device }.mount().unwrap_err();
            assert!(error.to_string().contains(told), "{error}");
        }
    }
}
