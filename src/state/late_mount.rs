//! Mounts that an instance gets while it runs, and the rules for them that need no look at the machine.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// Most mounts of one claim: far more than anybody writes by hand, and each is a mount of the kernel.
pub const MOST_LATE_MOUNTS: usize = 32;

/// Most bytes of a path: Linux's own bound (`PATH_MAX`), less the NUL.
const LONGEST_PATH: usize = 4095;

/// First names of paths inside that are the kernel's, or made for each instance.
const OF_KERNEL: [&str; 3] = ["proc", "sys", "dev"];

/// A path of the machine that is shown inside of an instance which runs already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LateMount {
    /// Absolute path of a directory or file on the controller's machine.
    pub source: String,
    /// Absolute path inside.
    pub target: String,
    /// Whether nothing can be written through it.
    #[serde(default)]
    pub readonly: bool,
}

/// A mount breaks a rule; the text names the field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadMount(pub String);

/// Checks mounts as far as can be told without looking at the machine.
///
/// # Errors
/// The first rule that one of them breaks, with its field.
pub fn check_late_mounts(mounts: &[LateMount]) -> Result<(), BadMount> {
    if mounts.len() > MOST_LATE_MOUNTS {
        let count = mounts.len();
        return Err(BadMount(format!(
            "mounts: a session has at most {MOST_LATE_MOUNTS} of them, and these are {count}"
        )));
    }
    let mut targets = BTreeSet::new();
    for (index, LateMount { source, target, .. }) in mounts.iter().enumerate() {
        let wrong = |field: &str, why: String| BadMount(format!("mounts[{index}].{field}: {why}"));
        check_path(source).map_err(|why| wrong("source", why))?;
        check_path(target).map_err(|why| wrong("target", why))?;
        let names = names(target);
        check_target(target, &names).map_err(|why| wrong("target", why))?;
        if !targets.insert(names) {
            return Err(wrong("target", format!("another mount has the target {target:?} as well; write it once")));
        }
    }
    Ok(())
}

/// Whether two lists ask for the same mounts, in whatever order and spelling of the targets.
pub fn are_same_mounts(one: &[LateMount], other: &[LateMount]) -> bool {
    let all = |mounts: &[LateMount]| -> BTreeSet<(Vec<String>, String, bool)> {
        let key = |mount: &LateMount| {
            let target = names(&mount.target).into_iter().map(str::to_owned).collect();
            (target, mount.source.clone(), mount.readonly)
        };
        mounts.iter().map(key).collect()
    };
    all(one) == all(other)
}

/// The names of a path.
fn names(path: &str) -> Vec<&str> {
    path.split('/').filter(|name| !matches!(*name, "" | ".")).collect()
}

fn check_path(path: &str) -> Result<(), String> {
    match path {
        "" => Err("it is empty; write an absolute path".to_owned()),
        _ if path.len() > LONGEST_PATH => Err(format!("the path is longer than {LONGEST_PATH} bytes")),
        _ if path.contains('\0') => Err("the path has a NUL in it".to_owned()),
        _ if !path.starts_with('/') => Err(format!("{path:?} is relative; write an absolute path")),
        _ => Ok(()),
    }
}

fn check_target(target: &str, names: &[&str]) -> Result<(), String> {
    match names.first() {
        None => Err("/ would cover the root; mount at a directory below".to_owned()),
        Some(_) if names.contains(&"..") => Err(format!("{target:?} must not contain \"..\"")),
        Some(first) if OF_KERNEL.contains(first) => {
            Err(format!("nothing can be mounted at {target}: /{first} is made for each sandbox; name another path"))
        }
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(source: &str, target: &str) -> LateMount {
        LateMount { source: source.to_owned(), target: target.to_owned(), readonly: false }
    }

    #[test]
    fn what_breaks_a_rule_is_refused_with_its_field() {
        let long = format!("/{}", "x".repeat(LONGEST_PATH));
        for (source, target, why) in [
            ("", "/a", "mounts[1].source: it is empty"),
            ("data", "/a", "mounts[1].source: \"data\" is relative"),
            ("/a\0b", "/a", "mounts[1].source: the path has a NUL"),
            (&long, "/a", "mounts[1].source: the path is longer than 4095 bytes"),
            ("/srv", "", "mounts[1].target: it is empty"),
            ("/srv", "a", "mounts[1].target: \"a\" is relative"),
            ("/srv", "/", "mounts[1].target: / would cover the root"),
            ("/srv", "//.", "mounts[1].target: / would cover the root"),
            ("/srv", "/a/../b", "mounts[1].target: \"/a/../b\" must not contain \"..\""),
            ("/srv", "/proc", "mounts[1].target: nothing can be mounted at /proc: /proc is made"),
            ("/srv", "//./proc/1", "mounts[1].target: nothing can be mounted at //./proc/1: /proc is made"),
            ("/srv", "/sys/fs", "/sys is made for each sandbox"),
            ("/srv", "/dev/shm", "/dev is made for each sandbox"),
            ("/srv", "/first/./", "mounts[1].target: another mount has the target \"/first/./\" as well"),
        ] {
            let refused = check_late_mounts(&[mount("/srv", "/first"), mount(source, target)]).unwrap_err();
            assert!(refused.0.contains(why), "{source:?} at {target:?}: {refused}");
        }
        let many = |count: usize| (0..count).map(|n| mount("/srv", &format!("/m/{n}"))).collect::<Vec<_>>();
        assert_eq!(check_late_mounts(&many(MOST_LATE_MOUNTS)), Ok(()));
        assert!(check_late_mounts(&many(33)).unwrap_err().0.contains("at most 32 of them, and these are 33"));
        let nested = [mount("/srv/..", "/processes"), mount("/srv", "/a"), mount("/srv", "/a/devices")];
        assert_eq!(check_late_mounts(&nested), Ok(()));
    }

    #[test]
    fn the_same_mounts_are_the_same_in_any_order() {
        let readonly = |mount: LateMount| LateMount { readonly: true, ..mount };
        let one = [mount("/a", "/x"), readonly(mount("/b", "/y"))];
        assert!(are_same_mounts(&one, &[readonly(mount("/b", "//y/")), mount("/a", "/x")]));
        assert!(!are_same_mounts(&one, &[mount("/a", "/x"), mount("/b", "/y")]));
        assert!(!are_same_mounts(&one, &one[..1]));
    }

    #[test]
    fn an_option_with_a_wrong_name_is_no_mount_that_can_be_written() {
        let read = |text: &str| serde_json::from_str::<LateMount>(text).map_err(|error| error.to_string());
        let plain = read(r#"{"source": "/a", "target": "/x", "readonly": true}"#);
        assert_eq!(plain, Ok(LateMount { readonly: true, ..mount("/a", "/x") }));
        assert!(read(r#"{"source": "/a", "target": "/x", "read_only": true}"#).unwrap_err().contains("read_only"));
    }
}
