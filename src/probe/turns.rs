//! Who is checked next where more is due than may be checked side by side: fair shares of a bounded number of places.
//! Pure.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// Places for checks of one kind, and what waits for one. What waits is grouped, and nothing that one group does keeps
/// another from its turn: groups take turns, and none may hold more places than it leaves free, but for its first.
#[derive(Debug)]
pub struct Turns<G, T> {
    places: usize,
    free: usize,
    /// Places that each group holds; at least one.
    held: HashMap<G, usize>,
    /// What waits, by group; at least one of each.
    waiting: HashMap<G, VecDeque<T>>,
    /// The groups that something waits of, in the order of their turns.
    order: VecDeque<G>,
}

/// Who holds the places at one time.
#[derive(Debug, PartialEq, Eq)]
pub struct Crowd<G> {
    /// Places that are held.
    pub taken: usize,
    /// The group that holds most of them, and how many.
    pub most: Option<(G, usize)>,
}

impl<G: Clone + Eq + Hash + Ord, T: PartialEq> Turns<G, T> {
    /// So many places, all free.
    pub fn new(places: usize) -> Self {
        Self { places, free: places, held: HashMap::new(), waiting: HashMap::new(), order: VecDeque::new() }
    }

    /// Asks for a place. Gives whether it is taken at once; else this waits for its turn, behind others of its group.
    pub fn ask(&mut self, group: &G, what: T) -> bool {
        let at_once = !self.waiting.contains_key(group) && self.may_take(group);
        if at_once {
            self.take(group);
            return true;
        }
        let queue = self.waiting.entry(group.clone()).or_default();
        if queue.is_empty() {
            self.order.push_back(group.clone());
        }
        queue.push_back(what);
        false
    }

    /// What has its turn now, where anything has; a place is taken for it. No more groups are passed over than there are
    /// places, since only such are that hold one.
    pub fn next(&mut self) -> Option<T> {
        let at = self.order.iter().position(|group| self.may_take(group))?;
        let group = self.order.remove(at)?;
        let queue = self.waiting.get_mut(&group)?;
        let what = queue.pop_front();
        match queue.is_empty() {
            true => drop(self.waiting.remove(&group)),
            false => self.order.push_back(group.clone()),
        }
        self.take(&group);
        what
    }

    /// Gives a place of the group back.
    pub fn give_back(&mut self, group: &G) {
        let Some(held) = self.held.get_mut(group) else { return };
        *held -= 1;
        self.free += 1;
        if *held == 0 {
            self.held.remove(group);
        }
    }

    /// Waits for its turn no more.
    pub fn withdraw(&mut self, group: &G, what: &T) {
        let Some(queue) = self.waiting.get_mut(group) else { return };
        queue.retain(|one| one != what);
        if queue.is_empty() {
            self.waiting.remove(group);
            self.order.retain(|one| one != group);
        }
    }

    /// Who holds the places now.
    pub fn crowd(&self) -> Crowd<G> {
        let most = self.held.iter().max_by_key(|(group, held)| (**held, std::cmp::Reverse(*group)));
        Crowd { taken: self.places - self.free, most: most.map(|(group, held)| (group.clone(), *held)) }
    }

    fn may_take(&self, group: &G) -> bool {
        self.held.get(group).map_or(self.free > 0, |held| *held < self.free)
    }

