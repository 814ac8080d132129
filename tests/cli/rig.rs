//! One installation in a folder of its own, and the program run against it.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Longest wait for anything: generous, because machines that run tests are busy.
const DEADLINE: Duration = Duration::from_secs(60);

/// Longest time that one command may take; some wait for several things, one after the other.
const LONGEST: Duration = Duration::from_secs(300);

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// A directory with specs, a state directory, and the runtime that is used.
pub struct Rig {
    dir: tempfile::TempDir,
    runtime: &'static str,
    engine: String,
}

/// What a command ended with.
#[derive(Debug)]
pub struct Done {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Done {
    /// The same, if the code is this one.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code, code, "standard output:\n{}\nstandard error:\n{}", self.out, self.err);
        self
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl From<Output> for Done {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("output is UTF-8");
        Self { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
    }
}

impl Rig {
    /// An installation without specs that runs everything on this runtime.
    pub fn new(runtime: &'static str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("specs")).unwrap();
        let engine = dir.path().join("no-engine.sock");
        Self::with(dir, runtime, &engine)
    }

    fn with(dir: tempfile::TempDir, runtime: &'static str, engine: &Path) -> Self {
        Self { dir, runtime, engine: format!("unix://{}", engine.display()) }
    }

    /// An installation that runs everything on the engine with this socket.
    pub fn on_engine(socket: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("specs")).unwrap();
        Self::with(dir, "docker", socket)
    }

    /// Address of the engine, as `DOCKER_HOST` has it.
    pub fn engine(&self) -> &str {
        &self.engine
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file.
    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    /// Removes a file.
    pub fn remove(&self, name: &str) {
        std::fs::remove_file(self.path(name)).unwrap();
    }

    /// The program with these arguments, in an environment that knows nothing of this machine's engines and user.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keel"));
        command
            .args(arguments)
            .current_dir(self.dir.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.dir.path())
            .env("DOCKER_HOST", &self.engine)
            .env("KEEL_STATE_DIR", self.path("state"))
            .env("KEEL_RUNTIME", self.runtime)
            .stdin(Stdio::null());
        command
    }

    /// Runs the program to its end.
    #[track_caller]
    pub fn keel(&self, arguments: &[&str]) -> Done {
        let mut command = self.command(arguments);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let pid = child.id();
        let (ended, end) = std::sync::mpsc::channel();
        std::thread::spawn(move || ended.send(child.wait_with_output()));
        match end.recv_timeout(LONGEST) {
            Ok(output) => output.unwrap().into(),
            Err(_) => {
                signal(pid, "KILL");
                panic!("{arguments:?} did not end");
            }
        }
    }

    /// Starts a controller on `specs` and waits until it answers.
    pub fn controller(&self) -> Controller {
        self.controller_with(&[])
    }

    /// The same, with further arguments.
    pub fn controller_with(&self, arguments: &[&str]) -> Controller {
        self.controller_on("specs", arguments)
    }

    /// The same, on another directory.
    pub fn controller_on(&self, directory: &str, arguments: &[&str]) -> Controller {
        self.controller_of(self.command(&[&["run", directory], arguments].concat()))
    }

