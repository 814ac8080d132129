//! Where groups of instances are made, and the parents above them.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::groups::{Groups, Legacy, Unified};
use super::hierarchy::Controller;

/// Name of the group that holds those of all instances.
pub const PARENT: &str = "keel";
/// Most tries to use a parent that somebody removes at the same time, because it is empty. Each takes some microseconds,
/// and meets a removal only where another process probes or ends its last instance in just that time.
const MOST_TRIES: usize = 10;

/// Does something in a parent, again where that is gone meanwhile.
///
/// # Errors
/// Those of the last try.
pub fn again<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 1..MOST_TRIES {
        match attempt() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            done => return done,
        }
    }
    attempt()
}

/// Where groups of instances can be made on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Homes {
    /// In version 2, or why not.
    pub unified: Result<UnifiedHome, String>,
    /// In version 1, where that may be written.
    pub legacy: Vec<LegacyHome>,
    /// Why controllers that exist in neither of them do not.
    pub refused: Vec<(Controller, String)>,
    /// Whether the weight of disk accesses has an effect here, or why not.
    pub io_weight: Result<(), String>,
}

/// The parent of groups in version 2.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnifiedHome {
    /// Its directory.
    pub dir: PathBuf,
    /// Controllers that its children have.
    pub controllers: Vec<Controller>,
    /// Whether its children have `cgroup.kill`.
    pub kill: bool,
    /// Whether its children have `cgroup.freeze`.
    pub freeze: bool,
    /// Whether processes can be born in its children.
    pub born_in: bool,
    /// Whether access to devices is limited, or why not.
    pub devices: Result<(), String>,
    /// Whether swap is limited (`memory.swap.max`).
    pub swap: bool,
    /// File of the weight of disk accesses.
    pub io_weight: Option<String>,
}

/// The parent of groups in one hierarchy of version 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LegacyHome {
    /// Its directory.
    pub dir: PathBuf,
    /// Controllers of the hierarchy.
    pub controllers: Vec<Controller>,
    /// Whether swap is limited (`memory.memsw.limit_in_bytes`).
    pub swap: bool,
    /// File of the weight of disk accesses.
    pub io_weight: Option<String>,
}

impl Homes {
    /// What is known where nothing may be made.
    pub fn none(why: &str) -> Self {
        Self {
            unified: Err(why.to_owned()),
            legacy: Vec::new(),
            refused: Controller::ALL.map(|controller| (controller, why.to_owned())).to_vec(),
            io_weight: Err(why.to_owned()),
        }
    }

    /// The home of version 2, where its children have this controller.
    pub fn unified(&self, controller: Controller) -> Option<&UnifiedHome> {
        self.unified.as_ref().ok().filter(|home| home.controllers.contains(&controller))
    }

    /// The home of version 1 with this controller.
    pub fn legacy(&self, controller: Controller) -> Option<&LegacyHome> {
        self.legacy.iter().find(|home| home.controllers.contains(&controller))
    }

    /// Why there is no such controller.
    pub fn why_not(&self, controller: Controller) -> &str {
        let refused = self.refused.iter().find(|(refused, _)| *refused == controller);
        refused.map_or("the kernel has no such controller", |(_, why)| why.as_str())
    }

    /// Directories of all homes.
    pub fn dirs(&self) -> impl Iterator<Item = &Path> {
        let unified = self.unified.iter().map(|home| home.dir.as_path());
        unified.chain(self.legacy.iter().map(|home| home.dir.as_path()))
    }
}

impl Groups {
    /// Every group of this name that there could be.
    pub fn anywhere(homes: &Homes, name: &str) -> Self {
        let unified = homes.unified.as_ref().ok().map(|home| Unified {
            dir: home.dir.join(name),
            controllers: home.controllers.clone(),
            kill: home.kill,
            freeze: home.freeze,
            born_in: home.born_in,
            settings: Vec::new(),
            devices: Vec::new(),
        });
        let legacy = homes.legacy.iter().map(|home| Legacy {
            dir: home.dir.join(name),
            controllers: home.controllers.clone(),
            settings: Vec::new(),
        });
        Self { unified, legacy: legacy.collect() }
    }
}

/// Makes the parent of groups in version 2 and has its children get these controllers. Those that the kernel refuses
/// are returned with the reason.
///
/// # Errors
/// The directory can't be made.
pub fn prepare_unified(dir: &Path, wanted: &[Controller]) -> io::Result<Vec<(Controller, String)>> {
    make_dir(dir)?;
    let mut refused = Vec::new();
    for controller in wanted.iter().copied() {
        for level in dir.parent().into_iter().chain([dir]) {
            if let Err(error) = enable(level, controller) {
                refused.push((
                    controller,
                    format!("{} can't be used below {}: {error}", controller.unified_name(), level.display()),
                ));
                break;
            }
        }
    }
    // The kernel says the same of a directory that is gone and of a controller that is not there.
    if !refused.is_empty() && !dir.exists() {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(refused)
}

/// Gives the children of a group a controller.
fn enable(dir: &Path, controller: Controller) -> io::Result<()> {
    let file = dir.join("cgroup.subtree_control");
    // Writing what holds already would wait for all other movements between groups.
    if fs::read_to_string(&file)?.split_ascii_whitespace().any(|word| word == controller.unified_name()) {
        return Ok(());
    }
    write(&file, &format!("+{}", controller.unified_name()))
}

/// Makes the parent of groups in a hierarchy of version 1.
///
/// # Errors
/// The directory can't be made.
pub fn prepare_legacy(dir: &Path, controllers: &[Controller]) -> io::Result<()> {
    make_dir(dir)?;
    if controllers.contains(&Controller::Cpuset) {
        inherit_cpus(dir)?;
    }
    Ok(())
}

/// In version 1 a new group may use no processor and no memory node until it is told which.
///
/// # Errors
/// The files can't be read or written.
pub fn inherit_cpus(dir: &Path) -> io::Result<()> {
    let Some(parent) = dir.parent() else { return Ok(()) };
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if fs::read_to_string(dir.join(file))?.trim().is_empty() {
            write(&dir.join(file), fs::read_to_string(parent.join(file))?.trim())?;
        }
    }
    Ok(())
}

/// Makes a directory; one that exists is success.
pub fn make_dir(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// Writes to a file of a group, which is never made.
///
/// # Errors
/// There is no such file, or the kernel does not take the value.
pub fn write(file: &Path, value: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(file)?.write_all(value.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_because_a_parent_is_gone_is_tried_again_and_nothing_else_is() {
        let tries = |kind: io::ErrorKind, times: usize| {
            let mut count = 0;
            let done = again(|| {
                count += 1;
                if count > times { Ok(()) } else { Err(kind.into()) }
            });
            (done.is_ok(), count)
        };
        assert_eq!(tries(io::ErrorKind::NotFound, 3), (true, 4));
        assert_eq!(tries(io::ErrorKind::NotFound, usize::MAX), (false, MOST_TRIES));
        assert_eq!(tries(io::ErrorKind::PermissionDenied, 3), (false, 1));
    }
}
