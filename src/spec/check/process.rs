//! The process of an instance: environment, command, user, capabilities, limits.

use super::super::capability::bare_capability;
use super::super::problem::steps;
use super::super::suggest::nearest;
use super::super::{Scalar, ServiceSpec};
use super::Report;

/// Capabilities of Linux 6.x (capabilities(7)), without their prefix.
const CAPABILITIES: &[&str] = &[
    "ALL",
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

/// Names of limits (getrlimit(2), without `RLIMIT_`, as Docker has them).
const ULIMITS: &[&str] = &[
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

pub(super) fn check(report: &mut Report<'_>, spec: &ServiceSpec) {
    for (name, Scalar(value)) in &spec.env {
        let path = steps!["env", name];
        if name.is_empty() || name.contains(['=', '\0']) {
            report.problem_help(&path, format!("{name:?} can't name a variable"), "use letters, digits and _");
        }
        if value.contains('\0') {
            report.problem(&path, "a variable can't hold a zero byte");
        }
        if let Some((message, help)) = bad_reference(value) {
            report.problem_help(&path, message, help);
        }
    }
    if let Some(command) = &spec.command {
        for (key, words) in [("entrypoint", &command.entrypoint), ("args", &command.args)] {
            for (index, word) in words.iter().flatten().enumerate() {
                if word.contains('\0') {
                    report.problem(&steps!["command", key, index], "an argument can't hold a zero byte");
                }
            }
        }
        if command.entrypoint.as_ref().and_then(|words| words.first()).is_some_and(|word| word.is_empty()) {
            report.problem(&steps!["command", "entrypoint", 0], "the program must not be empty");
        }
        if command.workdir.as_ref().is_some_and(|workdir| !workdir.starts_with('/')) {
            report.problem_help(&steps!["command", "workdir"], "the path must be absolute", "begin it with /");
        }
    }
    if spec.user.as_ref().is_some_and(|user| !is_user(user)) {
        report.problem_help(&steps!["user"], "this names no user", "write NAME, UID, NAME:GROUP or UID:GID");
    }
    for part in spec.user.iter().flat_map(|user| user.split(':')).filter(|part| is_out_of_range(part)) {
        report.problem_help(&steps!["user"], format!("{part} is no id"), IDS);
    }
    for (index, group) in spec.extra_groups.iter().enumerate().filter(|(_, group)| is_out_of_range(group)) {
        report.problem_help(&steps!["extra_groups", index], format!("{group} is no id"), IDS);
    }
    for (key, names) in [("capabilities", &spec.capabilities), ("cap_drop", &spec.cap_drop)] {
        for (index, name) in names.iter().enumerate() {
            if let Some((message, help)) = bad_capability(name) {
                report.problem_help(&steps![key, index], message, help);
            }
        }
    }
    for (name, limit) in &spec.ulimits {
        let path = steps!["ulimits", name];
        if !ULIMITS.contains(&name.as_str()) {
            let help = match nearest(name, ULIMITS) {
                Some(best) => format!("did you mean `{best}`?"),
                None => format!("limits are {}", ULIMITS.join(", ")),
            };
            report.problem_help(&path, format!("{name:?} is not a limit"), help);
        }
        if limit.soft.is_none() && limit.hard.is_none() {
            report.problem_help(&path, "a limit needs `soft` or `hard`", "write `{ soft: 1024, hard: 4096 }`");
        }
        for (key, value) in [("soft", limit.soft), ("hard", limit.hard)] {
            if value.is_some_and(|value| value < -1) {
                report.problem_help(&steps!["ulimits", name, key], "a limit can't be below -1", "write -1 for none");
            }
        }
        let (soft, hard) = limit.bounds();
        if hard >= 0 && (soft > hard || soft == -1) {
            let message = format!("the soft limit ({soft}) is above the hard one ({hard})");
            report.problem_help(&path, message, "raise `hard` or lower `soft`");
        }
    }
    for name in spec.sysctls.keys() {
        if !is_sysctl(name) {
            let message = format!("{name:?} is not a kernel parameter");
            report.problem_help(&steps!["sysctls", name], message, "write a name such as net.core.somaxconn");
        }
    }
}

/// What is wrong with a `$S:` or `$E:` reference.
fn bad_reference(value: &str) -> Option<(String, String)> {
    let secret = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_alphabetic())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if let Some(variable) = value.strip_prefix("$E:") {
        let good = variable.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && variable.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        return (!good).then(|| (format!("{value:?} names no variable of the host"), "write $E:NAME".to_owned()));
    }
    let name = value.strip_prefix("$S:")?;
    let good = match name.strip_prefix('@') {
        Some(other) => other.split_once('/').is_some_and(|(service, name)| secret(service) && secret(name)),
        None => secret(name),
    };
    let help = "write $S:NAME or $S:@SERVICE/NAME; names begin with a letter and have letters, digits, - and _";
    (!good).then(|| (format!("{value:?} names no secret"), help.to_owned()))
}

fn is_user(text: &str) -> bool {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let word = |word: &str| !word.is_empty() && !word.contains(|c: char| c.is_whitespace() || c == ':' || c == '/');
    word(user) && group.is_none_or(word)
}

/// What numbers users and groups have. The highest one means "no change" to the kernel.
const IDS: &str = "ids go from 0 to 4294967294";

/// Whether a user or group is a number that is no id.
fn is_out_of_range(text: &str) -> bool {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number && text.parse().map_or(true, |id: u32| id == u32::MAX)
}

fn bad_capability(name: &str) -> Option<(String, String)> {
    let bare = bare_capability(name);
    if CAPABILITIES.contains(&bare.as_str()) {
        return None;
    }
    let help = match nearest(&bare, CAPABILITIES) {
        Some(best) => format!("did you mean {best}?"),
        None => "write a name such as NET_ADMIN, or ALL (see capabilities(7))".to_owned(),
    };
    Some((format!("{name:?} is not a capability"), help))
}

/// Words joined by dots (or slashes, as files below /proc/sys have them).
fn is_sysctl(name: &str) -> bool {
    let words: Vec<&str> = name.split(['.', '/']).collect();
    words.len() > 1
        && words
            .iter()
            .all(|word| !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-'))
}
