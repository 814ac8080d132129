//! The state directory: owner id, lock, and the names of what is inside.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::applied_set::make_lock;
use super::token::Token;
use super::user::User;
use super::{Store, StoreError, socket};
use crate::state::Owner;

/// Name of the file with the owner id.
const OWNER: &str = "owner";
/// Name of the file with the token.
const TOKEN: &str = "token";
/// Name of the lock file.
const LOCK: &str = "lock";
/// Name of the file that is locked by controllers that wait for a command to be done.
const AWAITED: &str = "awaited";
/// Name of the folder that `keel apply` writes into.
const APPLIED: &str = "applied";
/// Name of the file with the runtime of services that name none.
const DEFAULT_RUNTIME: &str = "default-runtime";
/// Name of the folder with what rehearsals remember.
const REHEARSAL: &str = "rehearsal";
/// Random bytes of an owner id: 128 bits, as in a UUID, so that no two installations ever share one.
const OWNER_BYTES: usize = 16;
/// How often the lock is tried: a command that looks whether somebody holds it ([`StateDir::holder`]) has it for an
/// instant itself, and must not keep a controller from starting.
const LOCK_TRIES: u32 = 5;
/// Between two tries.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// The directory of one installation.
#[derive(Debug, Clone)]
pub struct StateDir {
    path: PathBuf,
    owner: Owner,
}

impl StateDir {
    /// Where the state directory is when none is named: `/var/lib/keel` for root, else `$XDG_STATE_HOME/keel`, else
    /// `~/.local/state/keel` (XDG Base Directory Specification). None where not even a home directory is known.
    pub fn default_path() -> Option<PathBuf> {
        let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
        default_path(rustix::process::geteuid().is_root(), variable)
    }

