//! Devices of the machine that an instance has besides the usual ones: those that its spec declares, and the nodes of
//! graphics processors. Nothing else can be opened: `/dev` holds no other node, and no mount of an instance lets nodes
//! that are made in it be opened.

mod gpu;
mod node;
mod rules;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::layout::Layout;
use super::links::{Unresolved, Written};
use super::unsupported::unsupported;
use crate::runtime::{ErrorKind, RuntimeError};
use crate::spec::{Device, Gpu, ServiceSpec};
use crate::state::Condition;

pub use node::{DeviceId, Node};
pub use rules::{DeviceKind, DeviceRule, allowed, program};

/// Device nodes of an instance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Planned {
    /// The nodes, by their paths inside.
    pub nodes: BTreeMap<String, Node>,
    /// What may be done with which device, where the nodes' own permissions are not to hold.
    pub rules: Vec<DeviceRule>,
}

/// Plans the devices of an instance. `written` are paths that programs may write, and `control` says whether access can be limited device by device, or why not.
///
/// # Errors
/// `Rejected` where the operator allows none, where what is named is no device or lies where programs may write, or where
/// this machine has too few graphics processors; `Failed` where a node is not there, as somebody may still plug it in.
pub fn plan(
    spec: &ServiceSpec,
    layout: &Layout,
    written: &Written,
    control: &Result<(), String>,
    found: &mut Vec<Condition>,
) -> Result<Planned, RuntimeError> {
    let gpu = spec.resources.as_ref().and_then(|resources| resources.gpu.as_ref());
    if spec.devices.is_empty() && gpu.is_none() {
        return Ok(Planned::default());
    }
    if layout.denies_devices() {
        let what = "remove devices and resources.gpu, or ask the operator of this machine";
        return Err(rejected(format!("{SWITCHED_OFF}; {what}")));
    }
    let mut planned = Planned::default();
    for (index, device) in spec.devices.iter().enumerate() {
        if device.mknod == Some(true) {
            found.push(unsupported(&format!("devices.{index}.mknod"), "nodes that are made inside can't be opened"));
        }
        planned.add("devices", device, written)?;
    }
    if let Some(gpu) = gpu {
        found.extend(gpu::without_effect(gpu));
        planned.add_gpu(gpu, &gpu::Places::default(), written)?;
    }
    match control {
        _ if planned.rules.iter().all(|rule| rule.read && rule.write) => planned.rules.clear(),
        Ok(()) => {}
        Err(why) => {
            let message = format!(
                "the devices that devices names are there, and their own permissions hold; read: false and write: false do \
                 not: {why}"
            );
            found.push(Condition::holds("Degraded", "DeviceAccessNotLimited", message));
            planned.rules.clear();
        }
    }
    Ok(planned)
}

impl Planned {
    /// Adds the nodes of graphics processors, whose paths are known and which anybody may have put there.
    fn add_gpu(&mut self, gpu: &Gpu, places: &gpu::Places, written: &Written) -> Result<(), RuntimeError> {
        const FIELD: &str = "resources.gpu";
        for path in gpu::nodes(gpu, places).map_err(|why| rejected(format!("{FIELD}: {why}")))? {
            let path = path.to_string_lossy().into_owned();
            self.add(FIELD, &Device { path: path.clone(), read: None, write: None, mknod: None }, written)?;
            if self.nodes.get(&path).is_none_or(|node| node.device.kind != DeviceKind::Character) {
                return Err(rejected(format!("{FIELD}: {path} is no character device, so no graphics processor")));
            }
        }
        Ok(())
    }

