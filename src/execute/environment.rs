//! Resolves the references in a spec's environment.

use std::collections::BTreeMap;

use crate::spec::Scalar;

/// A reference in the environment leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MissingReference {
    /// `$E:VAR`, and the controller's environment has no such variable.
    #[error(
        "env.{key}: the controller's environment has no variable {variable}; set it where keel runs, or write the value into the spec"
    )]
    Variable {
        /// Key in the spec.
        key: String,
        /// Variable that is missing.
        variable: String,
    },
    /// `$S:name`, and there is no secret store yet.
    #[error(
        "env.{key}: the secret {name} can't be read: secrets are not supported yet; use $E:VARIABLE and set the variable where keel runs"
    )]
    Secret {
        /// Key in the spec.
        key: String,
        /// Secret that is asked for.
        name: String,
    },
}

/// The environment with every `$E:VAR` replaced by the host's variable.
///
/// # Errors
/// The first reference, by key, that leads nowhere.
pub fn resolve(
    env: &BTreeMap<String, Scalar>,
    host: &dyn Fn(&str) -> Option<String>,
) -> Result<BTreeMap<String, String>, MissingReference> {
    env.iter().map(|(key, value)| Ok((key.clone(), resolve_one(key, &value.0, host)?))).collect()
}

fn resolve_one(key: &str, value: &str, host: &dyn Fn(&str) -> Option<String>) -> Result<String, MissingReference> {
    if let Some(variable) = value.strip_prefix("$E:") {
        return host(variable)
            .ok_or_else(|| MissingReference::Variable { key: key.to_owned(), variable: variable.to_owned() });
    }
    match value.strip_prefix("$S:") {
        Some(name) => Err(MissingReference::Secret { key: key.to_owned(), name: name.to_owned() }),
        None => Ok(value.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, Scalar> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), Scalar((*value).to_owned()))).collect()
    }

    fn host(name: &str) -> Option<String> {
        (name == "HOME").then(|| "/home/me".to_owned())
    }

    #[test]
    fn host_variables_are_filled_in_and_plain_values_kept() {
        let resolved = resolve(&env(&[("A", "$E:HOME"), ("B", "$HOME and $E:HOME")]), &host);
        let expected = [("A", "/home/me"), ("B", "$HOME and $E:HOME")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(resolved, Ok(BTreeMap::from(expected)));
    }

    #[test]
    fn a_missing_variable_names_the_key_and_the_variable() {
        let missing = MissingReference::Variable { key: "A".to_owned(), variable: "NOPE".to_owned() };
        assert_eq!(resolve(&env(&[("A", "$E:NOPE")]), &host), Err(missing));
    }

    #[test]
    fn a_secret_is_refused_by_name() {
        let missing = MissingReference::Secret { key: "A".to_owned(), name: "@db/password".to_owned() };
        assert_eq!(resolve(&env(&[("A", "$S:@db/password")]), &host), Err(missing));
    }
}
