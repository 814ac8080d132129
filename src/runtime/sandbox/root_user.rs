//! Programs that are root by the number of their user, whatever its name. Pure.

use super::failure::Failure;
use super::record::{Identity, Launch};
use crate::runtime::EnforcementState as State;
use crate::spec::is_root;

/// Number of root.
const ROOT: u32 = 0;

/// Why `user` does not hold although a name is written that does not sound like root.
pub const NAMED_OTHERWISE: &str = "/etc/passwd of the image says that this user is root (number 0); write another one";

/// Whether a program is root inside.
pub const fn is(identity: &Identity) -> bool {
    identity.uid == ROOT
}

/// Refuses a program that is root where its spec requires another user.
///
/// # Errors
/// It is.
pub fn refuse(launch: &Launch, identity: &Identity) -> Result<(), Failure> {
    match launch.not_root && is(identity) {
        true => Err(Failure::wrong(format!("sandbox.require: user does not hold: {NAMED_OTHERWISE}"))),
        false => Ok(()),
    }
}

/// What of the control `user` holds for root, which bounds nothing; `requested` is the user as written.
pub fn state(requested: Option<&String>, by: String) -> State {
    match requested {
        Some(user) if !is_root(Some(user)) => State::Degraded { by, why: format!("{user} is root in its /etc/passwd") },
        _ => State::NotRequested { by: None },
    }
}