    /// Opens a state directory; makes it (for this user alone), the owner id in it and the `applied/` folder where
    /// they are missing.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let path = std::path::absolute(path).map_err(StoreError::io("find", path))?;
        make_dirs(&path)?;
        let owner = read_owner(&path)?;
        Ok(Self { path, owner })
    }

    /// Whether an installation was made here, which its owner id tells. One that can't be looked at counts as made, so
    /// that whoever opens it is told why.
    pub fn is_made(path: &Path) -> bool {
        !matches!(path.join(OWNER).try_exists(), Ok(false))
    }

    /// A state directory to look at where none was made: nothing of it is on disk, and nothing carries its owner id.
    pub fn unmade(path: &Path) -> Result<Self, StoreError> {
        let path = std::path::absolute(path).map_err(StoreError::io("find", path))?;
        Ok(Self { path, owner: Owner(random_id()?) })
    }

    /// The directory; absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Random id of this installation: 32 lower-case hexadecimal digits.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// The folder that `keel apply` writes into, a source root of its own.
    pub fn applied(&self) -> PathBuf {
        self.path.join(APPLIED)
    }

    /// The file that remembers the runtime of services that name none, from the first time on that anything was to be really
    /// run.
    pub fn default_runtime(&self) -> PathBuf {
        self.path.join(DEFAULT_RUNTIME)
    }

    /// What rehearsals remember for as long as nothing was to be really run: a state directory inside of this one, of the same
    /// owner. Made where it is missing.
    pub fn rehearsal(&self) -> Result<Self, StoreError> {
        let path = self.path.join(REHEARSAL);
        make_dirs(&path)?;
        Ok(Self { path, owner: self.owner.clone() })
    }

    /// Whether a database was made, where somebody held the lock before: not by a rehearsal.
    fn had_database(&self) -> bool {
        self.default_runtime().exists() || !self.path.join(REHEARSAL).exists()
    }

    /// Opens the database for whoever holds the lock, as [`Store::open`] does. Where somebody held the lock before and there
    /// is no database, it was lost ([`Store::reset`]).
    pub fn store(&self, lock: &LockGuard) -> Result<Store, StoreError> {
        Store::open_after(&self.path, lock.worked_before && self.had_database())
    }

    /// What the database holds, as [`Store::look`] gives it.
    pub fn look(&self) -> Result<Store, StoreError> {
        let worked_before = std::fs::metadata(self.path.join(LOCK)).is_ok_and(|lock| lock.len() > 0);
        Store::look_after(&self.path, worked_before && self.had_database())
    }

    /// Where the controller's socket would be, for whoever looks for a controller; none where there can be none.
    pub fn find_socket(&self) -> Result<Option<PathBuf>, StoreError> {
        socket::find(&self.path)
    }

    /// Where the socket of the controller is to be, which calls this and holds the lock. The directory exists afterwards;
    /// the socket itself may not. Chosen again where the directory that was chosen before can't be made any more, as
    /// `/run/user/UID` after a reboot.
    pub fn claim_socket(&self) -> Result<PathBuf, StoreError> {
        let runtime_dir = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        socket::claim(&self.path, runtime_dir.as_deref())
    }

    /// What shows the controller that a caller can read this directory; made where it is missing.
    pub fn token(&self) -> Result<Token, StoreError> {
        let path = self.path.join(TOKEN);
        if !path.exists() {
            write_new(&path, format!("{}\n", random_id()?).as_bytes())?;
        }
        let text = std::fs::read_to_string(&path).map_err(StoreError::io("read", &path))?;
        match text.trim() {
            "" => Err(StoreError::Damaged {
                path,
                what: "it is empty".to_owned(),
                help: "remove it and start the controller again, which makes a new one",
            }),
            token => Ok(Token(token.to_owned())),
        }
    }

    /// Makes the caller the only one that works on this state directory, until the guard is dropped or the process
    /// ends, however it ends (the kernel releases the lock).
    pub fn lock(&self, role: Role) -> Result<LockGuard, Locked> {
        let path = self.path.join(LOCK);
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let mut file = opened.map_err(|error| Locked::Failed(StoreError::io("open", &path)(error)))?;
        let mut tries = LOCK_TRIES;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) => tries -= 1,
                Err(TryLockError::Error(error)) => return Err(Locked::Failed(StoreError::io("lock", &path)(error))),
            }
            if tries == 0 {
                return Err(Locked::Held { holder: Holder::read(&mut file), state_dir: self.path.clone() });
            }
            std::thread::sleep(LOCK_PAUSE);
        }
        // Whoever has held it has written who it was, and made the database.
        let worked_before = file.metadata().is_ok_and(|lock| lock.len() > 0);
        let write = file.set_len(0).and_then(|()| writeln!(file, "{} {role}", std::process::id()));
        write.map_err(|error| Locked::Failed(StoreError::io("write", &path)(error)))?;
        Ok(LockGuard { _file: file, worked_before })
    }

    /// Tells the command that works on this state directory that a controller waits for it, until what is given is dropped or
    /// the process ends.
    ///
    /// # Errors
    /// The file that tells it can't be used.
    pub fn wait_for(&self) -> Result<Waiting, StoreError> {
        let path = self.path.join(AWAITED);
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = opened.map_err(StoreError::io("open", &path))?;
        file.lock_shared().map_err(StoreError::io("lock", &path))?;
        Ok(Waiting { _file: file })
    }

    /// Whether a controller waits for whoever works on this state directory. What can't be found out is taken for a no.
    pub fn is_awaited(&self) -> bool {
        let file = File::open(self.path.join(AWAITED));
        file.is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
    }

    /// Which file is locked by whoever holds the lock now: its device and number. Another one, or none, where the directory
    /// was moved away or removed meanwhile.
    pub fn lock_file(&self) -> Option<(u64, u64)> {
        let file = std::fs::metadata(self.path.join(LOCK)).ok()?;
        Some((file.dev(), file.ino()))
    }

    /// Whether somebody holds the lock now, and who.
    pub fn holder(&self) -> Result<Lock, StoreError> {
        let path = self.path.join(LOCK);
        let mut file = match File::open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Lock::Free),
            other => other.map_err(StoreError::io("open", &path))?,
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(Lock::Free),
            Err(TryLockError::WouldBlock) => Ok(Lock::Held(Holder::read(&mut file))),
            Err(TryLockError::Error(error)) => Err(StoreError::io("lock", &path)(error)),
        }
    }
}

