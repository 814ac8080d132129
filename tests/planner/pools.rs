//! Pools: what is made ahead, what is left alone, and what goes.

use chrono::TimeDelta;
use evenkeel::plan::{MemberUse, PoolRecord};
use evenkeel::spec::RuntimeKind;
use evenkeel::state::{Instance, Phase, StopCause};
use proptest::prelude::*;

use super::dsl::{Change, Snapshot, ago, now, up};
use super::simulate::World;

const POOL: &str = "pool: {min_warm: 2, max_warm: 4, max_total: 6, warm_ttl: 2h}";

fn pool(fields: &str) -> Snapshot {
    Snapshot::declared().service("web", 'a', 2, fields)
}

/// A pool of the usual bounds, with these members.
fn with(members: impl IntoIterator<Item = Instance>) -> Snapshot {
    pool(POOL).with(members)
}

trait Used {
    fn used(self, slot: u32, used: MemberUse) -> Self;
    fn waiting(self, claims: u32) -> Self;
    fn fresh(self, seconds_ago: i64) -> Self;
    fn record(&mut self) -> &mut PoolRecord;
}

impl Used for Snapshot {
    fn record(&mut self) -> &mut PoolRecord {
        self.history.pools.entry("web".into()).or_default()
    }

    fn used(mut self, slot: u32, used: MemberUse) -> Self {
        let of_slot: Vec<_> = self.observed.iter().filter(|one| one.id.slot == slot).cloned().collect();
        for one in of_slot {
            self.record().members.insert((one.runtime, one.runtime_id), used);
        }
        self
    }

    fn waiting(mut self, claims: u32) -> Self {
        self.record().waiting += claims;
        self
    }

    fn fresh(mut self, seconds_ago: i64) -> Self {
        self.record().fresh.push(ago(seconds_ago));
        self.waiting(1)
    }
}

#[test]
fn an_empty_pool_is_filled_to_min_warm_in_the_lowest_slots() {
    pool(POOL).expect(
        "launch web/0 a0: pool has 0 of 2 free members
         launch web/1 a0: pool has 0 of 2 free members",
    );
    with([up(0, 'a')]).expect(
        "launch web/1 a0: pool has 1 of 2 free members
         look again at 2026-01-01T12:59:30Z",
    );
    pool("pool: {min_warm: 0}").expect("");
}

#[test]
fn members_are_made_at_the_rate_that_is_written_and_what_claims_wait_for_at_once() {
    let rated = |rate: &str| pool(&format!("pool: {{min_warm: 5, max_warm: 5, refill_rate: {rate}}}"));
    rated("0.5").expect(
        "launch web/0 a0: pool has 0 of 5 free members
         look again at 2026-01-01T12:00:02Z",
    );
    rated("0.5").with([up(0, 'a').since(1)]).expect("look again at 2026-01-01T12:00:01Z");
    rated("2").with([up(0, 'a').since(3), up(1, 'a').since(0)]).expect(
        "launch web/2 a0: pool has 2 of 5 free members
         look again at 2026-01-01T12:00:01Z",
    );
    rated("0.5").waiting(2).expect(
        "launch web/0 a0: pool has 0 of 7 free members
         launch web/1 a0: pool has 0 of 7 free members
         launch web/2 a0: pool has 0 of 7 free members
         look again at 2026-01-01T12:00:02Z",
    );
    assert_eq!(rated("1000").plan().lanes.len(), 5);
}

#[test]
fn what_a_session_has_is_no_free_member_and_is_left_alone() {
    with([up(0, 'a'), up(1, 'a')]).used(0, MemberUse::Claimed).expect(
        "launch web/2 a0: pool has 1 of 2 free members
         look again at 2026-01-01T12:59:30Z",
    );
    // Of an old template, too old, or frozen as its session asked.
    for member in [up(0, 'b'), up(0, 'a').since(9 * 3600), up(0, 'a').phase(Phase::Paused { since: ago(60) })] {
        with([member, up(1, 'a'), up(2, 'a')])
            .used(0, MemberUse::Suspended)
            .expect("look again at 2026-01-01T12:59:30Z");
    }
}

