//! The tables, and how an older database becomes a current one.

use rusqlite::{Connection, TransactionBehavior};

use super::reset::{Reset, write_reset};

/// What brings a database from format N to N + 1, in order. Entries are never changed once released, only added.
const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE files (
        path BLOB PRIMARY KEY,        -- absolute, as the bytes of the file system
        content BLOB NOT NULL,        -- last version without a problem
        hash BLOB NOT NULL,           -- SHA-256 of content
        accepted_at TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE deployments (
        name TEXT PRIMARY KEY,
        prune TEXT NOT NULL,
        root BLOB NOT NULL,           -- source root that declared it
        file BLOB NOT NULL,
        line INTEGER NOT NULL,
        spec TEXT NOT NULL,           -- JSON, as declared
        updated_at TEXT NOT NULL,
        removed_at TEXT               -- set once its declaration went and pruning was allowed
    ) WITHOUT ROWID;
    CREATE TABLE roots (
        path BLOB PRIMARY KEY,
        identity TEXT NOT NULL        -- which directory it was at the last scan
    ) WITHOUT ROWID;
    CREATE TABLE hold (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        reason TEXT NOT NULL,
        since TEXT NOT NULL,
        missing TEXT NOT NULL         -- JSON list of deployment names
    );
    CREATE TABLE events (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        at TEXT NOT NULL,
        deployment TEXT,
        kind TEXT NOT NULL,
        message TEXT NOT NULL
    );
    CREATE INDEX events_of_deployment ON events (deployment, id);
",
    "
    CREATE TABLE removals (
        name TEXT PRIMARY KEY,        -- deployment whose removal was asked for by name
        volumes INTEGER NOT NULL      -- whether its named volumes go too
    ) WITHOUT ROWID;
",
    "
    CREATE TABLE stops (
        runtime TEXT NOT NULL,
        id TEXT NOT NULL,             -- the runtime's own id of an instance that was asked to end
        record TEXT NOT NULL,         -- JSON: why, and which of its runs
        PRIMARY KEY (runtime, id)
    ) WITHOUT ROWID;
",
    "
    CREATE TABLE deleted (
        name TEXT PRIMARY KEY         -- deployment that was deleted by name while no controller ran
    ) WITHOUT ROWID;
",
    "
    CREATE TABLE reset (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        damaged BLOB                  -- the database before; absent where there was none
    );
",
    "
    CREATE TABLE requested (
        id INTEGER PRIMARY KEY AUTOINCREMENT, -- of the last request; never used again
        name TEXT NOT NULL UNIQUE,
        volumes INTEGER NOT NULL
    );
    INSERT INTO requested (name, volumes) SELECT name, volumes FROM removals;
    DROP TABLE removals;
    ALTER TABLE requested RENAME TO removals;
",
    "
    CREATE TABLE mounts (
        path BLOB PRIMARY KEY,        -- folder of source files on another file system than its root
        real BLOB NOT NULL,           -- the same without symbolic links
        mount BLOB NOT NULL           -- where that file system was mounted
    ) WITHOUT ROWID;
",
    "
    CREATE TABLE memory (
        deployment TEXT NOT NULL,
        service TEXT NOT NULL,        -- empty where it is about the deployment as a whole
        json TEXT NOT NULL,           -- rollouts of the service, or what users ordered of the deployment
        PRIMARY KEY (deployment, service)
    ) WITHOUT ROWID;
",
    "
    CREATE TABLE jobs (
        deployment TEXT NOT NULL,
        service TEXT NOT NULL,
        record TEXT NOT NULL,         -- JSON: finished runs, runs that were asked for, how far its schedule is
        PRIMARY KEY (deployment, service)
    ) WITHOUT ROWID;
",
    "
    ALTER TABLE mounts ADD COLUMN identity TEXT; -- differs for another file system; absent where that is not known
",
    "
    CREATE TABLE activity (
        deployment TEXT PRIMARY KEY,
        record TEXT NOT NULL          -- JSON: when its instances were used last, which are suspended for idleness
    ) WITHOUT ROWID;
",
    "
    CREATE TABLE sessions (
        id TEXT PRIMARY KEY,
        deployment TEXT NOT NULL,
        service TEXT NOT NULL,
        runtime TEXT NOT NULL,
        member TEXT NOT NULL,         -- the runtime's own id of the instance
        record TEXT NOT NULL          -- JSON
    ) WITHOUT ROWID;
    CREATE TABLE spent (
        runtime TEXT NOT NULL,
        member TEXT NOT NULL,         -- of a pool, that somebody has had and no session tells of
        deployment TEXT NOT NULL,
        service TEXT NOT NULL,
        PRIMARY KEY (runtime, member)
    ) WITHOUT ROWID;
    CREATE TABLE session_records (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        began_at TEXT NOT NULL        -- since when sessions are remembered
    );
    INSERT INTO session_records VALUES (1, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'));
",
    "
    CREATE TABLE seen (
        runtime TEXT PRIMARY KEY,
        at TEXT NOT NULL              -- every end of an instance until then is known
    ) WITHOUT ROWID;
",
];

/// Newest format that this version knows.
pub(super) const NEWEST: i64 = MIGRATIONS.len() as i64;

/// Format of a database; 0 for an empty one.
pub(super) fn format(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Brings a database to the newest format, all or nothing. Where it has none yet, it is noted as well that it began anew
/// (`reset`), so that no crash in between makes it look like one that remembers everything.
pub(super) fn migrate(connection: &mut Connection, reset: Option<&Reset>) -> rusqlite::Result<()> {
    if format(connection)? == NEWEST {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Another process may have been quicker.
    let from = usize::try_from(format(&transaction)?).unwrap_or(0);
    for step in MIGRATIONS.iter().skip(from) {
        transaction.execute_batch(step)?;
    }
    if let Some(reset) = reset.filter(|_| from == 0) {
        write_reset(&transaction, reset)?;
    }
    transaction.pragma_update(None, "user_version", NEWEST)?;
    transaction.commit()
}
