//! When what is left of instances that are gone may be taken away: by the rules of orphans, which may just be somebody's whose
//! claim is not seen yet. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::time::after;
use super::undeclared::{ORPHAN_MIN_AGE, ORPHAN_PACE, ORPHAN_SETTLE, ORPHANS_AT_ONCE};
use crate::state::Remnant;

/// Time after which one is tried again that could not be taken away.
const REMNANT_RETRY: Duration = Duration::from_secs(300);

/// The remnants of one runtime, as they were found.
#[derive(Debug, Default)]
pub struct Remains {
    found: BTreeMap<(String, String), Found>,
}

/// One remnant, as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What it is.
    pub remnant: Remnant,
    /// When it was first seen.
    pub first_seen: DateTime<Utc>,
    /// When it may be taken away, where it is still there then.
    pub due: DateTime<Utc>,
    /// Why it could not be taken away the last time.
    pub failed: Option<String>,
}

impl Remains {
    /// Takes what a look gave, which is all that is left now.
    pub fn look(&mut self, remnants: Vec<Remnant>, now: DateTime<Utc>) {
        let mut before = std::mem::take(&mut self.found);
        let seen = |remnant: Remnant| {
            let key = key(&remnant);
            // A clock that went back starts the time again.
            let known = before.remove(&key).filter(|known| known.first_seen <= now);
            let anew = || {
                let old_enough = remnant.since.map_or(now, |since| after(since.min(now), ORPHAN_MIN_AGE));
                let due = after(now, ORPHAN_SETTLE).max(old_enough);
                Found { remnant: remnant.clone(), first_seen: now, due, failed: None }
            };
            (key, known.unwrap_or_else(anew))
        };
        self.found = remnants.into_iter().map(seen).collect();
    }

    /// Notes that one could not be taken away.
    pub fn failed(&mut self, remnant: &Remnant, why: String, now: DateTime<Utc>) {
        if let Some(found) = self.found.get_mut(&key(remnant)) {
            found.due = after(now, REMNANT_RETRY);
            found.failed = Some(why);
        }
    }

    /// Those that may be taken away, right after a look: as many as orphans are removed at once.
    pub fn due(&self, now: DateTime<Utc>) -> Vec<Remnant> {
        let due = self.found.values().filter(|found| found.due <= now);
        due.take(ORPHANS_AT_ONCE).map(|found| found.remnant.clone()).collect()
    }

    /// How long until the next look is worth it; none while nothing is left.
    pub fn next_look(&self, now: DateTime<Utc>) -> Option<Duration> {
        let wait = |found: &Found| (found.due - now).to_std().unwrap_or(ORPHAN_PACE);
        self.found.values().map(wait).min()
    }

    /// All of them, in order.
    pub fn all(&self) -> impl Iterator<Item = &Found> {
        self.found.values()
    }
}

fn key(remnant: &Remnant) -> (String, String) {
    (remnant.name.clone(), remnant.identity.clone())
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;
    use crate::state::RemnantKind;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::seconds(1000 + seconds)
    }

    fn group(name: &str, identity: u32, since: Option<i64>) -> Remnant {
        let (name, identity) = (name.to_owned(), identity.to_string());
        Remnant { kind: RemnantKind::ControlGroup, name, identity, reason: String::new(), since: since.map(at) }
    }

    #[test]
    fn what_is_seen_twice_a_minute_apart_is_due_and_what_has_its_name_by_then_is_not() {
        let mut remains = Remains::default();
        let (one, other) = (group("one", 1, None), group("other", 1, None));
        remains.look(vec![one.clone(), other], at(0));
        assert_eq!((remains.due(at(59)), remains.next_look(at(59))), (vec![], Some(Duration::from_secs(1))));
        remains.look(vec![one.clone(), group("other", 2, None)], at(60));
        assert_eq!((remains.due(at(60)), remains.next_look(at(61))), (vec![one], Some(Duration::from_secs(10))));
        remains.look(vec![], at(61));
        assert_eq!((remains.due(at(500)), remains.next_look(at(500))), (vec![], None));
    }

    #[test]
    fn what_was_made_a_moment_ago_has_its_minute_and_a_clock_that_goes_back_begins_again() {
        let mut remains = Remains::default();
        let young = group("young", 1, Some(30));
        remains.look(vec![young.clone()], at(20));
        assert_eq!(remains.due(at(79)), []);
        assert_eq!(remains.due(at(80)), std::slice::from_ref(&young));
        remains.look(vec![young.clone()], at(10));
        assert_eq!((remains.due(at(69)), remains.due(at(70))), (vec![], vec![young]));
    }

    #[test]
    fn what_fails_is_tried_again_later_and_ten_go_at_once() {
        let mut remains = Remains::default();
        let many: Vec<Remnant> = (10..30).map(|number| group(&number.to_string(), 1, None)).collect();
        remains.look(many.clone(), at(0));
        assert_eq!(remains.due(at(60)), many[..10]);
        remains.failed(&many[0], "busy".to_owned(), at(60));
        assert_eq!(remains.due(at(60)), many[1..11]);
        let failed: Vec<_> = remains.all().filter_map(|found| found.failed.clone()).collect();
        assert_eq!(failed, ["busy"]);
        remains.look(many[..1].to_vec(), at(61));
        assert_eq!((remains.due(at(359)), remains.due(at(360)).len()), (vec![], 1));
    }
}
