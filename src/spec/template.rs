//! The template of a service, and the hash over it that is its revision.
//!
//! The template is what an instance is made of. A field belongs to it if and only if a running instance would
//! have to be replaced for a change of the field to take effect; everything else (how many, when, what after
//! an exit) the controller applies to running instances as they are.
//!
//! The hash covers what was *written*, after quantities and references are put into their one canonical form.
//! Defaults are not filled in: a version of keel with other defaults finds the same revision, and so restarts
//! nothing. Order of keys, comments, quoting, block or flow style and anchors never show.
//!
//! The runtime is a case of its own: where it is written it counts, so writing down the one that an instance runs on
//! anyway, or leaving it out, gives another hash over the same template. Such hashes are [`equivalents`], and
//! replace nothing; that an instance is on another runtime than it should shows without them.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};

use super::{EndpointProtocol, Image, RType, Revision, RuntimeKind, ServiceSpec};

/// Marks how the hash is made. Another way of making it gets another mark, so that an instance whose revision
/// was made in the old way can be told from one whose template changed.
const VERSION: &str = "v1-";

/// Hex digits of the hash that are kept: 64 bits, far beyond the revisions that one service ever sees.
const DIGITS: usize = 16;

impl Revision {
    /// The revision of `spec` on `runtime`: the service's own, else its deployment's, else `None` where
    /// nothing is written and the controller's default holds.
    pub fn of(spec: &ServiceSpec, runtime: Option<RuntimeKind>) -> Self {
        Self::hashed(canonical(&template(spec, runtime)))
    }

    /// The revision of the same template after that many restarts of its service by hand; the same each time that it is
    /// asked for.
    #[must_use]
    pub fn restarted(&self, restarts: u32) -> Self {
        Self::hashed(format!("{self} restarted {restarts}"))
    }

    /// The revision of the same template with the image of this digest behind its tag.
    #[must_use]
    pub fn of_image(&self, digest: &str) -> Self {
        Self::hashed(format!("{self} image {digest}"))
    }

    fn hashed(what: String) -> Self {
        let mut text = String::from(VERSION);
        for byte in Sha256::digest(what).iter().take(DIGITS / 2) {
            // Writing to a string can't fail.
            let _ = write!(text, "{byte:02x}");
        }
        Self(text)
    }
}

/// What the revision of `spec` is where its runtime is written the other way: left out where `written` is one, written
/// where it is none. By the runtime that instances run on; there both revisions mean the same.
pub(super) fn equivalents(spec: &ServiceSpec, written: Option<RuntimeKind>) -> BTreeMap<RuntimeKind, Revision> {
    match written {
        Some(runtime) => BTreeMap::from([(runtime, Revision::of(spec, None))]),
        None => RuntimeKind::WRITABLE.map(|runtime| (runtime, Revision::of(spec, Some(runtime)))).into(),
    }
}

