//! Nodes of graphics processors, as their drivers make them.

use std::path::{Path, PathBuf};

use super::super::unsupported::unsupported;
use crate::spec::Gpu;
use crate::state::Condition;

/// Nodes that every program needs which uses an NVIDIA processor, besides that of the processor itself; some drivers
/// make only some of them.
const NVIDIA: &[&str] = &["nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset"];
/// Node that computing on AMD processors needs.
const AMD: &str = "kfd";
/// Numbers of vendors on the PCI bus, as sysfs prints them.
const AMD_VENDOR: &str = "0x1002";
const INTEL_VENDOR: &str = "0x8086";

/// Where nodes and what is known of them lie.
#[derive(Debug)]
pub struct Places {
    dev: PathBuf,
    drm: PathBuf,
}

impl Default for Places {
    /// Those of this machine.
    fn default() -> Self {
        Self { dev: PathBuf::from("/dev"), drm: PathBuf::from("/sys/class/drm") }
    }
}

#[cfg(test)]
impl Places {
    /// A machine whose nodes lie in this directory.
    pub fn at(dev: &Path) -> Self {
        Self { dev: dev.to_owned(), drm: dev.join("drm") }
    }
}

/// The nodes of as many processors as are asked for: the first of the vendor.
///
/// # Errors
/// The machine has fewer; the text says how many.
pub fn nodes(gpu: &Gpu, places: &Places) -> Result<Vec<PathBuf>, String> {
    let vendor = gpu.vendor.as_deref().unwrap_or("nvidia");
    let wanted = usize::try_from(gpu.count.unwrap_or(1)).unwrap_or(usize::MAX);
    let (all, shared): (Vec<PathBuf>, &[&str]) = match vendor {
        "nvidia" => (numbered(&places.dev, "nvidia"), NVIDIA),
        "amd" => (rendering(places, AMD_VENDOR), &[AMD]),
        "intel" => (rendering(places, INTEL_VENDOR), &[]),
        _ => return Err(format!("no driver of this machine hands processors of {vendor} on")),
    };
    if all.len() < wanted {
        return Err(format!(
            "{wanted} of {vendor} are asked for, and this machine has {}; are the driver's nodes in {}?",
            all.len(),
            places.dev.display()
        ));
    }
    let shared = shared.iter().map(|name| places.dev.join(name)).filter(|path| path.exists());
    Ok(all.into_iter().take(wanted).chain(shared).collect())
}

/// Nodes of a name and a number, by number.
fn numbered(folder: &Path, name: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let number = |path: &Path| path.file_name()?.to_str()?.strip_prefix(name)?.parse::<u32>().ok();
    let mut found: Vec<(u32, PathBuf)> =
        entries.map(|entry| entry.path()).filter_map(|path| Some((number(&path)?, path))).collect();
    found.sort();
    found.into_iter().map(|(_, path)| path).collect()
}

/// Nodes for rendering and computing, without those that drive screens, of one vendor.
fn rendering(places: &Places, vendor: &str) -> Vec<PathBuf> {
    let made_by = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default();
        let file = places.drm.join(name).join("device/vendor");
        std::fs::read_to_string(file).is_ok_and(|text| text.trim() == vendor)
    };
    numbered(&places.dev.join("dri"), "renderD").into_iter().filter(made_by).collect()
}

/// Fields that were written and have no effect.
pub fn without_effect(gpu: &Gpu) -> impl Iterator<Item = Condition> {
    [
        ("mode", gpu.mode.is_some()),
        ("model", gpu.model.is_some()),
        ("scheduling", gpu.scheduling.is_some()),
        ("sharing", gpu.sharing.is_some()),
        ("distributed", gpu.distributed.is_some()),
    ]
    .into_iter()
    .filter(|(_, written)| *written)
    .map(|(name, _)| {
        let why = "an instance gets the first processors of the vendor, and others may get the same";
        unsupported(&format!("resources.gpu.{name}"), why)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine with eleven NVIDIA processors, two of AMD and one of Intel.
    fn machine() -> (tempfile::TempDir, Places) {
        let folder = tempfile::tempdir().unwrap();
        let places = Places { dev: folder.path().join("dev"), drm: folder.path().join("drm") };
        std::fs::create_dir_all(places.dev.join("dri")).unwrap();
        let node = |name: &str| std::fs::write(places.dev.join(name), "").unwrap();
        (0..11).for_each(|number| node(&format!("nvidia{number}")));
        for name in ["nvidiactl", "nvidia-uvm", "nvidia-caps", "kfd", "dri/card0", "sda"] {
            node(name);
        }
        for (number, vendor) in [(128, AMD_VENDOR), (129, INTEL_VENDOR), (130, AMD_VENDOR)] {
            let name = format!("renderD{number}");
            node(&format!("dri/{name}"));
            let device = places.drm.join(&name).join("device");
            std::fs::create_dir_all(&device).unwrap();
            std::fs::write(device.join("vendor"), format!("{vendor}\n")).unwrap();
        }
        (folder, places)
    }

    fn told(gpu: &str) -> Result<String, String> {
        let (_folder, places) = machine();
        let gpu: Gpu = serde_yaml::from_str(gpu).unwrap();
        let name = |path: &PathBuf| path.strip_prefix(&places.dev).unwrap().display().to_string();
        Ok(nodes(&gpu, &places)?.iter().map(name).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn the_first_processors_of_the_vendor_come_with_what_all_of_them_need() {
        assert_eq!(told("{}").unwrap(), "nvidia0 nvidiactl nvidia-uvm");
        assert_eq!(told("{ vendor: amd, count: 2 }").unwrap(), "dri/renderD128 dri/renderD130 kfd");
        assert_eq!(told("{ vendor: intel }").unwrap(), "dri/renderD129");
        let many = told("{ count: 11 }").unwrap();
        assert!(many.contains(" nvidia9 nvidia10 nvidiactl"), "by number, not by text: {many}");
    }

    #[test]
    fn more_than_there_are_is_refused() {
        let error = told("{ vendor: intel, count: 2 }").unwrap_err();
        assert!(error.starts_with("2 of intel are asked for, and this machine has 1;"), "{error}");
        assert_eq!(told("{ vendor: apple }").unwrap_err(), "no driver of this machine hands processors of apple on");
    }

    #[test]
    fn what_is_not_chosen_by_is_told() {
        let gpu: Gpu = serde_yaml::from_str("{ model: A100, sharing: exclusive }").unwrap();
        let fields: Vec<String> = without_effect(&gpu).map(|one| one.message).collect();
        assert!(fields[0].starts_with("resources.gpu.model has no effect"), "{fields:?}");
        assert!(fields[1].starts_with("resources.gpu.sharing has no effect"), "{fields:?}");
        assert_eq!(fields.len(), 2);
    }
}
