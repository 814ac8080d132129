//! What the suite needs to know of a runtime, and the few helpers that its promises share.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use async_trait::async_trait;
use evenkeel::runtime::{CreateRequest, Runtime};
use evenkeel::spec::{Bytes, Command, Image, Resources, ServiceSpec, Signal};
use evenkeel::state::{Exit, Instance, InstanceId, InstanceRef, Phase, StopCause, StopRequest};
use tokio::time::Instant;

/// How often a condition is looked at while it is awaited.
const POLL: Duration = Duration::from_millis(20);

/// What an instance of the suite does. [`shell`] says it in words of a POSIX shell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// Writes the line `armed`, runs, and ends soon after the stop signal.
    Polite,
    /// Writes the line `armed`, runs, and ignores the stop signal.
    Stubborn,
    /// Ends with this code.
    Exit(i32),
    /// Kills itself with SIGKILL.
    Killed,
    /// Writes `out 1` to standard output, `err 1` to standard error, `out 2` to standard output, and ends with 0.
    Prints,
    /// Writes `first`, waits a second, writes `second`, and ends with 0.
    PrintsSlowly,
    /// Writes the value of this variable, and ends with 0.
    PrintsEnv(String),
    /// Writes a line of that many `x`, then `next`, and ends with 0.
    PrintsLong(usize),
    /// Writes a line of [`BYTES`], and ends with 0.
    PrintsBytes,
    /// Takes more memory than it may.
    EatsMemory,
    /// Writes the line `armed`, and a line every few milliseconds from then on.
    Ticks,
    /// Answers requests of HTTP on the port [`SERVED`], or the one that it is told instead.
    Serves,
    /// Runs, and listens nowhere.
    Silent,
    /// Is not there.
    Missing,
}

/// Bytes that are no UTF-8, and some that steer terminals.
pub const BYTES: &[u8] = b"a\xff\xfeb\x1b[2J\xc3(\0\r";

/// Port of the endpoint of programs that serve, and of those that ought to.
pub const SERVED: u16 = 8080;

/// What a command inside an instance does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inside {
    /// Writes `out` to standard output and `err` to standard error, and ends with this code.
    Prints(i32),
    /// Copies standard input to standard output.
    Copies,
    /// Writes the value of this variable.
    PrintsEnv(String),
    /// Is not there.
    Missing,
    /// Is there and can't be executed.
    Unexecutable,
}

/// What a runtime under test offers beyond what every one has to.
#[derive(Debug, Clone, Copy)]
pub struct Abilities {
    /// A deployment has a network of its own.
    pub shared_networks: bool,
    /// Instances of two owners may have the same names.
    pub names_per_owner: bool,
    /// A kill for want of memory is told from any other.
    pub tells_memory_kills: bool,
    /// Output that is no UTF-8 is kept as it is.
    pub keeps_bytes: bool,
}

/// One runtime under test, with an owner of its own that nothing else uses.
#[async_trait]
pub trait Harness: Send + Sync + Sized {
    /// Name, as `KEEL_TEST_REQUIRE` has it.
    const NAME: &'static str;

    /// Gets hold of the runtime, or says why it can't be had here. Every call makes two owners that are new.
    async fn open() -> Result<Self, String>;

    /// A new handle of the owner, as a controller makes one at its start.
    async fn runtime(&self) -> Arc<dyn Runtime>;

    /// A handle of another owner on the same machine.
    async fn stranger(&self) -> Arc<dyn Runtime>;

    /// An image that can be used without a network.
    fn image(&self) -> Image;

    /// An image that can't be had, and that is refused without a network.
    fn missing_image(&self) -> Image;

    /// An image of a transport that the runtime does not take, where there is one.
    fn unsupported_image(&self) -> Option<Image>;

    /// What it offers.
    fn abilities(&self) -> Abilities;

    /// The command of an instance; words of a shell when nothing is said.
    fn command(&self, program: &Program) -> Vec<String> {
        shell(program)
    }

