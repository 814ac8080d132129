//! That the database began anew on a state directory where somebody had worked before.

use std::path::PathBuf;

use rusqlite::{Connection, OptionalExtension, params};

use super::database::PathBytes;
use super::{Store, StoreError};

/// The database began anew, and what the one before remembered is lost: what was declared, what was to be kept, and which
/// prune was stopped. It lasts until somebody confirms it ([`SourceChange::reset_confirmed`](super::SourceChange)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reset {
    /// There was none, or an empty one.
    Missing,
    /// It was damaged.
    Damaged {
        /// Where it is now.
        file: PathBuf,
    },
}

impl std::fmt::Display for Reset {
    /// What happened, for a sentence.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing => f.write_str("the state database was missing, and a new one knows nothing of before"),
            Self::Damaged { file } => {
                write!(
                    f,
                    "the state database was damaged (it is {} now), and a new one knows nothing of before",
                    file.display()
                )
            }
        }
    }
}

impl Store {
    /// Whether the database began anew on a state directory where somebody had worked before, and nobody has confirmed it.
    pub fn reset(&self) -> Result<Option<Reset>, StoreError> {
        read_reset(&self.connection()).map_err(StoreError::database("read the beginning of"))
    }
}

pub(super) fn read_reset(connection: &Connection) -> rusqlite::Result<Option<Reset>> {
    let mut statement = connection.prepare_cached("SELECT damaged FROM reset")?;
    let damaged = statement.query_row([], |row| row.get::<_, Option<PathBytes>>(0)).optional()?;
    Ok(damaged.map(|damaged| damaged.map_or(Reset::Missing, |file| Reset::Damaged { file: file.0 })))
}

pub(super) fn write_reset(connection: &Connection, reset: &Reset) -> rusqlite::Result<()> {
    let damaged = match reset {
        Reset::Missing => None,
        Reset::Damaged { file } => Some(PathBytes(file.clone())),
    };
    connection.execute("INSERT OR REPLACE INTO reset (id, damaged) VALUES (1, ?)", params![damaged]).map(drop)
}
