//! What is expected to happen until nothing is left to do.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::model::Model;
use super::{Lane, Snapshot, Step, Wait, plan};

/// Plans that a forecast makes at most. A replica that is replaced on its own takes up to four (it is made, gets ready,
/// stays so, and the old one goes), so that a rollout of 500 of them one at a time is told to its end.
pub const FORECAST_PLANS: usize = 2_000;

/// Instances that all plans of a forecast look at, at most: those 2,000 plans for 500 instances. An unoptimised build
/// takes two seconds for them, and somebody waits.
pub const FORECAST_LOOKS: usize = 1_000_000;

/// What is expected to happen, if every step succeeds at once and what is waited for comes true.
///
/// The controller plans anew whenever anything happens, so the order of what runs side by side may differ.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Forecast {
    /// One after the other.
    pub stages: Vec<Stage>,
    /// What comes after them.
    pub end: End,
}

/// A part of a forecast.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "stage", rename_all = "snake_case")]
pub enum Stage {
    /// Steps are taken.
    Act {
        /// When, if nothing but waits took time.
        at: DateTime<Utc>,
        /// Side by side, each in order.
        lanes: Vec<Lane>,
    },
    /// Something is waited for.
    Wait {
        /// From when on, if nothing but waits took time.
        at: DateTime<Utc>,
        /// All of this, or as much of it as something can follow from.
        waits: Vec<Wait>,
    },
}

/// The end of a forecast.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "end", rename_all = "snake_case")]
pub enum End {
    /// Nothing is left to do.
    Rest {
        /// What stays as it is until somebody does something or something happens.
        waits: Vec<Wait>,
    },
    /// It goes on beyond [`FORECAST_PLANS`] or [`FORECAST_LOOKS`], or for ever.
    Beyond,
}

impl Forecast {
    /// Every step, in the order in which they are expected.
    pub fn steps(&self) -> impl Iterator<Item = &Step> {
        let lanes = self.stages.iter().flat_map(|stage| match stage {
            Stage::Act { lanes, .. } => lanes.as_slice(),
            Stage::Wait { .. } => &[],
        });
        lanes.flat_map(|lane| &lane.steps)
    }
}

/// Plans on and on, each time as if all of the plan before had succeeded. Age alone is not waited for: a service whose
/// instances are recycled one day is at rest until then.
pub fn forecast(snapshot: Snapshot) -> Forecast {
    let mut model = Model::new(snapshot);
    let mut stages = Vec::new();
    let mut looks = 0;
    for _ in 0..FORECAST_PLANS {
        looks += model.input().observed.len();
        if looks > FORECAST_LOOKS {
            break;
        }
        model.sight();
        let at = model.now();
        let plan = plan(&model.input());
        model.remember(&plan);
        if !plan.is_empty() {
            model.carry_out(&plan.lanes);
            stages.push(Stage::Act { at, lanes: plan.lanes });
            continue;
        }
        match model.pass(&plan) {
            None => return Forecast { stages, end: End::Rest { waits: plan.waits } },
            Some(waits) if waits.is_empty() => {}
            Some(waits) => stages.push(Stage::Wait { at, waits }),
        }
    }
    Forecast { stages, end: End::Beyond }
}
