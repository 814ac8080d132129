//! Sessions: who holds which member of a pool, and how that stands.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{BadIdentity, InstanceRef, LateMount, ServiceName};

/// What every session's id begins with.
const PREFIX: &str = "sess-";

/// Bytes of a session's id: 128 random bits, which no two of them share.
const ID_BYTES: usize = 16;

/// Bytes of a token: 256 random bits, which nobody guesses.
const TOKEN_BYTES: usize = 32;

/// Random bytes that one session takes: for its id, and for its token.
pub const SECRET_BYTES: usize = ID_BYTES + TOKEN_BYTES;

/// Most characters of the id of a client.
const CLIENT_LENGTH: usize = 128;

/// Most characters of the id of a sandbox, as of a DNS label.
const SANDBOX_LENGTH: usize = 63;

/// Name of a session: `sess-` and 32 hexadecimal digits. It says which session is meant, and gives no right to it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SessionId(String);

impl SessionId {
    /// Whether a name is meant to be one of a session.
    pub fn is_meant_by(name: &str) -> bool {
        name.starts_with(PREFIX) && name.parse::<Self>().is_ok()
    }
}

impl Display for SessionId {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for SessionId {
    type Err = BadIdentity;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_prefix(PREFIX).unwrap_or_default();
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        match digits.len() == 2 * ID_BYTES && digits.bytes().all(is_hex) {
            true => Ok(Self(text.to_owned())),
            false => Err(BadIdentity(format!(
                "{} is no session; write the id that `keel session acquire` printed: {PREFIX} and 32 hexadecimal digits",
                quoted(text)
            ))),
        }
    }
}

impl TryFrom<String> for SessionId {
    type Error = BadIdentity;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<SessionId> for String {
    fn from(id: SessionId) -> Self {
        id.0
    }
}

/// What gives the right to a session: 64 hexadecimal digits. Shown once to whoever acquires it and never kept; it has no
/// textual form but [`Token::reveal`].
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Token(String);

impl Token {
    /// What a caller presents as one.
    pub const fn presented(text: String) -> Self {
        Self(text)
    }

    /// The digits.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// What is kept of it.
    pub fn digest(&self) -> TokenDigest {
        TokenDigest(Sha256::digest(self.0.as_bytes()).into())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// A new id and a new token, made of random bytes.
pub fn secrets(random: &[u8; SECRET_BYTES]) -> (SessionId, Token) {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let (id, token) = random.split_at(ID_BYTES);
    (SessionId(format!("{PREFIX}{}", hex(id))), Token(hex(token)))
}

/// SHA-256 of a token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenDigest([u8; 32]);

impl TokenDigest {
    /// Whether the token is the one that it was made of. Takes the same time whatever differs.
    pub fn is_of(&self, token: &Token) -> bool {
        let presented = token.digest();
        let differences = self.0.iter().zip(&presented.0).fold(0, |differs, (one, other)| differs | (one ^ other));
        std::hint::black_box(differences) == 0
    }
}

impl fmt::Debug for TokenDigest {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("TokenDigest(..)")
    }
}

/// Somebody's hold on one member of a pool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Session {
    /// Name.
    pub id: SessionId,
    /// Pool.
    pub pool: ServiceName,
    /// The member.
    pub instance: InstanceRef,
    /// Who acquired it.
    pub client: String,
    /// What is kept of its token.
    pub token: TokenDigest,
    /// How it stands.
    pub state: SessionState,
    /// When it was acquired.
    pub created_at: DateTime<Utc>,
    /// When it was last used, or its state last changed.
    pub last_active_at: DateTime<Utc>,
    /// Whether the member was ready when it was asked for.
    pub warm: bool,
    /// Milliseconds from the request to the answer.
    pub elapsed_ms: f64,
    /// Whether its client was answered, as far as is written down. Not so where a controller was killed before.
    #[serde(default = "answered")]
    pub answered: bool,
    /// Milliseconds from the creation of the member until it was ready.
    pub made_ms: f64,
    /// Environment of commands that are run inside, references and all.
    pub env: BTreeMap<String, String>,
    /// Labels that it was asked for with.
    pub labels: BTreeMap<String, String>,
    /// What was mounted into the sandbox for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<LateMount>,
    /// What the client calls the sandbox, where it named one; no two sessions that have not ended share one in a pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// Whether its runtime has nothing left of the member, once the session has ended.
    #[serde(default)]
    pub removed: bool,
}

/// Sessions were not always written with it, and nearly all were answered.
const fn answered() -> bool {
    true
}

impl Session {
    /// Whether somebody has it.
    pub const fn is_live(&self) -> bool {
        !matches!(self.state, SessionState::Ended { .. })
    }
}

/// How a session stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum SessionState {
    /// A client is attached.
    Active,
    /// The client has gone; the sandbox runs on.
    Detached,
    /// The sandbox is frozen.
    Suspended,
    /// It is over.
    Ended {
        /// Why.
        why: SessionEnd,
        /// When.
        at: DateTime<Utc>,
    },
}

impl SessionState {
    /// The name for tables and JSON.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Detached => "detached",
            Self::Suspended => "suspended",
            Self::Ended { .. } => "ended",
        }
    }
}

