//! What callers ask of sessions, and what they get.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::controller::EngineError;
use crate::plan::{ClaimFigures, Distribution};
use crate::runtime::Control;
use crate::spec::{HumanDuration, RuntimeKind};
use crate::state::{
    BadIdentity, LateMount, Session, SessionId, SessionState, Token, check_client, check_late_mounts, check_sandbox,
};

/// Time for which a claim waits for a member where its caller says nothing: longer than any sandbox takes to start.
pub const CLAIM_TIMEOUT: Duration = Duration::from_secs(60);

/// Longest time for which a claim may wait; a client that waits for longer is better off asking again.
pub const CLAIM_TIMEOUT_MAX: Duration = Duration::from_secs(600);

/// Most variables that a session has for the commands inside: far more than anybody writes by hand.
const MOST_VARIABLES: usize = 256;

/// Most bytes of all of them together: half of what Linux gives a program for its environment where its stack is small.
const MOST_ENV_BYTES: usize = 64 << 10;

/// Most labels, and characters of one of them, as many as fit on a screen.
const MOST_LABELS: usize = 64;
const LABEL_LENGTH: usize = 256;

/// Claim a member of a pool.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AcquireRequest {
    /// `DEPLOYMENT/SERVICE`, or the name of a service or deployment that means one pool; the only pool that fits where it is
    /// absent.
    #[serde(default)]
    pub pool: Option<String>,
    /// Who asks: 1 to 128 visible ASCII characters.
    pub client: String,
    /// Take no member that was created before.
    #[serde(default)]
    pub fresh: bool,
    /// Longest wait for a member; [`CLAIM_TIMEOUT`] when absent.
    #[serde(default)]
    pub timeout: Option<HumanDuration>,
    /// Environment of commands inside, references (`$E:`, `$S:`) and all.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// What is mounted into the member before it is handed out; refused where its runtime can't.
    #[serde(default)]
    pub mounts: Vec<LateMount>,
    /// Controls that must be enforced for the member.
    #[serde(default)]
    pub require: Vec<Control>,
    /// Labels that the pool's spec must have.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What the client calls the sandbox: one that it holds by this name already is given again.
    #[serde(default)]
    pub sandbox: Option<String>,
    /// Where it holds none by this name, claim a member and name it so.
    #[serde(default)]
    pub create_if_missing: bool,
    /// Give the session again that the client holds in this pool, where it holds one.
    #[serde(default)]
    pub reuse: bool,
    /// Token of the session that is to be given again.
    #[serde(default)]
    pub token: Option<Token>,
}

impl AcquireRequest {
    /// How long it waits for a member.
    pub(super) fn patience(&self) -> Duration {
        self.timeout.map_or(CLAIM_TIMEOUT, HumanDuration::get)
    }

    /// Checks what can be told without looking at anything else.
    ///
    /// # Errors
    /// `Invalid` with the rule that it breaks.
    pub(super) fn check(&self) -> Result<(), EngineError> {
        let invalid = |BadIdentity(why)| EngineError::Invalid(why);
        check_client(&self.client).map_err(invalid)?;
        self.sandbox.as_deref().map_or(Ok(()), check_sandbox).map_err(invalid)?;
        check_env(&self.env)?;
        check_labels(&self.labels)?;
        check_late_mounts(&self.mounts).map_err(|error| EngineError::Invalid(error.to_string()))?;
        let refuse = |why: String| Err(EngineError::Invalid(why));
        if self.patience() > CLAIM_TIMEOUT_MAX {
            return refuse(format!("a claim waits for {} at most", HumanDuration(CLAIM_TIMEOUT_MAX)));
        }
        match (self.reuse, self.fresh, &self.sandbox) {
            (true, true, _) => {
                refuse("a session that is given again is not fresh; write --reuse or --fresh".to_owned())
            }
            (_, _, None) if self.create_if_missing => {
                refuse("--create-if-missing is about a sandbox by name; write --sandbox ID".to_owned())
            }
            _ => Ok(()),
        }
    }
}

fn check_env(env: &BTreeMap<String, String>) -> Result<(), EngineError> {
    let bad = |name: &&String| name.is_empty() || name.contains(['=', '\0']);
    if let Some(name) = env.keys().find(bad) {
        return Err(EngineError::Invalid(format!("{name:?} is no name of a variable; write NAME=VALUE")));
    }
    if let Some((name, _)) = env.iter().find(|(_, value)| value.contains('\0')) {
        return Err(EngineError::Invalid(format!("the variable {name} has a NUL in it")));
    }
    let bytes: usize = env.iter().map(|(name, value)| name.len() + value.len()).sum();
    match env.len() > MOST_VARIABLES || bytes > MOST_ENV_BYTES {
        true => Err(EngineError::Invalid(format!(
            "a session has at most {MOST_VARIABLES} variables of {} KiB in all",
            MOST_ENV_BYTES >> 10
        ))),
        false => Ok(()),
    }
}

fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), EngineError> {
    let bad = |(name, value): (&String, &String)| {
        name.is_empty() || name.len() > LABEL_LENGTH || value.len() > LABEL_LENGTH || name.contains(char::is_control)
    };
    match labels.len() > MOST_LABELS || labels.iter().any(bad) {
        true => Err(EngineError::Invalid(format!(
            "a claim names at most {MOST_LABELS} labels of {LABEL_LENGTH} characters, as NAME=VALUE"
        ))),
        false => Ok(()),
    }
}

/// A member of a pool, and the right to it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Acquired {
    /// Gives the right to the session; it is told this once.
    pub token: Token,
    /// Whether the client had it before.
    pub reused: bool,
    /// The session.
    #[serde(flatten)]
    pub view: SessionView,
}

/// What is to be done with a session by whoever has its token.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionRequest {
    /// Which.
    pub session: String,
    /// Gives the right to it.
    #[serde(default)]
    pub token: Option<Token>,
    /// What.
    pub verb: SessionVerb,
}

/// What can be done with a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SessionVerb {
    /// A client is there again.
    Attach {
        /// Also where one is there already, whose token gives no right from then on.
        takeover: bool,
    },
    /// The client goes; the sandbox runs on.
    Detach,
    /// The sandbox is frozen.
    Suspend,
    /// The sandbox runs on.
    Resume,
    /// The session is in use.
    Touch,
    /// It is given back.
    Release,
    /// It is ended.
    Terminate,
}

/// A session after something was done with it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SessionChanged {
    /// Gives the right to it from now on, where that is another one; it is told this once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<Token>,
    /// The session.
    #[serde(flatten)]
    pub view: SessionView,
}

/// One session, as it is shown; never its token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SessionView {
    /// Its name.
    pub session: SessionId,
    /// `DEPLOYMENT/SERVICE`.
    pub pool: String,
    /// `DEPLOYMENT/SERVICE/SLOT`.
    pub instance: String,
    /// Runtime of the instance.
    pub runtime: RuntimeKind,
    /// The runtime's own id of the instance.
    pub runtime_id: String,
    /// Who acquired it.
    pub client: String,
    /// `active`, `detached`, `suspended` or `ended`.
    pub state: String,
    /// `released`, `terminated`, `timeout`, `sandbox_ended`, `pool_removed` or `not_handed_out`; absent while it lives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The same in a sentence; empty while it lives.
    #[serde(default)]
    pub message: String,
    /// What the client calls the sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// Labels that it was asked for with.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What was mounted into the sandbox for it; it goes with the sandbox.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<LateMount>,
    /// Whether the member was ready when it was asked for.
    pub warm: bool,
    /// Milliseconds from the request to the answer; of a session that is given again, until that answer.
    pub elapsed_ms: f64,
    /// Whether its client was answered, as far as is written down; a claim that was not is no part of the statistics of claims.
    pub answered: bool,
    /// When it was acquired.
    pub created_at: DateTime<Utc>,
    /// When it was last used.
    pub last_active_at: DateTime<Utc>,
    /// When it ends if nobody uses it until then; absent once it is over, and while a command runs inside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<DateTime<Utc>>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<DateTime<Utc>>,
}

impl SessionView {
    /// How a session is shown that ends at that time where nobody uses it.
    pub(super) fn of(session: &Session, expires_at: Option<DateTime<Utc>>) -> Self {
        let (reason, message, ended_at) = match &session.state {
            SessionState::Ended { why, at } => (Some(why.name().to_owned()), format!("it {why}"), Some(*at)),
            _ => (None, String::new(), None),
        };
        Self {
            session: session.id.clone(),
            pool: session.pool.to_string(),
            instance: session.instance.id.name(),
            runtime: session.instance.runtime,
            runtime_id: session.instance.runtime_id.clone(),
            client: session.client.clone(),
            state: session.state.name().to_owned(),
            reason,
            message,
            sandbox: session.sandbox.clone(),
            labels: session.labels.clone(),
            mounts: session.mounts.clone(),
            warm: session.warm,
            elapsed_ms: session.elapsed_ms,
            answered: session.answered,
            created_at: session.created_at,
            last_active_at: session.last_active_at,
            expires_at,
            ended_at,
        }
    }
}

