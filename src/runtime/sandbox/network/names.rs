//! What instances see as `/etc/hosts` and `/etc/resolv.conf`. The files of a deployment's network are shared by its
//! instances and are written in place, as instances have them mounted.

use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::attachment::{Attachment, Shared, leases, lock};
use crate::runtime::sandbox::layout::{Layout, make_private, read_json};
use crate::runtime::sandbox::record::Record;

/// Names of the loopback addresses, as every machine has them.
pub const LOOPBACK: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";
/// What stands for the machine in further hosts, as Docker has it.
const GATEWAY: &str = "host-gateway";
/// Line after which instances are listed.
const MARK: &str = "# instances\n";
/// The machine's files.
const HOSTS: &str = "/etc/hosts";
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// The name servers behind systemd's own one on the loopback interface, which an instance can't reach.
const SYSTEMD_RESOLV_CONF: &str = "/run/systemd/resolve/resolv.conf";
/// Longest file of the machine that is read, in bytes: block lists in /etc/hosts have some megabytes.
const LONGEST: u64 = 16 << 20;

/// Text of `/etc/hosts` for further hosts, as `NAME:ADDRESS`; `host-gateway` stands for the machine.
pub fn further_hosts(lines: &[String], machine: IpAddr) -> String {
    let line = |line: &String| {
        let (name, address) = line.split_once(['=', ':'])?;
        let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
        let address = if bare == GATEWAY { machine.to_string() } else { bare.to_owned() };
        Some(format!("{address}\t{name}\n"))
    };
    lines.iter().filter_map(line).collect()
}

/// Whether further hosts name the machine itself.
pub fn name_machine(lines: &[String]) -> bool {
    lines.iter().any(|line| line.split_once(['=', ':']).is_some_and(|(_, address)| address == GATEWAY))
}

/// The machine's own hosts, which instances with its network have too.
pub fn machine_hosts() -> String {
    read(Path::new(HOSTS)).unwrap_or_else(|| LOOPBACK.to_owned())
}

/// Text of `/etc/resolv.conf`: the servers that were written, else the machine's. `None` where all of the machine's
/// are on its own loopback interface and the instance is on another network.
pub fn resolv_conf(written: &[String], is_machines: bool) -> Option<String> {
    let own = read(Path::new(RESOLV_CONF)).unwrap_or_default();
    let behind = || read(Path::new(SYSTEMD_RESOLV_CONF)).unwrap_or_default();
    if !written.is_empty() {
        return Some(with_servers(&own, written));
    }
    if is_machines {
        return Some(own);
    }
    [own, behind()].iter().find_map(|text| reachable(text))
}

/// Text of `/etc/resolv.conf` for an instance that the machine's own name server answers at another address; `None` where
/// the machine has none on its loopback interface.
pub fn forwarded(address: Ipv4Addr) -> Option<String> {
    let own = read(Path::new(RESOLV_CONF)).unwrap_or_default();
    is_forwardable(&own).then(|| with_servers(&own, &[address.to_string()]))
}

/// Whether the first name server of IPv4 is one on the loopback interface.
fn is_forwardable(text: &str) -> bool {
    text.lines().filter_map(server).find(IpAddr::is_ipv4).is_some_and(|address| address.is_loopback())
}

/// The text with these servers instead of its own.
fn with_servers(text: &str, servers: &[String]) -> String {
    let servers = servers.iter().map(|server| format!("nameserver {server}\n"));
    servers.chain(text.lines().filter(|line| server(line).is_none()).map(|line| format!("{line}\n"))).collect()
}

/// The text without servers on the loopback interface; `None` where none is left.
fn reachable(text: &str) -> Option<String> {
    let stays = |line: &&str| server(line).is_none_or(|address| !address.is_loopback());
    let lines: Vec<&str> = text.lines().filter(stays).collect();
    let found = lines.iter().any(|line| server(line).is_some());
    found.then(|| lines.iter().map(|line| format!("{line}\n")).collect())
}

/// The address of a name server that a line of resolv.conf gives; one with a scope (`fe80::1%eth0`) is of no use
/// elsewhere and counts as loopback.
fn server(line: &str) -> Option<IpAddr> {
    let address = line.trim_start().strip_prefix("nameserver")?.split_whitespace().next()?;
    Some(address.parse().unwrap_or(IpAddr::V6(std::net::Ipv6Addr::LOCALHOST)))
}