#[test]
fn what_a_session_has_runs_on_where_somebody_else_froze_it() {
    let frozen = up(0, 'a').phase(Phase::Paused { since: ago(60) });
    with([frozen, up(1, 'a'), up(2, 'a')]).used(0, MemberUse::Claimed).expect(
        "resume web/0 a0: paused by somebody else
         look again at 2026-01-01T12:59:30Z",
    );
}

#[test]
fn a_member_that_somebody_has_had_goes_and_another_one_is_made() {
    with([up(0, 'a'), up(1, 'a')]).used(0, MemberUse::Spent).expect(
        "retire web/0 a0: its session has ended
         launch web/2 a0: pool has 1 of 2 free members
         look again at 2026-01-01T12:59:30Z",
    );
    with([up(0, 'a').exited(0, 5, 1), up(1, 'a'), up(2, 'a')]).used(0, MemberUse::Spent).expect(
        "remove web/0 a0: its session has ended
         look again at 2026-01-01T12:59:30Z",
    );
    with([up(0, 'a'), up(1, 'a'), up(2, 'a')]).used(0, MemberUse::Entered).expect(
        "retire web/0 a0: somebody was inside it without a session
         look again at 2026-01-01T12:59:30Z",
    );
    // As long as an operator is inside, it stays.
    with([up(0, 'a'), up(1, 'a'), up(2, 'a')]).used(0, MemberUse::Visited).expect("look again at 2026-01-01T12:59:30Z");
}

#[test]
fn what_a_client_had_serves_as_no_replica_where_a_pool_becomes_a_service() {
    let scaled = |members: Vec<Instance>| Snapshot::declared().service("web", 'b', 2, "").with(members);
    // As long as nothing else is ready, one that nobody had stands in; the other one goes whatever comes up.
    let used = scaled(vec![up(0, 'a'), up(1, 'a'), up(2, 'a')]).used(0, MemberUse::Spent).used(2, MemberUse::Spent);
    let planned = used.planned();
    assert!(planned.contains("retire web/0 a0: its session has ended"), "{planned}");
    assert!(planned.contains("retire web/2 a0: its session has ended"), "{planned}");
    assert!(!planned.contains("web/1"), "{planned}");
    let crashed = up(1, 'b').restarted(3, 3).exited(1, 2, 1);
    let failing = scaled(vec![up(0, 'a'), up(1, 'a'), crashed]).used(0, MemberUse::Spent).planned();
    assert!(failing.contains("retire web/0 a0: its session has ended"), "{failing}");
    assert!(!failing.contains("retire web/1"), "{failing}");
}

#[test]
fn claims_that_wait_get_members_beyond_max_warm_and_never_beyond_max_total() {
    pool(POOL).waiting(9).planned().lines().take(6).enumerate().for_each(|(slot, line)| {
        assert_eq!(line, format!("launch web/{slot} a0: pool has 0 of 11 free members"));
    });
    assert_eq!(pool(POOL).waiting(9).plan().lanes.len(), 6);
    let claimed = (0..6).fold(with((0..6).map(|slot| up(slot, 'a'))), |all, slot| all.used(slot, MemberUse::Claimed));
    claimed.waiting(1).expect("");
    // What is on its way out still counts.
    let leaving = up(5, 'a').phase(Phase::Stopping);
    let members = (0..5).map(|slot| up(slot, 'a')).chain([leaving]);
    let snapshot = (0..5).fold(with(members), |all, slot| all.used(slot, MemberUse::Claimed));
    snapshot.waiting(1).expect("wait for the step under way for demo/web/5 (aaaaaaaa, attempt 0)");
}

