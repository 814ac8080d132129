//! The network of instances: the machine's, none, or one of their deployment.
//!
//! The controller decides what an instance gets and gives it an address (`plan.rs`, `attachment.rs`); the supervisor
//! and the first process make it so (`wire.rs`); a helper that lives and dies with the supervisor hands connections and
//! datagrams on (`publish.rs`, `ways.rs`, `through.rs`, `datagrams.rs`). For an ordinary user pasta connects what has
//! interfaces of its own (`pasta.rs`). Nothing here outlasts its instance but the bridge and the packet filter of a
//! deployment, which go with the deployment (`clear.rs`), and that the machine forwards packets, which goes with the
//! last one (`forwarding.rs`).

mod attachment;
mod clear;
mod datagrams;
pub mod egress;
mod firewall;
mod forwarding;
mod handover;
mod helper;
mod isolated_by;
mod link;
mod mend;
mod names;
mod netlink;
mod parts;
mod pasta;
mod plan;
mod probe;
mod publish;
mod room;
mod subnet;
mod through;
mod ways;
mod wire;

use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use attachment::{Attachment, Holder};
pub use clear::{deployments, detach, leave, strays, sweep, unmake as remove_stray};
pub use handover::Handover;
pub use helper::Helpers;
pub use isolated_by::{PASTA, SHARED};
pub use mend::{Mended, mend};
pub use names::name_machine;
pub use pasta::{Pasta, clear as clear_pasta, try_out as try_out_pasta};
pub use plan::{Texts, Wanted, asked, conditions, egress_policy, files, publish, wanted};
pub use probe::try_out;
pub use publish::Published;
pub use ways::pave;
pub use wire::Wire;

/// The network of an instance.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// What it is connected to.
    #[serde(default)]
    pub link: Link,
    /// Files about names that it sees.
    #[serde(default)]
    pub files: Vec<NameFile>,
    /// Ports of the machine that lead to it.
    #[serde(default)]
    pub published: Vec<Published>,
    /// Hosts that it reaches through the egress proxy; there is none when absent.
    #[serde(default)]
    pub egress: Option<egress::Policy>,
}

/// What an instance is connected to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Link {
    /// What the machine is connected to.
    #[default]
    Machine,
    /// Nothing.
    Alone,
    /// The network of its deployment.
    Bridge(Attachment),
    /// What the machine is connected to, by interfaces of its own.
    Pasta(Pasta),
}

/// A file about names that is shown inside, read-only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameFile {
    /// Absolute path inside.
    pub target: String,
    /// Where it lies.
    pub source: PathBuf,
}

/// The address of the machine's gateway.
///
/// # Errors
/// The kernel does not tell.
pub fn gateway() -> std::io::Result<Option<Ipv4Addr>> {
    Ok(link::routes(&mut netlink::Netlink::route()?)?.gateway)
}

impl Network {
    /// Its place in the network of its deployment, if any.
    pub fn attachment(&self) -> Option<&Attachment> {
        match &self.link {
            Link::Bridge(attachment) => Some(attachment),
            Link::Machine | Link::Alone | Link::Pasta(_) => None,
        }
    }
}
