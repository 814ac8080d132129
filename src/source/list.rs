//! Listing a root: which spec files are there, and which parts can't be seen.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::bounds::{MAX_DEPTH, MAX_ENTRIES, MAX_FILES, MAX_TOTAL_BYTES};
use crate::spec::{MAX_FILE_SIZE, is_ignored, is_spec_file};

/// What was found at a root.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// What the root itself is.
    pub state: RootState,
    /// Spec files by path below the root as it was named.
    pub files: BTreeMap<PathBuf, Entry>,
    /// Parts that could not be seen. Nothing below them counts as gone.
    pub gaps: Vec<Gap>,
    /// Directories that were listed, the root first.
    pub directories: BTreeSet<PathBuf>,
    /// Spec files that are reached through a symbolic link of their own.
    pub links: BTreeSet<PathBuf>,
}

/// What a root is.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) enum RootState {
    /// It does not exist.
    #[default]
    Missing,
    /// It may exist and can't be looked at; why is in the gaps.
    Unreadable,
    /// A directory or a file; the text differs for another one of the same name.
    Present(String),
}

/// A spec file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    /// It can be read.
    File(Stamp),
    /// It is there and can't be read.
    Bad(Flaw),
}

/// What is wrong, without a position in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Flaw {
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: Option<&'static str>,
}

impl Flaw {
    pub(super) fn new(message: impl Into<String>, help: &'static str) -> Self {
        Self { message: message.into(), help: Some(help) }
    }

    pub(super) fn unreadable(error: &std::io::Error) -> Self {
        Self { message: format!("can't be read: {error}"), help: None }
    }
}

/// A part of a tree that could not be seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Gap {
    /// It and everything below.
    pub under: PathBuf,
    /// Why.
    pub flaw: Flaw,
    /// Whether it matters only where something was declared below: any dangling link may once have been a directory.
    pub only_if_known: bool,
}

/// What tells whether a file may have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Seconds since 1970 of the last change that is known.
    pub(super) fn last_change(&self) -> i64 {
        self.modified.0.max(self.changed.0)
    }
}

/// Text that differs for another directory of the same name, also for one that got the old one's inode number.
pub(super) fn identity(metadata: &Metadata) -> String {
    format!("{}:{}", metadata.dev(), born_as(metadata))
}

/// Text that differs for another file of the same file system, also for one that got the old one's inode number.
pub(super) fn born_as(metadata: &Metadata) -> String {
    let born = metadata.created().ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    let born = born.map_or_else(String::new, |born| format!(":{}", born.as_nanos()));
    format!("{}{born}", metadata.ino())
}

/// How much of a root is listed at most.
#[derive(Debug, Clone, Copy)]
struct Limits {
    files: usize,
    entries: usize,
    depth: usize,
    bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { files: MAX_FILES, entries: MAX_ENTRIES, depth: MAX_DEPTH, bytes: MAX_TOTAL_BYTES }
    }
}

/// Lists a directory tree, or a single file (whatever its name: somebody named it).
pub(super) fn list(root: &Path) -> Listing {
    list_within(root, Limits::default())
}

fn list_within(root: &Path, limits: Limits) -> Listing {
    let mut listing = Listing::default();
    match fs::metadata(root) {
        Err(error) if is_gone(&error) => {}
        Err(error) => {
            listing.state = RootState::Unreadable;
            listing.gap(root, Flaw::unreadable(&error));
        }
        Ok(metadata) => {
            listing.state = RootState::Present(identity(&metadata));
            if metadata.is_dir() {
                Walk { listing: &mut listing, limits, entries: 0, bytes: 0 }.directory(root, &metadata);
            } else {
                listing.files.insert(root.to_path_buf(), file_entry(&metadata));
                listing.links.insert(root.to_path_buf());
            }
        }
    }
    // What could not even be opened at the top is no empty directory.
    if listing.gaps.iter().any(|gap| gap.under == root && listing.files.is_empty()) {
        listing.state = RootState::Unreadable;
    }
    listing
}

impl Listing {
    fn gap(&mut self, under: &Path, flaw: Flaw) {
        self.gaps.push(Gap { under: under.to_path_buf(), flaw, only_if_known: false });
    }