    /// Adds a node that a field of the spec asks for.
    fn add(&mut self, field: &str, declared: &Device, written: &Written) -> Result<(), RuntimeError> {
        let path = declared.path.as_str();
        super::inside::components(path)
            .map_err(|error| rejected(format!("{field}: the path {path:?} can't be shown: {error}")))?;
        let Some(node) = find(field, path, written)? else {
            let what = "mount files and directories by storage: type: bind";
            return Err(rejected(format!("{field}: {path} is no device; {what}")));
        };
        let DeviceId { kind, major, minor } = node.device;
        let (read, write) = (declared.read != Some(false), declared.write != Some(false));
        self.rules.push(DeviceRule { kind, major, minor: Some(minor), read, write });
        self.nodes.insert(path.to_owned(), node);
        Ok(())
    }
}

/// The node that a path of the machine leads to; `None` where it is none. A program that may write where it lies could put
/// another device's in its place.
fn find(field: &str, path: &str, written: &Written) -> Result<Option<Node>, RuntimeError> {
    let absent = |error: &std::io::Error| {
        let message = format!("{field}: {path} can't be opened up: {error}; is it plugged in, its driver loaded?");
        RuntimeError::new(ErrorKind::Failed, message)
    };
    let real = written.resolve(Path::new(path)).map_err(|error| match error {
        Unresolved::Unreadable(error) => absent(&error),
        Unresolved::Untrusted { .. } => rejected(format!("{field}: {path} can't be opened up: {error}")),
    })?;
    if let Some(within) = written.around(&real) {
        return Err(rejected(format!(
            "{field}: {} lies in {}, which programs may write, so it may be any device by now; declare a node that lies \
             elsewhere",
            real.display(),
            within.display()
        )));
    }
    let data = std::fs::symlink_metadata(&real).map_err(|error| absent(&error))?;
    Ok(DeviceId::of(&data).map(|device| Node { path: real, device }))
}

fn rejected(message: impl Into<String>) -> RuntimeError {
    RuntimeError::new(ErrorKind::Rejected, message)
}

/// What is told of a runtime whose instances may have none.
pub const SWITCHED_OFF: &str = "devices and graphics processors are switched off (keel run --devices deny)";

/// Name of the file that says that no instance gets devices.
pub const DENIED: &str = "no-devices";