fn read(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    fs::File::open(path).ok()?.take(LONGEST).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The file of a network that shows these hosts besides its instances; made where it is missing. Must be called without
/// the network's lock.
///
/// # Errors
/// The disk refuses.
pub fn hosts_file(network: &Shared, layout: &Layout, further: &str) -> io::Result<PathBuf> {
    let fixed = format!("{LOOPBACK}{further}{MARK}");
    let path = keyed(&network.dir.join("hosts"), &fixed)?;
    let _lock = lock(&network.dir)?;
    if !path.exists() {
        write_in_place(&path, &(fixed + &running(network, layout)?))?;
    }
    Ok(path)
}

/// The file of a network with this text as resolv.conf.
///
/// # Errors
/// The disk refuses.
pub fn resolv_file(network: &Shared, text: &str) -> io::Result<PathBuf> {
    let path = keyed(&network.dir.join("resolv"), text)?;
    let _lock = lock(&network.dir)?;
    if !path.exists() {
        write_in_place(&path, text)?;
    }
    Ok(path)
}

fn keyed(folder: &Path, text: &str) -> io::Result<PathBuf> {
    make_private(folder)?;
    let hash = Sha256::digest(text.as_bytes());
    Ok(folder.join(hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect::<String>()))
}

/// Has the names of an instance resolve for the others, from now on.
///
/// # Errors
/// The disk refuses.
pub fn announce(attachment: &Attachment) -> io::Result<()> {
    change(&attachment.network, |lines| with(lines, attachment))
}

/// Has the names of an instance resolve no more.
///
/// # Errors
/// The disk refuses.
pub fn withdraw(attachment: &Attachment) -> io::Result<()> {
    change(&attachment.network, |lines| without(lines, attachment))
}

/// Writes the names of all instances that run, as their records say, where what is there may be wrong.
///
/// # Errors
/// The disk refuses.
pub fn rebuild(network: &Shared, layout: &Layout) -> io::Result<()> {
    change(network, |_| running(network, layout).unwrap_or_default())
}

fn with(lines: &str, attachment: &Attachment) -> String {
    without(lines, attachment) + &line(attachment)
}

fn without(lines: &str, attachment: &Attachment) -> String {
    let own = format!("{}\t", attachment.address);
    lines.split_inclusive('\n').filter(|line| !line.starts_with(&own)).collect()
}

fn line(attachment: &Attachment) -> String {
    format!("{}\t{}\n", attachment.address, attachment.names.join(" "))
}

/// Lines of the instances that run.
fn running(network: &Shared, layout: &Layout) -> io::Result<String> {
    let mut lines = String::new();
    for lease in fs::read_dir(leases(&network.dir))?.flatten() {
        let Ok(holder) = fs::read_link(lease.path()) else { continue };
        let Some(dir) = holder.to_str().map(|id| layout.instance(id)) else { continue };
        if !dir.run().exists() || dir.exit().exists() {
            continue;
        }
        let record = read_json::<Record>(&dir.record()).ok().flatten();
        if let Some(attachment) = record.as_ref().and_then(|record| record.launch.network.attachment()) {
            lines += &line(attachment);
        }
    }
    Ok(lines)
}

fn change(network: &Shared, change: impl Fn(&str) -> String) -> io::Result<()> {
    let folder = match fs::read_dir(network.dir.join("hosts")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        read => read?,
    };
    let _lock = lock(&network.dir)?;
    for entry in folder {
        let path = entry?.path();
        let text = fs::read_to_string(&path)?;
        let (fixed, lines) = text.split_at(text.find(MARK).map_or(text.len(), |at| at + MARK.len()));
        let lines = without_padding(lines);
        let new = change(&lines);
        if new != lines {
            write_in_place(&path, &format!("{fixed}{new}"))?;
        }
    }
    Ok(())
}

/// Lines without the empty ones at their end.
fn without_padding(lines: &str) -> String {
    match lines.trim_end_matches('\n') {
        "" => String::new(),
        lines => format!("{lines}\n"),
    }
}

/// Writes a file that others have mounted: its first bytes first, so that what is the same stays readable throughout.
fn write_in_place(path: &Path, text: &str) -> io::Result<()> {
    let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC;
    let file =
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o644).custom_flags(flags).open(path)?;
    // The mask of this process must not keep the program's user from reading it.
    rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(0o644))?;
    // Whoever reads while a file is made shorter sees zeros at its end, so that what is left over becomes empty lines.
    let longest = usize::try_from(file.metadata()?.len()).unwrap_or_default();
    let padding = "\n".repeat(longest.saturating_sub(text.len()));
    file.write_all_at((text.to_owned() + &padding).as_bytes(), 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(dir: &Path, last: u8, name: &str) -> Attachment {
        let subnet = super::super::subnet::Subnet { first: Ipv4Addr::new(10, 208, 0, 0), length: 22 };
        let network = Shared { dir: dir.to_owned(), bridge: "keel-x".into(), alias: String::new(), subnet, mtu: 1500 };
        let address = Ipv4Addr::new(10, 208, 0, last);
        Attachment { network, interface: "kv-x".into(), address, names: vec![name.into(), "web".into()] }
    }

    #[test]
    fn names_come_and_go_with_instances() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (attachment(folder.path(), 2, "web-0"), attachment(folder.path(), 22, "web-1"));
        make_private(&leases(folder.path())).unwrap();
        let layout = Layout::new(folder.path());
        let path = hosts_file(&one.network, &layout, "192.0.2.1\tdb\n").unwrap();
        let fixed = format!("{LOOPBACK}192.0.2.1\tdb\n{MARK}");
        announce(&one).unwrap();
        announce(&two).unwrap();
        announce(&one).unwrap();
        let read = || without_padding(&fs::read_to_string(&path).unwrap());
        let both = format!("{fixed}10.208.0.22\tweb-1 web\n10.208.0.2\tweb-0 web\n");
        assert_eq!(read(), both);
        withdraw(&one).unwrap();
        assert_eq!(read(), format!("{fixed}10.208.0.22\tweb-1 web\n"));
        let length = || fs::metadata(&path).unwrap().len();
        assert_eq!(length(), both.len() as u64, "readers would see zeros in what is cut off");
        announce(&one).unwrap();
        assert_eq!((read(), length()), (both.clone(), both.len() as u64));
        rebuild(&one.network, &layout).unwrap();
        assert_eq!(read(), fixed, "none of them runs");
    }

    #[test]
    fn a_name_server_on_the_loopback_interface_is_forwarded_to() {
        assert!(is_forwardable("nameserver ::1\nnameserver 127.0.0.53\n"));
        for text in ["", "search a\n", "nameserver ::1\n", "nameserver 192.0.2.1\nnameserver 127.0.0.1\n"] {
            assert!(!is_forwardable(text), "{text}");
        }
    }

    #[test]
    fn the_machine_is_named_by_its_word_only() {
        let named = |line: &str| name_machine(&[line.to_owned()]);
        assert!(named("db:host-gateway") && named("db=host-gateway"));
        assert!(!named("host-gateway:192.0.2.1") && !named("db:192.0.2.1"));
    }

    #[test]
    fn a_file_is_changed_and_not_replaced() {
        use std::os::unix::fs::MetadataExt;
        let folder = tempfile::tempdir().unwrap();
        let one = attachment(folder.path(), 2, "web-0");
        make_private(&leases(folder.path())).unwrap();
        let path = hosts_file(&one.network, &Layout::new(folder.path()), "").unwrap();
        let before = fs::metadata(&path).unwrap();
        announce(&one).unwrap();
        let after = fs::metadata(&path).unwrap();
        assert_eq!((after.ino(), after.mode() & 0o777), (before.ino(), 0o644));
    }

    #[test]
    fn further_hosts_are_written_as_docker_has_them() {
        let lines = ["db:192.0.2.7", "six=[2001:db8::1]", "six:2001:db8::2", "machine:host-gateway"].map(str::to_owned);
        let text = further_hosts(&lines, IpAddr::from([10, 208, 0, 1]));
        assert_eq!(text, "192.0.2.7\tdb\n2001:db8::1\tsix\n2001:db8::2\tsix\n10.208.0.1\tmachine\n");
    }

    #[test]
    fn servers_of_the_loopback_interface_are_left_out() {
        let text = "search example.org\nnameserver 127.0.0.53\nnameserver 192.0.2.53\nnameserver fe80::1%eth0\n";
        assert_eq!(reachable(text).unwrap(), "search example.org\nnameserver 192.0.2.53\n");
        assert_eq!(reachable("nameserver ::1\noptions edns0\n"), None);
    }

    #[test]
    fn servers_that_were_written_replace_the_machines() {
        let text = with_servers("search example.org\nnameserver 192.0.2.53\n", &["198.51.100.1".into()]);
        assert_eq!(text, "nameserver 198.51.100.1\nsearch example.org\n");
    }
}
