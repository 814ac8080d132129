//! The helper that mounts into an instance which runs: copies the mounts where the machine's paths are what they are, then
//! enters the instance's mount namespace and attaches them there.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::{Deserialize, Serialize};

use super::enter::Running;
use super::failure::{Context, Failure};
use super::inside::{Missing, PLAIN, attach, is_directory, place_or_make_by, without_links};
use super::layout::InstanceDir;
use super::links;
use super::own_files::{Overlap, overlap};
use super::process::has_ended;
use super::protected::protecting;
use super::record::Launch;
use super::rootfs::{by_descriptor, clone_place};
use super::sys::{MountAttributes, OneThread, make_mounts_private, owner_of_namespace, set_mount_attributes};

/// Most bytes of an order: twice what the most mounts with the longest paths take.
const LARGEST_ORDER: u64 = 1 << 20;

/// What is to be mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grafts {
    /// The mounts, outer ones before inner ones.
    pub mounts: Vec<Graft>,
    /// Every path of the machine that leads to Evenkeel's own files, which no program may see.
    pub own_files: Vec<PathBuf>,
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Graft {
    /// What it is called in messages.
    pub field: String,
    /// Path of the machine without links.
    pub source: PathBuf,
    /// Absolute path inside.
    pub target: String,
    /// Whether nothing can be written through it.
    pub read_only: bool,
}

impl Graft {
    fn wrong_target(&self, why: &str) -> Failure {
        let Self { field, target, .. } = self;
        Failure::wrong(format!("{field}.target: nothing can be mounted at {target}: {why}"))
    }
}

