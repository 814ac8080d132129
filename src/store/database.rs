//! Opening the SQLite file: format, damage, concurrency.

use std::ffi::OsStr;
use std::fs::{OpenOptions, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use rusqlite::backup::Backup;
use rusqlite::config::DbConfig;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::StoreError;
use super::migrate::{NEWEST, format, migrate};
use super::reset::Reset;

/// Name of the database in the state directory.
pub const DATABASE: &str = "keel.db";

/// How long a call waits for another process that writes. One-shot commands write a few kilobytes, which takes
/// milliseconds; five seconds is SQLite's customary choice and short enough to be told apart from a hang.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Pages that are copied without a pause in which others may write: more than any database of ours has, so that the copy is of
/// one instant.
const COPIED_AT_ONCE: i32 = i32::MAX;

/// Largest write-ahead log that is left on disk after a checkpoint.
const WAL_LIMIT: i64 = 4 << 20;

/// The database of one state directory.
#[derive(Debug)]
pub struct Store {
    connection: Mutex<Connection>,
    moved_aside: Option<PathBuf>,
}

impl Store {
    /// Opens, or makes, the database in a state directory that exists, for whoever holds its lock: another process may not
    /// be using it, since a database of an older version is brought to this one's format.
    ///
    /// A damaged database is moved aside (to `keel.db.corrupt`, replacing an earlier one) and a fresh one is made:
    /// see [`Store::moved_aside`], and [`Store::reset`], which lasts. One that a newer version wrote is an error and stays
    /// as it is.
    pub fn open(state_dir: &Path) -> Result<Self, StoreError> {
        Self::open_after(state_dir, false)
    }

    /// The same where it is known whether somebody worked on the state directory before: then a database was there, and one
    /// that is made now is in the place of a lost one.
    pub(super) fn open_after(state_dir: &Path, worked_before: bool) -> Result<Self, StoreError> {
        let path = state_dir.join(DATABASE);
        keep_private(&path);
        match Opened::open(&path, worked_before.then_some(&Reset::Missing))? {
            Opened::Good(connection) => Ok(Self::of(connection, None)),
            Opened::Corrupt(why) => {
                let aside = move_aside(&path)?;
                keep_private(&path);
                tracing::error!(
                    database = %path.display(), moved_to = %aside.display(), %why,
                    "the database is damaged and was moved aside: history is lost, workloads are not"
                );
                match Opened::open(&path, Some(&Reset::Damaged { file: aside.clone() }))? {
                    Opened::Good(connection) => Ok(Self::of(connection, Some(aside))),
                    Opened::Corrupt(source) => {
                        Err(StoreError::Database { action: "make a fresh copy of", source: Box::new(source) })
                    }
                }
            }
        }
    }

    /// What the database in a state directory holds now, to look at: nothing on disk changes, whoever uses it. What is not
    /// there, or is damaged, holds nothing but that it was lost.
    ///
    /// # Errors
    /// It can't be read, or a newer version wrote it.
    pub fn look(state_dir: &Path) -> Result<Self, StoreError> {
        Self::look_after(state_dir, false)
    }

    /// The same where it is known whether somebody worked on the state directory before, as [`Store::open_after`] has it.
    pub(super) fn look_after(state_dir: &Path, worked_before: bool) -> Result<Self, StoreError> {
        let path = state_dir.join(DATABASE);
        let missing = worked_before.then_some(&Reset::Missing);
        if !path.exists() {
            return Self::begun_in_memory(missing);
        }
        match Opened::copy(&path, missing)? {
            Opened::Good(connection) => Ok(Self::of(connection, None)),
            Opened::Corrupt(why) => {
                tracing::warn!(
                    database = %path.display(), %why,
                    "the database is damaged, so what it holds is not shown; `keel run` moves it aside"
                );
                Self::begun_in_memory(Some(&Reset::Damaged { file: path }))
            }
        }
    }

    /// A database that lives as long as the value: for commands that may leave no trace, and for tests.
    pub fn in_memory() -> Result<Self, StoreError> {
        Self::begun_in_memory(None)
    }

    fn begun_in_memory(reset: Option<&Reset>) -> Result<Self, StoreError> {
        let mut connection = Connection::open_in_memory().map_err(StoreError::database("open"))?;
        migrate(&mut connection, reset).map_err(StoreError::database("prepare"))?;
        Ok(Self::of(connection, None))
    }

    /// Where the damaged database that was found at the start is now.
    pub fn moved_aside(&self) -> Option<&Path> {
        self.moved_aside.as_deref()
    }

    fn of(connection: Connection, moved_aside: Option<PathBuf>) -> Self {
        Self { connection: Mutex::new(connection), moved_aside }
    }

    /// The connection. A panic in another call can't leave half a change behind (every change is a transaction),
    /// so a poisoned lock is still good.
    pub(super) fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Opened {
    Good(Connection),
    Corrupt(rusqlite::Error),
}

impl Opened {
    /// One that has no format yet begins with this.
    fn open(path: &Path, reset: Option<&Reset>) -> Result<Self, StoreError> {
        Self::of(path, || {
            let connection = Connection::open(path)?;
            connection.busy_timeout(BUSY_TIMEOUT)?;
            prepared(connection, |connection| prepare(connection, reset))
        })
    }

    /// A copy in memory; one that has no format yet begins with this.
    fn copy(path: &Path, reset: Option<&Reset>) -> Result<Self, StoreError> {
        Self::of(path, || {
            let shared =
                Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).and_then(|origin| copied(&origin));
            let copy = match shared {
                Err(error) if lacks_shared_memory(&error) => copied_alone(path).map_err(|_| error)?,
                copy => copy?,
            };
            prepared(copy, |copy| {
                check(copy)?;
                migrate(copy, reset)
            })
        })
    }

    fn of(path: &Path, open: impl FnOnce() -> rusqlite::Result<Result<Connection, i64>>) -> Result<Self, StoreError> {
        match open() {
            Ok(Ok(connection)) => Ok(Self::Good(connection)),
            Ok(Err(found)) => Err(StoreError::Newer { path: path.to_path_buf(), found, known: NEWEST }),
            Err(error) if is_corrupt(&error) => Ok(Self::Corrupt(error)),
            Err(error) => Err(StoreError::database("open")(error)),
        }
    }
}

fn copied(origin: &Connection) -> rusqlite::Result<Connection> {
    origin.busy_timeout(BUSY_TIMEOUT)?;
    let mut copy = Connection::open_in_memory()?;
    Backup::new(origin, &mut copy)?.run_to_completion(COPIED_AT_ONCE, Duration::ZERO, None)?;
    Ok(copy)
}

/// Copies it where there is no room for the file in which processes share what they know of the log (`-shm`): nobody else
/// has it open then, since theirs would be there, and what is known of the log stays in memory.
fn copied_alone(path: &Path) -> rusqlite::Result<Connection> {
    // It takes the lock of a writer, and writes nothing.
    let origin = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    origin.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    origin.pragma_update_and_check(None, "locking_mode", "exclusive", |_| Ok(()))?;
    origin.busy_timeout(BUSY_TIMEOUT)?;
    // Takes the lock or fails; copying would wait for ever.
    origin.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
    copied(&origin)
}

/// Whether there was no room for what SQLite needs to read.
fn lacks_shared_memory(error: &rusqlite::Error) -> bool {
    has_code(error, &[rusqlite::ffi::SQLITE_IOERR_SHMOPEN, rusqlite::ffi::SQLITE_IOERR_SHMSIZE])
}

/// Whether something could not be written for want of room, also where only what SQLite needs to read was to be.
pub(super) fn is_without_room(error: &rusqlite::Error) -> bool {
    use rusqlite::ffi::{SQLITE_FULL, SQLITE_IOERR_SHMSIZE, SQLITE_IOERR_WRITE};
    has_code(error, &[SQLITE_FULL, SQLITE_IOERR_SHMSIZE, SQLITE_IOERR_WRITE])
}

fn has_code(error: &rusqlite::Error, codes: &[i32]) -> bool {
    error.sqlite_error().is_some_and(|error| codes.contains(&error.extended_code))
}

/// The connection, once it is prepared; the format of the database where that is not known here.
fn prepared(
    mut connection: Connection,
    prepare: impl FnOnce(&mut Connection) -> rusqlite::Result<()>,
) -> rusqlite::Result<Result<Connection, i64>> {
    let found = format(&connection)?;
    if found > NEWEST {
        return Ok(Err(found));
    }
    prepare(&mut connection)?;
    Ok(Ok(connection))
}

fn prepare(connection: &mut Connection, reset: Option<&Reset>) -> rusqlite::Result<()> {
    // Readers go on while one writes. Where the file system can't do it, SQLite stays with its older journal.
    connection.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))?;
    // A power cut may lose the last events, never the database: what runs is the runtime's word, not ours.
    connection.pragma_update(None, "synchronous", "normal")?;
    connection.pragma_update_and_check(None, "journal_size_limit", WAL_LIMIT, |_| Ok(()))?;
    check(connection)?;
    migrate(connection, reset)
}

