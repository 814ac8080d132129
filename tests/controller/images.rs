//! Tags that move: what is behind them is rolled out, pinned, and rolled back as any change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use evenkeel::controller::{Command, Connected, Core, IMAGE_EVERY, Keeper, Kept, Message, Note, NoteKey, Order, Parts};
use evenkeel::plan::revisions::{Memory, RolloutHistory};
use evenkeel::runtime::sim::Faults;
use evenkeel::state::{ConditionStatus, Phase, Target};
use evenkeel::status::{DeploymentState, Status};
use tokio::sync::oneshot;

use super::rollouts::order;
use super::{Rig, core_of, owner};

const TAG: &str = "docker.io/sim/run:1";
/// Another program that runs on and on.
const NEXT: &str = "docker.io/sim/run:2";
/// One that ends soon after its start.
const BROKEN: &str = "docker.io/sim/crash:10ms";

fn web(policy: &str, fields: &str) -> String {
    format!(
        "version: v1\ndeployment: demo\nservices:\n  web:\n    image: {{name: 'sim/run:1', pull_policy: {policy}}}\n    \
         scale: {{mode: fixed, replicas: 3}}\n{fields}"
    )
}

/// The images of all that runs.
fn images(rig: &Rig) -> BTreeSet<String> {
    rig.world.images().into_values().collect()
}

/// Those of what has not ended.
fn live_images(rig: &Rig) -> BTreeSet<String> {
    let live = rig.world.instances().into_iter().filter(|(_, one)| !matches!(one.phase, Phase::Exited(_)));
    let images = rig.world.images();
    live.filter_map(|(_, one)| images.get(&one.runtime_id).cloned()).collect()
}

fn pinned(digest: &str) -> BTreeSet<String> {
    [format!("docker.io/sim/run@{digest}")].into()
}

fn is_done(status: &Status) -> bool {
    status.deployments.iter().any(|view| view.state == DeploymentState::Running)
        && status.services[0].updated == 3
        && status.instances.len() == 3
}