    /// The gap that hides a path.
    pub(super) fn gap_over(&self, path: &Path) -> Option<&Gap> {
        self.gaps.iter().find(|gap| path.starts_with(&gap.under))
    }
}

struct Walk<'a> {
    listing: &'a mut Listing,
    limits: Limits,
    entries: usize,
    bytes: u64,
}

/// A directory that is to be listed, with the devices and inodes of the directories on the way to it.
struct Todo {
    path: PathBuf,
    way: Vec<(u64, u64)>,
}

impl Walk<'_> {
    fn directory(&mut self, root: &Path, metadata: &Metadata) {
        let mut todo = vec![Todo { path: root.to_path_buf(), way: vec![(metadata.dev(), metadata.ino())] }];
        while let Some(Todo { path, way }) = todo.pop() {
            let Some(names) = self.names(root, &path) else { continue };
            self.listing.directories.insert(path.clone());
            for name in names {
                if let Some(below) = self.entry(path.join(&name), &name.to_string_lossy(), &way) {
                    todo.push(below);
                }
                if self.listing.files.len() > self.limits.files {
                    return self.too_much(root);
                }
            }
            if self.entries > self.limits.entries {
                return self.too_much(root);
            }
        }
    }

    fn too_much(&mut self, root: &Path) {
        let Limits { files, entries, .. } = self.limits;
        let message = format!("holds more than {files} spec files or {entries} entries");
        self.listing.gap(root, Flaw::new(message, "name a directory that holds only specs"));
    }

    /// Names in a directory, sorted; none where it can't be listed.
    fn names(&mut self, root: &Path, path: &Path) -> Option<Vec<std::ffi::OsString>> {
        let room = self.limits.entries.saturating_sub(self.entries) + 1;
        let listed = fs::read_dir(path)
            .and_then(|entries| entries.take(room).map(|entry| entry.map(|entry| entry.file_name())).collect());
        match listed {
            Ok(names) => {
                let mut names: Vec<_> = names;
                self.entries += names.len();
                names.sort();
                Some(names)
            }
            // It went while we looked; that it is gone shows by itself. A root's own state is known already.
            Err(error) if is_gone(&error) && path != root => None,
            Err(error) => {
                self.listing.gap(path, Flaw::unreadable(&error));
                None
            }
        }
    }

    /// Takes one entry in; a directory is given back to be listed.
    fn entry(&mut self, path: PathBuf, name: &str, way: &[(u64, u64)]) -> Option<Todo> {
        if is_ignored(name) {
            return None;
        }
        let is_spec = is_spec_file(name);
        let linked = fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_symlink());
        let found = fs::metadata(&path);
        // One that leads nowhere may come to lead to a directory.
        let may_hold_specs = is_spec || found.as_ref().map_or(true, Metadata::is_dir);
        if linked && may_hold_specs {
            self.listing.links.insert(path.clone());
        }
        match found {
            Ok(metadata) if is_spec => {
                let entry = self.within_total(file_entry(&metadata), &metadata);
                self.listing.files.insert(path, entry);
                None
            }
            Ok(metadata) if metadata.is_dir() => self.below(path, &metadata, way),
            Ok(_) => None,
            // It went while we looked.
            Err(error) if is_gone(&error) && !linked => None,
            Err(error) => {
                let flaw = unreachable(&path, linked, &error);
                if is_spec {
                    self.listing.files.insert(path, Entry::Bad(flaw));
                } else {
                    self.listing.gaps.push(Gap { under: path, flaw, only_if_known: linked });
                }
                None
            }
        }
    }

    fn below(&mut self, path: PathBuf, metadata: &Metadata, way: &[(u64, u64)]) -> Option<Todo> {
        let id = (metadata.dev(), metadata.ino());
        // A link to a directory that it is in: everything there is listed already.
        if way.contains(&id) {
            return None;
        }
        if way.len() > self.limits.depth {
            let message = format!("is more than {} directories deep", self.limits.depth);
            self.listing.gap(&path, Flaw::new(message, "move its specs further up"));
            return None;
        }
        Some(Todo { path, way: way.iter().copied().chain([id]).collect() })
    }

    fn within_total(&mut self, entry: Entry, metadata: &Metadata) -> Entry {
        if !matches!(entry, Entry::File(_)) {
            return entry;
        }
        self.bytes = self.bytes.saturating_add(metadata.len());
        if self.bytes <= self.limits.bytes {
            return entry;
        }
        let message = format!("is not read: all files together have more than {} MiB", self.limits.bytes >> 20);
        Entry::Bad(Flaw::new(message, "move what is not a spec elsewhere"))
    }
}

