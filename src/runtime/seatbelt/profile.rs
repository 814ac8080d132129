//! Profiles in Seatbelt's own language: everything is denied that is not allowed by a line. Pure.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use crate::spec::{NetworkAccess, ServiceSpec, Storage};

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
    /// Scratch space of its own.
    pub scratch: PathBuf,
    /// Further paths that are read.
    pub readable: Vec<PathBuf>,
    /// Further paths that are read and written.
    pub writable: Vec<PathBuf>,
    /// What it may reach.
    pub network: Network,
    /// How much of the graphics processor it may use.
    pub graphics: Graphics,
}

impl Profile {
    /// The profile of a service whose copy of the image is at `root`, with its assigned port.
    pub fn of(spec: &ServiceSpec, root: &Path, scratch: &Path, port: Option<u16>, graphics_allowed: bool) -> Self {
        let paths = |list: &[String]| list.iter().map(PathBuf::from).collect::<Vec<_>>();
        let sandbox = spec.sandbox.clone().unwrap_or_default();
        let (mut readable, mut writable) = (paths(&sandbox.readable), paths(&sandbox.writable));
        for storage in &spec.storage {
            // There are no mounts: a program finds what is stored at its source, below its own root.
            let inside = || root.join(storage.target().trim_start_matches('/'));
            match storage {
                Storage::Bind { source, readonly: Some(true), .. } => readable.push(PathBuf::from(source)),
                Storage::Bind { source, .. } => writable.push(PathBuf::from(source)),
                Storage::Named { .. }
                | Storage::Anonymous { .. }
                | Storage::Workspace { .. }
                | Storage::Tmpfs { .. } => writable.push(inside()),
                Storage::S3 { .. } => {}
            }
        }
        Self {
            root: root.to_owned(),
            scratch: scratch.to_owned(),
            readable,
            writable,
            network: Network::of(spec, port),
            graphics: Graphics::of(spec, graphics_allowed),
        }
    }

    /// The profile as text.
    pub fn text(&self) -> String {
        let mut text = String::from("(version 1)\n(deny default)\n");
        self.processes(&mut text);
        self.files(&mut text);
        self.network(&mut text);
        self.graphics(&mut text);
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
        for path in [&self.root, &self.scratch].into_iter().chain(&self.writable) {
            line(text, "file-read* file-write*", &subpath(path));
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
            Network::Full => {
                text.push_str("(allow network*)\n");
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
            "(allow file-read* file-write* (subpath \"/roots/web-0\"))",
            "(allow file-read* file-write* (subpath \"/scratch/web-0\"))",
        ] {
            assert!(text.lines().any(|line| line == rule), "{rule}");
        }
    }

    #[test]
    fn the_network_is_what_the_spec_says_and_does_not_depend_on_endpoints() {
        let endpoints = "endpoints: [{ name: http, protocol: http, port: 8080 }]";
        assert!(allows(&profile(""), "(allow network*)"));
        assert!(allows(&profile(endpoints), "(allow network*)"));
        assert!(!profile("sandbox: { network: none }").text().contains("network"));
        assert!(!profile("pool: {}").text().contains("network"));
        let loopback = profile("sandbox: { network: loopback }");
        assert!(allows(&loopback, "(allow network-bind network-inbound (local ip \"localhost:20001\"))"));
        assert!(allows(&loopback, "(allow network-outbound (remote ip \"localhost:*\"))"));
        assert!(!allows(&loopback, "(allow network*)"));
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
             - { type: bind, source: /work, target: /work }\n- { type: named, name: db, target: /var/db }",
        );
        assert!(allows(&found, "(allow file-read* (subpath \"/data\"))"));
        assert!(allows(&found, "(allow file-read* file-write* (subpath \"/work\"))"));
        assert!(allows(&found, "(allow file-read* file-write* (subpath \"/roots/web-0/var/db\"))"));
    }

    #[test]
    fn a_path_can_not_end_its_string() {
        let found = profile("sandbox: { readable: ['/a\")(allow default)(x \"'] }");
        assert!(allows(&found, "(allow file-read* (subpath \"/a\\\")(allow default)(x \\\"\"))"));
        assert!(!found.text().lines().any(|line| line == "(allow default)"));
    }
}
