//! Why an image can't be had.

use std::fmt::Display;
use std::io;

use crate::runtime::{ErrorKind, RuntimeError};

/// An image can't be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// It is not there, or whoever has it does not give it.
    #[error("{0}")]
    Unavailable(String),
    /// What came is not an image, or one that must not be unpacked.
    #[error("{0}")]
    Refused(String),
    /// This machine was in the way.
    #[error("{0}")]
    Failed(String),
}

/// Result of work on images.
pub type Result<T> = std::result::Result<T, ImageError>;

impl ImageError {
    /// The image can't be had.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::Unavailable(message.into())
    }

    /// The image must not be used.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::Refused(message.into())
    }

    /// A file could not be read or written.
    pub fn io(what: impl Display, error: &io::Error) -> Self {
        Self::Failed(format!("{what}: {error}"))
    }

    /// The same with what was being done in front.
    pub fn within(self, what: impl Display) -> Self {
        match self {
            Self::Unavailable(message) => Self::Unavailable(format!("{what}: {message}")),
            Self::Refused(message) => Self::Refused(format!("{what}: {message}")),
            Self::Failed(message) => Self::Failed(format!("{what}: {message}")),
        }
    }

    /// The error that the runtime tells.
    pub fn told(self) -> RuntimeError {
        let kind = match self {
            Self::Unavailable(_) => ErrorKind::ImageUnavailable,
            Self::Refused(_) => ErrorKind::Rejected,
            Self::Failed(_) => ErrorKind::Failed,
        };
        RuntimeError::new(kind, self.to_string())
    }
}

/// Longest piece of foreign text in a message, in characters.
const LONGEST_QUOTE: usize = 200;

/// Text of a stranger, fit for a message: escaped and cut.
pub fn quoted(text: impl AsRef<[u8]>) -> String {
    let text = String::from_utf8_lossy(text.as_ref()).into_owned();
    let mut cut = String::new();
    for c in text.chars().take(LONGEST_QUOTE) {
        match c {
            // Messages of libraries have them, and they steer nothing.
            '"' | '\'' => cut.push(c),
            _ => cut.extend(c.escape_debug()),
        }
    }
    if text.chars().count() > LONGEST_QUOTE { format!("{cut}...") } else { cut }
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn text_of_strangers_can_not_steer_a_terminal_or_fill_a_log() {
        assert_eq!(quoted("a\x1b[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(quoted(vec![b'x'; 1000]).len(), 203);
        assert_eq!(quoted(r#""a" isn't\b"#), r#""a" isn't\\b"#);
        assert_eq!(quoted([0xff, b'a']), "\u{fffd}a");
    }
}
