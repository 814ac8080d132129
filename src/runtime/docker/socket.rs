//! Where the engine's socket is.

use std::path::PathBuf;

use crate::runtime::{ErrorKind, Result, RuntimeError};

/// Sockets to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Sockets {
    /// Exactly this one: somebody named it, or it answered before.
    Pinned(PathBuf),
    /// The first of these that answers.
    Candidates(Vec<PathBuf>),
}

/// The sockets that hold: what was given, else `DOCKER_HOST`, else the default places of Docker and Podman,
/// Docker first and the machine's before the user's.
///
/// # Errors
/// `Unsupported` when `DOCKER_HOST` names something other than a Unix socket.
pub(super) fn sockets(given: Option<PathBuf>, env: impl Fn(&str) -> Option<String>, user_id: u32) -> Result<Sockets> {
    if let Some(path) = given {
        return Ok(Sockets::Pinned(path));
    }
    if let Some(host) = env("DOCKER_HOST").filter(|host| !host.is_empty()) {
        return match host.strip_prefix("unix://") {
            Some(path) => Ok(Sockets::Pinned(PathBuf::from(path))),
            None => Err(RuntimeError::new(
                ErrorKind::Unsupported,
                format!(
                    "DOCKER_HOST is {host:?}, and only Unix sockets are supported; write unix:///path/to/docker.sock \
                     (ssh -L can forward the socket of another machine)"
                ),
            )),
        };
    }
    let runtime_dir =
        env("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()).unwrap_or_else(|| format!("/run/user/{user_id}"));
    let runtime_dir = PathBuf::from(runtime_dir);
    Ok(Sockets::Candidates(vec![
        PathBuf::from("/var/run/docker.sock"),
        runtime_dir.join("docker.sock"),
        PathBuf::from("/run/podman/podman.sock"),
        runtime_dir.join("podman/podman.sock"),
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_env<'a>(vars: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
        move |key| vars.iter().find(|(name, _)| *name == key).map(|(_, value)| (*value).to_owned())
    }

    #[test]
    fn what_was_given_wins_over_the_environment() {
        let found = sockets(Some("/a.sock".into()), with_env(&[("DOCKER_HOST", "unix:///b.sock")]), 0);
        assert_eq!(found.unwrap(), Sockets::Pinned("/a.sock".into()));
        let found = sockets(None, with_env(&[("DOCKER_HOST", "unix:///b.sock")]), 0);
        assert_eq!(found.unwrap(), Sockets::Pinned("/b.sock".into()));
    }

    #[test]
    fn without_a_name_the_default_places_are_tried_in_order() {
        let table = [
            ([("DOCKER_HOST", ""), ("XDG_RUNTIME_DIR", "")], "/run/user/1000"),
            ([("DOCKER_HOST", ""), ("XDG_RUNTIME_DIR", "/tmp/mine")], "/tmp/mine"),
        ];
        for (env, dir) in table {
            let expected = [
                "/var/run/docker.sock".to_owned(),
                format!("{dir}/docker.sock"),
                "/run/podman/podman.sock".to_owned(),
                format!("{dir}/podman/podman.sock"),
            ];
            let found = sockets(None, with_env(&env), 1000).unwrap();
            assert_eq!(found, Sockets::Candidates(expected.map(PathBuf::from).to_vec()));
        }
    }

    #[test]
    fn other_transports_are_refused_by_name() {
        let error = sockets(None, with_env(&[("DOCKER_HOST", "tcp://10.0.0.1:2375")]), 0).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unsupported);
        assert!(error.message.contains("tcp://10.0.0.1:2375"), "{}", error.message);
    }
}