/// Remembers whether instances of a root may have devices; holds for every later create, whoever asks for it.
///
/// # Errors
/// It can't be written.
pub fn allow(root: &Path, allowed: bool) -> std::io::Result<()> {
    let file: PathBuf = root.join(DENIED);
    if !allowed {
        return super::layout::private_file().create(true).truncate(true).open(file).map(drop);
    }
    match std::fs::remove_file(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(fields: &str, control: &Result<(), String>) -> (Result<Planned, RuntimeError>, Vec<String>) {
        let root = tempfile::tempdir().unwrap();
        let spec = serde_yaml::from_str(&format!("image: {{ name: host }}\n{fields}")).unwrap();
        let mut found = Vec::new();
        let planned = plan(&spec, &Layout::new(root.path()), &Written::default(), control, &mut found);
        (planned, found.into_iter().map(|one| one.message).collect())
    }

    #[test]
    fn nodes_are_shown_and_limited_only_where_less_than_all_is_allowed() {
        let (whole, found) = planned("devices: [{ path: /dev/full }]", &Ok(()));
        let full = Node { path: "/dev/full".into(), device: DeviceId::character(1, 7) };
        let nodes = BTreeMap::from([("/dev/full".to_owned(), full)]);
        assert_eq!(whole.unwrap(), Planned { nodes, rules: Vec::new() });
        assert_eq!(found, Vec::<String>::new());
        let (part, found) = planned("devices: [{ path: /dev/full, write: false }]", &Ok(()));
        let rule = DeviceRule { kind: DeviceKind::Character, major: 1, minor: Some(7), read: true, write: false };
        assert_eq!(part.unwrap().rules, [rule]);
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn what_can_not_be_limited_is_told() {
        let none = Err("no control group".to_owned());
        let (planned, found) = planned("devices: [{ path: /dev/full, write: false, mknod: true }]", &none);
        assert_eq!(planned.unwrap().rules, []);
        assert!(found[0].contains("nodes that are made inside can't be opened"), "{found:?}");
        let expected = "the devices that devices names are there, and their own permissions hold; read: false and write: \
                        false do not: no control group";
        assert_eq!(found[1], expected);
    }

    #[test]
    fn what_is_no_device_or_not_there_is_refused() {
        for (path, kind, words) in [
            ("/etc/passwd", ErrorKind::Rejected, "is no device"),
            ("/dev/no-such-device", ErrorKind::Failed, "is it plugged in"),
            ("/dev/../etc/passwd", ErrorKind::Rejected, "can't be shown"),
        ] {
            let error = planned(&format!("devices: [{{ path: {path} }}]"), &Ok(())).0.unwrap_err();
            assert_eq!(error.kind, kind, "{path}");
            assert!(error.message.contains(words), "{error}");
        }
    }

    #[test]
    fn a_graphics_processor_is_a_character_device_that_lies_where_no_program_may_write() {
        let folder = tempfile::tempdir().unwrap();
        let top = std::fs::canonicalize(folder.path()).unwrap();
        let layout = Layout::new(top.join("root"));
        let written = layout.written();
        std::fs::create_dir_all(&written).unwrap();
        std::os::unix::fs::symlink(top.join("ws"), written.join("one")).unwrap();
        let spec: ServiceSpec =
            serde_yaml::from_str("image: { name: host }\nresources: { gpu: { count: 1 } }").unwrap();
        let gpu = spec.resources.as_ref().unwrap().gpu.as_ref().unwrap();
        let written = Written::of(&layout, &spec).unwrap();
        // Links to devices that every machine has; who may make nodes makes others of them.
        let planned = |dev: &str, device: &str| {
            std::fs::create_dir_all(top.join(dev)).unwrap();
            let node = top.join(dev).join("nvidia0");
            let _ = std::fs::remove_file(&node);
            std::os::unix::fs::symlink(device, &node).unwrap();
            let mut planned = Planned::default();
            let added = planned.add_gpu(gpu, &gpu::Places::at(&top.join(dev)), &written);
            added.map(|()| planned.nodes.into_values().map(|node| node.device).collect::<Vec<_>>())
        };
        assert_eq!(planned("dev", "/dev/full").unwrap(), [DeviceId::character(1, 7)]);
        let error = planned("ws", "/dev/full").unwrap_err();
        assert!(
            error.message.starts_with("resources.gpu: ") && error.message.contains("programs may write"),
            "{error}"
        );
        let file = planned("dev", "/etc/passwd").unwrap_err();
        assert!(file.message.contains("/nvidia0 is no device"), "{file}");
        let block = top.join("block");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        let (kind, device) = (rustix::fs::FileType::BlockDevice, rustix::fs::makedev(7, 1));
        // Only root may.
        if rustix::fs::mknodat(rustix::fs::CWD, &block, kind, mode, device).is_ok() {
            let error = planned("dev", block.to_str().unwrap()).unwrap_err();
            assert!(error.message.contains("is no character device"), "{error}");
        }
    }

    #[test]
    fn an_operator_switches_devices_off_and_on_again() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        let of = |text: &str| serde_yaml::from_str(text).unwrap();
        let with = of("image: { name: host }\ndevices: [{ path: /dev/full }]");
        let gpu = of("image: { name: host }\nresources: { gpu: { count: 1 } }");
        let without = of("image: { name: host }");
        let planned = |spec| plan(spec, &layout, &Written::default(), &Ok(()), &mut Vec::new());
        allow(root.path(), false).unwrap();
        for spec in [&with, &gpu] {
            let error = planned(spec).unwrap_err();
            assert!(error.message.contains("are switched off (keel run --devices deny); remove devices"), "{error}");
        }
        assert_eq!(planned(&without).unwrap(), Planned::default());
        allow(root.path(), true).unwrap();
        assert!(planned(&with).unwrap().nodes.contains_key("/dev/full"));
        allow(root.path(), true).unwrap();
    }
}
