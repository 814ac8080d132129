//! What the engine can enforce on this machine.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use bollard::models::{SystemInfo, SystemVersion};

use super::Inner;
use super::engine::READ_DEADLINE;
use crate::runtime::{Capabilities, Control, Result, Support};

impl Inner {
    /// What the engine can enforce; asked once and remembered.
    pub(super) async fn capabilities(&self) -> Result<Capabilities> {
        self.capabilities.get_or_try_init(|| self.probe()).await.cloned()
    }

    async fn probe(&self) -> Result<Capabilities> {
        let (version, info) = tokio::try_join!(
            self.engine.call(READ_DEADLINE, |docker| async move { docker.version().await }),
            self.engine.call(READ_DEADLINE, |docker| async move { docker.info().await }),
        )
        .map_err(|error| error.explain("asking the engine what it can do"))?;
        self.has_init.store(may_have_init(&version), Ordering::Relaxed);
        Ok(describe(&version, &info))
    }
}

/// Whether the engine may have an init program. Docker lists it among its components; Podman says so only when a
/// container is created.
fn may_have_init(version: &SystemVersion) -> bool {
    let components = version.components.as_deref().unwrap_or_default();
    let is_docker = components.iter().any(|component| component.name == "Engine");
    let has_program = components.iter().any(|component| component.name.contains("init") && component.version != "N/A");
    !is_docker || has_program
}

/// Names of the engine's kinds, as users know them.
fn product(version: &SystemVersion) -> &'static str {
    let components = version.components.as_deref().unwrap_or_default();
    if components.iter().any(|component| component.name == "Podman Engine") { "Podman" } else { "Docker Engine" }
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
            product(version),
            version.version.as_deref().unwrap_or("of unknown version"),
            version.api_version.as_deref().unwrap_or("unknown")
        ),
        controls,
    }
}
