//! The last steps before a program runs: who it is, what it may, where it starts.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, major, minor, openat};
use rustix::process::{Resource, Rlimit, Signal, fchdir, set_parent_process_death_signal, setrlimit};
use rustix::thread::set_no_new_privs;
use seccompiler::BpfProgram;

use super::failure::{Context, Failure};
use super::inside::{Missing, place, place_or_make};
use super::record::{Identity, Launch, Limit, Root};
use super::{landlock, privileges, seccomp, sys};
use crate::spec::SeccompProfile;

/// Where programs are looked for when the environment has no PATH: Docker's default.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// File mode bits that programs leave out, as under Docker.
const UMASK: u32 = 0o022;
/// Number of the null device (devices.txt of Linux).
const NULL_DEVICE: (u32, u32) = (1, 3);

/// What is run.
#[derive(Debug)]
pub struct Program<'a> {
    /// Program and arguments.
    pub command: &'a [String],
    /// The whole environment.
    pub env: BTreeMap<String, String>,
    /// Directory to start in.
    pub workdir: Workdir<'a>,
    /// Who it is.
    pub identity: &'a Identity,
    /// What it is launched with.
    pub launch: &'a Launch,
}

/// The directory that a program starts in.
#[derive(Debug, Clone, Copy)]
pub enum Workdir<'a> {
    /// That of the spec, the root where it names none; made where it is missing.
    OfSpec(Option<&'a str>),
    /// That of the instance, which runs already.
    OfInstance(Option<&'a str>),
    /// One that was asked for with a further command.
    Asked(&'a str),
}

impl<'a> Workdir<'a> {
    fn path(self) -> &'a str {
        match self {
            Self::OfSpec(path) | Self::OfInstance(path) => path.unwrap_or("/"),
            Self::Asked(path) => path,
        }
    }
}

/// Confines this process and everything that it becomes, up to the exec.
///
/// # Errors
/// A step failed; nothing may be executed then.
pub fn confine(program: &Program<'_>, filters: &Filters) -> Result<(), Failure> {
    rustix::process::umask(Mode::from_raw_mode(UMASK));
    enter_workdir(program)?;
    for limit in &program.launch.limits {
        set_limit(*limit).with_context(|| format!("ulimits: resource {}", limit.resource))?;
    }
    restrict(program.identity, program.launch, program.launch.capabilities, filters)
}

/// The system-call filters of a launch, which are the same for each of its processes.
#[derive(Debug)]
pub struct Filters(Vec<BpfProgram>);

impl Filters {
    /// Compiles them.
    ///
    /// # Errors
    /// This machine's architecture has no filters here.
    pub fn of(launch: &Launch) -> Result<Self, Failure> {
        let profile = launch.seccomp.unwrap_or(SeccompProfile::Unconfined);
        seccomp::programs(profile, launch.capabilities).map(Self).map_err(Failure::wrong)
    }
}

/// Gives this process the user of an instance, these capabilities where that is root, and the instance's reach and
/// filters, for good. It ends no more with its parent afterwards, where the user changed.
///
/// # Errors
/// A step failed; nothing of the instance may run in this process then.
pub fn restrict(identity: &Identity, launch: &Launch, capabilities: u64, filters: &Filters) -> Result<(), Failure> {
    privileges::take_on(identity, launch, capabilities)?;
    set_no_new_privs(true).context("setting no_new_privs")?;
    sys::close_on_exec();
    landlock::confine(&launch.reach).context("limiting what it may reach")?;
    // Last, so that nothing before it needs to be allowed.
    seccomp::install(&filters.0).context("installing the system-call filter")
}

/// Has the kernel end this process together with its parent. A change of user undoes it.
///
/// # Errors
/// The kernel refuses.
pub fn end_with_parent() -> Result<(), Failure> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("binding a process to its parent")
}

/// Sets which process the kernel ends first for want of memory: for this one and all that it starts.
///
/// # Errors
/// The value is lower than this process may set.
pub fn set_oom_score(launch: &Launch) -> Result<(), Failure> {
    let Some(value) = launch.oom_score_adj else { return Ok(()) };
    fs::write("/proc/self/oom_score_adj", value.to_string()).context("resources.oom_score_adj")
}

/// Replaces this process with the program; returns only on failure.
pub fn execute(program: &Program<'_>) -> Failure {
    let path = match find(program) {
        Ok(path) => path,
        Err(failure) => return failure,
    };
    let (name, arguments) = program.command.split_first().map_or(("", &[][..]), |(name, rest)| (name.as_str(), rest));
    sys::reset_signals();
    let error = Command::new(&path).arg0(name).args(arguments).env_clear().envs(&program.env).exec();
    match error.raw_os_error() {
        Some(libc::ENOENT) => {
            Failure::not_found(format!("the interpreter or dynamic loader of {} is not in the image", path.display()))
        }
        Some(libc::ENOEXEC) => {
            Failure::not_executable(format!("{} is not a program for this machine (exec format error)", path.display()))
        }
        _ => Failure::not_executable(format!("{} can't be executed: {error}", path.display())),
    }
}