    /// Starts a controller on `specs` from a shell that ran these commands first.
    pub fn controller_after(&self, commands: &str) -> Controller {
        let keel = self.command(&["run", "specs"]);
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("{commands}\nexec \"$@\""), "sh"]).arg(keel.get_program()).args(keel.get_args());
        shell.current_dir(self.dir.path()).env_clear().stdin(Stdio::null());
        shell.envs(keel.get_envs().filter_map(|(name, value)| Some((name, value?))));
        self.controller_of(shell)
    }

    fn controller_of(&self, mut command: Command) -> Controller {
        let child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let controller = Controller { child: Some(child) };
        self.until("the controller answers", || {
            let version = self.keel(&["version", "-o", "json"]).json();
            version["controller"]["pid"].as_u64() == Some(controller.pid().into())
        });
        controller
    }

    /// What `get TYPE -o json` prints.
    pub fn get(&self, what: &str) -> Vec<Value> {
        let done = self.keel(&["get", what, "-o", "json"]);
        assert_eq!(done.code, 0, "{done:?}");
        serde_json::from_str(&done.out).unwrap()
    }

    /// One field of every instance, in the order in which they are shown.
    pub fn instances<T>(&self, field: impl Fn(&Value) -> T) -> Vec<T> {
        self.get("instances").iter().map(field).collect()
    }

    /// The state of a deployment; empty where there is none.
    pub fn state(&self, deployment: &str) -> String {
        let named = |view: &&Value| view["deployment"] == deployment;
        let found = self.get("deployments");
        found.iter().find(named).map(|view| view["state"].as_str().unwrap().to_owned()).unwrap_or_default()
    }

    /// Waits until a deployment runs as declared with this many instances.
    #[track_caller]
    pub fn until_running(&self, deployment: &str, instances: usize) {
        self.until("the deployment runs", || {
            let all = self.get("instances");
            let running = all.iter().filter(|one| one["deployment"] == deployment && one["phase"] == "running").count();
            running == instances && self.state(deployment) == "running" && all.len() >= instances
        });
    }

    /// Waits until something is so.
    #[track_caller]
    pub fn until(&self, what: &str, mut so: impl FnMut() -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !so() {
            assert!(Instant::now() < deadline, "not in time: {what}\n{:?}", self.keel(&["get", "all", "-o", "json"]));
            std::thread::sleep(PAUSE);
        }
    }
}

impl Drop for Rig {
    /// Leaves no process behind; what the sim runtime ran is gone already.
    fn drop(&mut self) {
        if self.runtime == "sim" {
            return;
        }
        let _ = std::fs::remove_dir_all(self.path("specs"));
        std::fs::create_dir(self.path("specs")).unwrap();
        let emptied = self.keel(&["run", "specs", "--once", "--allow-empty"]);
        let applied = self.keel(&["get", "deployments", "-o", "name"]).out;
        for name in applied.lines().map(|line| line.trim_start_matches("deployment/")) {
            self.keel(&["delete", name, "--volumes", "--timeout", "30s"]);
        }
        let left = self.keel(&["get", "instances", "-o", "name"]).out;
        if !left.is_empty() && !std::thread::panicking() {
            panic!("left behind: {left}{emptied:?}");
        }
    }
}

/// A running controller; killed when it is dropped.
pub struct Controller {
    child: Option<Child>,
}

impl Controller {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Sends it a signal.
    pub fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    /// Sends it a signal and waits for its end.
    pub fn end(mut self, name: &str) -> Done {
        self.signal(name);
        self.child.take().unwrap().wait_with_output().unwrap().into()
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let _ = child.kill();
        let _ = child.wait();
        if std::thread::panicking() {
            let mut log = String::new();
            let _ = child.stderr.take().unwrap().read_to_string(&mut log);
            eprintln!("the controller's log:\n{log}");
        }
    }
}

/// Sends a process a signal.
#[track_caller]
pub fn signal(pid: u32, name: &str) {
    let done = Command::new("kill").args(["-s", name, &pid.to_string()]).status().unwrap();
    assert!(done.success(), "kill -s {name} {pid}");
}

/// Whether a process of this id exists and is no zombie.
pub fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// A deployment of one service.
pub fn spec(deployment: &str, replicas: u32, greeting: &str) -> String {
    format!(
        "version: v1\ndeployment: {deployment}\nservices:\n  web:\n    image: {{ name: host }}\n    \
         command: {{ entrypoint: [keel, demo-server] }}\n    scale: {{ mode: fixed, replicas: {replicas} }}\n    \
         env:\n      GREETING: {greeting}\n      API_TOKEN: token-{greeting}\n    \
         endpoints: [{{ name: http, protocol: http, port: 8080 }}]\n"
    )
}
