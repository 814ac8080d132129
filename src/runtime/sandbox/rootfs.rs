//! The root file system of an instance, built in its own mount namespace from detached mounts.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, chownat, openat, statat, symlinkat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, mount_change, open_tree, unmount,
};
use rustix::process::{Gid, Uid, chdir, fchdir, pivot_root};

use super::devices::{DeviceId, Node};
use super::failure::{Context, Failure};
use super::inside::{Missing, attach, is_directory, place, without_links};
use super::layout::InstanceDir;
use super::links;
use super::overlay::overlay;
use super::own_files::{Overlap, overlap};
use super::protected::protecting;
use super::record::{Identity, Launch, Mount, MountSource, Root};
use super::skeleton::Tree;
use super::sys::{MountAttributes, set_mount_attributes};
use super::{cgroup, etc, name_files, sysctls, sysfs};

/// Largest size of the private /tmp, /var/tmp and /run, as mount option: enough for scratch files, and no way to
/// take the machine's memory. A `tmpfs` in `storage` gives more.
const TMP_SIZE: &str = "512m";
/// Largest size of /dev/shm: Docker's default.
const SHM_SIZE: &str = "64m";
/// Device nodes that every instance has, with the devices that they may be (devices.txt of Linux): the OCI runtime
/// specification's default devices.
pub const DEVICES: &[(&str, &[DeviceId])] = &[
    ("null", NULL),
    ("zero", &[DeviceId::character(1, 5)]),
    ("full", &[DeviceId::character(1, 7)]),
    // Machines that lacked entropy have /dev/urandom in its place.
    ("random", &[DeviceId::character(1, 8), URANDOM]),
    ("urandom", &[URANDOM]),
    ("tty", &[DeviceId::character(5, 0)]),
];
const URANDOM: DeviceId = DeviceId::character(1, 9);
/// What is put over files.
const NULL: &[DeviceId] = &[DeviceId::character(1, 3)];
/// Parts of /proc that tell about the machine or let it be changed: Docker's masked paths.
const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
/// Parts of /proc that can be read only: Docker's read-only paths.
const READ_ONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
/// Directories that an instance has for itself where its root is the machine's, with their mode.
const PRIVATE: &[(&str, u32)] = &[("/tmp", 0o1777), ("/var/tmp", 0o1777), ("/run", 0o755)];
/// Further ones, which are links or mounts elsewhere.
const PRIVATE_TOO: &[&str] = &["/var/run", "/dev/shm"];
/// Where the machine's name servers are told.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Programs of NixOS, which lie below /run.
const RUN_PROGRAMS: &[&str] = &["/run/current-system", "/run/opengl-driver"];

