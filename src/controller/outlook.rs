//! Looks ahead: what is expected to happen to deployments if their declarations change.

use std::time::{Duration, Instant};

use super::apply::blocking;
use super::{Change, DeploymentPreview, EngineError, Preview};
use crate::plan::{End, Forecast, Plan, Snapshot, Stage, forecast, plan};

/// Time after which no further forecast of a request is begun: half of the 60 s in which a request is answered. One
/// forecast has a bound of its own (two seconds on an unoptimised build), and the answer is still to be sent.
const LOOK_AHEAD: Duration = Duration::from_secs(30);

/// What a preview of one deployment is made from.
pub(super) struct Outlook {
    pub change: Change,
    pub old: Option<serde_json::Value>,
    pub new: Option<serde_json::Value>,
    pub snapshot: Snapshot,
}

/// Looks ahead for each deployment, which may take its time; once that is spent, no further than what may be done at
/// once.
pub(super) async fn previews(outlooks: Vec<Outlook>) -> Result<Preview, EngineError> {
    blocking(move || {
        let began = Instant::now();
        Ok(previews_while(outlooks, || began.elapsed() < LOOK_AHEAD))
    })
    .await
}

fn previews_while(outlooks: Vec<Outlook>, mut is_time: impl FnMut() -> bool) -> Preview {
    let deployments = outlooks.into_iter().map(|outlook| preview_of(outlook, is_time())).collect();
    Preview { deployments, ..Preview::default() }
}

fn preview_of(outlook: Outlook, is_time: bool) -> DeploymentPreview {
    let Outlook { change, old, new, snapshot } = outlook;
    let deployment = snapshot.deployment.clone();
    let plan = plan(&snapshot.input());
    // What neither does nor waits for anything is at rest, and known to be.
    let is_known = is_time || (plan.is_empty() && plan.waits.is_empty());
    let forecast = if is_known { forecast(snapshot) } else { beginning(&snapshot, &plan) };
    DeploymentPreview {
        deployment,
        change,
        old,
        new,
        steps: forecast.steps().map(ToString::to_string).collect(),
        course: forecast.lines(),
        waits: forecast.rest(),
        plan: serde_json::to_value(plan).unwrap_or_default(),
        forecast: serde_json::to_value(forecast).unwrap_or_default(),
        cut_short: (!is_known).then(cut_short),
    }
}

/// What may be done at once, as a forecast.
fn beginning(snapshot: &Snapshot, plan: &Plan) -> Forecast {
    let act = (!plan.is_empty()).then(|| Stage::Act { at: snapshot.now, lanes: plan.lanes.clone() });
    Forecast { stages: act.into_iter().collect(), end: End::Beyond }
}

fn cut_short() -> String {
    let seconds = LOOK_AHEAD.as_secs();
    format!(
        "what follows was not looked at, because the deployments before it took the {seconds} s that there are; name \
         fewer files"
    )
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::path::PathBuf;

    use chrono::DateTime;

    use super::*;
    use crate::controller::convert;
    use crate::plan::History;
    use crate::runtime::Volumes;
    use crate::spec::{RuntimeKind, merge, parse};

    /// A deployment of which nothing exists.
    fn outlook(name: &str, replicas: u32) -> Outlook {
        let text = format!(
            "version: v1\ndeployment: {name}\nservices:\n  web:\n    image: {{ name: one }}\n    \
             scale: {{ mode: fixed, replicas: {replicas} }}\n    health: {{ check: {{ type: tcp, port: 80 }} }}\n"
        );
        let parsed = [(PathBuf::from("specs.yaml"), parse(&text))];
        let merged = merge(&parsed).deployments.remove(name).expect("it is declared");
        let snapshot = Snapshot {
            deployment: name.to_owned(),
            desired: Ok(convert::desired(&merged, RuntimeKind::Sim)),
            observed: Vec::new(),
            shared: BTreeSet::new(),
            unreachable: BTreeMap::new(),
            history: History::default(),
            volumes: Volumes::Keep,
            now: DateTime::UNIX_EPOCH,
        };
        Outlook { change: Change::Created, old: None, new: None, snapshot }
    }

    #[test]
    fn all_deployments_of_a_request_share_one_time() {
        let mut left = 2;
        let mut spend = || {
            left -= 1;
            left >= 0
        };
        let outlooks = ["a", "b", "c", "d"].map(|name| outlook(name, 1));
        let preview = previews_while(outlooks.into(), &mut spend);
        let told: Vec<bool> = preview.deployments.iter().map(|one| one.cut_short.is_none()).collect();
        assert_eq!(told, [true, true, false, false]);
    }

    #[test]
    fn without_time_what_may_be_done_at_once_is_told_and_that_it_is_not_all() {
        let in_time = preview_of(outlook("demo", 1), true);
        let late = preview_of(outlook("demo", 1), false);
        assert_eq!(late.plan, in_time.plan);
        assert_eq!(late.steps, in_time.steps, "the only steps there are");
        assert_eq!(late.course[0], in_time.course[0]);
        assert_eq!(late.course[1..], ["... and so on; this is as far as a forecast goes"]);
        assert_eq!(late.waits, Vec::<String>::new());
        assert_eq!(late.forecast["end"], serde_json::json!({ "end": "beyond" }));
        assert_eq!(
            late.cut_short.as_deref(),
            Some(
                "what follows was not looked at, because the deployments before it took the 30 s that there are; name \
                 fewer files"
            )
        );
    }

    #[test]
    fn what_is_at_rest_takes_no_time() {
        let preview = preview_of(outlook("demo", 0), false);
        assert_eq!((preview.steps, preview.course, preview.cut_short), (vec![], vec![], None));
    }
}
