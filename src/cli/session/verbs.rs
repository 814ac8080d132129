//! `keel session attach`, `detach`, `suspend`, `resume`, `touch`, `release`, `terminate`: what is done with one session.

use super::{SessionToken, controller};
use crate::cli::exit::{Exit, Outcome};
use crate::cli::output::{DataFormat, print, print_data};
use crate::config::Options;
use crate::controller::{SessionRequest, SessionVerb};

/// Which session, and how to print.
#[derive(Debug, clap::Args)]
struct One {
    /// Id of the session, as acquire printed it
    #[arg(value_name = "SESSION")]
    session: String,
    #[command(flatten)]
    token: SessionToken,
    /// How to print
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<DataFormat>,
}

/// Be there again
///
/// Refused while a client is attached: with --takeover, the commands that run inside through that one end with all that they
/// started, its token gives no right any more, and another one is printed. What an earlier command left behind in the
/// background stays, as after docker exec.
#[derive(Debug, clap::Args)]
pub struct Attach {
    #[command(flatten)]
    one: One,
    /// Also where a client is attached, whose token gives no right from then on
    #[arg(long)]
    takeover: bool,
}

/// Go, and leave the sandbox running
///
/// It ends after session.detach_timeout. One that is suspended is refused: it is frozen, with a client or without.
#[derive(Debug, clap::Args)]
pub struct Detach {
    #[command(flatten)]
    one: One,
}

/// Freeze the sandbox
///
/// It keeps its memory and gets no processor time, until resume, or the next command inside. It ends after
/// session.suspend_timeout.
#[derive(Debug, clap::Args)]
pub struct Suspend {
    #[command(flatten)]
    one: One,
}

/// Let a frozen sandbox run on
#[derive(Debug, clap::Args)]
pub struct Resume {
    #[command(flatten)]
    one: One,
}

/// Say that the session is in use
///
/// A session that nobody uses ends after session.idle_timeout; what runs inside by keel exec keeps it in use.
#[derive(Debug, clap::Args)]
pub struct Touch {
    #[command(flatten)]
    one: One,
}

/// Give the sandbox back
///
/// It is removed, and another one is made in its place.
#[derive(Debug, clap::Args)]
pub struct Release {
    #[command(flatten)]
    one: One,
}

/// End the session, and whatever runs inside
#[derive(Debug, clap::Args)]
pub struct Terminate {
    #[command(flatten)]
    one: One,
}

impl One {
    async fn change(self, options: &Options, verb: SessionVerb) -> Outcome {
        let client = controller(options).await?;
        let Self { session, token, output } = self;
        let changed = client.change_session(&SessionRequest { session, token: token.get(), verb }).await?;
        match output {
            Some(format) => print_data(format, &changed)?,
            None => {
                let token = changed.token.as_ref().map(|token| format!("token {}\n", token.reveal()));
                let state = changed.view.reason.as_ref().unwrap_or(&changed.view.state);
                print(&format!("session/{} {state}\n{}", changed.view.session, token.unwrap_or_default()))?;
            }
        }
        Ok(Exit::Success)
    }
}

impl Attach {
    /// Runs the verb.
    pub async fn run(self, options: &Options) -> Outcome {
        self.one.change(options, SessionVerb::Attach { takeover: self.takeover }).await
    }
}

macro_rules! plain {
    ($($verb:ident),*) => {$(
        impl $verb {
            /// Runs the verb.
            pub async fn run(self, options: &Options) -> Outcome {
                self.one.change(options, SessionVerb::$verb).await
            }
        }
    )*};
}

plain!(Detach, Suspend, Resume, Touch, Release, Terminate);
