//! Why a program could not be run.

use std::io;

use serde::{Deserialize, Serialize};

/// Exit code where the program is not found, as shells and Docker have it.
pub const NOT_FOUND: i32 = 127;
/// Exit code where the program can't be executed, as shells and Docker have it.
pub const NOT_EXECUTABLE: i32 = 126;
/// Exit code where the sandbox could not be built: Docker's code for its own failures.
pub const NOT_BUILT: i32 = 125;

/// A program could not be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct Failure {
    /// Exit code that stands for it.
    pub code: i32,
    /// What is wrong, where, and what to do.
    pub message: String,
    /// Whether the same launch will fail again; else the machine was in the way, and trying again may help.
    pub lasting: bool,
}

impl Failure {
    /// The sandbox could not be built this time.
    pub fn setup(message: impl Into<String>) -> Self {
        Self { code: NOT_BUILT, message: message.into(), lasting: false }
    }

    /// The sandbox can't be built as it is wanted.
    pub fn wrong(message: impl Into<String>) -> Self {
        Self { code: NOT_BUILT, message: message.into(), lasting: true }
    }

    /// The program does not exist.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self { code: NOT_FOUND, message: message.into(), lasting: true }
    }

    /// The program can't be executed.
    pub fn not_executable(message: impl Into<String>) -> Self {
        Self { code: NOT_EXECUTABLE, message: message.into(), lasting: true }
    }
}

/// Says what was being done when something failed.
pub trait Context<T> {
    /// Turns the error into a [`Failure`] of building the sandbox.
    fn context(self, what: &str) -> Result<T, Failure>;

    /// The same with a text that is made when needed.
    fn with_context(self, what: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, what: &str) -> Result<T, Failure> {
        self.map_err(|error| Failure::setup(format!("{what}: {}", error.into())))
    }

    fn with_context(self, what: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|error| Failure::setup(format!("{}: {}", what(), error.into())))
    }
}
