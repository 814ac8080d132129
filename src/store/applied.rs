//! Files that were applied: copies in the state directory, each with the path that it came from.
//!
//! A copy is the whole file, so that its positions and relative paths stay true. A deployment that was deleted, or
//! that another file declares since, is named in `without` and left out when the copy is read.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::applied_set::{Change, finish_change, read_whole};
use super::dir::sync_parent;
use crate::spec::{Document, ParsedFile, RuntimeKind, parse_bytes};

/// Copies that are read at most; far more files than anybody applies by hand.
const MAX_COPIES: usize = 10_000;

/// The copy of a file that was applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppliedFile {
    /// Absolute path of the file; `-` for standard input.
    pub origin: PathBuf,
    /// Its content.
    pub text: String,
    /// Deployments in it that do not count any more.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub without: BTreeSet<String>,
    /// Runtime of services that name none, by deployment, where one was named; else it is left to whoever runs them. It
    /// belongs to the deployment and goes with it from file to file.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub default_runtimes: BTreeMap<String, RuntimeKind>,
}

impl AppliedFile {
    /// What the file declares, without what does not count any more.
    pub fn parse(&self) -> ParsedFile {
        let mut parsed = parse_bytes(self.text.as_bytes());
        parsed.default_runtimes = self.default_runtimes.clone();
        parsed.applied = true;
        parsed.documents.retain(|document| !self.without.contains(document.kind.deployment()));
        parsed.broken.retain(|document| document.deployment.as_ref().is_none_or(|name| !self.without.contains(name)));
        parsed
    }

    /// Its text, with blank lines in place of what does not count any more, so that what is left keeps its place. Where that
    /// can't be told apart, the whole text.
    pub fn counting_text(&self) -> String {
        let whole = parse_bytes(self.text.as_bytes());
        let (gone, left): (Vec<Document>, Vec<Document>) =
            whole.documents.into_iter().partition(|document| self.without.contains(document.kind.deployment()));
        if gone.is_empty() {
            return self.text.clone();
        }
        let begins: BTreeSet<u32> = gone.iter().map(|document| document.position.line).collect();
        let text = without_documents(&self.text, &begins);
        if parse_bytes(text.as_bytes()).documents == left { text } else { self.text.clone() }
    }

    /// Deployments that the file declares.
    pub fn deployments(&self) -> BTreeSet<String> {
        self.parse().deployments().map(str::to_owned).collect()
    }

    /// Runtime that was named for its deployments, by deployment, without what does not count any more.
    pub fn remembered_runtimes(&self) -> impl Iterator<Item = (&str, RuntimeKind)> {
        let counts = self.default_runtimes.iter().filter(|(name, _)| !self.without.contains(*name));
        counts.map(|(name, runtime)| (name.as_str(), *runtime))
    }

    fn path_in(&self, dir: &Path) -> PathBuf {
        dir.join(self.copy_name())
    }

    /// Name of the copy: saving a file replaces the copy of that name. Files are told apart by where they came from; what
    /// comes from standard input, by what it declares.
    pub fn copy_name(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(self.origin.as_os_str().as_encoded_bytes());
        if self.origin == Path::new("-") {
            for name in parse_bytes(self.text.as_bytes()).deployments() {
                hash.update([0]);
                hash.update(name.as_bytes());
            }
        }
        let digest = hash.finalize();
        let name: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        format!("{name}.json")
    }

    /// The path to show for it: where it came from, or its copy where it came from standard input.
    pub fn shown_path(&self, dir: &Path) -> PathBuf {
        match self.origin == Path::new("-") {
            true => self.path_in(dir),
            false => self.origin.clone(),
        }
    }
}

/// A text without the documents that begin in these lines, counted from 1; every other line keeps its number.
fn without_documents(text: &str, begins: &BTreeSet<u32>) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut left_out = false;
    for (number, line) in (1..).zip(text.lines()) {
        let is_mark = ["---", "..."].iter().any(|mark| {
            line.strip_prefix(mark).is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace))
        });
        left_out = begins.contains(&number) || (left_out && !is_mark);
        kept.push_str(match (is_mark, left_out) {
            (_, false) => line,
            // Without its mark, the document before it would go on.
            (true, true) => &line[..3],
            (false, true) => "",
        });
        kept.push('\n');
    }
    kept
}

