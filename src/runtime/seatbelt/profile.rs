//! Profiles in Seatbelt's own language: everything is denied that is not allowed by a line. Pure.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use crate::spec::{Device, NetworkAccess, ServiceSpec, Storage};

/// What every program reads to start at all: the system's own programs, libraries and settings.
const SYSTEM: &[&str] = &[
    "/System/Library",
    "/System/Volumes/Preboot/Cryptexes",
    "/Library/Apple",
    "/Library/Preferences/Logging",
    "/bin",
    "/sbin",
    "/usr/bin",
    "/usr/lib",
    "/usr/libexec",
    "/usr/sbin",
    "/usr/share",
    "/private/etc/ssl",
    "/private/var/db/dyld",
    "/private/var/db/timezone",
];
/// Single files of the kind.
const SYSTEM_FILES: &[&str] = &[
    "/",
    "/dev/random",
    "/dev/urandom",
    "/private/etc/group",
    "/private/etc/hosts",
    "/private/etc/passwd",
    "/private/etc/protocols",
    "/private/etc/resolv.conf",
    "/private/etc/services",
    "/private/var/run/resolv.conf",
];
/// Services of the system that the C library asks: users and groups, logging, and trust in certificates.
const SERVICES: &[&str] = &[
    "com.apple.logd",
    "com.apple.system.logger",
    "com.apple.system.notification_center",
    "com.apple.system.opendirectoryd.libinfo",
    "com.apple.system.opendirectoryd.membership",
    "com.apple.trustd.agent",
];
/// Names are looked up over this socket.
const RESOLVER: &str = "/private/var/run/mDNSResponder";
/// Compiles shaders for Metal.
const SHADER_COMPILER: &str = "com.apple.MTLCompilerService";
/// What Metal opens of the graphics driver.
const GRAPHICS_CLIENTS: &[&str] =
    &["AGXDeviceUserClient", "AGXSharedUserClient", "IOAccelerationUserClient", "IOSurfaceRootUserClient"];
/// Framework of compute kernels that come compiled.
const PERFORMANCE_SHADERS: &str = "/System/Library/Frameworks/MetalPerformanceShaders.framework";

/// What a program may do with what is its own: files, and sockets beside them.
const WRITTEN: &str = "file-read* file-write* network-bind network-inbound network-outbound";

/// What a program may reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// Nothing.
    None,
    /// This machine's loopback addresses; it listens on its assigned port alone.
    Loopback {
        /// The assigned port.
        port: Option<u16>,
    },
    /// All that the machine can.
    Full,
}

impl Network {
    /// What a spec asks for.
    pub fn of(spec: &ServiceSpec, port: Option<u16>) -> Self {
        match spec.network_access() {
            NetworkAccess::Nothing => Self::None,
            NetworkAccess::Loopback => Self::Loopback { port },
            NetworkAccess::Mode(_) => Self::Full,
        }
    }
}

/// How much of the graphics processor a program may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Graphics {
    /// Nothing.
    None,
    /// Kernels that come compiled: no compiler of shaders.
    Compute,
    /// All of Metal.
    Full,
}

impl Graphics {
    /// What a spec asks for, as far as the operator allows graphics at all.
    pub fn of(spec: &ServiceSpec, allowed: bool) -> Self {
        let gpu = spec.resources.as_ref().and_then(|resources| resources.gpu.as_ref());
        match gpu {
            Some(gpu) if allowed && gpu.vendor.as_deref() == Some("apple") => match gpu.mode.as_deref() {
                Some("mps") => Self::Compute,
                _ => Self::Full,
            },
            _ => Self::None,
        }
    }
}

/// What a program may do, from which its profile is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// Its own copy of the image; read and written.
    pub root: PathBuf,
    /// Whether its copy can only be read.
    pub read_only: bool,
    /// Scratch space of its own.
    pub scratch: PathBuf,
    /// Volumes of its own that are read and written, wherever they lie.
    pub own: Vec<PathBuf>,
    /// Volumes of its own that are read, wherever they lie.
    pub own_read_only: Vec<PathBuf>,
    /// Further paths that are read.
    pub readable: Vec<PathBuf>,
    /// Further paths that are read and written.
    pub writable: Vec<PathBuf>,
    /// What it may reach.
    pub network: Network,
    /// How much of the graphics processor it may use.
    pub graphics: Graphics,
    /// Device nodes of the machine, with what may be done with them.
    pub devices: Vec<Node>,
    /// What no program sees though it lies in what is readable: Evenkeel's own files, with the secrets of every service and
    /// the controller's socket.
    pub hidden: Vec<PathBuf>,
}

/// A device node that a program may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Path of the node.
    pub path: PathBuf,
    /// Whether it may be read.
    pub read: bool,
    /// Whether it may be written.
    pub write: bool,
}