    /// A command inside an instance; words of a shell when nothing is said.
    fn inside(&self, what: &Inside) -> Vec<String> {
        shell_inside(what)
    }

    /// Longest wait for something that ought to happen at once.
    fn patience(&self) -> Duration {
        Duration::from_secs(30)
    }

    /// Removes every trace. Called after failed tests too.
    async fn close(self) {}
}

/// The program in words of a POSIX shell.
pub fn shell(program: &Program) -> Vec<String> {
    // A shell reacts to a signal only between two commands, hence the short sleeps.
    const RUN: &str = "echo armed; while :; do sleep 0.05; done";
    let script = match program {
        Program::Polite => format!("trap 'exit 0' TERM; {RUN}"),
        Program::Stubborn => format!("trap '' TERM; {RUN}"),
        Program::Exit(code) => format!("exit {code}"),
        Program::Killed => "kill -9 $$; sleep 60".to_owned(),
        // The pauses keep the order between the two streams, which no runtime promises otherwise.
        Program::Prints => "echo out 1; sleep 0.2; echo err 1 >&2; sleep 0.2; echo out 2".to_owned(),
        Program::PrintsSlowly => "echo first; sleep 1; echo second".to_owned(),
        Program::PrintsEnv(name) => format!("echo \"${name}\""),
        Program::PrintsLong(length) => format!("head -c {length} /dev/zero | tr '\\0' x; echo; echo next"),
        Program::PrintsBytes => r"printf 'a\377\376b\033[2J\303(\000\r\n'".to_owned(),
        // The last line is kept, and never ends.
        Program::EatsMemory => "exec tail /dev/zero".to_owned(),
        Program::Ticks => "echo armed; while :; do echo tick; sleep 0.02; done".to_owned(),
        Program::Serves => format!("exec busybox httpd -f -p ${{PORT:-{SERVED}}}"),
        Program::Silent => "exec sleep 600".to_owned(),
        Program::Missing => return vec!["/no/such/program".to_owned()],
    };
    vec!["/bin/sh".to_owned(), "-c".to_owned(), script]
}

/// The command in words of a POSIX shell.
pub fn shell_inside(what: &Inside) -> Vec<String> {
    let script = match what {
        Inside::Prints(code) => format!("echo out; echo err >&2; exit {code}"),
        Inside::Copies => "cat".to_owned(),
        Inside::PrintsEnv(name) => format!("echo \"${name}\""),
        Inside::Missing => return vec!["/no/such/program".to_owned()],
        Inside::Unexecutable => return vec!["/etc/passwd".to_owned()],
    };
    vec!["/bin/sh".to_owned(), "-c".to_owned(), script]
}

/// Opens a harness, or reports the skip; where the runtime is required, a skip is a failure.
pub async fn open<H: Harness>(test: &str) -> Option<H> {
    match H::open().await {
        Ok(harness) => Some(harness),
        Err(reason) => {
            let required = std::env::var("KEEL_TEST_REQUIRE").unwrap_or_default();
            let is_required = required.split([',', ' ']).any(|name| name == H::NAME);
            assert!(!is_required, "{}: {test} is required by KEEL_TEST_REQUIRE and can't run: {reason}", H::NAME);
            skipped::<H>(&format!("{test}: {reason}"));
            None
        }
    }
}

/// Reports that a promise is not looked at.
pub fn skipped<H: Harness>(reason: &str) {
    eprintln!("skipped on {}: {reason}", H::NAME);
}

/// Closes a harness.
pub async fn close<H: Harness>(harness: H) {
    harness.close().await;
}

/// The deployment of the suite. Owners keep the tests apart where names are an owner's own; where they are the
/// machine's, each test process has another deployment.
pub static DEPLOYMENT: LazyLock<String> = LazyLock::new(|| format!("suite-{}", std::process::id()));

