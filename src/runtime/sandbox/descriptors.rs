//! How many descriptors this process may have. Each instance takes one of the controller's and each followed output
//! four, so the common soft limit of 1024, made for programs that use `select(2)`, is soon used up; programs inside get
//! the limit all the same that they would have had.

use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Environment variable in which a process that is started is told the soft limit to have; empty means none.
pub const VARIABLE: &str = "KEEL_SOFT_NOFILE";

/// The limit before it was raised.
static USUAL: OnceLock<Rlimit> = OnceLock::new();

/// Lets this process have as many descriptors as it may.
pub fn raise() {
    let limit = usual();
    // What can't be raised stays as it is, and what exceeds it is refused.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// How many descriptors this process may have now.
pub fn most() -> usize {
    getrlimit(Resource::Nofile).current.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX)
}

/// Gives a process back, as its first act, the soft limit that the one which started it had before it raised it.
pub fn restore() {
    let Ok(told) = std::env::var(VARIABLE) else { return };
    let limit = getrlimit(Resource::Nofile);
    // It was below the highest before, so it can be set.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: told.parse().ok(), ..limit });
}

/// What [`VARIABLE`] is to say.
pub fn told() -> String {
    usual().current.map(|soft| soft.to_string()).unwrap_or_default()
}

fn usual() -> Rlimit {
    *USUAL.get_or_init(|| getrlimit(Resource::Nofile))
}
