//! What settings of a container mean, as a spec and as an inspection write them.

/// Whether a namespace mode joins one that exists: the machine's or another container's. `shareable` is one of its own,
/// which others may join.
pub(super) fn joins_another(mode: Option<&str>) -> bool {
    !matches!(mode, None | Some("" | "private" | "shareable" | "none"))
}

/// The system-call filter that a security option names: `unconfined`, or a profile. Podman separates by a colon as well.
pub(super) fn seccomp_profile(option: &str) -> Option<&str> {
    ["seccomp=", "seccomp:"].iter().find_map(|name| option.strip_prefix(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_of_their_own_or_join_another() {
        for own in [None, Some(""), Some("private"), Some("shareable"), Some("none")] {
            assert!(!joins_another(own), "{own:?}");
        }
        for other in ["host", "container:x"] {
            assert!(joins_another(Some(other)), "{other}");
        }
    }

    #[test]
    fn a_filter_is_named_in_either_spelling() {
        let all = ["seccomp=unconfined", "seccomp:unconfined", "seccomp=/x.json", "no-new-privileges"];
        assert_eq!(all.map(seccomp_profile), [Some("unconfined"), Some("unconfined"), Some("/x.json"), None]);
    }
}