/// Builds the root and makes it this process's root. The mount namespace must be new.
///
/// # Errors
/// A [`Failure`] that says which mount failed and why.
pub fn enter(launch: &Launch, dir: &InstanceDir, identity: &Identity) -> Result<(), Failure> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).context("making mounts private")?;
    let sources = open_sources(launch)?;
    // By the path that this program was started with: the file that it runs from has none (`unwritable.rs`). Best effort,
    // as it may have been replaced or removed.
    let keel = std::env::args_os().next().and_then(|path| read_only_tree(Path::new(&path)).ok());
    let names = name_files::open(launch)?;
    let resolv_conf = resolv_conf_target().and_then(|path| Some((read_only_tree(&path).ok()?, path)));
    let programs: Vec<_> =
        RUN_PROGRAMS.iter().filter_map(|path| Some((read_only_tree(Path::new(path)).ok()?, *path))).collect();

    let tree = match &launch.root {
        Root::Host | Root::Shared => host_tree(),
        Root::Dir { path, .. } => links::open(path).and_then(|place| image_tree(&[by_descriptor(&place)], dir)),
        Root::Layers { lower, .. } => image_tree(lower, dir),
        Root::Copy { .. } => clone_tree(&dir.copy()).and_then(guarded_tree),
    }
    .context("preparing the root file system")?;
    let mut root = Tree::mount(&tree, dir.rootfs(), launch.root == Root::Host)?;
    pseudo_file_systems(&mut root, launch)?;
    cgroup::show(root.root_fd(), &launch.groups)?;
    if launch.root == Root::Host {
        private_directories(root.root_fd())?;
        if let Some((tree, path)) = resolv_conf {
            root.show(&tree, &path.to_string_lossy(), Missing::File)?;
        }
        for (tree, path) in &programs {
            root.show(tree, path, Missing::Directory)?;
        }
        if let Some(tree) = keel {
            root.show(&tree, super::KEEL_INSIDE, Missing::File)?;
        }
        let own: Vec<&str> = names.iter().map(|file| file.path).collect();
        etc::close(&mut root, &launch.hidden, &own)?;
        hide(root.root_fd(), &launch.own_files)?;
    }
    devices(&mut root, launch)?;
    let names = name_files::show(&mut root, names)?;
    let mut open: Vec<PathBuf> = Vec::new();
    for path in writable(root.root(), &launch.writable)? {
        open_for_writing(&mut root, &path, launch, identity)?;
        open.push(path.into());
    }
    for (mount, Source { tree, real }) in launch.mounts.iter().zip(sources) {
        let target = target_of(root.root(), &mount.target, &open)?;
        attach_mount(&mut root, mount, &target, &tree, &launch.devices)?;
        open.push(target);
        if let Some(Overlap::Around(own)) = real.as_deref().and_then(|real| overlap(real, &launch.own_files)) {
            let within = own.iter().filter_map(|own| own.strip_prefix(real.as_deref()?).ok());
            close(&tree, within).with_context(|| format!("hiding Evenkeel's own files below {}", mount.target))?;
        }
    }
    name_files::uncover(&mut root, &names, open.get(launch.writable.len()..).unwrap_or_default())?;
    let root = root.finish()?;
    if launch.root.is_closed() {
        let attributes = MountAttributes { read_only: true, ..MountAttributes::default() };
        set_mount_attributes(root_mount(&root)?.as_fd(), attributes, false).context("making the root read-only")?;
    }
    pivot(&root)
}

/// Paths that stay writable, without links. A link in one of them may be the program's, which would choose by it what else
/// it may write at its next start.
fn writable(root: BorrowedFd<'_>, paths: &[String]) -> Result<Vec<String>, Failure> {
    let what = |path: &String| format!("sandbox.writable: looking at {path}");
    let found: Vec<_> = paths
        .iter()
        .map(|path| Ok((path, without_links(root, path).with_context(|| what(path))?)))
        .collect::<Result<_, Failure>>()?;
    for (path, (_, links)) in &found {
        let within = |link: &&PathBuf| {
            found.iter().find(|(_, (real, _))| link.parent().is_some_and(|folder| folder.starts_with(real)))
        };
        if let Some((link, (_, (within, _)))) = links.iter().find_map(|link| Some((link, within(&link)?))) {
            return Err(Failure::wrong(format!(
                "sandbox.writable: {path} can't be opened up: the link {} lies in {}, which the program may write, so it \
                 may lead anywhere; write the path that is meant, without the link",
                link.display(),
                within.display()
            )));
        }
    }
    Ok(found.into_iter().map(|(_, (real, _))| real.to_string_lossy().into_owned()).collect())
}

/// Where a mount lands. What is mounted or writable on the way there may be the program's, which would choose by a link in it
/// what is mounted over what at its next start.
fn target_of(root: BorrowedFd<'_>, target: &str, open: &[PathBuf]) -> Result<PathBuf, Failure> {
    let (real, links) = without_links(root, target).with_context(|| format!("storage: looking at {target}"))?;
    let within = |link: &PathBuf| open.iter().find(|open| link.parent().is_some_and(|folder| folder.starts_with(open)));
    match links.iter().find_map(|link| Some((link, within(link)?))) {
        None => Ok(real),
        Some((link, within)) => Err(Failure::wrong(format!(
            "storage: nothing is mounted at {target}: the link {} lies in {}, which the program may write, so it may lead \
             anywhere; remove the link, or write the path that is meant",
            link.display(),
            within.display()
        ))),
    }
}

