//! What the kernel says of a running instance: of its control groups and of its program.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::cgroup::Groups;
use super::record::Run;

/// What the kernel says of a running instance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Content of the files of its control groups that were written, where they can be read.
    pub files: BTreeMap<PathBuf, String>,
    /// Fields of its program's `/proc/PID/status`.
    pub status: BTreeMap<String, String>,
}

impl Seen {
    /// Looks at the groups and the program of a run.
    pub fn look(groups: &Groups, run: &Run) -> Self {
        let read = |path: PathBuf| Some((path.clone(), fs::read_to_string(path).ok()?.trim().to_owned()));
        let written = settings(groups).map(|(dir, file, _)| dir.join(file));
        let status = fs::read_to_string(format!("/proc/{}/status", run.program.pid)).unwrap_or_default();
        let fields = status.lines().filter_map(|line| line.split_once(':'));
        Self {
            files: written.filter_map(read).collect(),
            status: fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect(),
        }
    }

    /// A field of its program's status.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.status.get(name).map(String::as_str)
    }
}

/// Every value that is written into a control group: directory, file, value.
pub fn settings(groups: &Groups) -> impl Iterator<Item = (&Path, &str, &str)> {
    let unified = groups.unified.iter().map(|group| (&group.dir, &group.settings));
    let legacy = groups.legacy.iter().map(|group| (&group.dir, &group.settings));
    unified.chain(legacy).flat_map(|(dir, settings)| {
        settings.iter().map(move |one| (dir.as_path(), one.file.as_str(), one.value.as_str()))
    })
}
