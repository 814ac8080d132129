//! Whether the packet filters of networks are whole, looked at now and then.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::layout::Layout;
use super::network::{self, Holder};
use super::observe::Found;
use crate::state::Condition;

/// Time between two looks: what was taken away is missed for no longer than a minute by whoever lists instances as often.
const PACE: Duration = Duration::from_secs(60);

/// Bridges of networks whose packet filter is not whole, and why.
pub type Broken = BTreeMap<String, String>;

/// What the last look saw.
#[derive(Debug, Default)]
pub struct Filters(Mutex<Option<(Instant, Broken)>>);

impl Filters {
    /// Has the packet filters of all networks made whole, where that was not seen to a moment ago, and returns those that
    /// are not.
    pub fn look(&self, layout: &Layout) -> Broken {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((at, broken)) if at.elapsed() < PACE => broken.clone(),
            _ => {
                let broken = network::mend(&layout.networks()).unwrap_or_else(|error| {
                    tracing::warn!(%error, "the packet filters of networks could not be looked at");
                    Broken::new()
                });
                *last = Some((Instant::now(), broken.clone()));
                broken
            }
        }
    }
}

/// Tells of networks whose packet filter is not whole, at their instances.
pub fn tell(found: &mut [Found], broken: &Broken, holder: Holder<'_>) {
    if broken.is_empty() {
        return;
    }
    for one in found {
        let bridge = holder.bridge(&one.instance.id.deployment).map(|(bridge, _)| bridge);
        let Some(why) = bridge.ok().and_then(|bridge| broken.get(&bridge)) else { continue };
        one.instance.conditions.push(Condition::holds(
            "Degraded",
            "NetworkUnfiltered",
            format!(
                "the packet filter that keeps other deployments out was taken away from this machine, and can't be made \
                 again: {why}"
            ),
        ));
    }
}
