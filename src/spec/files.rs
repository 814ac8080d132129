//! Which files of a directory are specs.

/// Names that editors and version control leave beside the real file.
const LEFTOVER_SUFFIXES: &[&str] = &["~", ".bak", ".swp", ".orig", ".tmp"];

/// Vim writes a file of this name to see whether the directory is writable.
const VIM_PROBE: &str = "4913";

/// Whether a file of this name (without its directory) holds specs: `.yaml` and `.yml`, except names that
/// begin with a dot and the leftovers of editors.
pub fn is_spec_file(name: &str) -> bool {
    !is_ignored(name) && (name.ends_with(".yaml") || name.ends_with(".yml"))
}

/// Whether files and directories of this name are never looked at.
pub fn is_ignored(name: &str) -> bool {
    name.starts_with('.') || name == VIM_PROBE || LEFTOVER_SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_of_editors_are_no_specs() {
        for name in ["web.yaml", "web.yml", "a.b.yaml", "4913.yaml"] {
            assert!(is_spec_file(name), "{name}");
        }
        for name in [
            ".web.yaml",
            "web.yaml~",
            "web.yaml.bak",
            ".web.yaml.swp",
            "web.yaml.orig",
            "web.yaml.tmp",
            "4913",
            "web.json",
            "web",
            "yaml",
            ".yaml",
        ] {
            assert!(!is_spec_file(name), "{name}");
        }
    }
}
