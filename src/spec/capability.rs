//! Lists of capabilities, with the word `ALL` among them.

/// The word that stands for every capability.
const ALL: &str = "ALL";

/// The name of a capability as capabilities(7) has it, without `CAP_`: upper case, whatever a spec writes.
pub fn bare_capability(name: &str) -> String {
    let upper = name.to_ascii_uppercase();
    upper.strip_prefix("CAP_").map(str::to_owned).unwrap_or(upper)
}

/// Whether a list has `ALL`.
pub fn has_all_capabilities(names: &[String]) -> bool {
    names.iter().any(|name| bare_capability(name) == ALL)
}

/// Whether these lists leave a program every capability there is. As Docker has it, `ALL` that is dropped takes nothing from
/// `ALL` that is added, and a name does.
pub fn are_all_capabilities(added: &[String], dropped: &[String]) -> bool {
    has_all_capabilities(added) && dropped.iter().all(|name| bare_capability(name) == ALL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_added_is_all_unless_a_name_is_dropped() {
        let are_all = |added: &[&str], dropped: &[&str]| {
            let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
            are_all_capabilities(&owned(added), &owned(dropped))
        };
        for added in ["ALL", "all", "CAP_ALL"] {
            assert!(are_all(&["CHOWN", added], &[]), "{added}");
            assert!(are_all(&[added], &["ALL"]), "{added}");
            assert!(!are_all(&[added], &["ALL", "cap_chown"]), "{added}");
        }
        assert!(!are_all(&[], &[]));
        assert!(!are_all(&["SYS_ADMIN"], &[]));
    }
}