/// What somebody does on a state directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A controller, until somebody ends it.
    Controller,
    /// A command without a controller, until it is done.
    Command,
}

impl Role {
    const ALL: [Self; 2] = [Self::Controller, Self::Command];
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Controller => "controller",
            Self::Command => "command",
        })
    }
}

/// Who works on a state directory, as far as it has written that already.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Holder {
    /// Its process id.
    pub pid: Option<u32>,
    /// What it does.
    pub role: Option<Role>,
}

impl Holder {
    fn read(file: &mut File) -> Self {
        // Longest pid on Linux: 4194304, and the longest role.
        let mut text = String::new();
        if file.take(32).read_to_string(&mut text).is_err() {
            return Self::default();
        }
        let mut words = text.split_whitespace();
        let pid = words.next().and_then(|pid| pid.parse().ok());
        let role = words.next().and_then(|word| Role::ALL.into_iter().find(|role| role.to_string() == word));
        Self { pid, role }
    }
}

impl std::fmt::Display for Holder {
    /// What it is, for a sentence.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = if self.role == Some(Role::Command) { "a keel command" } else { "another keel" };
        match self.pid {
            Some(pid) => write!(f, "{what} (pid {pid})"),
            None => f.write_str(what),
        }
    }
}

/// Whether somebody works on a state directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    /// Nobody does.
    Free,
    /// Somebody does.
    Held(Holder),
}

/// Keeps everybody else off the state directory.
#[derive(Debug)]
pub struct LockGuard {
    _file: File,
    worked_before: bool,
}

impl LockGuard {
    /// Whether anybody had the lock before.
    pub const fn worked_before(&self) -> bool {
        self.worked_before
    }
}

/// Says that a controller waits for a state directory.
#[derive(Debug)]
pub struct Waiting {
    _file: File,
}

/// Why the lock was not given.
#[derive(Debug, thiserror::Error)]
pub enum Locked {
    /// Somebody else has it.
    #[error("{holder} {} {}, or use another --state-dir", held(*holder, state_dir), remedy(*holder))]
    Held {
        /// Who.
        holder: Holder,
        /// The state directory.
        state_dir: PathBuf,
    },
    /// The lock file can't be used.
    #[error(transparent)]
    Failed(#[from] StoreError),
}

fn held(holder: Holder, state_dir: &Path) -> String {
    let does = if holder.role == Some(Role::Command) { "works on" } else { "is already running on" };
    format!("{does} {};", state_dir.display())
}

const fn remedy(holder: Holder) -> &'static str {
    match holder.role {
        Some(Role::Command) => "wait until it is done",
        Some(Role::Controller) | None => "stop it first",
    }
}

/// Writes a small file anew, all or nothing, and makes that outlast a loss of power: a reader, also after one, sees the
/// old content or the new.
///
/// # Errors
/// It can't be written; the old content stays.
pub fn replace(path: &Path, content: &[u8]) -> std::io::Result<()> {
    write_beside(path, content, |temporary| std::fs::rename(temporary, path))
}

/// Writes a file under a name of its own, has `place` bring it to its path, and makes that outlast a loss of power. What
/// is left under the other name goes.
fn write_beside(path: &Path, content: &[u8], place: impl FnOnce(&Path) -> std::io::Result<()>) -> std::io::Result<()> {
    let beside = Beside::write(path, content)?;
    place(&beside.temporary)?;
    sync_parent(path)
}

