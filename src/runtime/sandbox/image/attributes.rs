//! What files of a layer have besides their content: mode, owner, time.

use std::collections::BTreeMap;

use rustix::fs::{Gid, Stat, Timespec, Timestamps, Uid};

use super::bounds::MOST_DIRECTORY_NAMES;
use super::tar::Entry;

/// Mode, owner and time of something.
#[derive(Debug, Clone, Copy, Default)]
pub struct Attributes {
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification: seconds since the epoch, and nanoseconds.
    pub mtime: (i64, u32),
}

impl Attributes {
    /// Those of an entry.
    ///
    /// # Errors
    /// Its owner or group is no id; the text says so.
    pub fn of(entry: &Entry) -> Result<Self, String> {
        Ok(Self { mode: entry.mode, uid: id(entry.uid, "owner")?, gid: id(entry.gid, "group")?, mtime: entry.mtime })
    }

    /// Those of a file.
    pub fn of_stat(stat: &Stat) -> Self {
        let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
        Self { mode: stat.st_mode & 0o7777, uid: stat.st_uid, gid: stat.st_gid, mtime: (stat.st_mtime, nanoseconds) }
    }

    /// Its times, to be set.
    pub fn times(&self) -> Timestamps {
        let time = Timespec { tv_sec: self.mtime.0, tv_nsec: self.mtime.1.into() };
        Timestamps { last_access: time, last_modification: time }
    }

    /// Its owner and group, to be set.
    pub fn owner(&self) -> (Option<Uid>, Option<Gid>) {
        (Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))
    }
}

/// A number that is an id: the highest one means "no change" to the kernel, and one that is cut off could be root's.
fn id(number: u64, what: &str) -> Result<u32, String> {
    match u32::try_from(number) {
        Ok(id) if id < u32::MAX => Ok(id),
        _ => Err(format!("its {what} {number} is no id; they end at {}", u32::MAX - 1)),
    }
}

/// Directories and what they get once everything in them is there.
#[derive(Debug, Default)]
pub struct Directories {
    attributes: BTreeMap<Vec<u8>, Attributes>,
    bytes: usize,
}

impl Directories {
    /// Remembers what a directory gets.
    ///
    /// # Errors
    /// There are too many; the text says so.
    pub fn note(&mut self, path: Vec<u8>, attributes: Attributes) -> Result<(), String> {
        let length = path.len();
        if self.attributes.insert(path, attributes).is_none() {
            self.bytes += length;
        }
        if self.bytes > MOST_DIRECTORY_NAMES {
            return Err(format!("the names of its directories are longer than {MOST_DIRECTORY_NAMES} bytes"));
        }
        Ok(())
    }

    /// Forgets a directory and those in it.
    pub fn forget(&mut self, path: &[u8]) {
        let inside = |other: &[u8]| other.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest[0] == b'/');
        let gone: Vec<Vec<u8>> = self
            .attributes
            .range(path.to_vec()..)
            .map(|(other, _)| other)
            .take_while(|other| other.starts_with(path))
            .filter(|other| inside(other))
            .cloned()
            .collect();
        for path in gone {
            self.bytes -= path.len();
            self.attributes.remove(&path);
        }
    }

    /// All of them, inner ones before outer ones.
    pub fn inner_first(&self) -> impl Iterator<Item = (&[u8], &Attributes)> {
        self.attributes.iter().rev().map(|(path, attributes)| (path.as_slice(), attributes))
    }
}
