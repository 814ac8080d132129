//! Claims of pool members through the Unix socket of a controller: warm ones one after the other, cold ones beside them, a
//! burst on sandboxes and containers, and 500 a second on the simulated machine, where nothing but the controller itself takes
//! time. Prints the median and the 99th percentile of each.
//!
//!     eval "$(.ci/engines start)" && cargo bench --bench sessions

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use evenkeel::api::Client;
use evenkeel::controller::{AcquireRequest, Acquired, SessionRequest, SessionVerb};
use futures::future::join_all;

/// Where the tests' own engine listens; without it there are no figures of Docker.
const ENGINE: &str = "KEEL_TEST_DOCKER_HOST";

/// Claims one after the other.
const SEQUENTIAL: usize = 100;
/// Warm members of a pool.
const WARM: u32 = 50;
/// Claims in a second.
const RATE: u64 = 500;
/// For how long.
const LENGTH: Duration = Duration::from_secs(4);

/// A controller of its own; everything of it goes with it.
struct Controller {
    child: Child,
    dir: tempfile::TempDir,
}

impl Controller {
    fn start(runtime: &str, image: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir(dir.path().join("specs")).expect("a directory");
        let spec = format!(
            "version: v1\ndeployment: demo\nservices:\n  box:\n    image: {{name: '{image}', pull_policy: never}}\n    \
             command: {{entrypoint: [sleep, '100000']}}\n    stop_grace_period: 1s\n    \
             pool: {{min_warm: {WARM}, max_warm: {WARM}, max_total: 2000}}\n"
        );
        std::fs::write(dir.path().join("specs/demo.yaml"), spec).expect("a spec");
        let mut keel = keel(dir.path(), runtime);
        keel.args(["run", "specs"]).stdout(Stdio::null()).stderr(Stdio::null());
        Self { child: keel.spawn().expect("keel"), dir }
    }

    async fn client(&self) -> Client {
        let socket = self.dir.path().join("state").join("keel.sock");
        loop {
            if let Some(client) = Client::to_controller(&socket, None).await.expect("a socket") {
                return client;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends the controller and what it ran.
    fn end(mut self, runtime: &str) {
        std::fs::remove_file(self.dir.path().join("specs/demo.yaml")).expect("a spec");
        std::thread::sleep(Duration::from_secs(1));
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ended");
        let mut last = keel(self.dir.path(), runtime);
        last.args(["run", "specs", "--once", "--allow-empty"]).stdout(Stdio::null()).stderr(Stdio::null());
        last.status().expect("keel");
    }
}

/// The address of the tests' own engine, where there is one.
fn engine() -> Option<std::ffi::OsString> {
    std::env::var_os(ENGINE).filter(|host| !host.is_empty())
}

fn keel(dir: &Path, runtime: &str) -> Command {
    let mut keel = Command::new(env!("CARGO_BIN_EXE_keel"));
    keel.current_dir(dir).env("KEEL_STATE_DIR", dir.join("state")).env("KEEL_RUNTIME", runtime);
    if let Some(engine) = engine() {
        keel.env("DOCKER_HOST", engine);
    }
    keel
}

fn request(fresh: bool) -> AcquireRequest {
    AcquireRequest { pool: Some("demo/box".to_owned()), client: "bench".to_owned(), fresh, ..Default::default() }
}

/// Claims, and gives how long that took.
async fn claim(client: &Client, fresh: bool) -> (Duration, Acquired) {
    let began = Instant::now();
    let acquired = client.acquire(&request(fresh)).await.expect("a member");
    (began.elapsed(), acquired)
}

async fn release(client: &Client, acquired: Acquired) {
    let Acquired { token, view, .. } = acquired;
    let request = SessionRequest { session: view.session.to_string(), token: Some(token), verb: SessionVerb::Release };
    client.change_session(&request).await.expect("released");
}

/// Waits until the pool is full of warm members.
async fn filled(client: &Client) {
    loop {
        let status = client.status().await.expect("a status");
        if status.services.first().and_then(|view| view.pool.as_ref()).is_some_and(|pool| pool.warm >= WARM) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn print(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let rank = |percent: usize| times[(times.len() * percent).div_ceil(100).max(1) - 1];
    println!("  {what:<52} p50 {:>9.2?}   p99 {:>9.2?}", rank(50), rank(99));
}

async fn sequential(client: &Client) {
    let (mut warm, mut cold) = (Vec::new(), Vec::new());
    for _ in 0..SEQUENTIAL {
        let (time, acquired) = claim(client, false).await;
        warm.push(time);
        release(client, acquired).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for _ in 0..SEQUENTIAL / 4 {
        let (time, acquired) = claim(client, true).await;
        cold.push(time);
        release(client, acquired).await;
    }
    print("warm claims, one after the other", warm);
    print("cold claims (--fresh), one after the other", cold);
}

/// All that are warm, at once.
async fn burst(client: &Client) {
    filled(client).await;
    let claimed = join_all((0..WARM).map(|_| claim(client, false))).await;
    let warm = claimed.iter().filter(|(_, acquired)| acquired.view.warm).count();
    let (times, acquired): (Vec<Duration>, Vec<Acquired>) = claimed.into_iter().unzip();
    print(&format!("{WARM} at once, {warm} of them warm"), times);
    for one in acquired {
        release(client, one).await;
    }
}

/// So many a second, each given back at once.
async fn rate(client: &Client) {
    filled(client).await;
    let began = tokio::time::Instant::now();
    let count = RATE * LENGTH.as_secs();
    let claims = (0..count).map(|number| async move {
        tokio::time::sleep_until(began + Duration::from_micros(number * 1_000_000 / RATE)).await;
        let (time, acquired) = claim(client, false).await;
        let warm = acquired.view.warm;
        release(client, acquired).await;
        (time, warm)
    });
    let claimed = join_all(claims).await;
    let per_second = count as f64 / began.elapsed().as_secs_f64();
    let warm = claimed.iter().filter(|(_, warm)| *warm).count() * 100 / claimed.len();
    let times = claimed.into_iter().map(|(time, _)| time).collect();
    print(&format!("{per_second:.0} claims and releases a second, {warm} % warm"), times);
}

fn main() {
    let tokio = tokio::runtime::Runtime::new().expect("a runtime");
    for (runtime, image) in [("sandbox", "host"), ("docker", "keel-test/busybox:1"), ("sim", "sim/run")] {
        if runtime == "docker" && engine().is_none() {
            println!("docker: skipped, {ENGINE} is not set (see .ci/engines)");
            continue;
        }
        println!("{runtime}");
        let controller = Controller::start(runtime, image);
        tokio.block_on(async {
            let client = controller.client().await;
            filled(&client).await;
            sequential(&client).await;
            burst(&client).await;
            if runtime == "sim" {
                rate(&client).await;
            }
        });
        controller.end(runtime);
    }
}
