//! Revision: the identity of a template.

use std::str::FromStr;

/// Hash over the fields of a service that need a new instance when they change, as the user wrote them.
///
/// Written `v1-` and 16 hex digits: the version of the canonical form, then the hash.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Revision(pub(super) String);

impl Revision {
    /// The first eight hex digits, for names and tables.
    pub fn short(&self) -> &str {
        let hash = self.0.split_once('-').map_or(self.0.as_str(), |(_, hash)| hash);
        hash.get(..8).unwrap_or(hash)
    }
}

impl std::fmt::Display for Revision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&self.0)
    }
}

/// The text is no revision.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a revision; it looks like v1-0123456789abcdef")]
pub struct BadRevision(pub String);

impl FromStr for Revision {
    type Err = BadRevision;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let well_formed =
            text.strip_prefix('v').and_then(|rest| rest.split_once('-')).is_some_and(|(version, hash)| {
                !version.is_empty()
                    && version.bytes().all(|b| b.is_ascii_digit())
                    && hash.len() == 16
                    && hash.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
            });
        if well_formed { Ok(Self(text.to_owned())) } else { Err(BadRevision(text.to_owned())) }
    }
}

impl TryFrom<String> for Revision {
    type Error = BadRevision;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Revision> for String {
    fn from(revision: Revision) -> Self {
        revision.0
    }
}
