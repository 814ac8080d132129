//! Which runtime runs an instance.

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
}

impl std::fmt::Display for RuntimeKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}
