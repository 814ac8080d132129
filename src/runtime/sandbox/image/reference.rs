//! References to images in registries, taken apart.

use super::digest::Digest;

/// Docker Hub's name in references.
pub const DOCKER_HUB: &str = "docker.io";
/// Where Docker Hub is.
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";

/// A reference to an image in a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// The registry as references and credentials name it: host, and port where there is one.
    pub registry: String,
    /// The path inside of the registry.
    pub repository: String,
    /// Which image of the repository.
    pub selector: Selector,
}

/// Which image of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// What a name refers to now.
    Tag(String),
    /// This one.
    Digest(Digest),
}

impl Reference {
    /// Takes a reference apart that is normalised, as a spec's are. `None` for what is none.
    pub fn parse(text: &str) -> Option<Self> {
        let (registry, rest) = text.split_once('/')?;
        let (name, digest) = match rest.split_once('@') {
            Some((name, digest)) => (name, Some(digest.parse().ok()?)),
            None => (rest, None),
        };
        let (repository, tag) = match name.rsplit_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (name, None),
        };
        let selector = match (digest, tag) {
            (Some(digest), _) => Selector::Digest(digest),
            (None, Some(tag)) => Selector::Tag(tag.to_owned()),
            (None, None) => return None,
        };
        Some(Self { registry: registry.to_owned(), repository: repository.to_owned(), selector })
    }

    /// Host and port that answer for the registry.
    pub fn authority(&self) -> &str {
        if self.registry == DOCKER_HUB { DOCKER_HUB_HOST } else { &self.registry }
    }

    /// Whether the registry is on this machine, where it may do without TLS, as Docker has it.
    pub fn is_local(&self) -> bool {
        is_loopback(host_of(&self.registry))
    }
}

/// The host of an authority, without port and brackets.
pub fn host_of(authority: &str) -> &str {
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    authority.split(':').next().unwrap_or(authority)
}

/// Whether a host is this machine.
pub fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

impl std::fmt::Display for Selector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::ImageRef;

    fn parsed(text: &str) -> Reference {
        let Ok(ImageRef::Registry(normal)) = text.parse() else { panic!("{text}") };
        Reference::parse(&normal).unwrap()
    }

    #[test]
    fn references_are_taken_apart() {
        let nginx = parsed("nginx");
        assert_eq!((nginx.registry.as_str(), nginx.repository.as_str()), ("docker.io", "library/nginx"));
        assert_eq!((nginx.selector.to_string().as_str(), nginx.authority()), ("latest", "registry-1.docker.io"));
        let local = parsed("localhost:5000/org/app:1.2");
        assert_eq!((local.authority(), local.repository.as_str()), ("localhost:5000", "org/app"));
        assert_eq!(local.selector, Selector::Tag("1.2".into()));
        let digest = Digest::of("x");
        let pinned = parsed(&format!("ghcr.io/org/app:1@{digest}"));
        assert_eq!((pinned.repository.as_str(), pinned.selector), ("org/app", Selector::Digest(digest)));
    }

    #[test]
    fn only_this_machine_is_local() {
        for (registry, local) in [
            ("localhost:5000/a:1", true),
            ("127.0.0.1:5000/a:1", true),
            ("127.8.0.1/a:1", true),
            ("[::1]:5000/a:1", true),
            ("localhost.example.com/a:1", false),
            ("127.0.0.1.example.com/a:1", false),
            ("docker.io/library/a:1", false),
        ] {
            assert_eq!(Reference::parse(registry).unwrap().is_local(), local, "{registry}");
        }
    }
}