fn check(connection: &Connection) -> rusqlite::Result<()> {
    let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if verdict != "ok" {
        let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
        return Err(rusqlite::Error::SqliteFailure(code, Some(verdict)));
    }
    Ok(())
}

fn is_corrupt(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// Lets nobody but its user read the database, which holds the environment of services, wherever it lies. SQLite gives
/// its companions the mode that the database has.
///
/// A database that exists is not opened for it: closing any descriptor of a file lets go of every lock that this process
/// has on it (fcntl(2)), so another connection of this process would go on without its own, and another process that
/// closes the database would take the log of what was written away under it.
fn keep_private(path: &Path) {
    let made = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map(drop),
    };
    let closed = ["", "-wal", "-shm"].map(|suffix| {
        let mut name = path.as_os_str().to_os_string();
        name.push(suffix);
        match std::fs::set_permissions(name, Permissions::from_mode(0o600)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    });
    // What can't be written, as on a read-only file system, is told by whoever opens it.
    if let Some(error) = closed.into_iter().chain([made]).find_map(Result::err) {
        tracing::debug!(database = %path.display(), %error, "its mode stays as it is");
    }
}

/// Moves the database and its companions out of the way. The old name plus `.corrupt` is reused, so that damage
/// that comes back can't fill the disk.
fn move_aside(path: &Path) -> Result<PathBuf, StoreError> {
    let named = |suffix: &str| {
        let mut name = path.as_os_str().to_os_string();
        name.push(suffix);
        PathBuf::from(name)
    };
    for companion in ["", "-wal", "-shm"] {
        let from = named(companion);
        let to = named(&format!(".corrupt{companion}"));
        match std::fs::rename(&from, &to) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            other => other.map_err(StoreError::io("move aside", &from))?,
        }
    }
    Ok(named(".corrupt"))
}

/// A time as the database holds it: RFC 3339 in UTC with microseconds, which sorts and which people can read.
#[derive(Debug, Clone, Copy)]
pub(super) struct At(pub DateTime<Utc>);

impl ToSql for At {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.0.to_rfc3339_opts(SecondsFormat::Micros, true).into())
    }
}

impl FromSql for At {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let time = DateTime::parse_from_rfc3339(value.as_str()?).map_err(FromSqlError::other)?;
        Ok(Self(time.with_timezone(&Utc)))
    }
}

/// A path as the database holds it: its bytes, since a path need not be text.
#[derive(Debug, Clone)]
pub(super) struct PathBytes(pub PathBuf);

impl ToSql for PathBytes {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Blob(self.0.as_os_str().as_bytes())))
    }
}

impl FromSql for PathBytes {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        Ok(Self(PathBuf::from(OsStr::from_bytes(value.as_blob()?))))
    }
}
