//! Flags and environment made into options.

use std::path::PathBuf;

use crate::spec::RuntimeKind;
use crate::store::{Lock, StateDir, StoreError, Token};

/// What holds for every verb.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The state directory, absolute.
    pub state_dir: PathBuf,
    /// Runtime of services that name none; chosen by the engine when absent.
    pub runtime: Option<RuntimeKind>,
    /// The `keel` program that runs, for supervisors.
    pub program: PathBuf,
}

impl Options {
    /// The options that these flags and this process's environment give.
    ///
    /// # Errors
    /// No state directory was named and none can be derived, or a relative one was named and the working directory
    /// is gone.
    pub fn resolve(state_dir: Option<PathBuf>, runtime: Option<RuntimeKind>) -> Result<Self, ConfigError> {
        let chosen = state_dir.or_else(StateDir::default_path).ok_or(ConfigError::NoStateDir)?;
        let state_dir =
            std::path::absolute(&chosen).map_err(|source| ConfigError::Relative { path: chosen.clone(), source })?;
        Ok(Self { state_dir, runtime, program: running_program() })
    }

    /// Whether nothing was ever kept here: no installation was made in the state directory.
    pub fn is_untouched(&self) -> bool {
        !StateDir::is_made(&self.state_dir)
    }

    /// Where the controller of this state directory listens; `None` where no installation was made yet, so that
    /// looking creates nothing.
    ///
    /// # Errors
    /// The state directory is not this user's, or is damaged.
    pub fn socket(&self) -> Result<Option<PathBuf>, StoreError> {
        if self.is_untouched() {
            return Ok(None);
        }
        StateDir::open(&self.state_dir)?.find_socket()
    }

    /// Whether somebody works on the state directory now, and who.
    ///
    /// # Errors
    /// It can't be looked at, or is damaged.
    pub fn worker(&self) -> Result<Lock, StoreError> {
        match self.is_untouched() {
            true => Ok(Lock::Free),
            false => StateDir::open(&self.state_dir)?.holder(),
        }
    }

    /// What shows the controller of this state directory that the caller can read it.
    ///
    /// # Errors
    /// It can't be read, or the state directory is damaged.
    pub fn token(&self) -> Result<Token, StoreError> {
        StateDir::open(&self.state_dir)?.token()
    }
}

/// The program that runs, as its own children can execute it: `/proc/self/exe` means this very program, also after its
/// file was replaced by a newer one.
fn running_program() -> PathBuf {
    match cfg!(target_os = "linux") {
        true => PathBuf::from("/proc/self/exe"),
        false => std::env::current_exe().unwrap_or_else(|_| PathBuf::from("keel")),
    }
}

/// Flags and environment give no options.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No state directory was named and none can be derived.
    #[error("neither XDG_STATE_HOME nor HOME is set; name a state directory with --state-dir or KEEL_STATE_DIR")]
    NoStateDir,
    /// A relative state directory can't be made absolute.
    #[error("the state directory {} is relative and the working directory can't be found; name an absolute path", path.display())]
    Relative {
        /// What was named.
        path: PathBuf,
        /// Why it can't.
        source: std::io::Error,
    },
}
