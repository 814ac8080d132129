//! The groups of one run: made and limited by the supervisor, entered by the first process before it does anything
//! else.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use super::super::failure::{Context, Failure};
use super::control;
use super::groups::{Groups, Setting, Unified};
use super::hierarchy::Controller;
use super::home::{again, inherit_cpus, prepare_legacy, prepare_unified, write};

/// Longest time that what an earlier run left in a group may take to be gone; it was killed before.
const LEFTOVER_LIMIT: Duration = Duration::from_secs(5);
/// The number that stands for the process that writes it.
const SELF: &[u8] = b"0";

/// Open groups that a process can be put into.
#[derive(Debug, Default)]
pub struct Seat {
    /// The group of version 2 that the first process is born in.
    birth: Option<OwnedFd>,
    /// Files that take the number of a process.
    entries: Vec<File>,
}

impl Seat {
    /// Makes the groups of a run and writes their limits. What an earlier run left in them is killed first; counters
    /// begin at zero.
    ///
    /// # Errors
    /// The kernel does not let a group be made or does not take a limit; none of them is left then.
    pub fn make(groups: &Groups) -> Result<Self, Failure> {
        let made = make_all(groups).and_then(|()| {
            for (dir, settings, controllers) in parts(groups) {
                if controllers.contains(&Controller::Cpuset)
                    && groups.unified.as_ref().is_none_or(|group| group.dir != dir)
                {
                    inherit_cpus(dir).with_context(|| format!("preparing {}", dir.display()))?;
                }
                for setting in settings {
                    limit(groups, dir, setting)?;
                }
            }
            super::devices::limit(groups)?;
            Self::open(groups).context("opening the control groups")
        });
        made.inspect_err(|_| {
            let _ = control::clear(groups, Duration::ZERO);
        })
    }

    /// Opens the groups of a run that is under way.
    ///
    /// # Errors
    /// They are gone.
    pub fn open_running(groups: &Groups) -> io::Result<Self> {
        let mut seat = Self::open(groups)?;
        if let Some((group, _)) = groups.unified.as_ref().zip(seat.birth.take()) {
            seat.entries.push(entry(&group.dir, "cgroup.procs")?);
        }
        Ok(seat)
    }

    /// Opens groups that exist.
    ///
    /// # Errors
    /// They are gone.
    pub(super) fn open(groups: &Groups) -> io::Result<Self> {
        let mut seat = Self::default();
        match &groups.unified {
            Some(group) if group.born_in => seat.birth = Some(File::open(&group.dir)?.into()),
            Some(group) => seat.entries.push(entry(&group.dir, "cgroup.procs")?),
            None => {}
        }
        for group in &groups.legacy {
            // The file of threads: a process that moves its only thread itself does not wait for every other fork and
            // exit on the machine, as moving a process does.
            seat.entries.push(entry(&group.dir, "tasks")?);
        }
        Ok(seat)
    }

    /// The group that a process is to be born in, for [`fork_into`](super::super::sys::fork_into).
    pub fn birth(&self) -> Option<BorrowedFd<'_>> {
        self.birth.as_ref().map(OwnedFd::as_fd)
    }

    /// What it holds open.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.birth().into_iter().chain(self.entries.iter().map(File::as_fd)).collect()
    }

    /// Puts this process, which has one thread, into the groups that it was not born in.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn enter(&self) -> io::Result<()> {
        self.entries.iter().try_for_each(|mut file| file.write_all(SELF))
    }
}

fn entry(dir: &Path, file: &str) -> io::Result<File> {
    OpenOptions::new().write(true).custom_flags(libc::O_CLOEXEC).open(dir.join(file))
}

/// Every group with what is written into it.
fn parts(groups: &Groups) -> impl Iterator<Item = (&Path, &[Setting], &[Controller])> {
    let unified = groups.unified.iter().map(|group| (&group.dir, &group.settings, &group.controllers));
    let legacy = groups.legacy.iter().map(|group| (&group.dir, &group.settings, &group.controllers));
    unified
        .chain(legacy)
        .map(|(dir, settings, controllers)| (dir.as_path(), settings.as_slice(), controllers.as_slice()))
}

fn make_all(groups: &Groups) -> Result<(), Failure> {
    for (dir, ..) in parts(groups) {
        let made = match make(groups, dir) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                let left =
                    control::clear(groups, LEFTOVER_LIMIT).context("removing an earlier run's control groups")?;
                if !left.is_empty() {
                    return Err(Failure::setup(format!(
                        "processes {left:?} of an earlier run were killed and do not end; they may wait for a disk or a \
                         device (ps shows them in state D)"
                    )));
                }
                // All of them are gone now, also those that were made before this one.
                return parts(groups).try_for_each(|(dir, ..)| {
                    make(groups, dir).with_context(|| format!("making the control group {}", dir.display()))
                });
            }
            made => made,
        };
        made.with_context(|| format!("making the control group {}", dir.display()))?;
    }
    Ok(())
}

/// Makes a group, and its parent where that is gone.
fn make(groups: &Groups, dir: &Path) -> io::Result<()> {
    again(|| match std::fs::create_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            prepare_parent(groups, dir)?;
            std::fs::create_dir(dir)
        }
        made => made,
    })
}

fn prepare_parent(groups: &Groups, dir: &Path) -> io::Result<()> {
    let Some(parent) = dir.parent() else { return Ok(()) };
    match groups.legacy.iter().find(|group| group.dir == dir) {
        Some(group) => prepare_legacy(parent, &group.controllers),
        None => {
            let controllers = groups.unified.as_ref().map_or(&[][..], |group| &group.controllers);
            prepare_unified(parent, controllers).map(drop)
        }
    }
}

/// Writes one limit.
fn limit(groups: &Groups, dir: &Path, setting: &Setting) -> Result<(), Failure> {
    let file = dir.join(&setting.file);
    let written = match write(&file, &setting.value) {
        // The parent was made anew by somebody who needed other controllers.
        Err(error) if error.kind() == ErrorKind::NotFound => {
            prepare_parent(groups, dir).and_then(|()| write(&file, &setting.value))
        }
        written => written,
    };
    written.map_err(|error| {
        let message = format!("{}: {} does not take {}: {error}", setting.field, file.display(), setting.value);
        // A value that the kernel calls wrong stays wrong.
        match error.raw_os_error() {
            Some(libc::EINVAL | libc::ERANGE | libc::ENODEV | libc::EOPNOTSUPP) => Failure::wrong(message),
            _ => Failure::setup(message),
        }
    })
}

/// A group with nothing in it but its directory, for trying things out.
pub(super) fn bare(dir: &Path, born_in: bool) -> Groups {
    let unified = Unified {
        dir: dir.to_owned(),
        controllers: Vec::new(),
        kill: dir.join("cgroup.kill").exists(),
        freeze: dir.join("cgroup.freeze").exists(),
        born_in,
        settings: Vec::new(),
        devices: Vec::new(),
    };
    Groups { unified: Some(unified), legacy: Vec::new() }
}
