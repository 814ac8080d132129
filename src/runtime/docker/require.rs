//! `sandbox.require` on a container engine: met by the container as it will be, or the create is refused.

use super::Inner;
use super::enforcement::LACKS;
use super::modes::{joins_another, seccomp_profile};
use crate::runtime::{Capabilities, Control, CreateRequest, ErrorKind, Result, RuntimeError, Support};
use crate::spec::{NetworkMode, Resources, Sandbox, SeccompProfile, ServiceSpec, is_root, left_out};

impl Inner {
    /// Refuses a request whose spec requires controls that its container would not have.
    pub(super) async fn refuse_unmet(&self, request: &CreateRequest) -> Result<()> {
        let spec = &*request.spec;
        if spec.sandbox.as_ref().is_none_or(|sandbox| sandbox.require.is_empty()) {
            return Ok(());
        }
        let unmet = unmet(spec, &self.capabilities().await?);
        if unmet.is_empty() {
            return Ok(());
        }
        let message = format!("creating {}: sandbox.require can't be met: {}", request.id, unmet.join("; "));
        Err(RuntimeError::new(ErrorKind::Rejected, message))
    }
}

/// The controls that a spec requires and does not get on an engine of these capabilities, each with the reason. Pure.
pub(super) fn unmet(spec: &ServiceSpec, capabilities: &Capabilities) -> Vec<String> {
    let Some(sandbox) = &spec.sandbox else { return Vec::new() };
    let lacking = |control: &Control| {
        let why = match capabilities.support(*control) {
            Support::Enforced => missing(*control, spec, sandbox)?.to_owned(),
            Support::Degraded { why } | Support::Absent { why } => why,
        };
        Some(format!("{control}: {why}"))
    };
    sandbox.require.iter().filter_map(lacking).collect()
}

/// Why the container of this spec does not have a control that the engine could enforce.
fn missing(control: Control, spec: &ServiceSpec, sandbox: &Sandbox) -> Option<&'static str> {
    let resources = spec.resources.clone().unwrap_or_default();
    match control {
        Control::MountNamespace | Control::UtsNamespace | Control::CgroupNamespace => None,
        Control::PidNamespace => joins_another(spec.pid_mode.as_deref()).then_some("pid_mode shares another one"),
        Control::IpcNamespace => joins_another(spec.ipc_mode.as_deref()).then_some("ipc_mode shares another one"),
        Control::NetworkIsolation => network(spec),
        Control::ReadOnlyRoot => (spec.read_only_root_fs != Some(true)).then_some("write read_only_root_fs: true"),
        Control::MemoryLimit | Control::CpuLimit | Control::PidsLimit | Control::IoLimit => limit(control, &resources),
        Control::Seccomp => seccomp(spec, sandbox),
        Control::CapabilityDrop => left_out(control, spec),
        Control::User => user(spec),
        Control::ServiceNames => (spec.network_access().mode() != NetworkMode::Default)
            .then_some("only the network of the deployment has them"),
        Control::Devices => (spec.privileged == Some(true)).then_some("privileged: true gives every device; remove it"),
        Control::Suspend | Control::Activity => None,
        Control::DiskLimit | Control::EgressFilter | Control::Landlock => Some(LACKS),
    }
}

fn network(spec: &ServiceSpec) -> Option<&'static str> {
    match spec.network_access().mode() {
        NetworkMode::Host | NetworkMode::Container(_) => Some("network_mode shares another one"),
        NetworkMode::None | NetworkMode::Default | NetworkMode::Bridge(_) => None,
    }
}

fn limit(control: Control, resources: &Resources) -> Option<&'static str> {
    match control {
        Control::MemoryLimit => resources.memory.is_none().then_some("write resources.memory"),
        Control::CpuLimit => resources.cpu.is_none().then_some("write resources.cpu"),
        Control::IoLimit => resources.blkio_weight.is_none().then_some("write resources.blkio_weight"),
        // The engine takes zero and less for no limit.
        _ => resources.pids_limit.is_none_or(|limit| limit <= 0).then_some("write resources.pids_limit"),
    }
}

fn seccomp(spec: &ServiceSpec, sandbox: &Sandbox) -> Option<&'static str> {
    let without = |option: &String| seccomp_profile(option) == Some("unconfined");
    if spec.privileged == Some(true) {
        Some("privileged: true takes the engine's filter away; remove it")
    } else if spec.security_opt.iter().any(without) {
        Some("security_opt takes the engine's filter away")
    } else if sandbox.seccomp == Some(SeccompProfile::Strict) {
        Some("the engine has its default filter and not sandbox.seccomp: strict")
    } else {
        None
    }
}

/// Another user than root; the user that an image names is not known here.
fn user(spec: &ServiceSpec) -> Option<&'static str> {
    is_root(spec.user.as_deref()).then_some("write a user other than root")
}