/// Entry point of `__graft DIR`: mounts what standard input tells into the instance in `DIR`, and tells standard output
/// what came of it, as JSON.
pub fn main(dir: &Path) -> ExitCode {
    let done = order().and_then(|order| graft(&InstanceDir(dir.to_owned()), &order));
    let told = serde_json::to_vec(&done).map_err(io::Error::from).and_then(|text| io::stdout().write_all(&text));
    if told.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn order() -> Result<Grafts, Failure> {
    let mut text = Vec::new();
    io::stdin().take(LARGEST_ORDER).read_to_end(&mut text).context("reading what to mount")?;
    serde_json::from_slice(&text).map_err(io::Error::from).context("reading what to mount")
}

fn graft(dir: &InstanceDir, order: &Grafts) -> Result<(), Failure> {
    let Running { record, target, run } = Running::open(dir)?;
    let launch = &record.launch;
    may_take(launch).map_err(Failure::before_anything)?;
    let trees: Vec<OwnedFd> =
        order.mounts.iter().map(|mount| copy(mount, &order.own_files)).collect::<Result<_, _>>()?;
    // From here on nothing inside may look into this process.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context("closing the process to others")?;
    OneThread::check().context("looking at own threads")?;
    let mounts = own_mounts(run.program.pid)?;
    // What it is the namespace of may have ended meanwhile, and its number be another's.
    if has_ended(target.as_fd()) {
        return Err(Failure::wrong("the instance does not run"));
    }
    move_into_link_name_space(mounts.as_fd(), Some(LinkNameSpaceType::Mount)).context("joining the instance")?;
    let root = openat(CWD, "/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).context("opening the root")?;
    let inside = Inside::look(launch, root);
    // Where a target lies below another one, nobody knows yet what that shows there.
    let is_outer = |mount: &&Graft| {
        let lies_below = |other: &Graft| Path::new(&mount.target).starts_with(&other.target) && other != *mount;
        !order.mounts.iter().any(lies_below)
    };
    for mount in order.mounts.iter().filter(is_outer) {
        inside.place_of(mount).map_err(Failure::before_anything)?;
    }
    let mut shown: Vec<(PathBuf, &str)> = Vec::new();
    for (mount, tree) in order.mounts.iter().zip(&trees) {
        let real = inside.show(mount, tree, &shown)?;
        shown.push((real, &mount.target));
    }
    Ok(())
}

/// The mount namespace of the program. One that belongs to another user namespace than ours was made by the program, which has
/// every right over mounts there: it could take off what bounds them.
fn own_mounts(program: i32) -> Result<OwnedFd, Failure> {
    let what = "looking at the mounts of the instance";
    let open = |path: &str| openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let mounts = open(&format!("/proc/{program}/ns/mnt")).context(what)?;
    let owner = fstat(&owner_of_namespace(mounts.as_fd()).context(what)?).context(what)?;
    let own = fstat(open("/proc/self/ns/user").context(what)?).context(what)?;
    match (owner.st_dev, owner.st_ino) == (own.st_dev, own.st_ino) {
        true => Ok(mounts),
        false => Err(Failure::wrong("its program has made mounts of its own, over which it has every right")),
    }
}

/// Refuses an instance that has no mounts of its own, or whose mounts are an ordinary user's.
fn may_take(launch: &Launch) -> Result<(), Failure> {
    match (launch.namespaces.mount, launch.namespaces.user) {
        (true, false) => Ok(()),
        (false, _) => Err(Failure::wrong("the sandbox has no mounts of its own, as it runs as a plain process")),
        (true, true) => Err(Failure::wrong("the sandbox was made by an ordinary user; it takes one that root made")),
    }
}

/// A copy of the mounts at a source, attached nowhere, with the bounds of a mount in a sandbox.
fn copy(mount: &Graft, own_files: &[PathBuf]) -> Result<OwnedFd, Failure> {
    let Graft { field, source, read_only, .. } = mount;
    let what = || format!("{field}.source: {} can't be mounted", source.display());
    let place = links::open(source).with_context(what)?;
    let mode = fstat(&place).with_context(what)?.st_mode;
    let real = std::fs::read_link(by_descriptor(&place)).with_context(what)?;
    may_show(&real, FileType::from_raw_mode(mode), own_files)
        .map_err(|why| Failure::wrong(format!("{}: {why}", what())))?;
    let tree = clone_place(&place).with_context(what)?;
    make_mounts_private(tree.as_fd()).with_context(what)?;
    let attributes = MountAttributes { read_only: *read_only, no_suid: true, no_dev: true };
    set_mount_attributes(tree.as_fd(), attributes, true).with_context(what)?;
    Ok(tree)
}

/// Whether a path of the machine, without links, may be shown to a program that runs already: what holds Evenkeel's own
/// files can't be, as they could only be covered once the program sees them.
///
/// # Errors
/// Why not.
pub fn may_show(real: &Path, kind: FileType, own_files: &[PathBuf]) -> Result<(), String> {
    if !matches!(kind, FileType::Directory | FileType::RegularFile) {
        return Err("it is neither a directory nor a file".to_owned());
    }
    match overlap(real, own_files) {
        None => Ok(()),
        Some(Overlap::Inside(dir)) => Err(format!(
            "it lies in {}, where Evenkeel keeps its state and the secrets of every instance; name another path",
            dir.display()
        )),
        Some(Overlap::Around(dirs)) => Err(format!(
            "it holds {}, where Evenkeel keeps its state and the secrets of every instance; name a directory beside that",
            dirs.first().unwrap_or(&real.to_owned()).display()
        )),
    }
}

/// The instance as it is before anything is mounted into it.
struct Inside<'a> {
    launch: &'a Launch,
    root: OwnedFd,
    /// Where its own mounts are, without links.
    taken: Vec<PathBuf>,
    /// Where its files about names are, and the links that lead there, each with the path that programs read.
    names: Vec<(PathBuf, &'a str)>,
}

impl<'a> Inside<'a> {
    /// As paths lead now: the spec may name a place by a link, and the claim the place itself.
    fn look(launch: &'a Launch, root: OwnedFd) -> Self {
        let lead = |target: &str| without_links(root.as_fd(), target).ok();
        let taken = launch.mounts.iter().filter_map(|mount| Some(lead(&mount.target)?.0)).collect();
        let way = |path: &'a str| {
            let (real, links) = lead(path)?;
            Some(links.into_iter().chain([real]).map(move |place| (place, path)))
        };
        let names = launch.network.files.iter().filter_map(|file| way(&file.target)).flatten().collect();
        Self { launch, root, taken, names }
    }

    /// Attaches a copy at its target, beside what was shown before: where that leads to, and as which target. Gives where the
    /// target leads to.
    fn show(&self, mount: &Graft, tree: &OwnedFd, shown: &[(PathBuf, &str)]) -> Result<PathBuf, Failure> {
        let wrong = |why: String| mount.wrong_target(&why);
        let real = self.place_of(mount)?;
        if let Some((hidden, other)) = shown.iter().find(|(before, _)| before.starts_with(&real)) {
            let (real, hidden) = (real.display(), hidden.display());
            return Err(wrong(format!(
                "it leads to {real}, and would hide what is mounted at {other}, which leads to {hidden}"
            )));
        }
        let missing = if is_directory(tree.as_fd()) { Missing::Directory } else { Missing::File };
        let place = place_or_make_by(self.root.as_fd(), &real.to_string_lossy(), missing, PLAIN)
            .map_err(|error| wrong(not_made(&error)))?;
        if is_directory(place.as_fd()) != is_directory(tree.as_fd()) {
            return Err(wrong("one is a directory and the other a file".to_owned()));
        }
        attach(tree, &place).map_err(|error| wrong(error.to_string()))?;
        Ok(real)
    }

    /// Where the target of a mount leads to, if something may be mounted there.
    fn place_of(&self, mount: &Graft) -> Result<PathBuf, Failure> {
        let real =
            without_links(self.root.as_fd(), &mount.target).map_err(|error| mount.wrong_target(&error.to_string()))?.0;
        self.may_cover(&real, mount.read_only).map_err(|why| mount.wrong_target(&why))?;
        Ok(real)
    }

    /// Whether something may be mounted over a path inside, without links, and be used there.
    fn may_cover(&self, real: &Path, read_only: bool) -> Result<(), String> {
        if real == Path::new("/") {
            return Err("it leads to the root".to_owned());
        }
        if let Some(by) = protecting(real, &self.launch.devices) {
            return Err(format!("it leads to {by}, which is made for each sandbox; name another path"));
        }
        if self.taken.iter().any(|mount| mount == real) {
            return Err("the pool's spec mounts something there already; name another path".to_owned());
        }
        if let Some((_, path)) = self.names.iter().find(|(place, _)| place.starts_with(real)) {
            return Err(format!("it would hide {path}, which is made for each sandbox; name another path"));
        }
        let Some(files) = &self.launch.reach.files else { return Ok(()) };
        match (files.grants(real, !read_only), files.grants(real, false)) {
            (true, _) => Ok(()),
            (false, true) => {
                Err("the program may not write there (sandbox.readable and sandbox.writable of the pool); mount it \
                     read-only, or below a path that may be written"
                    .to_owned())
            }
            (false, false) => {
                Err("the program may not read there (sandbox.readable and sandbox.writable of the pool); mount it \
                     below a path that may be read"
                    .to_owned())
            }
        }
    }
}

fn not_made(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EROFS) => {
            "there is no such path, and none can be made, as what lies above is read-only; mount at a path \
                              that exists, or below one that can be written, such as /tmp"
                .to_owned()
        }
        Some(libc::ELOOP) => "a link that came on the way meanwhile is not followed".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_holds_or_is_evenkeels_own_is_not_shown() {
        let own = [PathBuf::from("/var/lib/keel")];
        let told = |path: &str, kind| may_show(Path::new(path), kind, &own);
        for (path, why) in [("/var/lib/keel/x", "it lies in /var/lib/keel"), ("/var", "it holds /var/lib/keel")] {
            assert!(told(path, FileType::Directory).unwrap_err().starts_with(why), "{path}");
        }
        assert_eq!(told("/var/log", FileType::Directory), Ok(()));
        assert_eq!(told("/etc/hosts", FileType::RegularFile), Ok(()));
        for kind in [FileType::Socket, FileType::Fifo, FileType::CharacterDevice, FileType::BlockDevice] {
            assert!(told("/run/x", kind).unwrap_err().contains("neither a directory nor a file"), "{kind:?}");
        }
    }
}