/// Removes a file; one that is gone is success.
///
/// # Errors
/// Its directory can't be written.
pub(super) fn remove(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed.and_then(|()| sync_parent(path)),
    }
}

/// Saves these copies in one step: all of them or, on an error, none. An older copy of the same file is replaced, and one of
/// which nothing counts any more is removed.
///
/// # Errors
/// The directory can't be read or written, or there would be more than 10,000 copies in it.
pub fn save_applied(copies: &[AppliedFile], dir: &Path) -> std::io::Result<()> {
    save_at_most(MAX_COPIES, copies, dir)
}

fn save_at_most(most: usize, copies: &[AppliedFile], dir: &Path) -> std::io::Result<()> {
    let is_new = |copy: &&AppliedFile| !copy.path_in(dir).exists() && !copy.deployments().is_empty();
    let new = copies.iter().filter(is_new).count();
    // More could not be read again, not even to take any back.
    if new > 0 && present(dir)?.len() + new > most {
        let message = format!("more than {most} applied files; `keel delete` takes back what is not needed");
        return Err(std::io::Error::other(message));
    }
    if copies.is_empty() { Ok(()) } else { Change::saving(copies).make(dir) }
}

fn has_extension(path: &Path, name: &str) -> bool {
    path.extension().is_some_and(|extension| extension == name)
}

/// Discards these copies in one step; what is gone already is success.
///
/// # Errors
/// The directory can't be written.
pub fn discard_applied(copies: &[AppliedFile], dir: &Path) -> std::io::Result<()> {
    let gone = copies.iter().map(|copy| (copy.copy_name(), None));
    if copies.is_empty() { Ok(()) } else { Change { copies: gone.collect() }.make(dir) }
}

/// Finishes or removes what writers left behind that were cut off. For whoever holds the lock of the state directory, since nobody else
/// writes then.
///
/// # Errors
/// The directory can't be read or written.
pub fn sweep_applied(dir: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if has_extension(&path, "tmp") {
            std::fs::remove_file(&path)?;
        }
    }
    finish_change(dir)
}

/// Every copy, by the path that it came from. A directory that does not exist holds none.
///
/// # Errors
/// The directory, or a copy in it, can't be read, or it holds more than 10,000; nothing is known then.
pub fn read_applied(dir: &Path) -> std::io::Result<Vec<AppliedFile>> {
    let present = || {
        let present = present(dir)?;
        if present.len() > MAX_COPIES {
            let message =
                format!("more than {MAX_COPIES} applied files in {}; remove what is not needed", dir.display());
            return Err(std::io::Error::other(message));
        }
        let read = |path: PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            Ok((name, serde_json::from_slice(&std::fs::read(path)?)?))
        };
        present.into_iter().map(read).collect()
    };
    let mut copies: Vec<AppliedFile> = read_whole(dir, present)?.into_values().collect();
    copies.sort_by(|one: &AppliedFile, other| (&one.origin, &one.text).cmp(&(&other.origin, &other.text)));
    Ok(copies)
}

