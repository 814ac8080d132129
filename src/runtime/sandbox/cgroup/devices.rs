//! Access to devices: by a program in version 2 of control groups, by a list in version 1.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use super::super::devices::{DeviceRule, allowed, program};
use super::super::failure::{Context, Failure};
use super::super::sys::bpf::attach_device_program;
use super::groups::{Groups, Legacy, Setting};
use super::hierarchy::Controller;
use super::home::Homes;

/// Field of the spec that asks for it.
const FIELD: &str = "devices";
/// Every device, as version 1 reads it.
const ALL: &str = "a";

/// Whether access to devices can be limited here, or why not.
///
/// # Errors
/// The text says why not.
pub fn limits_devices(homes: &Homes) -> Result<(), String> {
    let unified = homes.unified.as_ref().map_err(String::clone).and_then(|home| home.devices.clone());
    unified.or_else(|why| match homes.legacy(Controller::Devices) {
        Some(_) => Ok(()),
        None => Err(why),
    })
}

/// Limits the groups of an instance to the usual devices and those of these rules; no rules are no limits.
pub fn limit_devices(groups: &mut Groups, homes: &Homes, name: &str, rules: &[DeviceRule]) {
    if rules.is_empty() {
        return;
    }
    let rules = allowed(rules);
    let has_programs = homes.unified.as_ref().is_ok_and(|home| home.devices.is_ok());
    if let Some(unified) = groups.unified.as_mut().filter(|_| has_programs) {
        unified.devices = rules;
        return;
    }
    let Some(home) = homes.legacy(Controller::Devices) else { return };
    let setting = |file: &str, value: String| Setting { file: file.to_owned(), value, field: FIELD.to_owned() };
    let denied = [setting("devices.deny", ALL.to_owned())];
    let settings = denied.into_iter().chain(rules.iter().map(|rule| setting("devices.allow", rule.to_string())));
    let dir = home.dir.join(name);
    match groups.legacy.iter_mut().find(|group| group.dir == dir) {
        Some(group) => group.settings.extend(settings),
        None => {
            let controllers = home.controllers.clone();
            groups.legacy.push(Legacy { dir, controllers, settings: settings.collect() });
        }
    }
}

/// Has the program of a group of version 2 decide about its devices, where it has rules.
///
/// # Errors
/// The kernel does not take it.
pub fn limit(groups: &Groups) -> Result<(), Failure> {
    match groups.unified.as_ref().filter(|group| !group.devices.is_empty()) {
        Some(group) => attach(&group.dir, &group.devices).context("limiting devices"),
        None => Ok(()),
    }
}

fn attach(dir: &Path, rules: &[DeviceRule]) -> io::Result<()> {
    attach_device_program(File::open(dir)?.as_fd(), &program(rules))
}

/// Whether a group of version 2 can have such a program.
///
/// # Errors
/// The text says why not.
pub fn try_out(dir: &Path) -> Result<(), String> {
    attach(dir, &allowed(&[]))
        .map_err(|error| format!("the kernel takes no program that decides about devices: {error}"))
}

#[cfg(test)]
mod tests {
    use super::super::home::{LegacyHome, UnifiedHome};
    use super::*;
    use crate::runtime::sandbox::devices::DeviceKind;

    const RULE: DeviceRule = DeviceRule { kind: DeviceKind::Block, major: 8, minor: Some(1), read: true, write: false };

    fn homes(devices: Result<(), String>, legacy: bool) -> Homes {
        let unified = UnifiedHome {
            dir: "/c2/keel".into(),
            controllers: vec![],
            kill: true,
            freeze: true,
            born_in: true,
            devices,
            swap: false,
            io_weight: None,
        };
        let home = |dir: &str| LegacyHome {
            dir: dir.into(),
            controllers: vec![Controller::Devices],
            swap: false,
            io_weight: None,
        };
        Homes {
            unified: Ok(unified),
            legacy: legacy.then(|| home("/c1/devices/keel")).into_iter().collect(),
            ..Homes::none("no")
        }
    }

    /// The groups of an instance with one rule, or none.
    fn limited(homes: &Homes, rules: &[DeviceRule]) -> Groups {
        let mut groups = Groups::anywhere(homes, "x");
        groups.legacy.clear();
        limit_devices(&mut groups, homes, "x", rules);
        groups
    }

    #[test]
    fn version_2_is_preferred_where_it_takes_programs() {
        let groups = limited(&homes(Ok(()), true), &[RULE]);
        assert_eq!(groups.unified.unwrap().devices, allowed(&[RULE]));
        assert_eq!(groups.legacy, []);
    }

    #[test]
    fn version_1_denies_all_before_it_allows_some() {
        let groups = limited(&homes(Err("no".into()), true), &[RULE]);
        assert_eq!(groups.unified.unwrap().devices, []);
        let written: Vec<String> =
            groups.legacy[0].settings.iter().map(|one| format!("{}={}", one.file, one.value)).collect();
        assert_eq!(written[0], "devices.deny=a");
        assert_eq!(written.last().unwrap(), "devices.allow=b 8:1 rm");
        assert_eq!(groups.legacy[0].dir, Path::new("/c1/devices/keel/x"));
    }

    #[test]
    fn nothing_is_limited_without_a_rule_or_a_means() {
        assert_eq!(limits_devices(&homes(Err("no".into()), false)), Err("no".to_owned()));
        assert_eq!(limits_devices(&homes(Err("no".into()), true)), Ok(()));
        for groups in [limited(&homes(Ok(()), true), &[]), limited(&homes(Err("no".into()), false), &[RULE])] {
            assert_eq!((groups.unified.unwrap().devices, groups.legacy), (vec![], vec![]));
        }
    }
}
