//! Pools and sessions on a simulated machine in virtual time: clients claim, use and give back sandboxes in any order, while
//! members crash, templates change and the controller is killed; a checker looks at everything that was handed out.
//!
//! One seed is one story. A failure prints the seed and the story; `KEEL_SESSIONS_SEED=42 cargo test --test sessions one_seed`
//! tells it again, and `KEEL_SESSIONS_SEEDS=10000` plays more stories than usual.

mod check;
mod freezing;
mod limits;
mod stage;
mod story;

use std::sync::mpsc;
use std::time::Duration;

/// Stories told by each of the four tests below, of 25 events each.
const SEEDS_PER_TEST: u64 = 500;

/// Longest real time for one story, which takes some milliseconds: beyond that something spins without waiting.
const STUCK: Duration = Duration::from_secs(120);

fn tell(seed: u64) -> stage::Trace {
    let trace = stage::Trace::default();
    let (done, outcome) = mpsc::channel();
    let story = story::tell(seed, trace.clone());
    let teller = std::thread::spawn(move || {
        // Nobody listens any more where the story took too long.
        let _ = done.send(stage::in_virtual_time(story));
    });
    let problem = match outcome.recv_timeout(STUCK) {
        Ok(Ok(())) => return trace,
        Ok(Err(problem)) => problem,
        Err(mpsc::RecvTimeoutError::Timeout) => format!("virtual time stood still for {STUCK:?}: something spins"),
        Err(mpsc::RecvTimeoutError::Disconnected) => format!("it panicked: {:?}", teller.join().err()),
    };
    panic!(
        "{}\n\nseed {seed}: {problem}\nagain: KEEL_SESSIONS_SEED={seed} cargo test --test sessions one_seed -- --nocapture",
        trace.lines().join("\n"),
    );
}

fn tell_all(part: u64) {
    let more = std::env::var("KEEL_SESSIONS_SEEDS").ok().and_then(|count| count.parse::<u64>().ok());
    let count = more.map_or(SEEDS_PER_TEST, |count| count.div_ceil(4));
    let counts = (part * count..(part + 1) * count).map(|seed| tell(seed).counts());
    let told = counts.fold([0; 6], |all, one| std::array::from_fn(|place| all[place] + one[place]));
    // Stories in which nothing happens prove nothing.
    assert!(told.iter().all(|count| *count > 0), "of {:?}: {told:?}", stage::COUNTED);
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

/// Tells the story that `KEEL_SESSIONS_SEED` names, aloud.
#[test]
fn one_seed() {
    let seed = std::env::var("KEEL_SESSIONS_SEED").ok().and_then(|seed| seed.parse().ok());
    let lines = tell(seed.unwrap_or(0)).lines();
    if seed.is_some() {
        println!("{}", lines.join("\n"));
    }
}
