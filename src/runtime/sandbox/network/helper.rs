//! Processes beside a supervisor that hand connections on for its instance. They have threads, which a supervisor may
//! not have, and end with it.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::process::{
    DumpableBehavior, Gid, Pid, Signal, Uid, getpid, getppid, pidfd_send_signal, set_dumpable_behavior,
    set_parent_process_death_signal,
};
use rustix::thread::{
    LinkNameSpaceType, move_into_link_name_space, set_no_new_privs, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

use super::handover::Place;
use super::publish::{Listening, listen, serve};
use super::{Network, egress};
use crate::runtime::sandbox::failure::{Context, Failure};
use crate::runtime::sandbox::program;
use crate::runtime::sandbox::sys::{self, Fork, Namespaces};

/// The user and group that own nothing, as the kernel has it (`overflowuid`).
const NOBODY: u32 = 65_534;

/// Sockets of the machine that a helper will serve, opened before the program starts: that a port is taken is a failure
/// of the start.
#[derive(Debug)]
pub struct Prepared {
    listening: Vec<Listening>,
}

/// The helpers of an instance, by descriptors of their processes.
#[derive(Debug, Default)]
pub struct Helpers(Vec<OwnedFd>);

impl Helpers {
    /// Whether an instance needs any.
    pub fn are_needed(network: &Network) -> bool {
        !network.published.is_empty() || network.egress.is_some()
    }

    /// Opens what they will serve.
    ///
    /// # Errors
    /// A port is taken, or is not this user's to take.
    pub fn prepare(network: &Network) -> Result<Prepared, Failure> {
        Ok(Prepared { listening: listen(&network.published)? })
    }

    /// Starts them for an instance with interfaces in a place.
    ///
    /// # Errors
    /// No process can be made.
    pub fn start(prepared: Prepared, network: &Network, place: Place) -> Result<Self, Failure> {
        let own = network.attachment().map(|attachment| attachment.address);
        let mut helpers = Self::default();
        if !prepared.listening.is_empty() {
            let kept: Vec<BorrowedFd<'_>> = prepared.listening.iter().map(AsFd::as_fd).collect();
            if let Some(helper) = fork(c"keel-ports", &kept, Some(&place))? {
                helpers.0.push(helper);
            } else {
                serve(&prepared.listening, own);
            }
        }
        if let (Some(policy), Some(proxy)) = (&network.egress, &place.proxy) {
            // It connects in the machine's network.
            match fork(c"keel-egress", &[proxy.as_fd()], None)? {
                Some(helper) => helpers.0.push(helper),
                None => egress::serve(proxy, policy.clone()),
            }
        }
        Ok(helpers)
    }

    /// Ends them.
    pub fn end(&self) {
        for helper in &self.0 {
            let _ = pidfd_send_signal(helper, Signal::KILL);
        }
    }
}

/// Forks a helper that keeps these descriptors and works in a place. Returns nothing in it.
fn fork(name: &CStr, kept: &[BorrowedFd<'_>], place: Option<&Place>) -> Result<Option<OwnedFd>, Failure> {
    let supervisor = Some(getpid());
    match sys::fork(Namespaces::default()).context("forking a helper")? {
        Fork::Parent { pidfd, .. } => Ok(Some(pidfd)),
        Fork::Child => match settle(name, kept, place, supervisor) {
            Ok(()) => Ok(None),
            Err(_) => std::process::exit(1),
        },
    }
}

/// Gives up root: what handles the bytes of strangers needs none of it.
fn become_nobody() -> std::io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    set_thread_groups(&[])?;
    let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)?;
    Ok(())
}

/// Makes a process a helper.
fn settle(name: &CStr, kept: &[BorrowedFd<'_>], place: Option<&Place>, supervisor: Option<Pid>) -> std::io::Result<()> {
    let _ = rustix::thread::set_name(name);
    // The supervisor's own is a pipe whose end the controller waits for.
    let null = program::null()?;
    for number in 0..=2 {
        sys::replace_standard(number, null.as_fd())?;
    }
    // Nothing that is closed below may have an owner that drops it.
    drop(null);
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    if let Some(place) = place {
        if let Some(users) = &place.users {
            move_into_link_name_space(users.as_fd(), Some(LinkNameSpaceType::User))?;
        }
        move_into_link_name_space(place.network.as_fd(), Some(LinkNameSpaceType::Network))?;
    }
    if place.is_none_or(|place| place.users.is_none()) {
        become_nobody()?;
    }
    set_no_new_privs(true)?;
    // After the change of namespaces and users, which clears it.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid() != supervisor {
        return Err(std::io::ErrorKind::BrokenPipe.into());
    }
    sys::close_all_but(kept);
    Ok(())
}
