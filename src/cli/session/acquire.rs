//! `keel session acquire`: claim a sandbox.

use std::collections::BTreeMap;
use std::time::Duration;

use super::mount::{MOUNT, mount, volume};
use super::{SessionToken, controller};
use crate::cli::exit::{Exit, Outcome};
use crate::cli::output::{DataFormat, print, print_data};
use crate::cli::text::duration;
use crate::config::Options;
use crate::controller::{AcquireRequest, Acquired};
use crate::spec::{Control, HumanDuration};
use crate::state::LateMount;

/// Claim a sandbox of a pool
///
/// A warm one is handed out at once; where none is, one is made and waited for. What is printed as token gives the right to
/// the session, and is told this once: keep it.
///
/// Without POOL, the only pool that fits --require and --label is meant: the default sandbox of an installation with one pool.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  keel session acquire demo/box --client agent-7 -o json\n  \
keel session acquire --client agent-7 --require memory_limit,network_isolation\n  \
keel session acquire box --client agent-7 --sandbox notebook --create-if-missing\n  \
keel session acquire box --client agent-7 --mount type=bind,source=/srv/task,target=/tmp/task,readonly\n\n\
A mount takes the sandbox runtime with keel as root; elsewhere the claim is refused, and directories are declared as \
`storage` of the pool. A mount goes with the sandbox; what it shows stays as it is.")]
pub struct Args {
    /// DEPLOYMENT/SERVICE, or the name of a service or deployment that means one pool
    #[arg(value_name = "POOL")]
    pool: Option<String>,
    /// Who asks: 1 to 128 visible ASCII characters without `/`, `\` and `..`
    #[arg(long, value_name = "ID")]
    client: String,
    /// Take no sandbox that was made before
    #[arg(long)]
    fresh: bool,
    /// Longest wait for a sandbox [default: 60s]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    timeout: Option<Duration>,
    /// Set a variable for the commands inside; NAME alone hands on the one that is set here, which shows in no list of
    /// processes, and $E:NAME as a value takes the controller's; repeatable
    #[arg(short, long, value_name = "NAME[=VALUE]", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Show a directory or file of the controller's machine inside, with absolute paths; a missing target is made where the
    /// sandbox can be written there. Docker's names for the options do as well; repeatable
    #[arg(long, value_name = MOUNT, value_parser = mount)]
    mount: Vec<LateMount>,
    /// The same in short; repeatable
    #[arg(long, value_name = "SOURCE:TARGET[:ro]", value_parser = volume)]
    volume: Vec<LateMount>,
    /// Controls that must be enforced
    #[arg(long, value_name = "CONTROL", value_delimiter = ',', value_parser = control)]
    require: Vec<Control>,
    /// Labels that the spec of the pool must have; repeatable
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = pair)]
    label: Vec<(String, String)>,
    /// Name of the sandbox: one that is held by this name already is given again, with its token
    #[arg(long, value_name = "ID")]
    sandbox: Option<String>,
    /// Claim one and name it so where none is held by the name
    #[arg(long)]
    create_if_missing: bool,
    /// Give the session again that the client holds already, with its token; another one where it holds none
    #[arg(long)]
    reuse: bool,
    #[command(flatten)]
    token: SessionToken,
    /// How to print
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<DataFormat>,
}

impl Args {
    /// Runs the verb.
    pub async fn run(self: Box<Self>, options: &Options) -> Outcome {
        let client = controller(options).await?;
        let output = self.output;
        let acquired = client.acquire(&self.request()).await?;
        match output {
            Some(format) => print_data(format, &acquired)?,
            None => print(&text(&acquired))?,
        }
        Ok(Exit::Success)
    }

    fn request(self) -> AcquireRequest {
        let map = |pairs: Vec<(String, String)>| pairs.into_iter().collect::<BTreeMap<_, _>>();
        // A token of the environment may be that of another session.
        let wanted = self.reuse || self.sandbox.is_some();
        AcquireRequest {
            pool: self.pool,
            client: self.client,
            fresh: self.fresh,
            timeout: self.timeout.map(HumanDuration),
            env: map(self.env),
            mounts: [self.mount, self.volume].concat(),
            require: self.require,
            labels: map(self.label),
            sandbox: self.sandbox,
            create_if_missing: self.create_if_missing,
            reuse: self.reuse,
            token: self.token.get().filter(|_| wanted),
        }
    }
}

fn text(acquired: &Acquired) -> String {
    let Acquired { token, view, reused } = acquired;
    let how = match (reused, view.warm) {
        (true, _) => "had before",
        (false, true) => "warm",
        (false, false) => "made for it",
    };
    let mounts: String = view.mounts.iter().map(|mount| format!("mounted   {}\n", told(mount))).collect();
    format!(
        "session   {}\ntoken     {}\ninstance  {}\nsandbox   {how}, after {:.1} ms\n{mounts}",
        view.session,
        token.reveal(),
        view.instance,
        view.elapsed_ms
    )
}

fn told(mount: &LateMount) -> String {
    let how = if mount.readonly { " (read-only)" } else { "" };
    format!("{} at {}{how}", mount.source, mount.target)
}

/// A variable with its value, which is that of this process where only the name is written.
fn variable(text: &str) -> Result<(String, String), String> {
    match pair(text) {
        Err(_) if !text.is_empty() && !text.contains('=') => match std::env::var(text) {
            Ok(value) => Ok((text.to_owned(), value)),
            Err(std::env::VarError::NotPresent) => Err("it is not set here; set it, or write NAME=VALUE".to_owned()),
            Err(std::env::VarError::NotUnicode(_)) => Err("its value here is not UTF-8".to_owned()),
        },
        pair => pair,
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".to_owned()),
    }
}

fn control(name: &str) -> Result<Control, String> {
    let named = Control::ALL.into_iter().find(|control| control.to_string() == name);
    let all = || Control::ALL.map(|control| control.to_string()).join(", ");
    named.ok_or_else(|| format!("write one of {}", all()))
}