impl Profile {
    /// The profile of a service whose copy of the image is at `root`, with its assigned port; `devices_allowed` is what the
    /// operator says of devices and graphics. Volumes that lie outside of the root are the caller's to add.
    pub fn of(spec: &ServiceSpec, root: &Path, scratch: &Path, port: Option<u16>, devices_allowed: bool) -> Self {
        let paths = |list: &[String]| list.iter().map(PathBuf::from).collect::<Vec<_>>();
        let sandbox = spec.sandbox.clone().unwrap_or_default();
        let (mut readable, mut writable) = (paths(&sandbox.readable), paths(&sandbox.writable));
        for storage in &spec.storage {
            if let Storage::Bind { source, readonly, .. } = storage {
                let list = if *readonly == Some(true) { &mut readable } else { &mut writable };
                list.push(PathBuf::from(source));
            }
        }
        Self {
            root: root.to_owned(),
            read_only: spec.read_only_root_fs == Some(true),
            scratch: scratch.to_owned(),
            own: Vec::new(),
            own_read_only: Vec::new(),
            readable,
            writable,
            network: Network::of(spec, port),
            graphics: Graphics::of(spec, devices_allowed),
            devices: spec.devices.iter().filter(|_| devices_allowed).map(node).collect(),
            hidden: Vec::new(),
        }
    }

    /// The same with every path as it really is, since Seatbelt compares real paths and `/tmp`, `/var` and `/etc` are links on
    /// every Mac. Of what is not there yet the part that is there is resolved.
    #[must_use]
    pub fn resolved(mut self) -> Self {
        let paths = self
            .readable
            .iter_mut()
            .chain(&mut self.writable)
            .chain(self.devices.iter_mut().map(|node| &mut node.path));
        for path in paths {
            *path = real(path);
        }
        self
    }

    /// The profile as text.
    pub fn text(&self) -> String {
        let mut text = String::from("(version 1)\n(deny default)\n");
        self.processes(&mut text);
        self.network(&mut text);
        self.graphics(&mut text);
        // These end with what is denied whatever else says, and the last line that fits holds.
        self.files(&mut text);
        text
    }

    fn processes(&self, text: &mut String) {
        text.push_str(
            "(allow process-exec)\n(allow process-fork)\n(allow signal (target same-sandbox))\n\
             (allow process-info* (target same-sandbox))\n(allow sysctl-read)\n(allow ipc-posix-sem)\n\
             (allow pseudo-tty)\n",
        );
        for service in SERVICES {
            line(text, "mach-lookup", &format!("(global-name {})", quoted(service)));
        }
    }

    fn files(&self, text: &mut String) {
        text.push_str("(allow file-read-metadata)\n");
        for path in SYSTEM {
            line(text, "file-read*", &subpath(Path::new(path)));
        }
        for path in SYSTEM_FILES {
            line(text, "file-read*", &format!("(literal {})", quoted(path)));
        }
        for path in ["/dev/null", "/dev/zero", "/dev/tty", "/dev/ptmx"] {
            line(text, "file-read* file-write* file-ioctl", &format!("(literal {})", quoted(path)));
        }
        line(text, "file-read* file-write* file-ioctl", "(regex #\"^/dev/ttys[0-9]+$\")");
        for path in &self.readable {
            line(text, "file-read*", &subpath(path));
        }
        for node in &self.devices {
            let operations = match (node.read, node.write) {
                (true, true) => "file-read* file-write* file-ioctl",
                (true, false) => "file-read* file-ioctl",
                (false, true) => "file-write* file-ioctl",
                (false, false) => continue,
            };
            line(text, operations, &format!("(literal {})", quoted(&node.path.to_string_lossy())));
        }
        for path in &self.writable {
            line(text, "file-read* file-write*", &subpath(path));
        }
        // The last line that fits holds, so what is the program's own comes after what is nobody's.
        for path in &self.hidden {
            let path = subpath(path);
            let _ = writeln!(text, "(deny file-read* file-write* network-outbound {path})");
        }
        let own = self.own.iter().chain([&self.scratch]);
        line(text, if self.read_only { "file-read*" } else { WRITTEN }, &subpath(&self.root));
        for path in own {
            line(text, WRITTEN, &subpath(path));
        }
        for path in &self.own_read_only {
            line(text, "file-read*", &subpath(path));
        }
    }

