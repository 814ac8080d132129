//! What the source remembers: good versions of files, the inventory of deployments, and a stopped prune.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::database::{At, PathBytes};
use super::reset::{Reset, read_reset};
use super::{Store, StoreError};
use crate::spec::Prune;
use crate::state::SourceRef;

/// Last version of a source file that had no problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// Absolute path.
    pub path: PathBuf,
    /// The bytes.
    pub content: Vec<u8>,
    /// SHA-256 of the bytes.
    pub hash: [u8; 32],
    /// When it was first seen.
    pub accepted_at: DateTime<Utc>,
}

/// A deployment of the inventory: it was declared once and its instances may still exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    /// Name.
    pub name: String,
    /// What happens when the declaration goes.
    pub prune: Prune,
    /// The source root that declared it: a directory or a single file.
    pub root: PathBuf,
    /// Where it was declared.
    pub source: SourceRef,
    /// The deployment as JSON; the source decides on the form.
    pub spec: String,
    /// When this version of it was first seen.
    pub updated_at: DateTime<Utc>,
    /// Since when it is not declared any more, where that is settled (no hold keeps it).
    pub removed_at: Option<DateTime<Utc>>,
}

/// A prune that was stopped because too much vanished at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HoldRecord {
    /// Why, for people.
    pub reason: String,
    /// Since when.
    pub since: DateTime<Utc>,
    /// The deployments whose loss was too much at once. The hold lasts until each is back or confirmed.
    pub missing: BTreeSet<String>,
}

/// Which directory a source root was: another one of the same name may be an unmounted file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootIdentity {
    /// The root.
    pub path: PathBuf,
    /// Text that differs for another directory; the source decides on the form.
    pub identity: String,
}

/// A folder of source files that is on a file system other than that of its root, or a source file that can't be seen since
/// its file system is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountedFolder {
    /// The folder or file, as it was listed.
    pub path: PathBuf,
    /// The folder, or that of the file, without symbolic links.
    pub real: PathBuf,
    /// Where its file system was mounted.
    pub mount: PathBuf,
    /// Text that differs for another file system; the source decides on the form.
    pub identity: Option<String>,
}

/// What the source remembers, as a whole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceState {
    /// By path.
    pub files: Vec<SourceFile>,
    /// By name.
    pub inventory: Vec<Declared>,
    /// By path.
    pub roots: Vec<RootIdentity>,
    /// By path.
    pub mounts: Vec<MountedFolder>,
    /// The stopped prune.
    pub hold: Option<HoldRecord>,
    /// Deployments that were deleted by name while no controller ran, and that a file may still declare.
    pub deleted: BTreeSet<String>,
    /// That all of this may be less than what was remembered once, as long as nobody has confirmed it.
    pub reset: Option<Reset>,
}

/// What one scan changes, stored all or nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceChange {
    /// New good versions.
    pub files: Vec<SourceFile>,
    /// Files that are gone.
    pub dropped_files: Vec<PathBuf>,
    /// New or changed entries of the inventory.
    pub declared: Vec<Declared>,
    /// All watched roots, in place of those before.
    pub roots: Option<Vec<RootIdentity>>,
    /// All folders on other file systems, in place of those before.
    pub mounts: Option<Vec<MountedFolder>>,
    /// `Some` sets (or with an inner `None` lifts) the hold.
    pub hold: Option<Option<HoldRecord>>,
    /// All deployments that stay deleted although a file may declare them, in place of those before.
    pub deleted: Option<BTreeSet<String>>,
    /// That the database began anew was confirmed, and is forgotten.
    pub reset_confirmed: bool,
}

impl SourceChange {
    /// Whether there is nothing to store.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds a later change; where both speak of the same thing, the later one counts.
    pub fn append(&mut self, later: Self) {
        let Self { files, dropped_files, declared, roots, mounts, hold, deleted, reset_confirmed } = later;
        self.files.retain(|file| !dropped_files.contains(&file.path));
        self.dropped_files.retain(|path| !files.iter().any(|file| file.path == *path));
        self.files.retain(|before| !files.iter().any(|file| file.path == before.path));
        self.declared.retain(|before| !declared.iter().any(|now| now.name == before.name));
        self.files.extend(files);
        self.dropped_files.extend(dropped_files);
        self.declared.extend(declared);
        self.roots = roots.or(self.roots.take());
        self.mounts = mounts.or(self.mounts.take());
        self.hold = hold.or(self.hold.take());
        self.deleted = deleted.or(self.deleted.take());
        self.reset_confirmed |= reset_confirmed;
    }
}

