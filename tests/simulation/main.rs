//! The whole controller on a simulated machine in virtual time: random edits of the specs, faults of the runtime,
//! crashes of instances and of the controller, and a checker that looks at everything that happened.
//!
//! One seed is one story. A failure prints the seed, the story and the command that tells it again:
//! `KEEL_SIM_SEED=42 cargo test --test simulation one_seed`. `KEEL_SIM_SEEDS=100000` plays more stories than usual.

mod check;
mod crash;
mod jobs;
mod ledger;
mod lives;
mod orphans;
mod shop;
mod stage;
mod stops;
mod story;

use std::sync::mpsc;
use std::time::Duration;

/// Stories told by each of the tests below; all of them together are at least 1,000 seeds.
const SEEDS_PER_TEST: u64 = 300;

/// Stories of which some end with a rollback; about one in ten does.
const ENOUGH: u64 = 100;

/// Longest real time for one story, which takes some milliseconds: beyond that something spins without waiting.
const STUCK: Duration = Duration::from_secs(120);

/// Tells the story of a seed in a thread and a runtime of its own, and panics with what it takes to tell it again.
fn tell(seed: u64) -> Vec<String> {
    let trace = stage::Trace::default();
    let (done, outcome) = mpsc::channel();
    let story = story::tell(seed, trace.clone());
    let teller = std::thread::spawn(move || {
        // Nobody listens any more where the story took too long.
        let _ = done.send(stage::in_virtual_time(story));
    });
    let problem = match outcome.recv_timeout(STUCK) {
        Ok(Ok(())) => return trace.lines(),
        Ok(Err(problem)) => problem,
        Err(mpsc::RecvTimeoutError::Timeout) => format!("virtual time stood still for {STUCK:?}: something spins"),
        Err(mpsc::RecvTimeoutError::Disconnected) => format!("it panicked: {}", words(teller.join())),
    };
    panic!(
        "{}\n\nseed {seed}: {problem}\nagain: KEEL_SIM_SEED={seed} cargo test --test simulation one_seed -- --nocapture",
        trace.lines().join("\n"),
    );
}

/// What a thread said when it panicked.
fn words(outcome: std::thread::Result<()>) -> String {
    let Err(panic) = outcome else { return "without a word".to_owned() };
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a word").to_owned()
}

fn tell_all(part: u64) {
    let more = std::env::var("KEEL_SIM_SEEDS").ok().and_then(|count| count.parse::<u64>().ok());
    let count = more.map_or(SEEDS_PER_TEST, |count| count.div_ceil(4));
    let seeds = part * count..(part + 1) * count;
    let back = seeds.filter(|seed| tell(*seed).iter().any(|line| line.ends_with(check::ROLLED_BACK))).count();
    assert!(back > 0 || count < ENOUGH, "none of {count} stories ends with a rollback");
}

#[test]
fn first_quarter_of_seeds() {
    tell_all(0);
}

#[test]
fn second_quarter_of_seeds() {
    tell_all(1);
}

#[test]
fn third_quarter_of_seeds() {
    tell_all(2);
}

#[test]
fn last_quarter_of_seeds() {
    tell_all(3);
}

/// Tells the story that `KEEL_SIM_SEED` names, aloud.
#[test]
fn one_seed() {
    let seed = std::env::var("KEEL_SIM_SEED").ok().and_then(|seed| seed.parse().ok());
    let lines = tell(seed.unwrap_or(0));
    if seed.is_some() {
        println!("{}", lines.join("\n"));
    }
}

#[test]
fn seed_names_the_story() {
    for seed in [3, 17, 40] {
        assert_eq!(tell(seed), tell(seed));
    }
}
