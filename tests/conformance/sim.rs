//! The simulated runtime.

use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use evenkeel::clock::VirtualClock;
use evenkeel::runtime::Runtime;
use evenkeel::runtime::sim::{Faults, World};
use evenkeel::spec::Image;
use evenkeel::state::Owner;

use crate::harness::{Abilities, BYTES, Harness, Inside, Program};

struct Sim(Arc<World>);

fn image(name: &str) -> Image {
    Image { name: name.parse().expect("an image"), pull_policy: None }
}

fn words(statements: &[&str]) -> Vec<String> {
    ["sim"].iter().chain(statements).map(|&word| word.to_owned()).collect()
}

#[async_trait]
impl Harness for Sim {
    const NAME: &'static str = "sim";

    async fn open() -> Result<Self, String> {
        let start = "2026-01-01T00:00:00Z".parse().expect("a time");
        Ok(Self(World::new(Arc::new(VirtualClock::starting_at(start)), 1, Faults::none())))
    }

    async fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(self.0.runtime(Owner("first".to_owned())))
    }

    async fn stranger(&self) -> Arc<dyn Runtime> {
        Arc::new(self.0.runtime(Owner("second".to_owned())))
    }

    fn image(&self) -> Image {
        image("sim/run")
    }

    fn missing_image(&self) -> Image {
        image("sim/missing")
    }

    fn unsupported_image(&self) -> Option<Image> {
        None
    }

    fn abilities(&self) -> Abilities {
        Abilities { shared_networks: true, names_per_owner: false, tells_memory_kills: true, keeps_bytes: true }
    }

    fn command(&self, program: &Program) -> Vec<String> {
        match program {
            Program::Polite => words(&["print armed"]),
            Program::Stubborn => words(&["ignore", "print armed"]),
            Program::Exit(code) => words(&[&format!("exit {code}")]),
            Program::Killed => words(&["signal KILL"]),
            Program::Prints => words(&["print out 1", "warn err 1", "print out 2", "exit 0"]),
            Program::PrintsSlowly => words(&["print first", "wait 1s", "print second", "exit 0"]),
            Program::PrintsEnv(name) => words(&[&format!("env {name}"), "exit 0"]),
            Program::PrintsLong(length) => words(&[&format!("print {}", "x".repeat(*length)), "print next", "exit 0"]),
            Program::PrintsBytes => words(&[&format!("base64 {}", STANDARD.encode(BYTES)), "exit 0"]),
            Program::EatsMemory => words(&["wait 10ms", "oom"]),
            Program::Ticks => words(&["print armed"]),
            Program::Serves => words(&["print armed"]),
            Program::Silent => words(&["wait 10m", "ready"]),
            Program::Missing => words(&["missing"]),
        }
    }

    fn inside(&self, what: &Inside) -> Vec<String> {
        match what {
            Inside::Prints(code) => words(&["print out", "warn err", &format!("exit {code}")]),
            Inside::Copies => words(&["cat"]),
            Inside::PrintsEnv(name) => words(&[&format!("env {name}")]),
            Inside::Missing => words(&["missing"]),
            Inside::Unexecutable => words(&["unexecutable"]),
        }
    }
}

conformance!(Sim, tokio::test(start_paused = true));
