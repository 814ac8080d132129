//! What can go wrong with the state directory and the database.

use std::path::{Path, PathBuf};

use super::database::is_without_room;
use super::user::User;

/// What can go wrong with the state directory and the database.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file or directory of the state directory could not be used.
    #[error("can't {action} {}: {source}", path.display())]
    Io {
        /// What was tried, such as `create`.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file of the state directory holds something that keel did not write.
    #[error("{} is damaged: {what}; {help}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
        /// What to do.
        help: &'static str,
    },
    /// A directory belongs to another user.
    #[error(
        "{} belongs to user {user}; run keel as that user, for example `sudo -u {} keel ...`, or use another --state-dir",
        path.display(), user.for_sudo()
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        user: User,
    },
    /// The database was written by a newer keel.
    #[error(
        "{} was written by a newer keel (format {found}, this one knows up to {known}): use that version, or another \
         state directory (--state-dir)",
        path.display()
    )]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its format.
        found: i64,
        /// Newest format that this version knows.
        known: i64,
    },
    /// A question to the database failed.
    #[error("can't {action} the database: {source}")]
    Database {
        /// What was tried, such as `read the inventory of`.
        action: &'static str,
        /// What SQLite said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl StoreError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }

    pub(super) fn database(action: &'static str) -> impl FnOnce(rusqlite::Error) -> Self {
        move |source| match is_without_room(&source) {
            true => Self::Database { action, source: format!("the disk seems to be full ({source})").into() },
            false => Self::Database { action, source: Box::new(source) },
        }
    }
}
