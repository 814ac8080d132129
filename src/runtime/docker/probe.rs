//! What the engine can enforce on this machine.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use bollard::models::{SystemInfo, SystemVersion};

use super::Inner;
use super::engine::READ_DEADLINE;
use crate::runtime::{Capabilities, Control, Result, Support};

/// What is known of the engine once it has answered.
#[derive(Debug, Clone)]
pub(super) struct Known {
    /// Which engine it is.
    pub product: Product,
    /// What it can enforce.
    pub capabilities: Capabilities,
}

/// The engines that speak this API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Product {
    /// Docker Engine, and whatever takes itself for it.
    Docker,
    /// Podman's service.
    Podman,
}

impl Inner {
    /// What is known of the engine; asked once and remembered.
    pub(super) async fn known(&self) -> Result<&Known> {
        self.known.get_or_try_init(|| self.probe()).await
    }

    async fn probe(&self) -> Result<Known> {
        let (version, info) = tokio::try_join!(
            self.engine.call(READ_DEADLINE, |docker| async move { docker.version().await }),
            self.engine.call(READ_DEADLINE, |docker| async move { docker.info().await }),
        )
        .map_err(|error| error.explain("asking the engine what it can do"))?;
        self.has_init.store(may_have_init(&version), Ordering::Relaxed);
        Ok(Known { product: product(&version), capabilities: describe(&version, &info) })
    }
}

/// Whether the engine may have an init program. Docker lists it among its components; Podman says so only when a
/// container is created.
fn may_have_init(version: &SystemVersion) -> bool {
    let components = version.components.as_deref().unwrap_or_default();
    let has_program = components.iter().any(|component| component.name.contains("init") && component.version != "N/A");
    product(version) == Product::Podman || has_program
}

fn product(version: &SystemVersion) -> Product {
    let components = version.components.as_deref().unwrap_or_default();
    if components.iter().any(|component| component.name == "Podman Engine") { Product::Podman } else { Product::Docker }
}

fn describe(version: &SystemVersion, info: &SystemInfo) -> Capabilities {
    let enforced = |yes: bool, why: &str| {
        if yes { Support::Enforced } else { Support::Absent { why: why.to_owned() } }
    };
    let has_seccomp = info.security_options.iter().flatten().any(|option| option.contains("seccomp"));
    let no_group = "the engine has no such control group on this machine";
    let mut controls: BTreeMap<Control, Support> = [
        Control::MountNamespace,
        Control::PidNamespace,
        Control::IpcNamespace,
        Control::UtsNamespace,
        Control::NetworkIsolation,
        Control::ReadOnlyRoot,
        Control::CapabilityDrop,
        Control::User,
        Control::ServiceNames,
    ]
    .into_iter()
    .map(|control| (control, Support::Enforced))
    .collect();
    controls.insert(Control::MemoryLimit, enforced(info.memory_limit == Some(true), no_group));
    controls.insert(Control::CpuLimit, enforced(info.cpu_cfs_quota == Some(true), no_group));
    controls.insert(Control::PidsLimit, enforced(info.pids_limit == Some(true), no_group));
    controls.insert(Control::Seccomp, enforced(has_seccomp, "the engine was built or started without seccomp"));
    Capabilities {
        version: format!(
            "{} {} (API {})",
            match product(version) {
                Product::Docker => "Docker Engine",
                Product::Podman => "Podman",
            },
            version.version.as_deref().unwrap_or("of unknown version"),
            version.api_version.as_deref().unwrap_or("unknown")
        ),
        controls,
    }
}
