//! Programs while they run.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::machine::Machine;
use super::program::Statement;
use super::world::World;
use crate::runtime::io::OutputStream;
use crate::state::{Exit, HealthState};

/// Codes of random crashes: a plain failure, a kill, a segmentation fault.
const CRASH_CODES: [i32; 3] = [1, 137, 139];

/// Sets the program of a run going, and its crash if one is drawn. Nothing is kept going for a program that does
/// nothing.
pub(super) fn begin(world: &Arc<World>, machine: &mut Machine, runtime_id: &str, run: u64) {
    let Machine { rng, faults, entries, .. } = machine;
    let Some(entry) = entries.get(runtime_id) else { return };
    if !entry.program.statements.is_empty() {
        let (world, statements) = (Arc::downgrade(world), entry.program.statements.clone());
        tokio::spawn(play(world, runtime_id.to_owned(), run, statements));
    }
    if rng.chance(faults.crash) {
        let after = rng.duration(faults.crash_within);
        let code = CRASH_CODES.get(rng.below(3) as usize).copied().unwrap_or(1);
        end_later(world, runtime_id, run, after, code);
    }
}

/// Ends a run with this code after this time, unless it is over by then.
pub(super) fn end_later(world: &Arc<World>, runtime_id: &str, run: u64, after: Duration, code: i32) {
    let (world, runtime_id) = (Arc::downgrade(world), runtime_id.to_owned());
    tokio::spawn(async move {
        tokio::time::sleep(after).await;
        if let Some(world) = world.upgrade() {
            world.end(&runtime_id, run, Exit::from_code(code, None, world.now()));
        }
    });
}

/// Plays the statements of a run until one ends it, or until it is over.
async fn play(world: Weak<World>, runtime_id: String, run: u64, statements: Vec<Statement>) {
    for statement in statements {
        if let Statement::Wait(length) = statement {
            tokio::time::sleep(length).await;
            continue;
        }
        let Some(world) = world.upgrade() else { return };
        if !step(&world, &runtime_id, run, statement) {
            return;
        }
    }
}

/// Plays one statement that takes no time; false where the run is over.
fn step(world: &World, runtime_id: &str, run: u64, statement: Statement) -> bool {
    let now = world.now();
    let mut machine = world.machine();
    let Some(entry) = machine.entries.get_mut(runtime_id).filter(|entry| entry.run == run && entry.is_running()) else {
        return false;
    };
    match statement {
        Statement::Print(text) => entry.write(now, OutputStream::Stdout, text.as_bytes()),
        Statement::Bytes(bytes) => entry.write(now, OutputStream::Stdout, &bytes),
        Statement::Warn(text) => entry.write(now, OutputStream::Stderr, text.as_bytes()),
        Statement::Env(name) => {
            let value = entry.env.get(&name).cloned().unwrap_or_default();
            entry.write(now, OutputStream::Stdout, value.as_bytes());
        }
        Statement::Ready => {
            if let Some(instance) = machine.judge(runtime_id, run, HealthState::Healthy, now) {
                world.changed(&mut machine, instance);
            }
        }
        Statement::Exit(code) => {
            drop(machine);
            return !world.end(runtime_id, run, Exit::from_code(code, None, now));
        }
        Statement::OutOfMemory => {
            drop(machine);
            return !world.end(runtime_id, run, Exit::from_code(137, None, now).out_of_memory());
        }
        Statement::Requests(_)
        | Statement::Cat
        | Statement::Ignore
        | Statement::Missing
        | Statement::Unexecutable
        | Statement::Wait(_) => {}
    }
    world.tick();
    true
}