/// Looks the program up as a shell does.
fn find(program: &Program<'_>) -> Result<PathBuf, Failure> {
    let name = program.command.first().map_or("", String::as_str);
    if name.contains('/') {
        return match executable(Path::new(name)) {
            Ok(()) => Ok(PathBuf::from(name)),
            Err(error) => Err(unusable(name, &error)),
        };
    }
    let path = program.env.get("PATH").map_or(DEFAULT_PATH, String::as_str);
    let mut found = None;
    for folder in path.split(':').filter(|folder| !folder.is_empty()) {
        let candidate = Path::new(folder).join(name);
        match executable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => found = Some((candidate, error)),
            Err(_) => {}
        }
    }
    match found {
        Some((candidate, error)) => Err(unusable(&candidate.to_string_lossy(), &error)),
        None => Err(Failure::not_found(format!("executable not found: {name:?} is in no directory of PATH ({path})"))),
    }
}

fn executable(path: &Path) -> io::Result<()> {
    let data = fs::metadata(path)?;
    if data.is_file() && data.permissions().mode() & 0o111 != 0 {
        Ok(())
    } else {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

fn unusable(name: &str, error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            Failure::not_found(format!("executable not found: {name}"))
        }
        _ => Failure::not_executable(format!("{name} is not an executable file")),
    }
}

/// Enters the working directory. One of the spec is made where it is missing. It is resolved without magic links, so that
/// no descriptor that was left open can lead out.
fn enter_workdir(program: &Program<'_>) -> Result<(), Failure> {
    let wanted = program.workdir.path();
    let root = openat(CWD, "/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).context("opening the root")?;
    let found = place(root.as_fd(), wanted);
    let made = match (&found, program.workdir) {
        (Err(error), Workdir::OfSpec(_))
            if error.kind() == io::ErrorKind::NotFound && program.launch.namespaces.mount =>
        {
            place_or_make(root.as_fd(), wanted, Missing::Directory)
                .map_err(|error| Failure::wrong(format!("command.workdir: {wanted} can't be made: {error}")))?
        }
        _ => found.map_err(|error| not_entered(program.workdir, &error))?,
    };
    fchdir(made.as_fd()).map_err(|error| not_entered(program.workdir, &error.into()))
}

fn not_entered(workdir: Workdir<'_>, error: &io::Error) -> Failure {
    let path = workdir.path();
    Failure::wrong(match workdir {
        Workdir::OfSpec(_) | Workdir::OfInstance(_) => format!("command.workdir: {path} can't be entered: {error}"),
        Workdir::Asked(_) => format!("the working directory {path} can't be entered: {error}"),
    })
}

fn set_limit(limit: Limit) -> io::Result<()> {
    let resource = RESOURCES.iter().find(|(number, ..)| *number == limit.resource).map(|(.., resource)| *resource);
    let Some(resource) = resource else { return Err(io::ErrorKind::InvalidInput.into()) };
    Ok(setrlimit(resource, Rlimit { current: limit.soft, maximum: limit.hard })?)
}

/// Names of ulimits as Docker has them, with the kernel's numbers.
pub const RESOURCES: &[(u32, &str, Resource)] = &[
    (0, "cpu", Resource::Cpu),
    (1, "fsize", Resource::Fsize),
    (2, "data", Resource::Data),
    (3, "stack", Resource::Stack),
    (4, "core", Resource::Core),
    (5, "rss", Resource::Rss),
    (6, "nproc", Resource::Nproc),
    (7, "nofile", Resource::Nofile),
    (8, "memlock", Resource::Memlock),
    (9, "as", Resource::As),
    (10, "locks", Resource::Locks),
    (11, "sigpending", Resource::Sigpending),
    (12, "msgqueue", Resource::Msgqueue),
    (13, "nice", Resource::Nice),
    (14, "rtprio", Resource::Rtprio),
    (15, "rttime", Resource::Rttime),
];

/// Opens the machine's null device. To be called while `/dev` is the machine's.
///
/// # Errors
/// There is none.
pub fn null() -> io::Result<OwnedFd> {
    null_at(Path::new("/dev/null"))
}

/// Opens the null device at a path, and nothing else.
fn null_at(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let null = openat(CWD, path, flags, Mode::empty())?;
    let stat = fstat(&null)?;
    let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    if !is_device || (major(stat.st_rdev), minor(stat.st_rdev)) != NULL_DEVICE {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} is not the null device", path.display())));
    }
    Ok(null)
}

/// The environment that a program gets: what was asked for, and what every program expects.
pub fn environment(launch: &Launch, identity: &Identity) -> BTreeMap<String, String> {
    let mut env = launch.env.clone();
    env.entry("PATH".to_owned()).or_insert_with(|| match launch.root {
        Root::Host => {
            let folder = Path::new(super::KEEL_INSIDE).parent().and_then(Path::to_str).unwrap_or("/");
            format!("{DEFAULT_PATH}:{folder}")
        }
        Root::Dir { .. } | Root::Layers { .. } | Root::Copy { .. } | Root::Shared => DEFAULT_PATH.to_owned(),
    });
    if launch.tty {
        // What Docker says of a terminal of which no more is known.
        env.entry("TERM".to_owned()).or_insert_with(|| "xterm".to_owned());
    }
    env.entry("HOME".to_owned()).or_insert_with(|| identity.home.clone());
    env.entry("HOSTNAME".to_owned()).or_insert_with(|| launch.hostname.clone());
    env
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_the_null_device_is_not_opened_as_one() {
        null().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (link, file) = (folder.path().join("link"), folder.path().join("file"));
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        fs::write(&file, "").unwrap();
        assert_eq!(null_at(&link).unwrap_err().raw_os_error(), Some(libc::ELOOP));
        for other in [&file, Path::new("/dev/zero")] {
            assert_eq!(null_at(other).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{}", other.display());
        }
    }
}
