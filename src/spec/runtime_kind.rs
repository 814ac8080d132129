//! Which runtime runs an instance.

use super::ImageRef;

/// The runtimes that can run instances.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum RuntimeKind {
    /// The built-in daemonless runtime.
    Sandbox,
    /// A Docker Engine or Podman service.
    Docker,
    /// Pods of a Kubernetes cluster.
    Kubernetes,
    /// In memory, for tests and rehearsals; never chosen by a spec.
    #[schemars(skip)]
    Sim,
}

impl RuntimeKind {
    /// Every one.
    pub const ALL: [Self; 4] = [Self::Sandbox, Self::Docker, Self::Kubernetes, Self::Sim];
    /// Those that a spec may choose.
    pub(super) const WRITABLE: [Self; 3] = [Self::Sandbox, Self::Docker, Self::Kubernetes];

    /// The name as users write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sandbox => "sandbox",
            Self::Docker => "docker",
            Self::Kubernetes => "kubernetes",
            Self::Sim => "sim",
        }
    }

    /// Why it can't run an image, and what it takes instead; none where it may be able to.
    pub fn refusal(self, image: &ImageRef) -> Option<String> {
        let is_local = matches!(image, ImageRef::Host | ImageRef::Dir(_) | ImageRef::Oci { .. });
        (self == Self::Docker && is_local).then(|| {
            format!(
                "the docker runtime can't run {image}; it takes registry references, docker-archive: and oci-archive:, and \
                 the sandbox runtime takes the rest (runtime: sandbox)"
            )
        })
    }
}

impl std::fmt::Display for RuntimeKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}