/// Keeps a path of a root writable that becomes read-only: it gets a mount of its own. A directory that is not there yet is
/// the program's.
fn open_for_writing(root: &mut Tree, path: &str, launch: &Launch, identity: &Identity) -> Result<(), Failure> {
    let is_new = place(root.root(), path).is_err();
    let found = root.place_or_make_plain(path, Missing::Directory).map_err(|error| match is_link(&error) {
        true => Failure::setup(format!("sandbox.writable: {path} can't be opened up: {NEW_LINK}")),
        false => Failure::wrong(format!("sandbox.writable: {path} can't be made: {error}")),
    })?;
    // In a user namespace there is one user alone.
    if is_new && !launch.namespaces.user {
        let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
        let what = || format!("sandbox.writable: giving {path} to the program's user");
        chownat(found.as_fd(), "", Some(uid), Some(gid), AtFlags::EMPTY_PATH).with_context(what)?;
    }
    clone_place(&found)
        .and_then(|tree| attach(&tree, &found))
        .with_context(|| format!("sandbox.writable: opening {path}"))
}

/// Whether an instance has this path of the machine for itself where its root is the machine's, so that what is there on
/// the machine has to be mounted to be seen.
pub fn is_private(path: &Path) -> bool {
    PRIVATE.iter().map(|(private, _)| private).chain(PRIVATE_TOO).any(|private| path.starts_with(private))
}

/// Does in a new mount namespace what [`enter`] needs to be able to do, and mounts nothing.
///
/// # Errors
/// What this machine does not allow.
pub fn try_out() -> Result<(), Failure> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).context("making mounts private")?;
    host_tree().context("making a read-only copy of the mounts")?;
    for (name, devices) in DEVICES {
        usual(name, devices).with_context(|| format!("opening /dev/{name}"))?;
    }
    new_fs("proc", &[], MountAttrFlags::empty()).context("making /proc")?;
    new_fs("devpts", &[("ptmxmode", "0666"), ("mode", "0620")], MountAttrFlags::empty()).context("making /dev/pts")?;
    tmpfs(TMP_SIZE, 0o1777).map(drop).context("making a tmpfs")
}

/// What is mounted, attached nowhere.
struct Source {
    tree: OwnedFd,
    /// The path of the machine that it shows, without links; absent for what is the instance's alone.
    real: Option<PathBuf>,
}

/// Opens what is mounted while the machine's paths still are what they are, before anything covers them.
fn open_sources(launch: &Launch) -> Result<Vec<Source>, Failure> {
    let open = |mount: &Mount| match &mount.source {
        MountSource::Path(path) => open_path(path, launch, &mount.target),
        MountSource::Volume(path) => {
            let what = || format!("mounting {} at {}", path.display(), mount.target);
            Ok(Source { tree: clone_tree(path).with_context(what)?, real: None })
        }
        MountSource::Tmpfs { size, mode } => {
            let what = || format!("making a tmpfs for {}", mount.target);
            Ok(Source { tree: tmpfs(&size.to_string(), *mode).with_context(what)?, real: None })
        }
    };
    launch.mounts.iter().map(open).collect()
}

/// Opens a path of the machine. No link is followed: one that is there now came after the instance was created.
fn open_path(path: &Path, launch: &Launch, target: &str) -> Result<Source, Failure> {
    let what = || format!("mounting {} at {target}", path.display());
    let place = links::open(path).with_context(what)?;
    let real = fs::read_link(by_descriptor(&place)).with_context(what)?;
    if matches!(overlap(&real, &launch.own_files), Some(Overlap::Inside(_))) {
        return Err(Failure::wrong(format!(
            "{} can't be mounted at {target}: it lies in Evenkeel's state directory, which no program may see",
            path.display()
        )));
    }
    Ok(Source { tree: clone_place(&place).with_context(what)?, real: Some(real) })
}