/// Paths of the copies that are there.
fn present(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<std::io::Result<Vec<_>>>()?;
    Ok(paths.into_iter().filter(|path| has_extension(path, "json")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_read_again_is_not_saved() {
        let dir = tempfile::tempdir().unwrap();
        let copy = |origin: &str| AppliedFile {
            origin: origin.into(),
            text: TWO.to_owned(),
            without: BTreeSet::new(),
            default_runtimes: BTreeMap::new(),
        };
        save_at_most(2, &[copy("/a"), copy("/b")], dir.path()).unwrap();
        let error = save_at_most(2, &[copy("/a"), copy("/c")], dir.path()).unwrap_err();
        assert!(error.to_string().starts_with("more than 2 applied files"), "{error}");
        // Those that are there can still be changed and taken back.
        let less = AppliedFile { without: ["a".to_owned(), "b".to_owned()].into(), ..copy("/b") };
        save_at_most(2, &[copy("/a"), less], dir.path()).unwrap();
        save_at_most(2, &[copy("/c")], dir.path()).unwrap();
        let left: Vec<PathBuf> = read_applied(dir.path()).unwrap().into_iter().map(|copy| copy.origin).collect();
        assert_eq!(left, [PathBuf::from("/a"), PathBuf::from("/c")]);
    }

    const TWO: &str = "version: v1\ndeployment: a\nservices: {web: {image: {name: host}}}\n---\nversion: v1\ndeployment: b\nservices: {web: {image: {name: host}}}\n";

    fn copy(origin: &str, text: &str) -> AppliedFile {
        AppliedFile {
            origin: origin.into(),
            text: text.to_owned(),
            without: BTreeSet::new(),
            default_runtimes: BTreeMap::new(),
        }
    }

    fn names(dir: &Path) -> Vec<(String, Vec<String>)> {
        let copies = read_applied(dir).expect("readable");
        copies.iter().map(|one| (one.origin.display().to_string(), one.deployments().into_iter().collect())).collect()
    }

    #[test]
    fn what_does_not_count_is_blank_in_the_text_and_the_rest_keeps_its_place() {
        let counting = |text: &str, without: &[&str]| {
            let without = without.iter().map(|name| (*name).to_owned()).collect();
            AppliedFile { without, ..copy("/x.yaml", text) }.counting_text()
        };
        let first = "\n\n\n---\nversion: v1\ndeployment: b\nservices: {web: {image: {name: host}}}\n";
        let second = "version: v1\ndeployment: a\nservices: {web: {image: {name: host}}}\n---\n\n\n\n";
        assert_eq!(counting(TWO, &[]), TWO);
        assert_eq!(counting(TWO, &["a"]), first);
        assert_eq!(counting(TWO, &["b"]), second);
        let on_the_mark = "--- {service: x, deployment: a, image: {name: host}}\n---\nservice: y\ndeployment: b\nimage: {name: host}\n";
        assert_eq!(counting(on_the_mark, &["a"]), "---\n---\nservice: y\ndeployment: b\nimage: {name: host}\n");
        assert_eq!(counting(on_the_mark, &["b"]), "--- {service: x, deployment: a, image: {name: host}}\n---\n\n\n\n");
    }

    #[test]
    fn a_file_applied_again_replaces_its_copy() {
        let dir = tempfile::tempdir().expect("a directory");
        save_applied(&[copy("/x.yaml", TWO)], dir.path()).expect("saved");
        let one = TWO.split("---").next().expect("the first document");
        save_applied(&[copy("/x.yaml", one)], dir.path()).expect("saved");
        assert_eq!(names(dir.path()), [("/x.yaml".to_owned(), vec!["a".to_owned()])]);
    }

    #[test]
    fn a_deployment_that_does_not_count_is_left_out_and_the_last_one_takes_the_copy_with_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut file = copy("/x.yaml", TWO);
        file.without.insert("a".to_owned());
        save_applied(std::slice::from_ref(&file), dir.path()).expect("saved");
        assert_eq!(names(dir.path()), [("/x.yaml".to_owned(), vec!["b".to_owned()])]);
        file.without.insert("b".to_owned());
        save_applied(std::slice::from_ref(&file), dir.path()).expect("saved");
        assert_eq!(names(dir.path()), []);
    }

    #[test]
    fn copies_are_saved_all_or_none() {
        let dir = tempfile::tempdir().expect("a directory");
        let one = TWO.split("---").next().expect("the first document");
        save_applied(&[copy("/x.yaml", TWO)], dir.path()).expect("saved");
        let blocked = copy("/blocked.yaml", one);
        std::fs::create_dir(blocked.path_in(dir.path())).expect("made");
        let error = save_applied(&[copy("/x.yaml", one), copy("/new.yaml", TWO), blocked.clone()], dir.path());
        assert!(error.is_err());
        std::fs::remove_dir(blocked.path_in(dir.path())).expect("removed");
        assert_eq!(names(dir.path()), [("/x.yaml".to_owned(), vec!["a".to_owned(), "b".to_owned()])]);
    }

    /// What a writer leaves that is killed before the first, between any two and after the last copy of a change.
    #[test]
    fn a_change_that_was_cut_off_is_read_whole_and_finished_by_the_next_writer() {
        let (a, b) = TWO.split_once("---\n").expect("two documents");
        for done in 0..=2 {
            let dir = tempfile::tempdir().expect("a directory");
            save_applied(&[copy("/from.yaml", TWO), copy("/to.yaml", a)], dir.path()).expect("saved");
            let change = Change::saving(&[copy("/from.yaml", a), copy("/to.yaml", b), copy("/new.yaml", b)]);
            std::fs::write(dir.path().join("change"), serde_json::to_vec(&change).expect("written")).expect("noted");
            for (name, copy) in change.copies.iter().take(done) {
                std::fs::write(dir.path().join(name), serde_json::to_vec(copy).expect("written")).expect("changed");
            }
            let whole = [("/from.yaml", "a"), ("/new.yaml", "b"), ("/to.yaml", "b")];
            let whole = whole.map(|(origin, name)| (origin.to_owned(), vec![name.to_owned()]));
            assert_eq!(names(dir.path()), whole);
            save_applied(&[copy("/new.yaml", "")], dir.path()).expect("saved");
            assert_eq!(names(dir.path()), [whole[0].clone(), whole[2].clone()]);
            assert!(!dir.path().join("change").exists());
        }
    }

    #[test]
    fn nobody_reads_half_of_a_change() {
        let dir = tempfile::tempdir().expect("a directory");
        let (a, b) = TWO.split_once("---\n").expect("two documents");
        let sets = [[copy("/one.yaml", TWO), copy("/two.yaml", "")], [copy("/one.yaml", a), copy("/two.yaml", b)]];
        save_applied(&sets[0], dir.path()).expect("saved");
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| (0..100).for_each(|n| save_applied(&sets[n % 2], dir.path()).expect("saved")));
            while !writer.is_finished() {
                let read: Vec<String> = names(dir.path()).into_iter().flat_map(|(_, names)| names).collect();
                assert_eq!(read, ["a", "b"]);
            }
        });
    }

    #[test]
    fn what_cut_off_writers_left_behind_goes_and_hides_no_copy() {
        let dir = tempfile::tempdir().expect("a directory");
        save_applied(&[copy("/x.yaml", TWO)], dir.path()).expect("saved");
        let left = |number: usize| dir.path().join(format!("{number}.json.1.tmp"));
        (0..MAX_COPIES + 10).for_each(|number| std::fs::write(left(number), "").expect("written"));
        assert_eq!(names(dir.path()).len(), 1);
        sweep_applied(dir.path()).expect("swept");
        let left = std::fs::read_dir(dir.path()).expect("readable").flatten();
        assert_eq!(left.filter(|entry| has_extension(&entry.path(), "tmp")).count(), 0);
        assert_eq!(names(dir.path()).len(), 1);
    }

    #[test]
    fn more_copies_than_the_bound_are_an_error_and_no_loss() {
        let dir = tempfile::tempdir().expect("a directory");
        let text = serde_json::to_vec(&copy("/x.yaml", TWO)).expect("written");
        (0..=MAX_COPIES)
            .for_each(|number| std::fs::write(dir.path().join(format!("{number}.json")), &text).expect("written"));
        let error = read_applied(dir.path()).expect_err("too many");
        assert!(error.to_string().starts_with("more than 10000 applied files"), "{error}");
    }

    #[test]
    fn standard_input_is_told_apart_by_what_it_declares() {
        let dir = tempfile::tempdir().expect("a directory");
        let (a, b) = TWO.split_once("---\n").expect("two documents");
        save_applied(&[copy("-", a)], dir.path()).expect("saved");
        save_applied(&[copy("-", b)], dir.path()).expect("saved");
        assert_eq!(names(dir.path()).len(), 2);
    }
}
