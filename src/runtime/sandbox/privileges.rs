//! Who a process is, and which capabilities it has.

use std::fs;
use std::io;

use rustix::io::Errno;
use rustix::process::{Gid, Uid, getegid, geteuid, getgid, getgroups, getuid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use super::failure::{Context, Failure};
use super::record::{Identity, Launch};

/// Highest capability number that any kernel has so far, with room; numbers that the kernel does not know are skipped.
const LAST_CAPABILITY: u32 = 63;
/// User and group that the probe becomes: not root, and there wherever users other than root are.
const OTHER: u32 = 1;

/// Has this process take on an identity and keep the wanted ones of its capabilities, and no other.
///
/// Where the bounding set can't be reduced, as keel has no CAP_SETPCAP, it stays larger than the other sets. They are
/// as wanted all the same, and with no_new_privs a process gains nothing from the bounding set.
///
/// # Errors
/// This process may not become that user, or may not have its groups.
pub fn take_on(identity: &Identity, launch: &Launch, wanted: u64) -> Result<(), Failure> {
    let held = capabilities(None).context("reading capabilities")?;
    let wanted = CapabilitySet::from_bits_retain(wanted);
    clear_ambient_capability_set().context("clearing ambient capabilities")?;
    match bound(wanted) {
        Ok(()) | Err(Errno::PERM) => {}
        Err(error) => return Err(error).context("dropping capabilities"),
    }
    // In a user namespace of one user there is nothing else to become, and groups can't be set.
    if !launch.namespaces.user {
        become_user(identity, held.effective)?;
    }
    // Another user than root has no capabilities, as under Docker.
    let keep = if identity.uid == 0 { wanted & held.permitted } else { CapabilitySet::empty() };
    keep_only(keep).context("setting capabilities")
}

/// Leaves everything else out of the bounding set: for good, for this process and all that it starts.
fn bound(wanted: CapabilitySet) -> Result<(), Errno> {
    for number in 0..=LAST_CAPABILITY {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if wanted.contains(capability) {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            // The kernel has no such capability.
            Ok(()) | Err(Errno::INVAL) => {}
            // What is not in the set needs no right to be left out.
            Err(Errno::PERM) if matches!(capability_is_in_bounding_set(capability), Ok(false) | Err(Errno::INVAL)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Sets the sets that take no capability to be made smaller.
fn keep_only(keep: CapabilitySet) -> Result<(), Errno> {
    set_capabilities(None, CapabilitySets { effective: keep, permitted: keep, inheritable: CapabilitySet::empty() })
}

fn become_user(identity: &Identity, held: CapabilitySet) -> Result<(), Failure> {
    let own = geteuid();
    set_groups(identity, held)?;
    let gid = Gid::from_raw(identity.gid);
    match set_thread_res_gid(gid, gid, gid) {
        Err(Errno::PERM) if !own.is_root() && !held.contains(CapabilitySet::SETUID) => {
            // It stays in the group of the ordinary user that keel runs as.
        }
        Err(Errno::PERM) => {
            return Err(Failure::wrong(format!("user: keel has no CAP_SETGID here and can't take on group {}", gid)));
        }
        set => {
            set.context("setting the group")?;
            if (getgid(), getegid()) != (gid, gid) {
                return Err(Failure::setup("the kernel did not keep the group that was set"));
            }
        }
    }
    let uid = Uid::from_raw(identity.uid);
    match set_thread_res_uid(uid, uid, uid) {
        Err(Errno::PERM) => {
            let text = format!("user: keel runs as user {own} here and can't become user {uid}");
            return Err(Failure::wrong(text));
        }
        set => set.context("setting the user")?,
    }
    if getuid() != uid || geteuid() != uid {
        return Err(Failure::setup("the kernel did not keep the user that was set"));
    }
    Ok(())
}

/// Sets the groups of an identity, in place of those that this process has.
fn set_groups(identity: &Identity, held: CapabilitySet) -> Result<(), Failure> {
    let groups: Vec<Gid> = identity.groups.iter().copied().map(Gid::from_raw).collect();
    match set_thread_groups(&groups) {
        // Where keel itself runs in a user namespace that an ordinary user made, nobody's groups can be set; those that
        // stay are groups which that user has anyway.
        Err(Errno::PERM) if groups.is_empty() && are_groups_denied(held) => Ok(()),
        // So are those of an ordinary user.
        Err(Errno::PERM) if !geteuid().is_root() && !held.contains(CapabilitySet::SETUID) => Ok(()),
        Err(Errno::PERM) => match are_same(&getgroups().context("reading groups")?, &groups, identity.gid) {
            true => Ok(()),
            false => Err(Failure::wrong(format!(
                "extra_groups: keel has no CAP_SETGID here and can't take on the groups {:?} in place of its own",
                identity.groups
            ))),
        },
        set => set.context("setting groups"),
    }
}

/// Whether two lists of supplementary groups give the same rights to a process of this group.
fn are_same(held: &[Gid], wanted: &[Gid], own: u32) -> bool {
    let within = |some: &[Gid], all: &[Gid]| some.iter().all(|one| one.as_raw() == own || all.contains(one));
    within(held, wanted) && within(wanted, held)
}

/// Whether this user namespace lets nobody set groups. Who holds the capability for it is told so by the refusal.
fn are_groups_denied(held: CapabilitySet) -> bool {
    held.contains(CapabilitySet::SETGID)
        || fs::read_to_string("/proc/self/setgroups").is_ok_and(|answer| answer.trim() == "deny")
}

/// Whether every capability can be left out for good, found out by doing so. Call it in a process that ends afterwards.
///
/// # Errors
/// One of the sets can't be reduced.
pub fn try_drop() -> Result<(), Failure> {
    clear_ambient_capability_set().context("clearing ambient capabilities")?;
    let bounded = bound(CapabilitySet::empty());
    keep_only(CapabilitySet::empty()).context("setting capabilities")?;
    if !capabilities(None).context("reading capabilities")?.permitted.is_empty() {
        return Err(Failure::setup("the kernel did not take the capabilities away"));
    }
    bounded.map_err(|error| {
        let error = io::Error::from(error);
        Failure::setup(format!("keel can't reduce the bounding set, which takes CAP_SETPCAP: {error}"))
    })
}

/// Whether this process can become another user with other groups, found out by doing so. Call it in a process that ends
/// afterwards.
///
/// # Errors
/// The user, the group or the groups can't be set.
pub fn try_users() -> Result<(), Failure> {
    let (uid, gid) = (Uid::from_raw(OTHER), Gid::from_raw(OTHER));
    set_thread_groups(&[]).context("keel can't set groups, which takes CAP_SETGID")?;
    set_thread_res_gid(gid, gid, gid).context("keel can't set the group, which takes CAP_SETGID")?;
    set_thread_res_uid(uid, uid, uid).context("keel can't set the user, which takes CAP_SETUID")?;
    match (getegid(), geteuid()) == (gid, uid) {
        true => Ok(()),
        false => Err(Failure::setup("the kernel did not keep the user that was set")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_the_same_whatever_their_order_and_whether_they_name_the_own_one() {
        let groups = |numbers: &[u32]| numbers.iter().copied().map(Gid::from_raw).collect::<Vec<_>>();
        let same = |held: &[u32], wanted: &[u32]| are_same(&groups(held), &groups(wanted), 0);
        assert!(same(&[], &[]) && same(&[0], &[]) && same(&[], &[0]) && same(&[4, 27, 0], &[27, 4]));
        assert!(!same(&[27], &[]) && !same(&[], &[27]) && !same(&[4, 27], &[4]));
    }
}