#[test]
fn no_member_gets_a_name_that_another_one_had() {
    let mut snapshot = with([up(0, 'a')]);
    snapshot.record().attempts = [(0, 4), (1, 7)].into();
    snapshot.expect(
        "launch web/1 a8: pool has 1 of 2 free members
         look again at 2026-01-01T12:59:30Z",
    );
}

#[test]
fn only_so_many_are_made_at_a_time() {
    let snapshot = pool("pool: {min_warm: 50, max_warm: 50}");
    assert_eq!(snapshot.plan().lanes.len(), 8);
    let making = (0..5).map(|slot| up(slot, 'a').phase(Phase::Pending));
    assert_eq!(snapshot.with(making).plan().lanes.len(), 3);
}

#[test]
fn free_members_of_another_template_go_at_once_and_their_places_are_filled() {
    with([up(0, 'b'), up(1, 'b'), up(2, 'a').phase(Phase::Pending)]).expect(
        "retire web/0 b0: template changed at demo.yaml:3 (bbbbbbbb to aaaaaaaa)
         retire web/1 b0: template changed at demo.yaml:3 (bbbbbbbb to aaaaaaaa)
         launch web/3 a0: pool has 1 of 2 free members
         wait for the step under way for demo/web/2 (aaaaaaaa, attempt 0)",
    );
}

#[test]
fn members_are_renewed_before_they_are_too_old_and_go_when_they_are() {
    let old = 7200 - 30;
    with([up(0, 'a').since(old), up(1, 'a')]).expect(
        "launch web/2 a0: pool has 1 of 2 free members
         look again at 2026-01-01T12:00:30Z",
    );
    with([up(0, 'a').since(7200), up(1, 'a'), up(2, 'a')]).expect(
        "retire web/0 a0: created at 2026-01-01T10:00:00Z, and pool.warm_ttl has passed
         look again at 2026-01-01T12:59:30Z",
    );
}

#[test]
fn members_are_renewed_also_where_no_more_may_be_free_and_go_once_their_successors_are_ready() {
    let narrow = || pool("pool: {min_warm: 1, max_warm: 1, max_total: 3, warm_ttl: 2h}");
    let old = || up(0, 'a').since(7200 - 30);
    narrow().with([old()]).expect(
        "launch web/1 a0: pool has 0 of 1 free members
         look again at 2026-01-01T12:00:30Z",
    );
    narrow().with([old(), up(1, 'a').since(0).phase(Phase::Pending)]).expect(
        "wait for the step under way for demo/web/1 (aaaaaaaa, attempt 0)
         look again at 2026-01-01T12:00:30Z",
    );
    narrow().with([old(), up(1, 'a').since(0)]).expect(
        "retire web/0 a0: more than pool.max_warm (1) or pool.max_total (3)
         look again at 2026-01-01T12:00:30Z",
    );
    // Where every place is taken, nothing can be made before.
    pool("pool: {min_warm: 1, max_warm: 1, max_total: 1, warm_ttl: 2h}")
        .with([old()])
        .expect("look again at 2026-01-01T12:00:30Z");
}

#[test]
fn the_longest_warm_go_where_there_are_too_many() {
    let members = (0..6).map(|slot| up(slot, 'a').since(100 + i64::from(slot)));
    with(members).expect(
        "retire web/4 a0: more than pool.max_warm (4) or pool.max_total (6)
         retire web/5 a0: more than pool.max_warm (4) or pool.max_total (6)
         look again at 2026-01-01T13:57:45Z",
    );
}

#[test]
fn members_from_before_sessions_are_remembered_are_never_handed_out() {
    let mut snapshot = with([up(0, 'a'), up(1, 'a').since(60)]);
    snapshot.record().since = Some(ago(100));
    snapshot.expect(
        "retire web/0 a0: older than what is remembered of sessions
         launch web/2 a0: pool has 1 of 2 free members
         look again at 2026-01-01T13:58:30Z",
    );
}