/// Why a session is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "snake_case")]
pub enum SessionEnd {
    /// Its client gave it back.
    Released,
    /// Its client ended it.
    Terminated,
    /// It was left unused for too long.
    Timeout {
        /// `active`, `detached` or `suspended`.
        while_: String,
    },
    /// Its sandbox ended, or is gone.
    SandboxEnded {
        /// How.
        how: String,
    },
    /// Nothing declares its pool any more.
    PoolRemoved,
    /// Nobody has had it: its sandbox was found dead before, or its client had gone.
    NotHandedOut {
        /// Which of that.
        how: String,
    },
}

impl SessionEnd {
    /// The name for tables and JSON.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Released => "released",
            Self::Terminated => "terminated",
            Self::Timeout { .. } => "timeout",
            Self::SandboxEnded { .. } => "sandbox_ended",
            Self::PoolRemoved => "pool_removed",
            Self::NotHandedOut { .. } => "not_handed_out",
        }
    }
}

impl Display for SessionEnd {
    /// For a sentence that begins with the session: `was released`.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Released => f.write_str("was released"),
            Self::Terminated => f.write_str("was terminated"),
            Self::Timeout { while_ } => write!(f, "reached its timeout while {while_}"),
            Self::SandboxEnded { how } => write!(f, "ended with its sandbox: {how}"),
            Self::PoolRemoved => f.write_str("ended as its pool is not declared any more"),
            Self::NotHandedOut { how } => write!(f, "was never handed out: {how}"),
        }
    }
}

/// Checks the id of a client.
///
/// # Errors
/// The rule, where it breaks it.
pub fn check_client(id: &str) -> Result<(), BadIdentity> {
    let visible = !id.is_empty() && id.len() <= CLIENT_LENGTH && id.bytes().all(|byte| byte.is_ascii_graphic());
    match visible && !has_path_parts(id) {
        true => Ok(()),
        false => Err(BadIdentity(format!(
            "the client id {} can't be used; write 1 to {CLIENT_LENGTH} visible ASCII characters without `/`, `\\` and `..`",
            quoted(id)
        ))),
    }
}

/// Checks the id that a client gives a sandbox.
///
/// # Errors
/// The rule, where it breaks it.
pub fn check_sandbox(id: &str) -> Result<(), BadIdentity> {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let begins = id.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    match begins && id.len() <= SANDBOX_LENGTH && id.bytes().all(known) && !has_path_parts(id) {
        true => Ok(()),
        false => Err(BadIdentity(format!(
            "the sandbox id {} can't be used; write 1 to {SANDBOX_LENGTH} ASCII letters, digits, `-`, `_` and `.`, a letter or \
             digit first, without `..`",
            quoted(id)
        ))),
    }
}

fn has_path_parts(id: &str) -> bool {
    id.contains(['/', '\\']) || id.contains("..")
}

/// A name for a message, cut where it is longer than any that is right.
fn quoted(text: &str) -> String {
    let mut shown: String = text.chars().take(CLIENT_LENGTH).collect();
    if shown.len() < text.len() {
        shown.push_str("...");
    }
    format!("{shown:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_knows_its_token_and_no_other_and_neither_is_printed() {
        let (id, token) = secrets(&[0xa5; SECRET_BYTES]);
        assert_eq!(id.to_string(), format!("sess-{}", "a5".repeat(16)));
        assert_eq!(token.reveal(), "a5".repeat(32));
        let digest = token.digest();
        assert!(digest.is_of(&token));
        for wrong in ["", "a5", &"a5".repeat(31), &format!("{}a4", "a5".repeat(31)), &"A5".repeat(32)] {
            assert!(!digest.is_of(&Token::presented(wrong.to_owned())), "{wrong}");
        }
        assert_eq!(format!("{token:?} {digest:?}"), "Token(..) TokenDigest(..)");
    }

    #[test]
    fn names_of_sessions_are_read_back_and_others_are_refused_with_the_rule() {
        let (id, _) = secrets(&[7; SECRET_BYTES]);
        assert_eq!(id.to_string().parse(), Ok(id));
        for wrong in ["", "sess-", "sess-0", "sess-../../etc/passwd", &format!("sess-{}", "G".repeat(32)), "demo/web"] {
            let error = wrong.parse::<SessionId>().unwrap_err().to_string();
            assert!(error.contains("32 hexadecimal digits"), "{error}");
        }
        let long = "x".repeat(10_000).parse::<SessionId>().unwrap_err().to_string();
        assert!(long.len() < 400, "{}", long.len());
    }

    #[test]
    fn ids_that_are_empty_oversized_or_have_path_parts_are_refused_with_the_rule() {
        for good in ["a", "agent-7@host:1", &"x".repeat(128)] {
            assert_eq!(check_client(good), Ok(()), "{good}");
        }
        for bad in ["", "a b", "a\n", "é", "../x", "a/b", "a\\b", "..", &"x".repeat(129)] {
            assert!(check_client(bad).unwrap_err().0.contains("1 to 128 visible ASCII"), "{bad}");
        }
        for good in ["a", "my.box_1-2", &"x".repeat(63)] {
            assert_eq!(check_sandbox(good), Ok(()), "{good}");
        }
        for bad in ["", ".a", "-a", "a/b", "a..b", "../a", "a b", "a@b", &"x".repeat(64)] {
            assert!(check_sandbox(bad).unwrap_err().0.contains("1 to 63 ASCII letters"), "{bad}");
        }
    }
}
