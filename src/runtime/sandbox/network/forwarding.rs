//! Whether the machine forwards packets from one interface to another, without which networks of deployments reach nobody
//! outside. Where it does so already nothing is changed. Else it is switched on for all interfaces, as answers come in by
//! any of them, and a guard drops what is forwarded between others. Both go with the last network.
//!
//! A bridge without ports is the note that it was switched on, and of the interfaces that forwarded before on their own: it
//! lives exactly as long as the kernel's setting does, so that a reboot leaves no wrong word, and whoever clears the
//! machine's packet filter (`nft flush ruleset`) leaves it, so that the guard can be made again. It is made before the
//! switch is on and removed after it is off, so that it is found whenever something is left. Installations share it as
//! they share the switch; the last one takes it away, whichever began.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::attachment::{ALIASES, BRIDGES};
use super::firewall::{self, Guard};
use super::link;
use super::netlink::Netlink;

/// The switch for all interfaces.
const SWITCH: &str = "/proc/sys/net/ipv4/ip_forward";
/// Settings of each interface.
const INTERFACES: &str = "/proc/sys/net/ipv4/conf";
/// The entry among these that is the switch for all.
const ALL: &str = "all";
/// The guard's table.
const GUARD: &str = "keel-forwarding";
/// What it says about itself.
const COMMENT: &str = "keel switched net.ipv4.ip_forward on for its networks; nothing else is forwarded; both go with the \
                       last network";

/// The note, with the name of the guard.
const NOTE: &str = GUARD;
/// What the note says before the names of interfaces. It must not begin as the aliases of networks do.
const NOTED: &str = "net.ipv4.ip_forward was switched on for networks of keel; on before:";
/// Longest alias of an interface, in bytes (IFALIASZ). Names of further interfaces are lost with the guard.
const LONGEST_ALIAS: usize = 255;

/// Whether the machine forwards packets.
///
/// # Errors
/// The kernel does not tell.
pub fn is_on() -> io::Result<bool> {
    Ok(fs::read_to_string(SWITCH)?.trim() != "0")
}

/// Tells what is going to be done where the machine does not forward packets.
pub fn announce() {
    if matches!(is_on(), Ok(false)) {
        tracing::warn!(
            guard = GUARD,
            "this machine does not forward packets (net.ipv4.ip_forward is 0); it will for networks of deployments and \
             nothing else, until the last of them is gone"
        );
    }
}

/// Has the machine forward packets, and those of networks alone where it did not before. The bridge of the network that
/// needs it must be there already.
///
/// # Errors
/// The kernel refuses.
pub fn switch_on() -> io::Result<()> {
    if is_intact(&mut Netlink::route()?)? { Ok(()) } else { switch_on_guarded() }
}

/// Whether the machine forwards packets, and those of networks alone where it did not before.
///
/// # Errors
/// The kernel does not tell.
pub fn is_intact(kernel: &mut Netlink) -> io::Result<bool> {
    let filter = &mut Netlink::netfilter()?;
    Ok(is_on()?
        && match noted(kernel)? {
            Some(forwarding) => firewall::is_guard_whole(filter, GUARD, &forwarding)?,
            None => !firewall::exists(filter, GUARD)?,
        })
}

/// Interfaces that forwarded before, by the note; `None` where there is none.
fn noted(kernel: &mut Netlink) -> io::Result<Option<Vec<String>>> {
    let names = |link: link::Link| {
        let names = link.alias.strip_prefix(NOTED).unwrap_or_default().split_whitespace();
        names.map(str::to_owned).collect()
    };
    Ok(link::find(kernel, NOTE)?.map(names))
}

/// What the note says, as far as there is room for it.
fn note(forwarding: &[String]) -> String {
    forwarding.iter().fold(NOTED.to_owned(), |text, name| match text.len() + 1 + name.len() {
        0..=LONGEST_ALIAS => format!("{text} {name}"),
        _ => text,
    })
}

fn switch_on_guarded() -> io::Result<()> {
    let (mut kernel, mut filter) = (Netlink::route()?, Netlink::netfilter()?);
    let noted = noted(&mut kernel)?.unwrap_or_default();
    // Once it is on, all of them forward.
    let is_on = is_on()?;
    let mut forwarding = Vec::new();
    for name in interfaces()? {
        // What an earlier note or guard names may have been switched off with all others a moment ago.
        let is_known = noted.contains(&name) || firewall::is_forwarding(&mut filter, GUARD, &name)?;
        if is_known || (!is_on && forwards(&name)) {
            forwarding.push(name);
        }
    }
    link::make_note(&mut kernel, NOTE, &note(&forwarding))?;
    firewall::guard(&mut filter, &Guard { name: GUARD, comment: COMMENT, bridges: BRIDGES, forwarding: &forwarding })?;
    fs::write(SWITCH, "1")
}

/// Switches off what was switched on for networks, once there is none of any installation.
///
/// # Errors
/// The kernel refuses.
pub fn give_back() -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    // Where the kernel has no packet filters, or none for this process, there is no guard.
    let Ok(mut filter) = Netlink::netfilter() else { return Ok(()) };
    let mut kernel = Netlink::route()?;
    let noted = noted(&mut kernel)?;
    if (noted.is_none() && !firewall::exists(&mut filter, GUARD).unwrap_or(false)) || has_network()? {
        return Ok(());
    }
    let noted = noted.unwrap_or_default();
    let mut forwarding = Vec::new();
    for name in interfaces()? {
        if noted.contains(&name) || firewall::is_forwarding(&mut filter, GUARD, &name)? {
            forwarding.push(name);
        }
    }
    fs::write(SWITCH, "0")?;
    for name in forwarding {
        fs::write(setting(&name), "1")?;
    }
    firewall::remove(&mut filter, GUARD)?;
    link::remove(&mut kernel, NOTE)?;
    // A network that was made meanwhile saw the switch on.
    if has_network()? { switch_on_guarded() } else { Ok(()) }
}

/// Whether there is a bridge of any installation.
fn has_network() -> io::Result<bool> {
    let links = link::all(&mut Netlink::route()?)?;
    Ok(links.iter().any(|link| link.name.starts_with(BRIDGES) && link.alias.starts_with(ALIASES)))
}

/// Interfaces that are not of networks, and `default` for those to come.
fn interfaces() -> io::Result<Vec<String>> {
    let names = fs::read_dir(INTERFACES)?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    Ok(names.filter(|name| name != ALL && !name.starts_with(BRIDGES)).collect())
}

fn setting(interface: &str) -> PathBuf {
    Path::new(INTERFACES).join(interface).join("forwarding")
}

fn forwards(interface: &str) -> bool {
    fs::read_to_string(setting(interface)).is_ok_and(|value| value.trim() == "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_no_network_and_has_room_for_as_many_names_as_there_may_be() {
        assert!(!NOTED.starts_with(ALIASES));
        assert_eq!(note(&["eth0".to_owned(), "eth1".to_owned()]), format!("{NOTED} eth0 eth1"));
        let many: Vec<String> = (0..100).map(|number| format!("interface-{number}")).collect();
        let text = note(&many);
        assert!((LONGEST_ALIAS - 13..=LONGEST_ALIAS).contains(&text.len()), "{}", text.len());
        assert!(text.split(' ').all(|word| NOTED.contains(word) || many.contains(&word.to_owned())), "{text}");
    }
}