    fn network(&self, text: &mut String) {
        match self.network {
            Network::None => {}
            Network::Loopback { port } => {
                if let Some(port) = port {
                    line(text, "network-bind network-inbound", &format!("(local ip \"localhost:{port}\")"));
                }
                line(text, "network-outbound", "(remote ip \"localhost:*\")");
            }
            // Addresses alone: sockets of the file system, as of container engines and key agents, are ways out.
            Network::Full => {
                line(text, "network-outbound", "(remote ip \"*:*\")");
                line(text, "network-bind network-inbound", "(local ip \"*:*\")");
                line(text, "network-outbound", &format!("(literal {})", quoted(RESOLVER)));
            }
        }
    }

    fn graphics(&self, text: &mut String) {
        if self.graphics == Graphics::None {
            return;
        }
        for client in GRAPHICS_CLIENTS {
            line(text, "iokit-open", &format!("(iokit-user-client-class {})", quoted(client)));
        }
        line(text, "file-read*", &subpath(Path::new(PERFORMANCE_SHADERS)));
        if self.graphics == Graphics::Full {
            line(text, "mach-lookup", &format!("(global-name {})", quoted(SHADER_COMPILER)));
        }
    }
}

/// A path without links, as far as it is there.
pub(super) fn real(path: &Path) -> PathBuf {
    for above in path.ancestors() {
        if let (Ok(real), Ok(rest)) = (std::fs::canonicalize(above), path.strip_prefix(above)) {
            return if rest.as_os_str().is_empty() { real } else { real.join(rest) };
        }
    }
    path.to_owned()
}

fn node(device: &Device) -> Node {
    Node { path: device.path.clone().into(), read: device.read != Some(false), write: device.write != Some(false) }
}

fn line(text: &mut String, operations: &str, filter: &str) {
    // Writing to a string does not fail.
    let _ = writeln!(text, "(allow {operations} {filter})");
}

fn subpath(path: &Path) -> String {
    format!("(subpath {})", quoted(&path.to_string_lossy()))
}