#[test]
fn a_claim_for_a_fresh_member_gets_one_that_is_made_for_it() {
    with([up(0, 'a'), up(1, 'a')]).fresh(1).expect(
        "launch web/2 a0: pool has 2 of 3 free members
         look again at 2026-01-01T12:59:30Z",
    );
    // One that is on its way since then does.
    with([up(0, 'a'), up(1, 'a'), up(2, 'a').since(0).phase(Phase::Pending)]).fresh(1).expect(
        "wait for the step under way for demo/web/2 (aaaaaaaa, attempt 0)
         look again at 2026-01-01T12:59:30Z",
    );
    let full = pool("pool: {min_warm: 2, max_warm: 2, max_total: 2, warm_ttl: 2h}");
    full.with([up(0, 'a'), up(1, 'a').since(60)]).fresh(1).expect(
        "retire web/0 a0: makes room for a fresh member that somebody waits for
         look again at 2026-01-01T12:59:30Z",
    );
}

#[test]
fn members_that_crash_come_back_after_a_pause_that_grows_and_no_others_are_made_meanwhile() {
    let crashed = |slot| up(slot, 'a').restarted(3, 3).exited(1, 1, 0);
    with([crashed(0), crashed(1)]).waiting(5).planned().lines().for_each(|line| {
        assert!(line.starts_with("wait ") || line.starts_with("look again"), "{line}");
    });
    with([up(0, 'a').exited(1, 1, 0), up(1, 'a')]).expect(
        "launch (restarts 1, streak 1) web/0 a1: exited 1, restart 1 in a row
         look again at 2026-01-01T12:59:30Z",
    );
    // Nobody needs it, or another one is there.
    with([up(0, 'a').exited(1, 1, 0), up(1, 'a'), up(2, 'a')]).expect(
        "remove web/0 a0: dead, and no longer needed for its output
         look again at 2026-01-01T12:59:30Z",
    );
}

#[test]
fn an_unhealthy_member_ends_as_after_a_crash() {
    let fields = format!("{POOL}\nhealth: {{check: {{type: tcp, port: 80}}}}");
    pool(&fields).with([up(0, 'a').unhealthy(), up(1, 'a')]).expect(
        "halt web/0 a0: unhealthy: no route
         demo/web/0 (aaaaaaaa, attempt 0) is unhealthy: no route
         look again at 2026-01-01T12:59:30Z",
    );
    // No other one is made while it ends: then it is made anew, after the pause of a crash.
    let none_is_made = |scene: Snapshot, expected: &[&str]| {
        let plan = scene.planned();
        assert!(!plan.contains("launch"), "{plan}");
        expected.iter().for_each(|line| assert!(plan.contains(line), "{line}: {plan}"));
    };
    let stopping = || up(0, 'a').unhealthy().phase(Phase::Stopping);
    none_is_made(pool(&fields).with([stopping(), up(1, 'a')]), &[]);
    none_is_made(pool(&fields).with([stopping()]).waiting(5), &[]);
    none_is_made(pool(&fields).with([up(0, 'a').unhealthy()]).waiting(5), &["halt web/0 a0"]);
    // Where others do well, a claim gets one of its own.
    let served = pool(&fields).with([stopping(), up(1, 'a')]).waiting(2).planned();
    assert!(served.contains("launch web/2"), "{served}");
    let ended = up(0, 'a').restarted(2, 2).exited(137, 1, 0).by(StopCause::Unhealthy);
    let plan = pool(&fields).with([ended, up(1, 'a')]).planned();
    assert!(plan.contains("wait to restart demo/web/0"), "{plan}");
}

#[test]
fn a_failed_call_is_tried_again_in_its_slot_and_not_in_another_one() {
    pool(POOL).failed(0, 'a', 1, 0, true).expect(
        "launch web/1 a0: pool has 0 of 2 free members
         wait to try demo/web/0 (aaaaaaaa, attempt 0) again until 2026-01-01T12:00:01Z: failed once: no space left
         look again at 2026-01-01T12:00:01Z",
    );
}