/// Covers paths below a mount. The directories on the way become mount points of their own, as these can't be renamed:
/// a program that may write above must not be able to put other directories in the place of the real ones.
fn close<'a>(tree: &OwnedFd, paths: impl Iterator<Item = &'a Path>) -> io::Result<()> {
    for path in paths {
        let mut way: Vec<&Path> = path.ancestors().filter(|above| !above.as_os_str().is_empty()).collect();
        way.reverse();
        for above in way {
            let found = match place(tree.as_fd(), &above.to_string_lossy()) {
                Ok(found) => found,
                // What is not there needs not be covered.
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(error),
            };
            if above == path {
                cover(&found)?;
            } else {
                attach(&clone_place(&found)?, &found)?;
            }
        }
    }
    Ok(())
}

/// A copy of the mount at a path and of all below it, attached nowhere.
pub fn clone_tree(path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    Ok(open_tree(CWD, path, flags)?)
}

/// The same at a place that is open.
pub fn clone_place(place: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    Ok(open_tree(place.as_fd(), "", flags)?)
}

/// The same, which can't be written through.
pub fn read_only_tree(path: &Path) -> io::Result<OwnedFd> {
    let tree = clone_tree(path)?;
    set_mount_attributes(tree.as_fd(), MountAttributes { read_only: true, no_suid: true, no_dev: true }, true)?;
    Ok(tree)
}

/// A path by which an open place is reached, and that tells where it is.
pub fn by_descriptor(place: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", place.as_raw_fd()).into()
}