/// Statistics of all sessions that are kept, derived from them and from what is observed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SessionStats {
    /// Sessions that were handed out.
    pub created: u64,
    /// Of these, attached ones.
    pub active: u64,
    /// Of these, those whose client has gone.
    pub detached: u64,
    /// Of these, those whose sandbox is frozen.
    pub suspended: u64,
    /// Of these, those that reached a timeout.
    pub timeouts: u64,
    /// Members of all pools that can be handed out now.
    pub pool_size: u64,
    /// Claims that got no member, as none was free in time or at all, since the controller runs.
    #[serde(default)]
    pub unmet: u64,
    /// Claims that found a member ready, as a share of all, those that got none among them: 0 to 1; absent before the first.
    pub pool_hit_rate: Option<f64>,
    /// From a claim to its answer, in milliseconds.
    pub claim_ms: Option<Distribution>,
    /// From the creation of a member until its program ran, in milliseconds.
    pub creation_ms: Option<Distribution>,
}

impl SessionStats {
    pub(super) fn of(figures: &ClaimFigures, pool_size: u64) -> Self {
        let ClaimFigures {
            created, active, detached, suspended, timeouts, unmet, hit_rate, claim_ms, creation_ms, ..
        } = *figures;
        Self {
            created,
            active,
            detached,
            suspended,
            timeouts,
            pool_size,
            unmet,
            pool_hit_rate: hit_rate,
            claim_ms,
            creation_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> AcquireRequest {
        AcquireRequest { client: "agent".to_owned(), ..AcquireRequest::default() }
    }

    fn refused(request: &AcquireRequest) -> String {
        request.check().unwrap_err().to_string()
    }

    #[test]
    fn a_claim_that_makes_no_sense_is_refused_before_anything_is_done() {
        assert!(request().check().is_ok());
        // Whoever holds no session has no token to present.
        assert!(AcquireRequest { reuse: true, ..request() }.check().is_ok());
        let token = Some(Token::presented("t".to_owned()));
        let both = AcquireRequest { reuse: true, fresh: true, token, ..request() };
        assert!(refused(&both).contains("--reuse or --fresh"));
        assert!(refused(&AcquireRequest { create_if_missing: true, ..request() }).contains("--sandbox ID"));
        let long = Some(HumanDuration(Duration::from_secs(601)));
        assert_eq!(refused(&AcquireRequest { timeout: long, ..request() }), "a claim waits for 10m at most");
    }

    #[test]
    fn an_environment_is_bounded_and_its_names_are_names() {
        let env = |pairs: &[(&str, &str)]| AcquireRequest {
            env: pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            ..request()
        };
        assert!(env(&[("A", "$E:HOME"), ("B", "")]).check().is_ok());
        assert!(refused(&env(&[("", "x")])).contains("NAME=VALUE"));
        assert!(refused(&env(&[("A=B", "x")])).contains("NAME=VALUE"));
        assert!(refused(&env(&[("A", "x\0")])).contains("NUL"));
        assert!(refused(&env(&[("A", &"x".repeat(MOST_ENV_BYTES))])).contains("64 KiB"));
    }

    #[test]
    fn a_field_that_is_no_field_of_a_request_is_refused_by_its_name() {
        let refused = |text: &str| serde_json::from_str::<AcquireRequest>(text).unwrap_err().to_string();
        assert!(refused(r#"{"client": "a", "requier": ["landlock"]}"#).starts_with("unknown field `requier`"));
        let change = |verb: &str| {
            let text = format!(r#"{{"session": "s", "verb": {verb}}}"#);
            serde_json::from_str::<SessionRequest>(&text).map(|request| request.verb).map_err(|error| error.to_string())
        };
        assert_eq!(change(r#""touch""#), Ok(SessionVerb::Touch));
        assert_eq!(change(r#"{"attach": {"takeover": true}}"#), Ok(SessionVerb::Attach { takeover: true }));
        let more = change(r#"{"attach": {"takeover": true, "force": true}}"#).unwrap_err();
        assert!(more.starts_with("unknown field `force`"), "{more}");
        let order = r#"{"order": "hold", "target": "demo", "secs": 5}"#;
        let order = serde_json::from_str::<crate::controller::Order>(order).unwrap_err().to_string();
        assert!(order.starts_with("unknown field `secs`"), "{order}");
    }
}