impl Store {
    /// Everything that the source remembers.
    pub fn source_state(&self) -> Result<SourceState, StoreError> {
        let mut connection = self.connection();
        let mut read = || {
            // One transaction, so that the parts belong together.
            let transaction = connection.transaction()?;
            Ok(SourceState {
                files: read_files(&transaction)?,
                inventory: read_inventory(&transaction)?,
                roots: read_roots(&transaction)?,
                mounts: read_mounts(&transaction)?,
                hold: read_hold(&transaction)?,
                deleted: read_deleted(&transaction)?,
                reset: read_reset(&transaction)?,
            })
        };
        read().map_err(StoreError::database("read the inventory of"))
    }

    /// Stores what one scan changed: all of it or, on an error, nothing.
    pub fn record_scan(&self, change: &SourceChange) -> Result<(), StoreError> {
        let mut connection = self.connection();
        let mut write = || {
            let transaction = connection.transaction()?;
            write_change(&transaction, change)?;
            transaction.commit()
        };
        write().map_err(StoreError::database("record a scan in"))
    }

    /// Good versions of the source files, by path.
    pub fn files(&self) -> Result<Vec<SourceFile>, StoreError> {
        read_files(&self.connection()).map_err(StoreError::database("read the source files of"))
    }

    /// Deployments that were declared and are not completely removed, by name.
    pub fn inventory(&self) -> Result<Vec<Declared>, StoreError> {
        read_inventory(&self.connection()).map_err(StoreError::database("read the inventory of"))
    }

    /// Adds a deployment to the inventory, or replaces its entry.
    pub fn declare(&self, declared: &Declared) -> Result<(), StoreError> {
        write_declared(&self.connection(), declared).map_err(StoreError::database("add to the inventory of"))
    }

    /// Takes a deployment out of the inventory: nothing of it exists any more. Repeating it changes nothing.
    pub fn forget(&self, name: &str) -> Result<(), StoreError> {
        let forget = self.connection().execute("DELETE FROM deployments WHERE name = ?", [name]);
        forget.map(drop).map_err(StoreError::database("take from the inventory of"))
    }

    /// The stopped prune.
    pub fn hold(&self) -> Result<Option<HoldRecord>, StoreError> {
        read_hold(&self.connection()).map_err(StoreError::database("read the hold of"))
    }
}

fn read_files(connection: &Connection) -> rusqlite::Result<Vec<SourceFile>> {
    let mut statement =
        connection.prepare_cached("SELECT path, content, hash, accepted_at FROM files ORDER BY path")?;
    let rows = statement.query_map([], |row| {
        Ok(SourceFile {
            path: row.get::<_, PathBytes>(0)?.0,
            content: row.get(1)?,
            hash: row.get(2)?,
            accepted_at: row.get::<_, At>(3)?.0,
        })
    })?;
    rows.collect()
}

fn read_inventory(connection: &Connection) -> rusqlite::Result<Vec<Declared>> {
    let mut statement = connection.prepare_cached(
        "SELECT name, prune, root, file, line, spec, updated_at, removed_at FROM deployments ORDER BY name",
    )?;
    let rows = statement.query_map([], |row| {
        Ok(Declared {
            name: row.get(0)?,
            prune: read_prune(row, 1)?,
            root: row.get::<_, PathBytes>(2)?.0,
            source: SourceRef { file: row.get::<_, PathBytes>(3)?.0, line: row.get(4)? },
            spec: row.get(5)?,
            updated_at: row.get::<_, At>(6)?.0,
            removed_at: row.get::<_, Option<At>>(7)?.map(|at| at.0),
        })
    })?;
    rows.collect()
}

fn read_roots(connection: &Connection) -> rusqlite::Result<Vec<RootIdentity>> {
    let mut statement = connection.prepare_cached("SELECT path, identity FROM roots ORDER BY path")?;
    let rows = statement
        .query_map([], |row| Ok(RootIdentity { path: row.get::<_, PathBytes>(0)?.0, identity: row.get(1)? }))?;
    rows.collect()
}

fn read_mounts(connection: &Connection) -> rusqlite::Result<Vec<MountedFolder>> {
    let mut statement = connection.prepare_cached("SELECT path, real, mount, identity FROM mounts ORDER BY path")?;
    let rows = statement.query_map([], |row| {
        let path = |index| row.get::<_, PathBytes>(index).map(|path| path.0);
        Ok(MountedFolder { path: path(0)?, real: path(1)?, mount: path(2)?, identity: row.get(3)? })
    })?;
    rows.collect()
}

