//! What a service is connected to, from the fields that say so together: one rule for every runtime.

use super::{NetworkMode, SandboxNetwork, ServiceSpec};

/// What an instance of a service is to be connected to. How much of it can be had is the runtime's matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkAccess {
    /// Nothing, and nothing reaches it.
    Nothing,
    /// Its own loopback interface; ports inside are reached from the machine where the runtime can.
    Loopback,
    /// What this mode gives; never [`NetworkMode::None`].
    Mode(NetworkMode),
}

impl NetworkAccess {
    /// The network mode that comes closest: what has no network but its own loopback interface has none.
    pub fn mode(self) -> NetworkMode {
        match self {
            Self::Nothing | Self::Loopback => NetworkMode::None,
            Self::Mode(mode) => mode,
        }
    }

    /// Whether it is the network of something else: the machine's, or another container's.
    pub fn is_shared(self) -> bool {
        matches!(self.mode(), NetworkMode::Host | NetworkMode::Container(_))
    }
}

impl ServiceSpec {
    /// What is written in `sandbox.network`.
    pub fn sandbox_network(&self) -> Option<SandboxNetwork> {
        self.sandbox.as_ref()?.network
    }

    /// What its instances are to be connected to. The stricter of `network_mode` and `sandbox.network` holds; a pool for
    /// which neither is written has nothing, because what runs in it is not trusted. `sandbox.allow_hosts` may narrow it
    /// further.
    pub fn network_access(&self) -> NetworkAccess {
        match (self.network_mode(), self.sandbox_network()) {
            (NetworkMode::None, _) | (_, Some(SandboxNetwork::None)) => NetworkAccess::Nothing,
            (_, Some(SandboxNetwork::Loopback)) => NetworkAccess::Loopback,
            (NetworkMode::Default, None) if self.pool.is_some() => NetworkAccess::Nothing,
            (mode, Some(SandboxNetwork::Full) | None) => NetworkAccess::Mode(mode),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stricter_field_holds_and_pools_have_nothing_unless_it_is_written() {
        let mode = |mode| NetworkAccess::Mode(mode);
        for (fields, expected) in [
            ("", mode(NetworkMode::Default)),
            ("network_mode: host", mode(NetworkMode::Host)),
            ("host_network: true", mode(NetworkMode::Host)),
            ("network_mode: none", NetworkAccess::Nothing),
            ("sandbox: { network: none }", NetworkAccess::Nothing),
            ("sandbox: { network: loopback }", NetworkAccess::Loopback),
            ("sandbox: { network: full }", mode(NetworkMode::Default)),
            ("network_mode: none\nsandbox: { network: full }", NetworkAccess::Nothing),
            ("network_mode: none\nsandbox: { network: loopback }", NetworkAccess::Nothing),
            ("network_mode: host\nsandbox: { network: none }", NetworkAccess::Nothing),
            ("pool: {}", NetworkAccess::Nothing),
            ("pool: {}\nnetwork_mode: default", NetworkAccess::Nothing),
            ("pool: {}\nsandbox: { allow_hosts: [a] }", NetworkAccess::Nothing),
            ("pool: {}\nsandbox: { network: loopback }", NetworkAccess::Loopback),
            ("pool: {}\nsandbox: { network: full }", mode(NetworkMode::Default)),
            ("pool: {}\nnetwork_mode: bridge", mode(NetworkMode::Bridge(None))),
            ("pool: {}\nnetwork_mode: host", mode(NetworkMode::Host)),
        ] {
            let spec: ServiceSpec = serde_yaml::from_str(&format!("image: {{ name: a }}\n{fields}")).unwrap();
            assert_eq!(spec.network_access(), expected, "{fields}");
        }
    }
}
