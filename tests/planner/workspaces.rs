//! What becomes of slots, and of their workspaces, with the instances that are removed.

use evenkeel::plan::Action;
use evenkeel::state::{Fate, Instance, SlotFate, StopCause, Volumes};

use super::dsl::{Change, Snapshot, ago, up};

const GOES: SlotFate = SlotFate::Ends { workspace: Volumes::Remove };
const IS_KEPT: SlotFate = SlotFate::Ends { workspace: Volumes::Keep };

const WORKSPACE: &str = "storage: [{type: workspace}]";
const KEPT: &str = "storage: [{type: workspace, keep: true}]";

/// What becomes of the slots of all that the plan removes.
pub fn fates(snapshot: &Snapshot) -> Vec<(String, SlotFate)> {
    let plan = snapshot.plan();
    let of = |action: &Action| match action {
        Action::Remove { instance, slot } => Some((format!("{}/{}", instance.id.service, instance.id.slot), *slot)),
        _ => None,
    };
    plan.steps().filter_map(|step| of(&step.action)).collect()
}

fn web(slot: u32) -> String {
    format!("web/{slot}")
}

#[test]
fn a_slot_ends_as_its_service_is_declared_whatever_its_instance_was_made_from() {
    let two = |letter: char, fields: &str| {
        let snapshot = Snapshot::declared().service("web", letter, 1, fields).with([up(0, 'a'), up(1, 'a')]);
        remembering(snapshot.clone(), &snapshot)
    };
    assert_eq!(fates(&two('a', WORKSPACE)), [(web(1), GOES)]);
    // Fewer replicas, and that it is kept, by one edit that no instance has been made from yet.
    assert!(fates(&two('b', KEPT)).contains(&(web(1), IS_KEPT)), "{:?}", fates(&two('b', KEPT)));
    assert!(fates(&two('b', WORKSPACE)).contains(&(web(1), GOES)));
}

/// What is remembered of workspaces once this was declared.
fn remembering(mut snapshot: Snapshot, declared: &Snapshot) -> Snapshot {
    let orders = &mut snapshot.history.lives.orders;
    orders.kept_workspaces = orders.kept_workspaces_by(declared.desired.as_ref().expect("declared"));
    snapshot
}

#[test]
fn what_was_declared_last_tells_whether_workspaces_are_kept_of_what_is_declared_no_more() {
    let declared = |fields: &str| Snapshot::declared().service("web", 'b', 1, fields);
    let gone = || Snapshot::declared().service("other", 'a', 0, "").with([up(0, 'a')]);
    let pool = || {
        let pool = "pool: {min_warm: 0, warm_ttl: 1h}";
        Snapshot::declared().service("web", 'c', 0, pool).with([up(0, 'a')])
    };
    let removed = || Snapshot::undeclared(Fate::Removed).with([up(0, 'a')]);
    for after in [gone(), removed(), pool()] {
        assert_eq!(fates(&after), [(web(0), GOES)], "nothing is remembered");
        let kept = remembering(after, &declared(KEPT));
        assert_eq!(fates(&kept), [(web(0), IS_KEPT)]);
        // A declaration without workspaces says nothing of them.
        let kept = remembering(kept, &declared(""));
        assert_eq!(fates(&kept), [(web(0), IS_KEPT)]);
        assert_eq!(fates(&remembering(kept, &declared(WORKSPACE))), [(web(0), GOES)]);
    }
}

#[test]
fn a_slot_stays_where_another_instance_comes_into_it() {
    let dead = |attempt: u32| {
        let seconds = 60 - i64::from(attempt);
        up(0, 'a').attempt(attempt).exited(1, 5, seconds).by(StopCause::Retired)
    };
    let snapshot = Snapshot::declared().service("web", 'a', 1, WORKSPACE);
    let snapshot = snapshot.with([dead(0), up(0, 'a').attempt(1)]);
    assert_eq!(fates(&snapshot), [(web(0), SlotFate::Stays)]);
}

#[test]
fn the_slots_of_a_service_end_when_it_becomes_a_pool() {
    let pool = |observed: Vec<Instance>| {
        let pool = "pool: {min_warm: 0, warm_ttl: 1h}";
        Snapshot::declared().service("web", 'b', 0, pool).with(observed)
    };
    assert_eq!(fates(&pool(vec![up(0, 'a'), up(1, 'a')])), [(web(0), GOES), (web(1), GOES)]);
    // A member that is free for too long leaves nothing.
    let cold = up(0, 'b').change(|one| one.created_at = ago(7200));
    assert_eq!(fates(&pool(vec![cold])), [(web(0), SlotFate::Stays)]);
}