/// A file that is written, safe from a loss of power, and not at its path yet. What is left under its other name goes with
/// this.
pub(super) struct Beside {
    path: PathBuf,
    temporary: PathBuf,
}

impl Beside {
    /// Writes it.
    ///
    /// # Errors
    /// It can't be written.
    pub fn write(path: &Path, content: &[u8]) -> std::io::Result<Self> {
        let mut temporary = path.as_os_str().to_os_string();
        temporary.push(format!(".{}.tmp", std::process::id()));
        let beside = Self { path: path.to_owned(), temporary: temporary.into() };
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside.temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        Ok(beside)
    }

    /// Brings it to its path, in the place of what is there; that outlasts a loss of power once the directory is synced.
    ///
    /// # Errors
    /// It can't be renamed; what is there stays.
    pub fn place(self) -> std::io::Result<()> {
        std::fs::rename(&self.temporary, &self.path)
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // Gone already where it was renamed.
        let _ = std::fs::remove_file(&self.temporary);
    }
}

/// Makes what was made, renamed or removed at a path outlast a loss of power.
pub(super) fn sync_parent(path: &Path) -> std::io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

/// Writes a file that must not exist yet, all or nothing: a reader sees the whole content or no file. Where another
/// process was quicker, its file stays.
pub(super) fn write_new(path: &Path, content: &[u8]) -> Result<(), StoreError> {
    // A link fails where the name is taken, which a rename would not.
    let place = |temporary: &Path| match std::fs::hard_link(temporary, path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        // A file system without hard links.
        Err(_) if !path.exists() => std::fs::rename(temporary, path),
        other => other,
    };
    write_beside(path, content, place).map_err(StoreError::io("write", path))
}

fn default_path(root: bool, variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    if root {
        return Some(PathBuf::from("/var/lib/keel"));
    }
    // The specification says to ignore relative paths.
    let absolute = |name: &str| variable(name).filter(|path| path.is_absolute());
    let state_home = absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/state")));
    state_home.map(|dir| dir.join("keel"))
}

/// Makes a state directory and the folder of applied files in it.
fn make_dirs(path: &Path) -> Result<(), StoreError> {
    make_dir(path)?;
    make_dir(&path.join(APPLIED))?;
    make_lock(&path.join(APPLIED));
    Ok(())
}

/// Makes a directory that only this user can enter; one that exists keeps its permissions, but must be this user's.
fn make_dir(path: &Path) -> Result<(), StoreError> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(StoreError::io("create", path))?;
    let metadata = std::fs::metadata(path).map_err(StoreError::io("look at", path))?;
    let user = rustix::process::geteuid();
    if metadata.uid() == user.as_raw() {
        return Ok(());
    }
    // Root could, but what it makes there its owner can't use.
    Err(StoreError::Foreign { path: path.to_path_buf(), user: User::of(metadata.uid()) })
}

fn read_owner(dir: &Path) -> Result<Owner, StoreError> {
    let path = dir.join(OWNER);
    if !path.exists() {
        write_new(&path, format!("{}\n", random_id()?).as_bytes())?;
    }
    let text = std::fs::read(&path).map_err(StoreError::io("read", &path))?;
    let text = String::from_utf8_lossy(&text);
    let id = text.trim();
    let written_by_us =
        id.len() == OWNER_BYTES * 2 && id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if written_by_us {
        return Ok(Owner(id.to_owned()));
    }
    Err(StoreError::Damaged {
        path,
        what: format!("{OWNER_BYTES} random bytes in lower-case hexadecimal digits were expected"),
        help: "restore it from a backup; without it keel does not recognise what it created, and removing the file \
               makes a new installation that leaves all of that alone",
    })
}

fn random_id() -> Result<String, StoreError> {
    let device = Path::new("/dev/urandom");
    let mut bytes = [0; OWNER_BYTES];
    File::open(device).and_then(|mut file| file.read_exact(&mut bytes)).map_err(StoreError::io("read", device))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
