//! The whole controller at 10,000 instances in 100 deployments, on the sim runtime: time to converge, memory, and what
//! it costs while nothing changes.
//!
//!     cargo bench --bench controller

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use evenkeel::clock::SystemClock;
use evenkeel::controller::{Connected, Core, Declared, Jobs, Parts, Scope, desired};
use evenkeel::runtime::sim::{Faults, World};
use evenkeel::spec::{RuntimeKind, merge, parse};
use evenkeel::state::{Desired, Owner};
use evenkeel::status::{DeploymentState, Status};
use tokio::sync::{mpsc, watch};

const DEPLOYMENTS: usize = 100;
const REPLICAS: u32 = 100;
const QUIET: Duration = Duration::from_secs(20);

fn declared(deployments: usize, replicas: u32) -> Declared {
    let files: Vec<_> = (0..deployments)
        .map(|number| {
            let text = format!(
                "version: v1\ndeployment: d{number}\nservices:\n  web:\n    image: {{name: sim/run}}\n    \
                 scale: {{mode: fixed, replicas: {replicas}}}\n"
            );
            (PathBuf::from(format!("/specs/{number}.yaml")), parse(&text))
        })
        .collect();
    let merged = merge(&files);
    assert_eq!(merged.problems, []);
    let deployments =
        merged.deployments.values().map(|one| (one.name.clone(), desired(one, RuntimeKind::Sim))).collect();
    Declared { synced: true, desired: Desired { deployments }, ..Declared::default() }
}

/// Resident memory of this process, in bytes, from /proc/self/statm.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("a number");
    pages * rustix::param::page_size() as u64
}

/// CPU time of this process so far.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime");
    Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

async fn scene(deployments: usize, replicas: u32) {
    let world = World::new(Arc::new(SystemClock), 0, Faults::none());
    let (declare, receiver) = watch::channel(Arc::default());
    let (forget, _forgotten) = mpsc::channel(8);
    let before = resident();
    let core = Core::start(Parts {
        runtimes: vec![Arc::new(Connected(Arc::new(world.runtime(Owner("bench".to_owned())))))],
        default_runtime: RuntimeKind::Sim,
        declared: receiver,
        clock: Arc::new(SystemClock),
        scope: Scope::Everything,
        removing: BTreeMap::new(),
        memory: Default::default(),
        keeper: None,
        jobs: Jobs::default(),
        activity: Default::default(),
        sessions: Default::default(),
        events: None,
        settled: Some(forget),
    });
    let count = deployments * replicas as usize;
    let began = Instant::now();
    declare.send_replace(Arc::new(declared(deployments, replicas)));
    let all = |status: &Status| {
        status.instances.len() == count && status.deployments.iter().all(|one| one.state == DeploymentState::Running)
    };
    core.status.clone().wait_for(|status| all(status)).await.expect("a core");
    let took = began.elapsed();
    println!("{count} instances in {deployments} deployments");
    println!(
        "  converged in {took:.2?}; resident {:.1} MiB, the simulated machine included ({:.1} before)",
        mib(resident()),
        mib(before)
    );
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (calls, cpu_before) = (world.calls(), cpu());
    tokio::time::sleep(QUIET).await;
    let share = (cpu() - cpu_before).as_secs_f64() / QUIET.as_secs_f64() * 100.0;
    println!(
        "  at rest for {} s: {share:.3} % of a core, runtime calls made: {}",
        QUIET.as_secs(),
        world.calls() != calls
    );
}

#[tokio::main]
async fn main() {
    scene(10, 10).await;
    scene(DEPLOYMENTS, REPLICAS).await;
}