/// The fields that an instance is made of. Without `..`, so that a new field must be put on one side.
fn template(spec: &ServiceSpec, runtime: Option<RuntimeKind>) -> Json {
    let ServiceSpec {
        // How many, when, and what happens after an exit: the controller's business alone.
        schedule: _,
        time_zone: _,
        scale: _,
        rollout: _,
        health: _,
        depends: _,
        errors: _,
        restart_policy: _,
        lifecycle: _,
        job: _,
        pool,
        session: _,
        stop_grace_period: _,
        // Passed in, so that a deployment's `runtime` counts as the service's own.
        runtime: _,
        rtype: _,
        image,
        command,
        env,
        endpoints,
        port_mappings,
        init,
        resources,
        storage,
        sandbox,
        devices,
        capabilities,
        cap_drop,
        privileged,
        security_opt,
        user,
        extra_groups,
        read_only_root_fs,
        ulimits,
        sysctls,
        network_mode,
        host_network,
        hostname,
        dns,
        extra_hosts,
        pid_mode,
        ipc_mode,
        userns_mode,
        cgroup_parent,
        expose,
        // Engines of before API 1.42 only know the signal that a container was made with.
        stop_signal,
        logs,
        labels,
        tty,
        stdin_open,
        init_container,
        network,
        node_mode,
        node_selector,
        platform,
        service_type,
        wasm,
    } = spec;
    // When to ask the registry matters to the next pull, not to an instance that runs.
    let Image { name: image, pull_policy: _ } = image;
    // What an instance sees of its endpoints: which port to listen on for what. The proxy does the rest.
    let endpoints: Vec<(&str, EndpointProtocol, u16)> =
        endpoints.iter().map(|endpoint| (endpoint.name.as_str(), endpoint.protocol, endpoint.target_port())).collect();
    // An instance that is meant to end is another thing than one that is meant to stay.
    let ends = matches!(spec.rtype(), RType::Job | RType::Cron).then_some(true);
    // How large a pool is says nothing of its members. That there is one does: what served as a replica, or was open to
    // whoever operates it, must never be handed out as unused, and what a client had must never serve as a replica.
    let pooled = pool.is_some().then_some(true);
    let fields = [
        ("runtime", json!(runtime)),
        ("ends", json!(ends)),
        ("pooled", json!(pooled)),
        ("image", json!(image)),
        ("command", json!(command)),
        ("env", json!(env)),
        ("endpoints", json!(endpoints)),
        ("port_mappings", json!(port_mappings)),
        ("init", json!(init)),
        ("resources", json!(resources)),
        ("storage", json!(storage)),
        ("sandbox", json!(sandbox)),
        ("devices", json!(devices)),
        ("capabilities", json!(capabilities)),
        ("cap_drop", json!(cap_drop)),
        ("privileged", json!(privileged)),
        ("security_opt", json!(security_opt)),
        ("user", json!(user)),
        ("extra_groups", json!(extra_groups)),
        ("read_only_root_fs", json!(read_only_root_fs)),
        ("ulimits", json!(ulimits)),
        ("sysctls", json!(sysctls)),
        ("network_mode", json!(network_mode)),
        ("host_network", json!(host_network)),
        ("hostname", json!(hostname)),
        ("dns", json!(dns)),
        ("extra_hosts", json!(extra_hosts)),
        ("pid_mode", json!(pid_mode)),
        ("ipc_mode", json!(ipc_mode)),
        ("userns_mode", json!(userns_mode)),
        ("cgroup_parent", json!(cgroup_parent)),
        ("expose", json!(expose)),
        ("stop_signal", json!(stop_signal)),
        ("logs", json!(logs)),
        ("labels", json!(labels)),
        ("tty", json!(tty)),
        ("stdin_open", json!(stdin_open)),
        ("init_container", json!(init_container)),
        ("network", json!(network)),
        ("node_mode", json!(node_mode)),
        ("node_selector", json!(node_selector)),
        ("platform", json!(platform)),
        ("service_type", json!(service_type)),
        ("wasm", json!(wasm)),
    ];
    // A field that says nothing leaves no trace, so that one that a later version adds changes no hash of a spec
    // without it. Below that, optional parts that were not written are not serialised; an empty list that was
    // written there (`command.entrypoint: []`) counts.
    fields.into_iter().filter(|(_, value)| !is_empty(value)).map(|(name, value)| (name.to_owned(), value)).collect()
}

/// One text per value: keys sorted, no space between.
fn canonical(value: &Json) -> String {
    let mut text = String::new();
    write_canonical(value, &mut text);
    text
}

fn write_canonical(value: &Json, text: &mut String) {
    match value {
        Json::Object(map) => {
            // The map may keep the order of insertion: whether it does hangs on the features of a dependency.
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(key, _)| *key);
            write_list(text, ('{', '}'), entries, |text, (key, value)| {
                write_canonical(&Json::from(key.as_str()), text);
                text.push(':');
                write_canonical(value, text);
            });
        }
        Json::Array(items) => write_list(text, ('[', ']'), items, |text, item| write_canonical(item, text)),
        scalar => text.push_str(&scalar.to_string()),
    }
}

fn write_list<T>(
    text: &mut String,
    (open, close): (char, char),
    items: impl IntoIterator<Item = T>,
    mut write: impl FnMut(&mut String, T),
) {
    text.push(open);
    for (index, item) in items.into_iter().enumerate() {
        if index > 0 {
            text.push(',');
        }
        write(text, item);
    }
    text.push(close);
}

/// Whether a field says nothing: not written, or a list or map without anything in it.
fn is_empty(value: &Json) -> bool {
    match value {
        Json::Null => true,
        Json::Array(items) => items.is_empty(),
        Json::Object(map) => map.is_empty(),
        _ => false,
    }
}
