//! Image references and pull policies.

use serde::{Deserialize, Serialize};

/// The image of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// A registry reference, `oci:PATH[:tag]`, `oci-archive:PATH`, `docker-archive:PATH`, `dir:PATH` or `host`.
    pub name: ImageRef,
    /// When to ask the registry; `if_not_present` when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "if_not_present"))]
    pub pull_policy: Option<PullPolicy>,
}

impl Image {
    /// The policy that holds: what was written, else `if_not_present`.
    pub fn pull_policy(&self) -> PullPolicy {
        self.pull_policy.unwrap_or(PullPolicy::IfNotPresent)
    }
}

/// When to ask the registry for an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PullPolicy {
    /// Pull before every create.
    Always,
    /// Compare the registry's digest with the local one and pull when they differ.
    Newer,
    /// Pull only when the image is not here.
    IfNotPresent,
    /// Never pull; a missing image is an error.
    Never,
}

/// Where a root file system comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ImageRef {
    /// A registry reference, normalised: `docker.io/library/nginx:latest`, `ghcr.io/org/app@sha256:...`.
    Registry(String),
    /// An OCI layout directory.
    Oci {
        /// The layout's directory.
        path: String,
        /// The reference name inside the layout.
        tag: Option<String>,
    },
    /// A tar file with an OCI layout.
    OciArchive(String),
    /// A tar file as `docker save` writes it of one image.
    DockerArchive(String),
    /// A directory that is a root file system.
    Dir(String),
    /// The machine's own file system, read-only.
    Host,
}

impl std::fmt::Display for ImageRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Registry(reference) => f.write_str(reference),
            Self::Oci { path, tag: None } => write!(f, "oci:{path}"),
            Self::Oci { path, tag: Some(tag) } => write!(f, "oci:{path}:{tag}"),
            Self::OciArchive(path) => write!(f, "oci-archive:{path}"),
            Self::DockerArchive(path) => write!(f, "docker-archive:{path}"),
            Self::Dir(path) => write!(f, "dir:{path}"),
            Self::Host => f.write_str("host"),
        }
    }
}

/// The text is no image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an image reference: {problem}")]
pub struct BadImageRef {
    /// What was written.
    pub text: String,
    /// What is wrong with it and what would be right.
    pub problem: &'static str,
}

impl std::str::FromStr for ImageRef {
    type Err = BadImageRef;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = |problem| BadImageRef { text: text.to_owned(), problem };
        let path = |path: &str| match path {
            "" => Err(bad("a path must follow the transport, as in dir:./rootfs")),
            path => Ok(path.to_owned()),
        };
        match text.split_once(':') {
            _ if text == "host" => Ok(Self::Host),
            _ if text.is_empty() => Err(bad("it is empty; write a reference such as nginx:1.27")),
            Some(("oci", rest)) => match rest.rsplit_once(':') {
                Some((layout, tag)) if !tag.contains('/') => {
                    Ok(Self::Oci { path: path(layout)?, tag: Some(tag.to_owned()) })
                }
                _ => Ok(Self::Oci { path: path(rest)?, tag: None }),
            },
            Some(("oci-archive", rest)) => path(rest).map(Self::OciArchive),
            Some(("docker-archive", rest)) => path(rest).map(Self::DockerArchive),
            Some(("dir", rest)) => path(rest).map(Self::Dir),
            _ => registry_reference(text).map(Self::Registry).map_err(bad),
        }
    }
}

/// Normalises a registry reference the way Docker does: default registry, `library/`, `:latest`.
fn registry_reference(text: &str) -> Result<String, &'static str> {
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (text, None),
    };
    if digest.is_some_and(|digest| !is_digest(digest)) {
        return Err("the digest must be sha256: and 64 hex digits");
    }
    let (name, tag) = match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (name, None),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err("a tag has letters, digits, '_', '.', '-' and at most 128 of them");
    }
    let (registry, path) = match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest.to_owned()),
        Some(_) => ("docker.io", name.to_owned()),
        None => ("docker.io", format!("library/{name}")),
    };
    if !path.split('/').all(is_path_component) {
        return Err("a repository is lower-case words joined by '/', such as org/app");
    }
    if registry.is_empty() || !registry.bytes().all(|b| b.is_ascii_alphanumeric() || b".:-[]".contains(&b)) {
        return Err("the registry must be a host name with an optional port");
    }
    Ok(match (tag, digest) {
        (Some(tag), Some(digest)) => format!("{registry}/{path}:{tag}@{digest}"),
        (None, Some(digest)) => format!("{registry}/{path}@{digest}"),
        (tag, None) => format!("{registry}/{path}:{}", tag.unwrap_or("latest")),
    })
}

fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)))
}

fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (1..=128).contains(&text.len())
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

fn is_path_component(text: &str) -> bool {
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    edge(text.bytes().next())
        && edge(text.bytes().last())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
}

impl Serialize for ImageRef {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ImageRef {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl schemars::JsonSchema for ImageRef {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ImageRef".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "minLength": 1,
            "description": "A registry reference, or `oci:PATH[:tag]`, `oci-archive:PATH`, `docker-archive:PATH`, `dir:PATH`, `host`.",
            "examples": ["nginx:1.27", "ghcr.io/org/app@sha256:...", "dir:./rootfs", "host"]
        })
    }
}
