//! What 1,000 health checks a second cost: TCP checks of 1,000 instances, each every second, against a listener in a
//! process of its own.
//!
//!     cargo bench --bench health

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use evenkeel::clock::SystemClock;
use evenkeel::probe::{Prober, Subject};
use evenkeel::runtime::{
    Capabilities, CreateRequest, Dial, Dialed, ErrorKind, Listing, Progress, Result, Runtime, RuntimeError,
    RuntimeEvent, StopRequest, Volumes,
};
use evenkeel::spec::{Image, RuntimeKind, ServiceSpec};
use evenkeel::state::{HealthState, Instance, InstanceId, InstanceRef};
use futures::stream::BoxStream;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

const INSTANCES: u32 = 1_000;
const LENGTH: Duration = Duration::from_secs(20);
/// Most of one processor that they may take, in percent.
const MOST: f64 = 5.0;

/// A runtime whose instances are all behind one port of this machine.
struct Here {
    port: u16,
    dials: AtomicU64,
}

#[async_trait]
impl Dial for Here {
    async fn dial(&self, _: &InstanceRef, _: u16) -> Result<Dialed> {
        self.dials.fetch_add(1, Ordering::Relaxed);
        let connected = TcpStream::connect(("127.0.0.1", self.port)).await;
        connected.map(Dialed::direct).map_err(|error| RuntimeError::new(ErrorKind::Failed, error.to_string()))
    }
}

#[async_trait]
impl Runtime for Here {
    fn kind(&self) -> RuntimeKind {
        RuntimeKind::Sim
    }

    fn dial(&self) -> Option<&dyn Dial> {
        Some(self)
    }

    async fn capabilities(&self) -> Result<Capabilities> {
        unreachable!("only dialled")
    }

    async fn list(&self) -> Result<Listing> {
        unreachable!("only dialled")
    }

    async fn events(&self) -> Result<BoxStream<'static, RuntimeEvent>> {
        unreachable!("only dialled")
    }

    async fn ensure_image(&self, _: &Image, _: &(dyn Fn(Progress) + Send + Sync)) -> Result<()> {
        unreachable!("only dialled")
    }

    async fn create(&self, _: &CreateRequest) -> Result<Instance> {
        unreachable!("only dialled")
    }

    async fn start(&self, _: &InstanceRef) -> Result<Instance> {
        unreachable!("only dialled")
    }

    async fn stop(&self, _: &InstanceRef, _: &StopRequest) -> Result<Option<Instance>> {
        unreachable!("only dialled")
    }

    async fn remove(&self, _: &InstanceRef) -> Result<()> {
        unreachable!("only dialled")
    }

    async fn teardown(&self, _: &str, _: Volumes) -> Result<()> {
        unreachable!("only dialled")
    }

    async fn has_volumes(&self, _: &str) -> Result<bool> {
        unreachable!("only dialled")
    }

    fn concurrency(&self) -> usize {
        1
    }
}

/// CPU time of this process so far.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime");
    Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
}

/// Takes connections until nobody reads the port any more.
fn listen() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    println!("{}", listener.local_addr().expect("an address").port());
    listener.incoming().for_each(drop);
}

fn subjects(runtime: &Arc<Here>) -> Vec<Subject> {
    let text = "image: {name: sim/run}\nhealth: {interval: 1s, check: {type: tcp, port: 80}}\n";
    let spec: Arc<ServiceSpec> = Arc::new(serde_yaml::from_str(text).expect("a spec"));
    let subject = |slot| {
        let revision = "v1-0123456789abcdef".parse().expect("a revision");
        let id =
            InstanceId { deployment: "bench".into(), service: "web".into(), slot, revision, attempt: 0, run: None };
        let instance = InstanceRef { runtime: RuntimeKind::Sim, runtime_id: id.runtime_name(), id };
        let since = chrono::Utc::now() - chrono::TimeDelta::minutes(1);
        Subject { instance, since, spec: spec.clone(), runtime: runtime.clone(), served: false }
    };
    (0..INSTANCES).map(subject).collect()
}

#[tokio::main]
async fn main() {
    if std::env::args().any(|argument| argument == "--listen") {
        return listen();
    }
    let program = std::env::current_exe().expect("this program");
    let mut listener = Command::new(program).arg("--listen").stdout(Stdio::piped()).spawn().expect("a listener");
    let mut line = String::new();
    BufReader::new(listener.stdout.take().expect("its output")).read_line(&mut line).expect("its port");
    let runtime = Arc::new(Here { port: line.trim().parse().expect("a port"), dials: AtomicU64::new(0) });
    let (tell, mut verdicts) = mpsc::channel(INSTANCES as usize);
    let prober = Prober::start(Arc::new(SystemClock), tell);
    prober.check("bench", subjects(&runtime));
    for _ in 0..INSTANCES {
        assert_eq!(verdicts.recv().await.expect("a verdict").health, HealthState::Healthy);
    }
    let (began, before, checks) = (Instant::now(), cpu(), runtime.dials.load(Ordering::Relaxed));
    tokio::time::sleep(LENGTH).await;
    let rate = (runtime.dials.load(Ordering::Relaxed) - checks) as f64 / began.elapsed().as_secs_f64();
    let share = (cpu() - before).as_secs_f64() / began.elapsed().as_secs_f64() * 100.0;
    println!("{rate:.0} TCP checks a second: {share:.1} % of a core, at most {MOST} % for 1,000");
    listener.kill().expect("it ends");
    listener.wait().expect("it ended");
    assert!(share * 1_000.0 / rate <= MOST, "too much");
}
