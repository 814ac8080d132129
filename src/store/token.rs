//! The token of an installation: who can read it can read the state directory, which nothing that runs in a sandbox can.

use std::fmt;

use sha2::{Digest, Sha256};

/// The content of the state directory's file `token`.
#[derive(Clone)]
pub struct Token(pub(super) String);

impl Token {
    /// As it is sent.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// Whether somebody who sent this knows it. The time that it takes tells nothing about how much of it is right.
    pub fn is(&self, sent: &str) -> bool {
        Sha256::digest(&self.0) == Sha256::digest(sent)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Token(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_itself_alone_and_is_not_written_into_logs() {
        let token = Token("12ab".to_owned());
        assert_eq!(["12ab", "12aB", "12a", "", "12abc"].map(|sent| token.is(sent)), [true, false, false, false, false]);
        assert_eq!(format!("{token:?}"), "Token(..)");
    }
}