pub fn open_place(path: &Path) -> io::Result<OwnedFd> {
    Ok(openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

/// The machine's file system, read-only in all its mounts.
fn host_tree() -> io::Result<OwnedFd> {
    let tree = clone_tree(Path::new("/"))?;
    let attributes = MountAttributes { read_only: true, no_suid: true, no_dev: true };
    set_mount_attributes(tree.as_fd(), attributes, true)?;
    Ok(tree)
}

/// An image of its directories, the uppermost first, with mount points for what it lacks.
fn image_tree(lower: &[PathBuf], dir: &InstanceDir) -> io::Result<OwnedFd> {
    let lower: Vec<PathBuf> = lower.iter().cloned().chain(dir.mount_points()).collect();
    guarded_tree(overlay(&lower, &dir.upper(), &dir.work(), &dir.rootfs())?)
}

fn guarded_tree(tree: OwnedFd) -> io::Result<OwnedFd> {
    let attributes = MountAttributes { read_only: false, no_suid: true, no_dev: true };
    set_mount_attributes(tree.as_fd(), attributes, true)?;
    Ok(tree)
}

/// A new file system of a kind, attached nowhere.
pub fn new_fs(kind: &str, options: &[(&str, &str)], attributes: MountAttrFlags) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        fsconfig_set_string(context.as_fd(), *key, *value)?;
    }
    fsconfig_create(context.as_fd())?;
    Ok(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// A file system in memory, attached nowhere.
pub fn tmpfs(size: &str, mode: u32) -> io::Result<OwnedFd> {
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    new_fs("tmpfs", &[("size", size), ("mode", &format!("{mode:o}"))], attributes)
}

/// What programs may not do in a file system of the kernel.
pub const GUARDED: MountAttrFlags =
    MountAttrFlags::MOUNT_ATTR_NOSUID.union(MountAttrFlags::MOUNT_ATTR_NODEV).union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

/// The /proc of this process's namespaces, attached nowhere.
///
/// # Errors
/// This machine does not allow it.
pub fn new_proc() -> Result<OwnedFd, Failure> {
    new_fs("proc", &[], GUARDED).context("making /proc")
}

/// Mounts /proc, /sys and /dev, whatever the image has there. Kernel parameters are set before /proc becomes read-only.
fn pseudo_file_systems(root: &mut Tree, launch: &Launch) -> Result<(), Failure> {
    for name in ["proc", "sys", "dev"] {
        refuse_link(root.root(), name)?;
    }
    let proc = new_proc()?;
    sysctls::apply(&proc, &launch.sysctls)?;
    root.show(&proc, "/proc", Missing::Directory)?;
    sysfs::mount(root, launch.namespaces.net)?;
    let no_suid = MountAttrFlags::MOUNT_ATTR_NOSUID;
    // Nodes are shown as mounts of their own; one that a program makes can't be opened.
    let dev = new_fs("tmpfs", &[("size", "64k"), ("mode", "755")], no_suid | MountAttrFlags::MOUNT_ATTR_NODEV)
        .context("making /dev")?;
    root.show(&dev, "/dev", Missing::Directory)?;
    let no_exec = no_suid | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let pts = new_fs("devpts", &[("ptmxmode", "0666"), ("mode", "0620")], no_exec).context("making /dev/pts")?;
    root.show(&pts, "/dev/pts", Missing::Directory)?;
    let shm = new_fs("tmpfs", &[("size", SHM_SIZE), ("mode", "1777")], GUARDED).context("making /dev/shm")?;
    root.show(&shm, "/dev/shm", Missing::Directory)?;
    if let Ok(mqueue) = new_fs("mqueue", &[], GUARDED) {
        root.show(&mqueue, "/dev/mqueue", Missing::Directory)?;
    }
    restrict(root.root_fd())
}

/// An image whose `/proc`, `/sys` or `/dev` is something else than a directory would have the kernel's files, and the
/// masks over them, elsewhere than where they are looked for.
fn refuse_link(root: BorrowedFd<'_>, name: &str) -> Result<(), Failure> {
    match statat(root, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Directory => Err(Failure::wrong(format!(
            "image: /{name} is not a directory; a root file system needs one there, or nothing"
        ))),
        _ => Ok(()),
    }
}

/// Masks and write-protects parts of /proc and /sys.
fn restrict(root: &OwnedFd) -> Result<(), Failure> {
    let read_only = MountAttributes { read_only: true, no_suid: true, no_dev: true };
    for path in READ_ONLY {
        let Some(found) = existing(root, path)? else { continue };
        protect(&found, read_only).with_context(|| format!("protecting {path}"))?;
    }
    for path in MASKED {
        let Some(found) = existing(root, path)? else { continue };
        cover(&found).with_context(|| format!("masking {path}"))?;
    }
    Ok(())
}

/// A path that something is put over, where there is one. What can't be looked at is not passed over.
fn existing(root: &OwnedFd, path: &str) -> Result<Option<OwnedFd>, Failure> {
    match place(root.as_fd(), path) {
        Ok(found) => Ok(Some(found)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("looking for {path}")),
    }
}

fn protect(found: &OwnedFd, attributes: MountAttributes) -> io::Result<()> {
    let tree = clone_place(found)?;
    set_mount_attributes(tree.as_fd(), attributes, true)?;
    attach(&tree, found)
}

/// Puts something empty over a path.
pub fn cover(found: &OwnedFd) -> io::Result<()> {
    if is_directory(found.as_fd()) {
        let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        attach(&new_fs("tmpfs", &[("size", "4k"), ("mode", "555")], attributes)?, found)
    } else {
        attach(&usual("null", NULL)?, found)
    }
}

/// A usual node of the machine, which is one of these devices.
fn usual(name: &str, devices: &[DeviceId]) -> io::Result<OwnedFd> {
    let mount = |device: &DeviceId| Node { path: Path::new("/dev").join(name), device: *device }.mount();
    let (first, others) = devices.split_first().ok_or(io::ErrorKind::NotFound)?;
    mount(first).or_else(|error| others.iter().find_map(|other| mount(other).ok()).ok_or(error))
}

fn devices(root: &mut Tree, launch: &Launch) -> Result<(), Failure> {
    for (name, devices) in DEVICES {
        let tree = usual(name, devices).with_context(|| format!("opening /dev/{name}"))?;
        root.show(&tree, &format!("/dev/{name}"), Missing::File)?;
    }
    for path in &launch.devices {
        let node = launch.nodes.get(path).ok_or_else(|| {
            Failure::setup(format!(
                "which device {path} is was not written down; remove the instance to have it made anew"
            ))
        })?;
        let tree = node.mount().with_context(|| format!("opening the device {path}"))?;
        root.show(&tree, path, Missing::File)?;
    }
    let dev = place(root.root(), "/dev").context("opening /dev")?;
    for (target, name) in [
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
        ("pts/ptmx", "ptmx"),
    ] {
        symlinkat(target, dev.as_fd(), name).with_context(|| format!("making /dev/{name}"))?;
    }
    Ok(())
}

/// Private directories over the machine's: what is in /tmp and /run (sockets of engines and services above all)
/// is none of the instance's business.
fn private_directories(root: &OwnedFd) -> Result<(), Failure> {
    for (path, mode) in PRIVATE {
        let Ok(found) = place(root.as_fd(), path) else { continue };
        let tree = tmpfs(TMP_SIZE, *mode).with_context(|| format!("making {path}"))?;
        attach(&tree, &found).with_context(|| format!("mounting {path}"))?;
    }
    // /var/run is /run nearly everywhere; where it is a directory of its own it is covered as well.
    match place(root.as_fd(), "/var/run") {
        Ok(found) if !is_link_to_run() => cover(&found).context("covering /var/run"),
        _ => Ok(()),
    }
}

fn is_link_to_run() -> bool {
    fs::canonicalize("/var/run").is_ok_and(|path| path == Path::new("/run"))
}

/// The file that resolv.conf is a link to, where that lies below /run.
fn resolv_conf_target() -> Option<PathBuf> {
    fs::canonicalize(RESOLV_CONF).ok().filter(|path| path.starts_with("/run"))
}

fn hide(root: &OwnedFd, hidden: &[PathBuf]) -> Result<(), Failure> {
    for path in hidden {
        let Some(found) = existing(root, &path.to_string_lossy())? else { continue };
        cover(&found).with_context(|| format!("hiding {}", path.display()))?;
    }
    Ok(())
}

fn attach_mount(
    root: &mut Tree,
    mount: &Mount,
    real: &Path,
    tree: &OwnedFd,
    devices: &[String],
) -> Result<(), Failure> {
    let target = &mount.target;
    if let Some(by) = protecting(real, devices) {
        return Err(Failure::wrong(format!(
            "storage: the target {target} leads to {by}, over which nothing can be mounted; mount at another path"
        )));
    }
    let attributes = MountAttributes { read_only: mount.read_only, no_suid: true, no_dev: true };
    set_mount_attributes(tree.as_fd(), attributes, true).with_context(|| format!("preparing the mount at {target}"))?;
    let missing = if is_directory(tree.as_fd()) { Missing::Directory } else { Missing::File };
    let place = root.place_or_make_plain(&real.to_string_lossy(), missing).map_err(|error| {
        if is_link(&error) {
            return Failure::setup(format!("storage: nothing is mounted at {target}: {NEW_LINK}"));
        }
        let hint = if error.raw_os_error() == Some(libc::EROFS) {
            "; what is mounted above it is read-only and has no such path: mount at a path that exists"
        } else {
            ""
        };
        Failure::wrong(format!("storage: the target {target} can't be made: {error}{hint}"))
    })?;
    attach(tree, &place).with_context(|| format!("mounting at {target}"))
}

/// What is wrong where a path that was without links has one: another instance's program may write on the way.
const NEW_LINK: &str = "a link that came on the way meanwhile leads elsewhere; is it a program that may write there?";

pub fn is_link(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ELOOP)
}

/// The root mount itself, for changing its attributes.
fn root_mount(root: &OwnedFd) -> Result<OwnedFd, Failure> {
    let flags = OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(root.as_fd(), "", flags).context("opening the root mount")
}

/// Makes the new root the root and drops the old one.
fn pivot(root: &OwnedFd) -> Result<(), Failure> {
    fchdir(root.as_fd()).context("entering the root file system")?;
    pivot_root(".", ".").context("changing the root")?;
    unmount(".", UnmountFlags::DETACH).context("leaving the machine's file system")?;
    chdir("/").context("entering the root file system")
}
