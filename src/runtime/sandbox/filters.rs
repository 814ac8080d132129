//! Whether networks are whole, with their packet filters above all, looked at now and then.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use super::layout::Layout;
use super::network::{self, Holder, Mended};
use super::observe::Found;
use crate::state::Condition;

/// Shortest time between two looks: a little less than that between two lists that are asked for because of them.
const PACE: Duration = Duration::from_secs(50);

/// Bridges of networks that are not whole, and why.
pub type Broken = BTreeMap<String, String>;

/// What the last look saw.
#[derive(Debug, Default)]
pub struct Filters {
    last: Mutex<Option<(Instant, Broken)>>,
    /// Held while somebody looks, which may take seconds.
    looking: Mutex<()>,
}

impl Filters {
    /// Has all networks made whole, where that was not seen to a moment ago, and returns those that are not. Where somebody
    /// else is looking, what the last look saw. What was made whole is handed to `tell`: what the network says about itself,
    /// and what had been missing.
    pub fn look(&self, layout: &Layout, tell: impl Fn(String, String)) -> Broken {
        let _looking = match self.looking.try_lock() {
            Err(TryLockError::WouldBlock) => return self.known(Duration::MAX).unwrap_or_default(),
            Err(TryLockError::Poisoned(held)) => held.into_inner(),
            Ok(held) => held,
        };
        self.known(PACE).unwrap_or_else(|| {
            let Mended { broken, whole } = network::mend(&layout.networks()).unwrap_or_else(|error| {
                tracing::warn!(%error, "the packet filters of networks could not be looked at");
                Mended::default()
            });
            whole.into_iter().for_each(|(alias, what)| tell(alias, what));
            *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), broken.clone()));
            broken
        })
    }

    /// What a look saw that is no older than this.
    fn known(&self, age: Duration) -> Option<Broken> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.as_ref().filter(|(at, _)| at.elapsed() < age).map(|(_, broken)| broken.clone())
    }
}

/// Tells of networks that are not whole, at their instances.
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
                "what keeps the network of the deployment apart was changed on this machine, and can't be made as it was: \
                 {why}"
            ),
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_for_another_who_looks() {
        let folder = tempfile::tempdir().unwrap();
        let (filters, layout) = (Filters::default(), Layout::new(folder.path()));
        let looking = filters.looking.lock().unwrap();
        assert_eq!(filters.look(&layout, |_, _| {}), Broken::new(), "nothing was seen yet");
        let seen = Broken::from([("keel-x".to_owned(), "why".to_owned())]);
        *filters.last.lock().unwrap() = Some((Instant::now() - 2 * PACE, seen.clone()));
        assert_eq!(filters.look(&layout, |_, _| {}), seen);
        drop(looking);
        assert_eq!(filters.look(&layout, |_, _| {}), Broken::new(), "it is looked anew");
    }
}