fn read_deleted(connection: &Connection) -> rusqlite::Result<BTreeSet<String>> {
    let mut statement = connection.prepare_cached("SELECT name FROM deleted")?;
    let names = statement.query_map([], |row| row.get(0))?;
    names.collect()
}

fn read_hold(connection: &Connection) -> rusqlite::Result<Option<HoldRecord>> {
    let mut statement = connection.prepare_cached("SELECT reason, since, missing FROM hold")?;
    statement
        .query_row([], |row| {
            let missing: String = row.get(2)?;
            Ok(HoldRecord {
                reason: row.get(0)?,
                since: row.get::<_, At>(1)?.0,
                missing: serde_json::from_str(&missing)
                    .map_err(|error| rusqlite::Error::FromSqlConversionFailure(2, Type::Text, error.into()))?,
            })
        })
        .optional()
}

fn write_change(connection: &Connection, change: &SourceChange) -> rusqlite::Result<()> {
    let SourceChange { files, dropped_files, declared, roots, mounts, hold, deleted, reset_confirmed } = change;
    for file in files {
        connection
            .prepare_cached("INSERT OR REPLACE INTO files (path, content, hash, accepted_at) VALUES (?, ?, ?, ?)")?
            .execute(params![bytes(&file.path), file.content, file.hash, At(file.accepted_at)])?;
    }
    for path in dropped_files {
        connection.prepare_cached("DELETE FROM files WHERE path = ?")?.execute([bytes(path)])?;
    }
    for declared in declared {
        write_declared(connection, declared)?;
    }
    if roots.is_some() {
        connection.execute("DELETE FROM roots", [])?;
    }
    for root in roots.iter().flatten() {
        connection
            .prepare_cached("INSERT OR REPLACE INTO roots (path, identity) VALUES (?, ?)")?
            .execute(params![bytes(&root.path), root.identity])?;
    }
    if mounts.is_some() {
        connection.execute("DELETE FROM mounts", [])?;
    }
    for MountedFolder { path, real, mount, identity } in mounts.iter().flatten() {
        connection
            .prepare_cached("INSERT OR REPLACE INTO mounts (path, real, mount, identity) VALUES (?, ?, ?, ?)")?
            .execute(params![bytes(path), bytes(real), bytes(mount), identity])?;
    }
    if deleted.is_some() {
        connection.execute("DELETE FROM deleted", [])?;
    }
    for name in deleted.iter().flatten() {
        connection.prepare_cached("INSERT INTO deleted (name) VALUES (?)")?.execute([name])?;
    }
    if let Some(hold) = hold {
        write_hold(connection, hold.as_ref())?;
    }
    if *reset_confirmed {
        connection.execute("DELETE FROM reset", [])?;
    }
    Ok(())
}

fn write_declared(connection: &Connection, declared: &Declared) -> rusqlite::Result<()> {
    let Declared { name, prune, root, source, spec, updated_at, removed_at } = declared;
    let prune = match prune {
        Prune::Auto => "auto",
        Prune::Never => "never",
    };
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO deployments (name, prune, root, file, line, spec, updated_at, removed_at) \
             VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        )?
        .execute(params![
            name,
            prune,
            bytes(root),
            bytes(&source.file),
            source.line,
            spec,
            At(*updated_at),
            removed_at.map(At)
        ])
        .map(drop)
}

fn write_hold(connection: &Connection, hold: Option<&HoldRecord>) -> rusqlite::Result<()> {
    let Some(HoldRecord { reason, since, missing }) = hold else {
        return connection.execute("DELETE FROM hold", []).map(drop);
    };
    let missing =
        serde_json::to_string(missing).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
    connection
        .prepare_cached("INSERT OR REPLACE INTO hold (id, reason, since, missing) VALUES (1, ?, ?, ?)")?
        .execute(params![reason, At(*since), missing])
        .map(drop)
}

/// An unknown word (written by a newer version, or by hand) means the one that destroys nothing.
fn read_prune(row: &Row<'_>, index: usize) -> rusqlite::Result<Prune> {
    Ok(match row.get_ref(index)?.as_str()? {
        "auto" => Prune::Auto,
        _ => Prune::Never,
    })
}

fn bytes(path: &Path) -> PathBytes {
    PathBytes(path.to_path_buf())
}