    fn take(&mut self, group: &G) {
        *self.held.entry(group.clone()).or_default() += 1;
        self.free -= 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Asks as often as said for each group, then lets all have their turn; how many places each got.
    fn got(places: usize, asks: &[(char, usize)]) -> Vec<(char, usize)> {
        let mut turns = Turns::new(places);
        let mut got: Vec<(char, usize)> = Vec::new();
        for (group, times) in asks {
            let at_once = (0..*times).filter(|what| turns.ask(group, *what)).count();
            got.push((*group, at_once));
        }
        assert_eq!(turns.next(), None, "what may begin has begun");
        got
    }

    #[test]
    fn each_group_leaves_as_much_as_it_takes() {
        for (places, asks, expected) in [
            (8, vec![('a', 100)], vec![('a', 4)]),
            (8, vec![('a', 100), ('b', 100), ('c', 100), ('d', 100)], vec![('a', 4), ('b', 2), ('c', 1), ('d', 1)]),
            (8, vec![('a', 2), ('b', 100)], vec![('a', 2), ('b', 3)]),
            (2, vec![('a', 5), ('b', 5), ('c', 5)], vec![('a', 1), ('b', 1), ('c', 0)]),
            (1, vec![('a', 5), ('b', 1)], vec![('a', 1), ('b', 0)]),
        ] {
            assert_eq!(got(places, &asks), expected, "{places} places, {asks:?}");
        }
    }

    #[test]
    fn groups_take_turns_and_are_served_in_order() {
        let mut turns = Turns::new(2);
        assert!(turns.ask(&'a', 0) && turns.ask(&'b', 10));
        for (group, what) in [('a', 1), ('a', 2), ('c', 20), ('c', 21), ('b', 11)] {
            assert!(!turns.ask(&group, what));
        }
        assert_eq!(turns.next(), None);
        let mut served = Vec::new();
        for group in ['a', 'a', 'c', 'b', 'b', 'a', 'c'] {
            turns.give_back(&group);
            served.push(turns.next());
        }
        // What holds a place already leaves the last one to others.
        assert_eq!(served, [Some(1), Some(20), Some(2), Some(11), Some(21), None, None]);
    }

    #[test]
    fn the_crowd_names_who_holds_most() {
        let mut turns = Turns::new(8);
        assert_eq!(turns.crowd(), Crowd { taken: 0, most: None });
        let _ = [('b', 0), ('a', 1), ('a', 2)].map(|(group, what)| turns.ask(&group, what));
        assert_eq!(turns.crowd(), Crowd { taken: 3, most: Some(('a', 2)) });
    }

    /// What may happen: a group asks, a check of it ends, or what it waits for first is withdrawn.
    fn deeds() -> impl Strategy<Value = (usize, Vec<(u8, u8)>)> {
        (1_usize..12, prop::collection::vec((0_u8..4, 0_u8..6), 0..200))
    }

    proptest! {
        #[test]
        fn places_are_bounded_shared_and_never_idle_for_who_holds_none((places, deeds) in deeds()) {
            let mut turns = Turns::new(places);
            let mut under_way: Vec<(u8, usize)> = Vec::new();
            let mut waiting: Vec<(u8, usize)> = Vec::new();
            for (number, (deed, group)) in deeds.into_iter().enumerate() {
                match deed {
                    0 | 1 if turns.ask(&group, number) => under_way.push((group, number)),
                    0 | 1 => waiting.push((group, number)),
                    2 => if let Some(at) = under_way.iter().position(|one| one.0 == group) {
                        under_way.remove(at);
                        turns.give_back(&group);
                    },
                    _ => if let Some(at) = waiting.iter().position(|one| one.0 == group) {
                        turns.withdraw(&group, &waiting.remove(at).1);
                    },
                }
                while let Some(what) = turns.next() {
                    let at = waiting.iter().position(|one| one.1 == what).expect("it waited");
                    let first = waiting.iter().position(|one| one.0 == waiting[at].0);
                    prop_assert_eq!(first, Some(at), "in order within its group");
                    under_way.push(waiting.remove(at));
                }
                let held = |group: u8| under_way.iter().filter(|one| one.0 == group).count();
                prop_assert!(under_way.len() <= places);
                prop_assert_eq!(turns.crowd().taken, under_way.len());
                let free = places - under_way.len();
                for (group, _) in &waiting {
                    prop_assert!(held(*group) >= free && (free == 0 || held(*group) > 0), "{} idles", group);
                }
            }
        }
    }
}
