//! How far outputs were read, so that whoever reads on loses no line and gives none twice.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::spec::RuntimeKind;

/// The runtime and the runtime's own id.
pub type Key = (RuntimeKind, String);

/// Most outputs of a slot that a bookmark remembers, those that were read last. A slot has the instance that runs, one
/// that is on its way out, and a dead one that is kept for its output; the rest is room for those that crash meanwhile.
const KEPT_PER_SLOT: usize = 16;

/// How far an output was read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Time of the last line; none where there was no line to give, so that every later one is new.
    at: Option<DateTime<Utc>>,
    /// Lines of that time that were given.
    given: u64,
    /// Those of them that come once more after the output was opened again.
    #[serde(skip)]
    repeated: u64,
}

impl Place {
    /// Takes note of a line; says whether it is a new one.
    pub(super) fn pass(&mut self, at: DateTime<Utc>) -> bool {
        if self.at == Some(at) {
            if self.repeated > 0 {
                self.repeated -= 1;
                return false;
            }
            self.given += 1;
        } else {
            (self.at, self.given) = (Some(at), 1);
        }
        self.repeated = 0;
        true
    }

    /// The output is opened again: gives the time from which on its lines are asked for, if there was one.
    pub(super) const fn reopen(&mut self) -> Option<DateTime<Utc>> {
        self.repeated = self.given;
        self.at
    }
}

/// Where the reader of a followed target is: another engine goes on from there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bookmark {
    /// When following began. Only the lines that were asked for count of what started before.
    pub(super) began: DateTime<Utc>,
    /// The names of all instances that were told.
    pub(super) instances: Vec<String>,
    /// The outputs that were read, by name of the instance, the one that was read last at the end.
    outputs: BTreeMap<String, Vec<Marked>>,
}

/// How far one output was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Marked {
    runtime: RuntimeKind,
    runtime_id: String,
    #[serde(flatten)]
    place: Place,
}

impl Bookmark {
    /// Nothing is read yet.
    pub const fn new(began: DateTime<Utc>) -> Self {
        Self { began, instances: Vec::new(), outputs: BTreeMap::new() }
    }

    /// Takes note of the names of all instances.
    pub fn names(&mut self, instances: &[String]) {
        self.instances = instances.to_vec();
    }

    /// Takes note of a line that this instance wrote at that time.
    pub fn line(&mut self, instance: &str, runtime: RuntimeKind, runtime_id: &str, at: DateTime<Utc>) {
        if let Some(marked) = self.mark(instance, runtime, runtime_id) {
            marked.place.pass(at);
        }
    }

    /// Takes note that the output of this instance was open and there was no line to give. What was neither that nor
    /// gave a line is asked for its last lines once more.
    pub fn no_lines(&mut self, instance: &str, runtime: RuntimeKind, runtime_id: &str) {
        self.mark(instance, runtime, runtime_id);
    }

    /// The place of an output, as the one that was read last.
    fn mark(&mut self, instance: &str, runtime: RuntimeKind, runtime_id: &str) -> Option<&mut Marked> {
        if !self.outputs.contains_key(instance) {
            self.outputs.insert(instance.to_owned(), Vec::new());
        }
        let slot = self.outputs.get_mut(instance)?;
        match slot.iter().rposition(|one| one.runtime == runtime && one.runtime_id == runtime_id) {
            Some(index) => slot[index..].rotate_left(1),
            None => {
                if slot.len() == KEPT_PER_SLOT {
                    slot.remove(0);
                }
                slot.push(Marked { runtime, runtime_id: runtime_id.to_owned(), place: Place::default() });
            }
        }
        slot.last_mut()
    }

    /// How far each output was read.
    pub(super) fn places(&self) -> BTreeMap<Key, Place> {
        let marked = self.outputs.values().flatten();
        marked.map(|one| ((one.runtime, one.runtime_id.clone()), one.place.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(second, 0).unwrap()
    }

    fn place(second: i64, given: u64) -> Place {
        Place { at: Some(at(second)), given, repeated: 0 }
    }

    #[test]
    fn a_bookmark_is_where_each_output_was_left_also_after_it_travelled() {
        let mut bookmark = Bookmark::new(at(1));
        bookmark.names(&["demo/web/0".to_owned()]);
        for (id, second) in [("a", 2), ("b", 3), ("a", 4), ("a", 4)] {
            bookmark.line("demo/web/0", RuntimeKind::Sandbox, id, at(second));
        }
        bookmark.no_lines("demo/web/0", RuntimeKind::Sandbox, "a");
        bookmark.no_lines("demo/web/1", RuntimeKind::Sandbox, "c");
        let text = serde_json::to_string(&bookmark).unwrap();
        let travelled: Bookmark = serde_json::from_str(&text).unwrap();
        assert_eq!(travelled, bookmark, "{text}");
        let key = |id: &str| (RuntimeKind::Sandbox, id.to_owned());
        let places = [(key("a"), place(4, 2)), (key("b"), place(3, 1)), (key("c"), Place::default())];
        assert_eq!(travelled.places(), BTreeMap::from(places));
    }

    #[test]
    fn of_a_slot_that_crashes_on_and_on_the_outputs_that_were_read_last_are_remembered() {
        let mut bookmark = Bookmark::new(at(0));
        for crash in 0..100 {
            bookmark.line("demo/web/0", RuntimeKind::Sandbox, "outgoing", at(crash));
            bookmark.line("demo/web/0", RuntimeKind::Sandbox, &format!("crash-{crash}"), at(crash));
        }
        let kept: Vec<String> = bookmark.places().into_keys().map(|(_, id)| id).collect();
        let newest = (85..100).map(|crash| format!("crash-{crash}"));
        assert_eq!(kept, newest.chain(["outgoing".to_owned()]).collect::<Vec<_>>());
    }
}
