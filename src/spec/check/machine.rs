//! What an instance gets of the machine: limits, mounts, devices.

use std::collections::HashMap;

use super::super::problem::{Step, steps};
use super::super::{Bytes, Resources, ServiceSpec, Storage};
use super::Report;

pub(super) fn check(report: &mut Report<'_>, spec: &ServiceSpec) {
    if let Some(settings) = &spec.resources {
        resources(&mut report.within(&steps!["resources"]), settings);
    }
    storage(report, &spec.storage);
    for (index, device) in spec.devices.iter().enumerate() {
        // Docker also takes names of the Container Device Interface: vendor.com/class=name.
        if !device.path.starts_with('/') && !device.path.contains('=') && !device.path.is_empty() {
            let message = format!("{:?} is not the path of a device", device.path);
            report.problem_help(&steps!["devices", index, "path"], message, "write a path such as /dev/kvm");
        }
    }
    if let Some(sandbox) = &spec.sandbox {
        for (key, paths) in [("readable", &sandbox.readable), ("writable", &sandbox.writable)] {
            for (index, path) in paths.iter().enumerate() {
                absolute(report, &steps!["sandbox", key, index], path);
            }
        }
    }
}

fn resources(report: &mut Report<'_>, resources: &Resources) {
    let sizes = [
        ("memory", resources.memory),
        ("disk", resources.disk),
        ("memory_reservation", resources.memory_reservation),
        ("memory_swap", resources.memory_swap),
    ];
    for (key, size) in sizes {
        if size == Some(Bytes(0)) {
            report.problem_help(&steps![key], format!("`{key}` must be more than 0"), "leave it out for no limit");
        }
    }
    if let (Some(reservation), Some(memory)) = (resources.memory_reservation, resources.memory)
        && reservation > memory
    {
        let message = format!("the reservation ({reservation} bytes) is above the limit ({memory} bytes)");
        report.problem_help(&steps!["memory_reservation"], message, "write at most `memory`");
    }
    match (resources.memory_swap, resources.memory) {
        (Some(_), None) => {
            let help = "write `memory` too";
            report.problem_help(&steps!["memory_swap"], "`memory_swap` needs `memory`", help);
        }
        (Some(swap), Some(memory)) if swap < memory && swap > Bytes(0) => {
            let message = format!("memory and swap together ({swap} bytes) are below memory alone ({memory} bytes)");
            report.problem_help(&steps!["memory_swap"], message, "write at least `memory`");
        }
        _ => {}
    }
    if resources.pids_limit == Some(0) {
        let help = "write at least 1, or -1 for no limit";
        report.problem_help(&steps!["pids_limit"], "with no processes nothing can run", help);
    }
    if resources.cpuset.as_ref().is_some_and(|cpus| !is_cpuset(cpus)) {
        report.problem_help(&steps!["cpuset"], "this is not a list of CPUs", "write numbers and ranges: 0-2,4");
    }
}

fn is_cpuset(text: &str) -> bool {
    text.split(',').all(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        matches!((first.trim().parse::<u16>(), last.trim().parse::<u16>()), (Ok(first), Ok(last)) if first <= last)
    })
}

fn storage(report: &mut Report<'_>, mounts: &[Storage]) {
    let mut targets: HashMap<String, usize> = HashMap::new();
    for (index, mount) in mounts.iter().enumerate() {
        let path = steps!["storage", index, "target"];
        absolute(report, &path, mount.target());
        let target = normal(mount.target());
        if target == "/" {
            report.problem_help(&path, "a mount can't take the place of the root", "write a path such as /data");
        }
        if report.is_whole(&path) {
            if let Some(first) = targets.get(&target) {
                let message = format!("storage[{first}] is already mounted at {target}");
                report.problem_help(&path, message, "choose another target");
            } else {
                targets.insert(target, index);
            }
        }
        source(report, index, mount);
        let is_workspace = |mount: &Storage| matches!(mount, Storage::Workspace { .. });
        if is_workspace(mount) && mounts[..index].iter().any(is_workspace) {
            let message = "a slot has one workspace".to_owned();
            report.problem_help(&steps!["storage", index, "type"], message, "write a named volume for the other one");
        }
    }
}

/// Where a mount comes from and how large it is.
fn source(report: &mut Report<'_>, index: usize, mount: &Storage) {
    let empty = |report: &mut Report<'_>, key: &'static str, text: &str| {
        if text.trim().is_empty() {
            report.problem(&steps!["storage", index, key], format!("`{key}` must not be empty"));
        }
    };
    match mount {
        Storage::Bind { source, .. } => empty(report, "source", source),
        Storage::Named { name, size, .. } => {
            super::name(report, &steps!["storage", index, "name"], name);
            not_zero(report, index, *size);
        }
        Storage::Tmpfs { size, .. } => not_zero(report, index, *size),
        Storage::S3 { bucket, .. } => empty(report, "bucket", bucket),
        Storage::Anonymous { .. } | Storage::Workspace { .. } => {}
    }
}

fn not_zero(report: &mut Report<'_>, index: usize, size: Option<Bytes>) {
    if size == Some(Bytes(0)) {
        report.problem_help(
            &steps!["storage", index, "size"],
            "`size` must be more than 0",
            "leave it out for no limit",
        );
    }
}

fn absolute(report: &mut Report<'_>, path: &[Step], text: &str) {
    if !text.starts_with('/') {
        report.problem_help(path, format!("{text:?} is not an absolute path"), "begin it with /");
    } else if text.split('/').any(|part| part == "..") {
        report.problem_help(path, format!("{text:?} leads upwards"), "leave out `..`");
    } else if text.contains('\0') {
        report.problem(path, "a path can't hold a zero byte");
    }
}

/// One spelling per path: no double or last slash, no `.`.
fn normal(path: &str) -> String {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    format!("/{}", parts.join("/"))
}
