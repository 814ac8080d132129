//! The two kinds of documents: a deployment, and a single service that joins one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::schema::DNS_LABEL;
use super::{Api, External, RuntimeKind, ServiceSpec, Tunnel};

/// A named set of services that belong together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeploymentSpec {
    /// Version of the format; `v1`.
    #[schemars(extend("enum" = ["v1"]))]
    pub version: String,
    /// Name of the deployment: a DNS label.
    #[schemars(extend("pattern" = DNS_LABEL))]
    pub deployment: String,
    /// The services by name; a name is a DNS label.
    #[serde(default)]
    #[schemars(extend("propertyNames" = { "pattern": DNS_LABEL }))]
    pub services: BTreeMap<String, ServiceSpec>,
    /// Runtime of every service that names none itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<RuntimeKind>,
    /// What happens when the file that declares the deployment goes; `auto` when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "auto"))]
    pub prune: Option<Prune>,
    /// Backends outside of this installation.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub externals: BTreeMap<String, External>,
    /// Tunnels between nodes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tunnels: BTreeMap<String, Tunnel>,
    /// Settings of the published format's API server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api: Option<Api>,
}

/// What happens to a deployment when its declaration goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Prune {
    /// Its instances are stopped and removed.
    #[default]
    Auto,
    /// Its instances keep running until they are deleted by name.
    Never,
}

impl DeploymentSpec {
    /// What happens when the declaration goes.
    pub fn prune(&self) -> Prune {
        self.prune.unwrap_or_default()
    }
}
