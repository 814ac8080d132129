//! Which directories must be watched so that every change of a tree is noticed, symbolic links included.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::path::{Component, Path, PathBuf};

use super::bounds::MAX_LINKS;
use super::list::{Listing, identity};

/// What to watch: directories by their real path (no symbolic link in it), since the kernel watches directories and
/// not names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct WatchPlan {
    pub directories: BTreeMap<PathBuf, Watch>,
}

/// What to watch in a directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Watch {
    /// Differs for another directory of the same name, which needs a new watch.
    pub identity: String,
    /// What matters in it.
    pub interest: Interest,
}

/// What matters in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Interest {
    /// Everything: it holds specs.
    All,
    /// Entries of these names: roots, and links on the way to specs.
    Names(BTreeSet<OsString>),
}

impl Default for Interest {
    fn default() -> Self {
        Self::Names(BTreeSet::new())
    }
}

impl Interest {
    pub(super) fn covers(&self, name: &OsStr) -> bool {
        match self {
            Self::All => true,
            Self::Names(names) => names.contains(name),
        }
    }
}

impl WatchPlan {
    /// Adds what a root's listing needs.
    pub(super) fn add(&mut self, root: &Path, listing: &Listing) {
        for directory in &listing.directories {
            if let Ok(real) = std::fs::canonicalize(directory) {
                self.watch(&real, None);
            }
        }
        for path in listing.links.iter().map(PathBuf::as_path).chain([root]) {
            for (directory, name) in trace(path) {
                self.watch(&directory, Some(name));
            }
        }
    }

    fn watch(&mut self, directory: &Path, name: Option<OsString>) {
        if !self.directories.contains_key(directory) {
            // What can't be looked at can't be watched.
            let Ok(metadata) = std::fs::metadata(directory) else { return };
            let watch = Watch { identity: identity(&metadata), interest: Interest::default() };
            self.directories.insert(directory.to_path_buf(), watch);
        }
        let Some(watch) = self.directories.get_mut(directory) else { return };
        match (name, &mut watch.interest) {
            (None, interest) => *interest = Interest::All,
            (Some(name), Interest::Names(names)) => drop(names.insert(name)),
            (Some(_), Interest::All) => {}
        }
    }
}

/// Resolves a path as the kernel does, and gives each entry on the way whose change leads elsewhere: every symbolic
/// link, and the last entry (or the first that does not exist), each with the real path of the directory it is in.
fn trace(path: &Path) -> Vec<(PathBuf, OsString)> {
    let mut entries = Vec::new();
    let mut at = PathBuf::from("/");
    let mut rest: VecDeque<OsString> = parts(path);
    let mut links = 0;
    while let Some(part) = rest.pop_front() {
        if part == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&part);
        match std::fs::read_link(&next) {
            Ok(target) if links < MAX_LINKS => {
                links += 1;
                entries.push((at.clone(), part));
                if target.is_absolute() {
                    at = PathBuf::from("/");
                }
                for part in parts(&target).into_iter().rev() {
                    rest.push_front(part);
                }
            }
            _ if rest.is_empty() || std::fs::symlink_metadata(&next).is_err() => {
                entries.push((at, part));
                break;
            }
            _ => at = next,
        }
    }
    entries
}

fn parts(path: &Path) -> VecDeque<OsString> {
    let components = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    components.collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn every_link_on_the_way_is_watched_where_it_really_is() {
        let base = tempfile::tempdir().unwrap();
        let base = std::fs::canonicalize(base.path()).unwrap();
        std::fs::create_dir_all(base.join("real/v1/specs")).unwrap();
        symlink("v1", base.join("real/current")).unwrap();
        symlink(base.join("real"), base.join("git")).unwrap();
        let entry = |directory: &str, name: &str| (base.join(directory), OsString::from(name));
        let own = |path: &Path| trace(path).into_iter().filter(|(dir, _)| dir.starts_with(&base)).collect::<Vec<_>>();
        assert_eq!(
            own(&base.join("git/current/specs")),
            [(base.clone(), "git".into()), entry("real", "current"), entry("real/v1", "specs")]
        );
        assert_eq!(own(&base.join("git/next/specs")), [(base.clone(), "git".into()), entry("real", "next")]);
        symlink("loop", base.join("loop")).unwrap();
        assert!(own(&base.join("loop/x")).len() <= MAX_LINKS + 1);
    }
}
