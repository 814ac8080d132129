//! The control groups of one instance, as its record keeps them.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::super::devices::DeviceRule;
use super::hierarchy::Controller;
use crate::state::Owner;

/// The control groups of one instance. Empty where keel may make none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Groups {
    /// The one of version 2.
    #[serde(default)]
    pub unified: Option<Unified>,
    /// Those of version 1.
    #[serde(default)]
    pub legacy: Vec<Legacy>,
}

/// A group of version 2.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unified {
    /// Its directory.
    pub dir: PathBuf,
    /// Controllers that it has.
    pub controllers: Vec<Controller>,
    /// Whether it has `cgroup.kill` (Linux 5.14).
    pub kill: bool,
    /// Whether it has `cgroup.freeze` (Linux 5.2).
    pub freeze: bool,
    /// Whether a process can be born in it (`CLONE_INTO_CGROUP`, Linux 5.7).
    pub born_in: bool,
    /// What is written into it.
    pub settings: Vec<Setting>,
    /// What its processes may do with which device; everything where it is empty.
    #[serde(default)]
    pub devices: Vec<DeviceRule>,
}

/// A group of version 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Legacy {
    /// Its directory.
    pub dir: PathBuf,
    /// Controllers that it has.
    pub controllers: Vec<Controller>,
    /// What is written into it.
    pub settings: Vec<Setting>,
}

/// One value that is written into a file of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// Name of the file.
    pub file: String,
    /// The value.
    pub value: String,
    /// Field of the spec that asks for it, for messages.
    pub field: String,
}

impl Groups {
    /// Directories of all groups.
    pub fn dirs(&self) -> impl Iterator<Item = &Path> {
        let unified = self.unified.iter().map(|group| group.dir.as_path());
        unified.chain(self.legacy.iter().map(|group| group.dir.as_path()))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.dirs().next().is_none()
    }

    /// The group of version 1 with this controller.
    pub fn legacy(&self, controller: Controller) -> Option<&Legacy> {
        self.legacy.iter().find(|group| group.controllers.contains(&controller))
    }

    /// The group of version 2, where it has this controller.
    pub fn unified(&self, controller: Controller) -> Option<&Unified> {
        self.unified.as_ref().filter(|group| group.controllers.contains(&controller))
    }

    /// Only those groups that have this name: what a record that was tampered with names besides is not ours.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        let is_ours = |dir: &Path| dir.file_name().is_some_and(|last| last == name);
        self.unified = self.unified.filter(|group| is_ours(&group.dir));
        self.legacy.retain(|group| is_ours(&group.dir));
        self
    }
}

/// Name of the groups of an instance: the owner, the directory of the runtime as the file system numbers it, and the
/// runtime's id. The number keeps the copy of a state directory from taking the original's groups for its own.
///
/// # Errors
/// The directory can't be looked at.
pub fn name(owner: &Owner, root: &Path, runtime_id: &str) -> std::io::Result<String> {
    let root = std::fs::metadata(root)?;
    let plain: String =
        owner.0.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' }).collect();
    Ok(format!("{plain}_{:x}-{:x}_{runtime_id}", root.dev(), root.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_owners_roots_and_instances_apart_and_stay_in_one_directory() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let named = |owner: &str, root: &Path, id: &str| name(&Owner(owner.to_owned()), root, id).unwrap();
        let first = named("a1", one.path(), "demo_web_0_01234567_0");
        assert!(first.starts_with("a1_") && first.ends_with("_demo_web_0_01234567_0"), "{first}");
        assert_eq!(first, named("a1", one.path(), "demo_web_0_01234567_0"));
        for different in [
            named("a2", one.path(), "demo_web_0_01234567_0"),
            named("a1", other.path(), "demo_web_0_01234567_0"),
            named("a1", one.path(), "demo_web_0_01234567_1"),
        ] {
            assert_ne!(first, different);
        }
        assert!(!named("../a", one.path(), "x").contains(['/', '.']));
    }

    #[test]
    fn only_groups_of_the_name_are_kept() {
        let legacy = |dir: &str| Legacy { dir: dir.into(), controllers: vec![], settings: vec![] };
        let groups = Groups { unified: None, legacy: vec![legacy("/c/keel/mine"), legacy("/c/system.slice")] };
        assert_eq!(groups.named("mine").dirs().collect::<Vec<_>>(), [Path::new("/c/keel/mine")]);
    }
}
