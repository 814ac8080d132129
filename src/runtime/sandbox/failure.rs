//! Why a program could not be run.

use std::io;

use serde::{Deserialize, Serialize};

/// Exit code where the program is not found, as shells and Docker have it.
pub const NOT_FOUND: i32 = 127;
/// Exit code where the program can't be executed, as shells and Docker have it.
pub const NOT_EXECUTABLE: i32 = 126;
/// Exit code where the sandbox could not be built: Docker's code for its own failures.
pub const NOT_BUILT: i32 = 125;

/// What it means that an instance has one user and group only, as it has where keel does not run as root.
pub const ONE_USER: &str = "it is the only one there: files of the image that belong to others can be read at most (what writes \
                            to them fails with EOVERFLOW, \"Value too large for defined data type\"), and nothing can be \
                            given to others or run as them (EINVAL, \"Invalid argument\")";
/// What is done about that.
const ANOTHER_USER: &str = "keel does not run as root, so an instance has one user and group only: if this is about files of \
                            another, give all files of the image to one user (`COPY --chown` where it is built, `chown -R` \
                            for a directory), or run keel as root";

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
    /// Whether it was found before anything was changed inside an instance that runs.
    #[serde(default)]
    pub untouched: bool,
}

impl Failure {
    /// The sandbox could not be built this time.
    pub fn setup(message: impl Into<String>) -> Self {
        Self { code: NOT_BUILT, message: message.into(), lasting: false, untouched: false }
    }

    /// The sandbox can't be built as it is wanted.
    pub fn wrong(message: impl Into<String>) -> Self {
        Self { code: NOT_BUILT, message: message.into(), lasting: true, untouched: false }
    }

    /// The same, with what is behind it where an instance has one user only and the kernel has no name for another.
    #[must_use]
    pub fn for_one_user(mut self) -> Self {
        let told = |number: i32| self.message.ends_with(&format!("(os error {number})"));
        if told(libc::EOVERFLOW) || told(libc::EINVAL) {
            self.message = format!("{}; {ANOTHER_USER}", self.message);
        }
        self
    }

    /// The same, found before anything was changed.
    #[must_use]
    pub fn before_anything(self) -> Self {
        Self { untouched: true, ..self }
    }

    /// The program does not exist.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self { code: NOT_FOUND, message: message.into(), lasting: true, untouched: false }
    }

    /// The program can't be executed.
    pub fn not_executable(message: impl Into<String>) -> Self {
        Self { code: NOT_EXECUTABLE, message: message.into(), lasting: true, untouched: false }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_for_want_of_another_user_says_so_and_nothing_else_does() {
        let told = |number| {
            let failed: Result<(), io::Error> = Err(io::Error::from_raw_os_error(number));
            failed.context("making /srv/new").unwrap_err().for_one_user().message
        };
        for number in [libc::EOVERFLOW, libc::EINVAL] {
            let message = told(number);
            assert!(message.starts_with("making /srv/new: ") && message.ends_with(ANOTHER_USER), "{message}");
        }
        assert_eq!(told(libc::ENOENT), "making /srv/new: No such file or directory (os error 2)");
    }
}