/// An identity in the suite's deployment.
pub fn id(service: &str, slot: u32) -> InstanceId {
    InstanceId {
        deployment: DEPLOYMENT.clone(),
        service: service.to_owned(),
        slot,
        revision: "v1-aa00000000000000".parse().expect("a revision"),
        attempt: 0,
        run: None,
    }
}

/// A request for an instance of this program.
pub fn request<H: Harness>(harness: &H, id: InstanceId, program: &Program) -> CreateRequest {
    let mut spec = spec(harness.image(), harness.command(program));
    // An init process can be run, whatever becomes of the program that it is to run.
    spec.init_container = (*program == Program::Missing).then_some(false);
    if matches!(program, Program::Serves | Program::Silent) {
        let endpoint = serde_json::json!([{ "name": "http", "protocol": "http", "port": SERVED }]);
        spec.endpoints = serde_json::from_value(endpoint).expect("an endpoint");
    }
    if *program == Program::EatsMemory {
        // Memory alone, so that a machine with swap does not take its time.
        let (memory, memory_swap) = (Some(Bytes(32 << 20)), Some(Bytes(32 << 20)));
        spec.resources = Some(Resources { memory, memory_swap, ..Resources::default() });
    }
    CreateRequest { id, restarts: 0, streak: 0, spec: Arc::new(spec), env: BTreeMap::new(), source: None }
}

/// A spec of an image and a command.
pub fn spec(image: Image, command: Vec<String>) -> ServiceSpec {
    let mut spec: ServiceSpec =
        serde_json::from_value(serde_json::json!({ "image": { "name": image.name.to_string() } })).expect("a spec");
    spec.image = image;
    spec.command = Some(Command { entrypoint: Some(command), args: None, workdir: None });
    spec
}

/// Makes the image available and creates an instance of this program.
pub async fn create<H: Harness>(harness: &H, runtime: &dyn Runtime, id: InstanceId, program: &Program) -> Instance {
    let request = request(harness, id, program);
    runtime.ensure_image(&request.spec.image, &|_| {}).await.expect("the image");
    runtime.create(&request).await.expect("create")
}

/// Creates and starts an instance of this program.
pub async fn run<H: Harness>(harness: &H, runtime: &dyn Runtime, id: InstanceId, program: &Program) -> Instance {
    let instance = create(harness, runtime, id, program).await;
    runtime.start(&instance.as_ref()).await.expect("start")
}

/// Waits until the instance has written the line `armed`, so that it reacts to signals as it should.
pub async fn armed<H: Harness>(harness: &H, runtime: &dyn Runtime, instance: &InstanceRef) {
    if runtime.logs().is_none() {
        return tokio::time::sleep(Duration::from_secs(1)).await;
    }
    eventually(harness, "the program writes that it is armed", async || {
        crate::output::lines(runtime, instance, &Default::default())
            .await
            .iter()
            .any(|line| line.text.as_bytes() == b"armed")
            .then_some(())
    })
    .await;
}

/// What the list says of an instance.
pub async fn listed(runtime: &dyn Runtime, id: &InstanceId) -> Option<Instance> {
    runtime.list().await.expect("list").instances.into_iter().find(|instance| instance.id == *id)
}

/// Waits until an instance has ended, and tells how.
pub async fn ended<H: Harness>(harness: &H, runtime: &dyn Runtime, id: &InstanceId) -> Exit {
    eventually(harness, "the instance ends", async || match listed(runtime, id).await?.phase {
        Phase::Exited(exit) => Some(exit),
        _ => None,
    })
    .await
}

/// Waits until the look gives a value.
pub async fn eventually<H: Harness, T>(harness: &H, what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + harness.patience();
    loop {
        if let Some(value) = look().await {
            return value;
        }
        assert!(Instant::now() < deadline, "{}: not within {:?}: {what}", H::NAME, harness.patience());
        tokio::time::sleep(POLL).await;
    }
}

/// A stop with SIGTERM and this grace.
pub fn stop(grace: Duration) -> StopRequest {
    StopRequest { signal: Signal::TERM, grace, cause: StopCause::Retired }
}
