//! What the engine can enforce on this machine.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use bollard::models::{SystemInfo, SystemInfoCgroupVersionEnum, SystemVersion};

use super::Inner;
use super::engine::{CallError, READ_DEADLINE};
use super::observe::IO_UNWEIGHED;
use super::ping::Product;
use crate::runtime::{Capabilities, Control, Result, Support};

impl Inner {
    /// What the engine can enforce; asked once and remembered.
    pub(super) async fn capabilities(&self) -> Result<Capabilities> {
        let mut known = self.capabilities.lock().await;
        let mut capabilities = match &*known {
            Some(known) => known.clone(),
            None => known.insert(self.probe().await?).clone(),
        };
        drop(known);
        if self.weight_refused.load(Ordering::Relaxed) {
            capabilities.controls.insert(Control::IoLimit, Support::Absent { why: IO_UNWEIGHED.to_owned() });
        }
        Ok(capabilities)
    }

    /// Asks again the next time, because the engine may be another one, or started otherwise.
    pub(super) async fn forget_capabilities(&self) {
        *self.capabilities.lock().await = None;
        self.weight_refused.store(false, Ordering::Relaxed);
    }

    async fn probe(&self) -> Result<Capabilities> {
        let product = self.engine.product().await?;
        let (version, info) = tokio::try_join!(
            self.version(),
            self.engine.call(READ_DEADLINE, |docker| async move { docker.info().await }),
        )
        .map_err(|error| error.explain("asking the engine what it can do"))?;
        Ok(describe(product, &version, &info))
    }

    async fn version(&self) -> std::result::Result<SystemVersion, CallError> {
        self.engine.call(READ_DEADLINE, |docker| async move { docker.version().await }).await
    }

    /// Whether the engine has an init program, as far as is known: Docker lists it among its components, and Podman
    /// says so only when it refuses a create ([`Inner::learn_no_init`]).
    pub(super) async fn has_init(&self) -> Result<bool> {
        let known = self.init.get_or_try_init(async || match self.engine.product().await? {
            Product::Podman => Ok(true),
            Product::Docker => {
                let version = self.version().await.map_err(|error| error.explain("asking for the engine's version"))?;
                Ok(lists_init(&version))
            }
        });
        Ok(*known.await? && !self.init_refused.load(Ordering::Relaxed))
    }

    /// Remembers that the engine refused to give a container an init process.
    pub(super) fn learn_no_init(&self) {
        self.init_refused.store(true, Ordering::Relaxed);
    }
}

fn lists_init(version: &SystemVersion) -> bool {
    let components = version.components.as_deref().unwrap_or_default();
    components.iter().any(|component| component.name.contains("init") && component.version != "N/A")
}

/// The engine's own filter, from its security options: `name=seccomp,profile=builtin` of Docker, `name=seccomp` of Podman.
fn seccomp(options: &[String]) -> Support {
    let absent = |why: &str| Support::Absent { why: why.to_owned() };
    let parts = |option: &String| option.split(',').map(str::to_owned).collect::<Vec<_>>();
    match options.iter().map(parts).find(|parts| parts.iter().any(|part| part.ends_with("seccomp"))) {
        None => absent("the engine was built or started without seccomp"),
        Some(parts) if parts.iter().any(|part| part == "profile=unconfined") => {
            absent("the engine's default is no filter; start it without --seccomp-profile=unconfined")
        }
        Some(_) => Support::Enforced,
    }
}

fn describe(product: Product, version: &SystemVersion, info: &SystemInfo) -> Capabilities {
    let enforced = |yes: bool, why: &str| {
        if yes { Support::Enforced } else { Support::Absent { why: why.to_owned() } }
    };
    let no_group = "the engine has no such control group on this machine";
    let mut controls: BTreeMap<Control, Support> = [
        Control::MountNamespace,
        Control::PidNamespace,
        Control::IpcNamespace,
        Control::UtsNamespace,
        Control::NetworkIsolation,
        Control::ReadOnlyRoot,
        Control::CapabilityDrop,
        Control::Devices,
        Control::User,
        Control::ServiceNames,
    ]
    .into_iter()
    .map(|control| (control, Support::Enforced))
    .collect();
    controls.insert(Control::MemoryLimit, enforced(info.memory_limit == Some(true), no_group));
    controls.insert(Control::CpuLimit, enforced(info.cpu_cfs_quota == Some(true), no_group));
    controls.insert(Control::PidsLimit, enforced(info.pids_limit == Some(true), no_group));
    let warns = |word: &str| info.warnings.iter().flatten().any(|warning| warning.contains(word));
    let weighs = !warns("blkio weight") && !warns("io.weight");
    controls.insert(Control::IoLimit, enforced(weighs, no_group));
    let is_new = info.cgroup_version.is_some_and(|version| version == SystemInfoCgroupVersionEnum::_2);
    let shared = "without version 2 of control groups, engines show the machine's to containers";
    controls.insert(Control::CgroupNamespace, enforced(is_new, shared));
    controls.insert(Control::Suspend, Support::Enforced);
    controls.insert(Control::Seccomp, seccomp(info.security_options.as_deref().unwrap_or_default()));
    Capabilities {
        version: format!(
            "{} {} (API {})",
            match product {
                Product::Docker => "Docker Engine",
                Product::Podman => "Podman",
            },
            version.version.as_deref().unwrap_or("of unknown version"),
            version.api_version.as_deref().unwrap_or("unknown")
        ),
        controls,
        ..Capabilities::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_the_engine_was_started_without_is_absent() {
        let support = |options: &[&str]| seccomp(&options.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>());
        for enforced in ["name=seccomp,profile=builtin", "name=seccomp,profile=/etc/x.json", "name=seccomp", "seccomp"]
        {
            assert_eq!(support(&["name=apparmor", enforced]), Support::Enforced, "{enforced}");
        }
        let why = |support| match support {
            Support::Absent { why } => why,
            other => panic!("{other:?}"),
        };
        assert!(why(support(&["name=seccomp,profile=unconfined"])).contains("--seccomp-profile"));
        assert!(why(support(&["name=apparmor"])).contains("without seccomp"));
    }
}
