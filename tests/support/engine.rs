//! The private engines that `.ci/engines` starts.

use std::path::PathBuf;

/// An engine that tests may need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Docker Engine.
    Docker,
    /// Podman's service.
    Podman,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
        }
    }

    const fn variable(self) -> &'static str {
        match self {
            Self::Docker => "KEEL_TEST_DOCKER_HOST",
            Self::Podman => "KEEL_TEST_PODMAN_HOST",
        }
    }
}

/// The socket of a private engine; `None`, with the reason printed, where there is none. A test that gets `None` has
/// nothing to do.
///
/// # Panics
/// When there is none and `KEEL_TEST_REQUIRE` names it.
pub fn socket(kind: Kind) -> Option<PathBuf> {
    let host = std::env::var(kind.variable()).unwrap_or_default();
    let socket = host.strip_prefix("unix://").map(PathBuf::from);
    if let Some(socket) = socket.filter(|socket| socket.exists()) {
        return Some(socket);
    }
    let reason = format!(
        "no private {} engine: {} is {host:?}; start one with `eval \"$(.ci/engines start)\"`",
        kind.name(),
        kind.variable(),
    );
    assert!(!required(kind.name()), "{reason}");
    eprintln!("skipped: {reason}");
    None
}

/// Whether `KEEL_TEST_REQUIRE` names something, in a list with commas.
pub fn required(name: &str) -> bool {
    std::env::var("KEEL_TEST_REQUIRE").unwrap_or_default().split(',').any(|required| required.trim() == name)
}