#[test]
fn nothing_is_made_on_a_runtime_that_does_not_answer() {
    with([up(0, 'a')]).unreachable(RuntimeKind::Docker).expect("wait for docker to answer: connection refused");
}

fn member() -> impl Strategy<Value = (Instance, Option<MemberUse>)> {
    let phase = prop_oneof![
        6 => Just(Phase::Running { since: ago(5), ready: true }),
        1 => Just(Phase::Running { since: ago(5), ready: false }),
        1 => Just(Phase::Created),
        1 => Just(Phase::Pending),
        1 => Just(Phase::Stopping),
        1 => Just(Phase::Paused { since: ago(5) }),
        1 => Just(Phase::Unknown { message: "restarting".into() }),
        2 => Just(up(0, 'a').exited(1, 2, 3).phase),
    ];
    let used = prop_oneof![
        4 => Just(None),
        2 => Just(Some(MemberUse::Claimed)),
        1 => Just(Some(MemberUse::Suspended)),
        1 => Just(Some(MemberUse::Spent)),
        1 => Just(Some(MemberUse::Visited)),
    ];
    (0_u32..9, 0_u32..3, prop::sample::select(vec!['a', 'a', 'a', 'b']), phase, used, 0_i64..700).prop_map(
        |(slot, attempt, letter, phase, used, age)| {
            let member = up(slot, letter).attempt(attempt).phase(phase);
            (member.change(|member| member.created_at = ago(age)), used)
        },
    )
}

prop_compose! {
    fn any_pool()(
        max_total in 0_u32..9,
        (warm, min) in (0_u32..9, 0_u32..9),
        members in prop::collection::vec(member(), 0..12),
        waiting in 0_u32..5,
        fresh in prop::collection::vec(0_i64..60, 0..3),
        since in proptest::option::of(0_i64..700),
    ) -> Snapshot {
        let max_warm = warm.min(max_total);
        let min_warm = min.min(max_warm);
        let fields =
            format!("pool: {{min_warm: {min_warm}, max_warm: {max_warm}, max_total: {max_total}, warm_ttl: 10m}}");
        let mut snapshot = Snapshot::declared().service("web", 'a', min_warm, &fields);
        let mut members = members;
        members.sort_by(|one, other| one.0.id.cmp(&other.0.id));
        members.dedup_by(|one, other| one.0.id == other.0.id);
        for (member, used) in members {
            if let Some(used) = used {
                let key = (member.runtime, member.runtime_id.clone());
                snapshot.record().members.insert(key, used);
            }
            snapshot.observed.push(member);
        }
        let record = snapshot.record();
        record.fresh = fresh.iter().map(|seconds| now() - TimeDelta::seconds(*seconds)).collect();
        record.fresh.sort();
        record.waiting = waiting + record.fresh.len() as u32;
        record.since = since.map(ago);
        snapshot
    }
}

proptest! {
    /// Every plan passes the checker, whatever there is and whoever waits; see [`Snapshot::plan`].
    #[test]
    fn no_plan_of_a_pool_breaks_its_bounds(snapshot in any_pool()) {
        snapshot.plan();
    }

    /// Carried out in any order, with calls that fail, the pool stays within its bounds and comes to rest.
    #[test]
    fn a_pool_comes_to_rest(snapshot in any_pool(), choices in prop::collection::vec((any::<usize>(), 0_u32..10), 0..60)) {
        let mut world = World::new(snapshot);
        // Nobody waits for ever.
        world.snapshot.record().waiting = 0;
        world.snapshot.record().fresh.clear();
        for (choice, what) in choices {
            world.turn();
            match what {
                0 => world.fail(choice),
                1 => world.restart_controller(),
                _ => world.advance(choice),
            }
        }
    }
}