fn ids(status: &Status) -> Vec<String> {
    status.instances.iter().map(|one| one.runtime_id.clone()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_tag_that_moved_is_rolled_out_within_minutes_and_all_replicas_run_one_digest() {
    for policy in ["newer", "always"] {
        let rig = Rig::new();
        let first = rig.world.push_image(TAG, TAG);
        rig.declare(&web(policy, ""));
        let before = rig.until("it runs", is_done).await;
        assert_eq!(images(&rig), pinned(&first), "{policy}");
        tokio::time::sleep(IMAGE_EVERY * 3).await;
        assert_eq!(ids(&rig.core.status.borrow()), ids(&before), "nothing moved");
        let next = rig.world.push_image(TAG, NEXT);
        tokio::time::sleep(IMAGE_EVERY * 2).await;
        let status = rig.until("it is rolled out", is_done).await;
        assert_eq!(images(&rig), pinned(&next), "{policy}");
        assert_ne!(status.services[0].revision, before.services[0].revision);
        // Back to what was there first is back to the first revision.
        rig.world.push_image(TAG, TAG);
        tokio::time::sleep(IMAGE_EVERY * 2).await;
        let status = rig.until("it is rolled out", is_done).await;
        assert_eq!((images(&rig), &status.services[0].revision), (pinned(&first), &before.services[0].revision));
    }
}

#[tokio::test(start_paused = true)]
async fn a_tag_that_is_not_followed_may_move() {
    for policy in ["if_not_present", "never"] {
        let rig = Rig::new();
        rig.declare(&web(policy, ""));
        let before = rig.until("it runs", is_done).await;
        rig.world.push_image(TAG, NEXT);
        tokio::time::sleep(IMAGE_EVERY * 3).await;
        assert_eq!(ids(&rig.core.status.borrow()), ids(&before), "{policy}");
        assert_eq!(images(&rig), [TAG.to_owned()].into());
    }
}

#[tokio::test(start_paused = true)]
async fn a_digest_that_does_not_run_is_rolled_back_and_left_alone_until_the_next_one() {
    let rig = Rig::new();
    let first = rig.world.push_image(TAG, TAG);
    rig.declare(&web("newer", ""));
    rig.until("it runs", is_done).await;
    rig.world.push_image(TAG, BROKEN);
    let back = |status: &Status| {
        let conditions = &status.services[0].conditions;
        conditions.iter().any(|one| one.kind == "RolledBack" && one.reason == "Crashing")
            && status.instances.iter().filter(|one| one.exit.is_none()).count() == 3
    };
    let least = Arc::new(std::sync::Mutex::new(3));
    let seen = least.clone();
    rig.until("it is rolled back", move |status| {
        let mut least = seen.lock().expect("a number");
        *least = status.services[0].ready.min(*least);
        back(status)
    })
    .await;
    assert_eq!((*least.lock().expect("a number"), live_images(&rig)), (3, pinned(&first)), "old replicas serve");
    tokio::time::sleep(IMAGE_EVERY * 3).await;
    rig.until("it stays so", back).await;
    let mended = rig.world.push_image(TAG, NEXT);
    tokio::time::sleep(IMAGE_EVERY * 2).await;
    rig.until("the next one is rolled out", is_done).await;
    assert_eq!(images(&rig), pinned(&mended));
}

#[tokio::test(start_paused = true)]
async fn a_restart_asks_for_the_tag_at_once() {
    let rig = Rig::new();
    rig.world.push_image(TAG, TAG);
    rig.declare(&web("always", ""));
    rig.until("it runs", is_done).await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    let next = rig.world.push_image(TAG, NEXT);
    let began = tokio::time::Instant::now();
    let (reply, answer) = oneshot::channel();
    let order = Order::Restart { target: "demo".to_owned() };
    rig.core.messages.send(Message::Command(Command::Order(order, reply))).await.expect("the core runs");
    assert!(answer.await.expect("an answer").is_ok());
    let rolled = pinned(&next);
    rig.until("it is rolled out", |status| is_done(status) && images(&rig) == rolled).await;
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert_eq!(revisions(&rig).await, 2, "the restart and what is found are one change");
}

/// How many revisions there are of the service.
async fn revisions(rig: &Rig) -> usize {
    let target = Target { deployment: "demo".to_owned(), service: None, slot: None };
    let (reply, answer) = oneshot::channel();
    rig.core.messages.send(Message::Command(Command::Rollouts(target, reply))).await.expect("the core runs");
    answer.await.expect("an answer").expect("it is declared")[0].revisions.len()
}

/// Says that the deployment is to run as declared, as an apply does.
async fn want(core: &Core) {
    let (reply, answer) = oneshot::channel();
    let want = Command::Want(["demo".to_owned()].into(), reply);
    core.messages.send(Message::Command(want)).await.expect("the core runs");
    answer.await.expect("an answer");
}

/// Whether a condition of the service holds, and why.
fn of(status: &Status, kind: &str) -> Option<(bool, String)> {
    let found = status.services.first()?.conditions.iter().find(|one| one.kind == kind);
    found.map(|one| (one.status == ConditionStatus::True, one.reason.clone()))
}

fn is_asked_for(status: &Status) -> bool {
    of(status, "Progressing") == Some((true, "ImageAsked".to_owned()))
}

#[tokio::test(start_paused = true)]
async fn what_was_rolled_back_is_on_its_way_while_an_apply_asks_for_its_tag() {
    let rig = Rig::new();
    rig.world.push_image(TAG, TAG);
    rig.declare(&web("newer", ""));
    rig.until("it runs", is_done).await;
    rig.world.push_image(TAG, BROKEN);
    let crashing = |is| Some((is, "Crashing".to_owned()));
    rig.until("it is rolled back", |status| {
        of(status, "RolledBack") == crashing(true) && of(status, "Progressing") == crashing(false)
    })
    .await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let mended = rig.world.push_image(TAG, NEXT);
    want(&rig.core).await;
    rig.until("it is asked for", is_asked_for).await;
    let began = tokio::time::Instant::now();
    let rolled = pinned(&mended);
    rig.until("the next one is rolled out", |status| is_done(status) && images(&rig) == rolled).await;
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_apply_by_a_process_that_knows_the_image_asks_for_its_tag_all_the_same() {
    let mut rig = Rig::new();
    let first = rig.world.push_image(TAG, TAG);
    rig.declare(&web("newer", ""));
    rig.until("it runs", is_done).await;
    let mut history = RolloutHistory::default();
    let declared = rig.declare.borrow().desired.deployments["demo"].services["web"].clone();
    history.learn_image(&declared, &first, &[]);
    let memory = Memory { rollouts: [("web".to_owned(), history)].into(), ..Memory::default() };
    let next = rig.world.push_image(TAG, NEXT);
    // The answer takes longer than the picture of what runs.
    rig.world.set_faults(Faults { latency: Duration::from_secs(4), ..Faults::none() });
    rig.core = Core::start(Parts { memory: [("demo".to_owned(), memory)].into(), ..rig.parts() });
    want(&rig.core).await;
    rig.until("nobody is told that it runs before the answer", is_asked_for).await;
    rig.world.set_faults(Faults::none());
    let began = tokio::time::Instant::now();
    let rolled = pinned(&next);
    rig.until("it is rolled out", |status| is_done(status) && images(&rig) == rolled).await;
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_does_not_answer_holds_nothing_up_for_long() {
    let rig = Rig::new();
    // Every call fails, that for the tag among them.
    rig.world.set_faults(Faults { fails: 1.0, ..Faults::none() });
    rig.declare(&web("newer", ""));
    tokio::time::sleep(Duration::from_secs(5)).await;
    rig.world.set_faults(Faults::none());
    let began = tokio::time::Instant::now();
    rig.until("it runs", is_done).await;
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_next_controller_knows_what_runs_though_nothing_is_remembered() {
    let mut rig = Rig::new();
    rig.world.push_image(TAG, TAG);
    rig.declare(&web("newer", ""));
    rig.until("it runs", is_done).await;
    rig.world.push_image(TAG, NEXT);
    tokio::time::sleep(IMAGE_EVERY * 2).await;
    let before = rig.until("it is rolled out", is_done).await;
    let runtime = Arc::new(Connected(Arc::new(rig.world.runtime(owner()))));
    (rig.core, rig.settled) = core_of(runtime, rig.declare.subscribe(), rig.clock.clone(), BTreeMap::new());
    rig.until("it is known", is_done).await;
    tokio::time::sleep(IMAGE_EVERY * 2).await;
    let after = rig.until("it runs on", is_done).await;
    assert_eq!(ids(&after), ids(&before));
}

#[tokio::test(start_paused = true)]
async fn images_that_a_rollback_may_need_are_told_to_the_runtime() {
    let rig = Rig::new();
    let (first, next) = (rig.world.push_image(TAG, TAG), rig.world.push_image(TAG, NEXT));
    rig.world.push_image(TAG, TAG);
    rig.declare(&web("newer", ""));
    rig.until("it runs", is_done).await;
    rig.world.push_image(TAG, NEXT);
    tokio::time::sleep(IMAGE_EVERY * 2).await;
    rig.until("it is rolled out", is_done).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(rig.world.needed_images(), pinned(&first).union(&pinned(&next)).cloned().collect());
}

/// How many instances have not ended.
fn live(rig: &Rig) -> usize {
    rig.world.instances().into_iter().filter(|(_, one)| !matches!(one.phase, Phase::Exited(_))).count()
}

#[tokio::test(start_paused = true)]
async fn a_tag_that_moved_starts_nothing_that_was_stopped_by_hand() {
    for (target, left) in [("demo/web", 0), ("demo/web/2", 2)] {
        let rig = Rig::new();
        rig.world.push_image(TAG, TAG);
        rig.declare(&web("newer", ""));
        rig.until("it runs", is_done).await;
        order(&rig, Order::Stop { target: target.to_owned() }).await;
        let is_down = |status: &Status| status.instances.iter().filter(|one| one.exit.is_none()).count() == left;
        rig.until("it is stopped", is_down).await;
        let mut digest = String::new();
        for image in [NEXT, TAG, NEXT] {
            digest = rig.world.push_image(TAG, image);
            want(&rig.core).await;
            tokio::time::sleep(IMAGE_EVERY).await;
            let images = if left == 0 { BTreeSet::new() } else { pinned(&digest) };
            assert_eq!((live(&rig), live_images(&rig)), (left, images), "{target}: {image}");
        }
        order(&rig, Order::Start { target: target.to_owned() }).await;
        rig.until("all of it runs", |_| live(&rig) == 3).await;
        assert_eq!(live_images(&rig), pinned(&digest));
        // Another template is another matter.
        order(&rig, Order::Stop { target: target.to_owned() }).await;
        rig.until("it is stopped again", is_down).await;
        rig.declare(&web("newer", "    env: {GREETING: two}\n"));
        rig.until("it runs again", |_| live(&rig) == 3).await;
    }
}

/// Keeps of which keys there were notes, those that are written together in one.
#[derive(Default)]
struct Batches(Mutex<Vec<Vec<NoteKey>>>);

impl Keeper for Batches {
    fn keep(&self, key: NoteKey, _: Note, _: Option<Kept>) {
        self.0.lock().expect("notes").push(vec![key]);
    }

    fn keep_together(&self, notes: Vec<(NoteKey, Note)>) {
        self.0.lock().expect("notes").push(notes.into_iter().map(|(key, _)| key).collect());
    }
}

#[tokio::test(start_paused = true)]
async fn where_a_tag_leads_is_written_together_with_the_stop_that_follows_it() {
    let mut rig = Rig::new();
    let notes = Arc::new(Batches::default());
    rig.core = Core::start(Parts { keeper: Some(notes.clone()), ..rig.parts() });
    rig.world.push_image(TAG, TAG);
    rig.declare(&web("newer", ""));
    rig.until("it runs", is_done).await;
    order(&rig, Order::Stop { target: "demo/web".to_owned() }).await;
    rig.until("it is stopped", |_| live(&rig) == 0).await;
    notes.0.lock().expect("notes").clear();
    rig.world.push_image(TAG, NEXT);
    want(&rig.core).await;
    tokio::time::sleep(IMAGE_EVERY).await;
    let key = |service: Option<&str>| ("demo".to_owned(), service.map(str::to_owned));
    let batches = notes.0.lock().expect("notes");
    assert_eq!(batches.first(), Some(&vec![key(Some("web")), key(None)]));
    assert!(!batches.contains(&vec![key(None)]), "{batches:?}");
}

#[tokio::test(start_paused = true)]
async fn time_in_which_a_registry_is_asked_does_not_count_for_a_rollout() {
    let rig = Rig::new();
    rig.world.push_image(TAG, TAG);
    rig.declare(&web("newer", "    rollout: {max_surge: 3, progress_deadline: 35s}\n"));
    rig.until("it runs", is_done).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let next = rig.world.push_image(TAG, "docker.io/sim/slow:50s");
    want(&rig.core).await;
    rig.until("it is being rolled out", |_| live(&rig) == 6).await;
    let began = tokio::time::Instant::now();
    tokio::time::sleep(Duration::from_secs(10)).await;
    // There is no answer as long as one is waited for.
    let day = Duration::from_secs(24 * 3600);
    rig.world.set_faults(Faults { slow: 1.0, slow_for: day, ..Faults::none() });
    want(&rig.core).await;
    rig.until("it is asked for", is_asked_for).await;
    rig.world.set_faults(Faults::none());
    let rolled = pinned(&next);
    rig.until("it is rolled out", |status| is_done(status) && live_images(&rig) == rolled).await;
    assert!((50..60).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}