fn file_entry(metadata: &Metadata) -> Entry {
    if metadata.is_dir() {
        return Entry::Bad(Flaw::new("is a directory, not a file", "remove or rename it"));
    }
    if !metadata.is_file() {
        return Entry::Bad(Flaw::new("is neither a file nor a directory", "remove it"));
    }
    if metadata.len() > MAX_FILE_SIZE as u64 {
        let message = format!("has {} bytes; at most {MAX_FILE_SIZE} are read", metadata.len());
        return Entry::Bad(Flaw::new(message, "split it into several files"));
    }
    Entry::File(Stamp::of(metadata))
}

fn unreachable(path: &Path, linked: bool, error: &std::io::Error) -> Flaw {
    match fs::read_link(path) {
        Ok(target) if linked && is_gone(error) => Flaw::new(
            format!("is a symbolic link to {}, which does not exist", target.display()),
            "restore what it points to, or remove the link",
        ),
        _ => Flaw::unreadable(error),
    }
}

/// Whether an error says that nothing is there.
pub(super) fn is_gone(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory with these files, each of this many bytes.
    fn tree(files: &[(&str, u64)]) -> tempfile::TempDir {
        let base = tempfile::tempdir().unwrap();
        for (file, size) in files {
            let path = base.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::File::create(path).unwrap().set_len(*size).unwrap();
        }
        base
    }

    fn messages(listing: &Listing) -> Vec<&str> {
        listing.gaps.iter().map(|gap| gap.flaw.message.as_str()).collect()
    }

    fn readable(listing: &Listing) -> Vec<String> {
        let files = listing.files.iter().filter(|(_, entry)| matches!(entry, Entry::File(_)));
        files.map(|(path, _)| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn more_files_than_the_bound_are_not_listed_and_hide_the_whole_root() {
        let base = tree(&[("a.yaml", 1), ("b.yaml", 1), ("c.yaml", 1), ("d.yaml", 1), ("below/e.yaml", 1)]);
        let limits = Limits { files: 3, ..Limits::default() };
        let listing = list_within(base.path(), limits);
        assert_eq!(messages(&listing), ["holds more than 3 spec files or 100000 entries"]);
        assert_eq!(listing.files.len(), limits.files + 1);
        assert!(listing.gap_over(&base.path().join("below/e.yaml")).is_some());
        let enough = list_within(base.path(), Limits { files: 5, ..limits });
        assert_eq!((messages(&enough), enough.files.len()), (vec![], 5));
    }

    #[test]
    fn more_entries_than_the_bound_are_not_looked_at_whatever_they_are() {
        let base = tree(&[("a.txt", 1), ("b.txt", 1), ("below/c.txt", 1), ("below/d.yaml", 1)]);
        let listing = |entries| list_within(base.path(), Limits { entries, ..Limits::default() });
        for (entries, gaps) in [(2, 1), (4, 1), (5, 0)] {
            assert_eq!(listing(entries).gaps.len(), gaps, "{entries}");
        }
        assert_eq!(messages(&listing(4)), ["holds more than 10000 spec files or 4 entries"]);
        // Of the names beyond the bound, one is read: it shows that there are more.
        let mut walk =
            Walk { listing: &mut Listing::default(), limits: Limits::default(), entries: MAX_ENTRIES - 1, bytes: 0 };
        assert_eq!(walk.names(base.path(), base.path()).map(|names| names.len()), Some(2));
    }

    #[test]
    fn files_beyond_the_bytes_of_one_root_are_named_and_not_read() {
        let base = tree(&[("a.yaml", 1 << 20), ("b.yaml", 1 << 20), ("c.yaml", 1)]);
        let listing = list_within(base.path(), Limits { bytes: 2 << 20, ..Limits::default() });
        assert_eq!(readable(&listing), ["a.yaml", "b.yaml"]);
        let Entry::Bad(flaw) = &listing.files[&base.path().join("c.yaml")] else { panic!("{listing:?}") };
        assert_eq!(flaw.message, "is not read: all files together have more than 2 MiB");
    }
}