/// A string of the language. Quotes and backslashes are escaped, so that no path can end its string and add a rule.
fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for letter in text.chars() {
        if matches!(letter, '"' | '\\') {
            quoted.push('\\');
        }
        quoted.push(letter);
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(more: &str) -> Profile {
        let spec: ServiceSpec = serde_yaml::from_str(&format!("image: {{ name: host }}\n{more}")).unwrap();
        Profile::of(&spec, Path::new("/roots/web-0"), Path::new("/scratch/web-0"), Some(20_001), true)
    }

    fn allows(profile: &Profile, rule: &str) -> bool {
        profile.text().lines().any(|line| line == rule)
    }

    #[test]
    fn everything_is_denied_that_no_line_allows() {
        let text = profile("").text();
        let mut lines = text.lines();
        assert_eq!((lines.next(), lines.next()), (Some("(version 1)"), Some("(deny default)")));
        assert!(lines.all(|line| line.starts_with("(allow ") && line.ends_with(')')));
        for rule in [
            "(allow process-exec)",
            "(allow process-fork)",
            "(allow sysctl-read)",
            "(allow pseudo-tty)",
            "(allow ipc-posix-sem)",
            "(allow file-read* (subpath \"/usr/lib\"))",
            "(allow file-read* file-write* file-ioctl (literal \"/dev/null\"))",
            "(allow file-read* file-write* network-bind network-inbound network-outbound (subpath \"/roots/web-0\"))",
            "(allow file-read* file-write* network-bind network-inbound network-outbound (subpath \"/scratch/web-0\"))",
        ] {
            assert!(text.lines().any(|line| line == rule), "{rule}");
        }
    }

    #[test]
    fn the_network_is_what_the_spec_says_and_does_not_depend_on_endpoints() {
        let endpoints = "endpoints: [{ name: http, protocol: http, port: 8080 }]";
        let full = |fields: &str| allows(&profile(fields), "(allow network-outbound (remote ip \"*:*\"))");
        assert!(full("") && full(endpoints));
        for closed in ["sandbox: { network: none }", "pool: {}"] {
            let found = profile(closed).text();
            assert!(!found.contains(" ip ") && !found.contains("mDNSResponder"), "{found}");
        }
        let loopback = profile("sandbox: { network: loopback }");
        assert!(allows(&loopback, "(allow network-bind network-inbound (local ip \"localhost:20001\"))"));
        assert!(allows(&loopback, "(allow network-outbound (remote ip \"localhost:*\"))"));
        assert!(!loopback.text().contains("*:*"));
    }

    #[test]
    fn sockets_of_the_file_system_are_reached_where_they_are_the_programs_own_alone() {
        for fields in ["", "sandbox: { network: loopback }", "sandbox: { network: none }"] {
            let text = profile(fields).text();
            let sockets = |line: &&str| line.contains("network-") && !line.contains(" ip ");
            for line in text.lines().filter(sockets) {
                let is_own = ["/roots/web-0", "/scratch/web-0", "/private/var/run/mDNSResponder"];
                assert!(is_own.iter().any(|own| line.contains(&format!("\"{own}\""))), "{line}");
            }
            assert!(allows(&profile(fields), &format!("(allow {WRITTEN} (subpath \"/scratch/web-0\"))")));
        }
    }

    #[test]
    fn graphics_come_in_two_sizes_and_only_where_the_operator_allows_them() {
        let compiler = "(allow mach-lookup (global-name \"com.apple.MTLCompilerService\"))";
        let device = "(allow iokit-open (iokit-user-client-class \"AGXDeviceUserClient\"))";
        let full = profile("resources: { gpu: { vendor: apple, count: 1 } }");
        assert!(allows(&full, compiler) && allows(&full, device));
        let compute = profile("resources: { gpu: { vendor: apple, count: 1, mode: mps } }");
        assert!(!allows(&compute, compiler) && allows(&compute, device));
        assert!(compute.text().contains("MetalPerformanceShaders"));
        let spec: ServiceSpec =
            serde_yaml::from_str("image: { name: host }\nresources: { gpu: { vendor: apple, count: 1 } }").unwrap();
        let off = Profile::of(&spec, Path::new("/r"), Path::new("/s"), None, false);
        assert_eq!(off.graphics, Graphics::None);
        assert!(!off.text().contains("iokit"));
    }

    #[test]
    fn storage_is_readable_or_writable_as_declared() {
        let found = profile(
            "storage:\n- { type: bind, source: /data, target: /data, readonly: true }\n\
             - { type: bind, source: /work, target: /work }",
        );
        assert!(allows(&found, "(allow file-read* (subpath \"/data\"))"));
        assert!(allows(&found, "(allow file-read* file-write* (subpath \"/work\"))"));
    }

    #[test]
    fn paths_are_written_as_they_really_are() {
        let folder = tempfile::tempdir().unwrap();
        let folder = std::fs::canonicalize(folder.path()).unwrap();
        std::fs::create_dir(folder.join("real")).unwrap();
        std::os::unix::fs::symlink("real", folder.join("link")).unwrap();
        let link = folder.join("link").display().to_string();
        let found = profile(&format!("sandbox: {{ readable: [{link}], writable: [{link}/later/x] }}")).resolved();
        assert_eq!(found.readable, [folder.join("real")]);
        assert_eq!(found.writable, [folder.join("real/later/x")]);
    }

    #[test]
    fn what_is_hidden_is_denied_after_all_that_shows_it_and_before_what_is_the_programs_own() {
        let mut found = profile("sandbox: { readable: [/state] }\nread_only_root_fs: true");
        found.hidden = vec!["/state".into()];
        found.own = vec!["/state/volumes/db".into()];
        found.own_read_only = vec!["/state/volumes/seed".into()];
        let text = found.text();
        let at = |rule: &str| text.lines().position(|line| line == rule).unwrap_or_else(|| panic!("{rule}\n{text}"));
        let denied = at("(deny file-read* file-write* network-outbound (subpath \"/state\"))");
        assert!(at("(allow file-read* (subpath \"/state\"))") < denied);
        assert!(at("(allow file-read* (subpath \"/roots/web-0\"))") > denied, "it is read-only");
        assert!(at(&format!("(allow {WRITTEN} (subpath \"/state/volumes/db\"))")) > denied);
        assert!(at("(allow file-read* (subpath \"/state/volumes/seed\"))") > denied);
        assert!(!allows(&found, &format!("(allow {WRITTEN} (subpath \"/roots/web-0\"))")));
    }

    #[test]
    fn declared_devices_and_no_others_can_be_used_where_the_operator_allows_them() {
        let declared = "devices: [{ path: /dev/cu.usb }, { path: /dev/rdisk4, write: false }]";
        let found = profile(declared);
        assert!(allows(&found, "(allow file-read* file-write* file-ioctl (literal \"/dev/cu.usb\"))"));
        assert!(allows(&found, "(allow file-read* file-ioctl (literal \"/dev/rdisk4\"))"));
        let spec: ServiceSpec = serde_yaml::from_str(&format!("image: {{ name: host }}\n{declared}")).unwrap();
        let off = Profile::of(&spec, Path::new("/r"), Path::new("/s"), None, false);
        assert!(!off.text().contains("/dev/cu.usb"));
    }

    #[test]
    fn a_path_can_not_end_its_string() {
        let found = profile("sandbox: { readable: ['/a\")(allow default)(x \"'] }");
        assert!(allows(&found, "(allow file-read* (subpath \"/a\\\")(allow default)(x \\\"\"))"));
        assert!(!found.text().lines().any(|line| line == "(allow default)"));
    }
}
