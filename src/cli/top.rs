//! `keel top`: what running instances use.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;

use super::connect::{synced_status, warn_about};
use super::exit::{Exit, Outcome};
use super::output::{Columns, DataFormat, note, print, print_data};
use super::reconnecting::{Reconnecting, observe_existing};
use super::text::size;
use crate::api::{ApiError, Client, Kind};
use crate::config::Options;
use crate::controller::InstanceUsage;
use crate::runtime::Usage;
use crate::state::Target;
use crate::status::Status;

/// Between the two looks that the share of a processor is computed from (docker stats: a second).
const INTERVAL: Duration = Duration::from_secs(1);

const HEADER: [&str; 7] = ["NAME", "CPU", "MEMORY", "LIMIT", "PIDS", "NET IN/OUT", "DISK READ/WRITTEN"];

/// Show what running instances use
///
/// CPU is in thousandths of a processor over the last second (500m is half of one), memory without cached files that are
/// not in use. Network and disk are counted since the start of the instance: what passed its own network interfaces, which
/// in a sandbox is not what published ports and the proxy of allow_hosts carry. What the runtime does not know is `-`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Names: DEPLOYMENT, DEPLOYMENT/SERVICE, DEPLOYMENT/SERVICE/SLOT; all when none is given.\n\n\
Examples:\n  keel top\n  keel top demo/web\n  keel top -o json\n\n\
Works with a running controller and without one. Exit code 1 when a name is not found.")]
pub struct Args {
    /// Only these
    #[arg(value_name = "NAME")]
    names: Vec<Target>,
    /// How to print; a table when nothing is named
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<DataFormat>,
    /// Leave the heads of the columns out
    #[arg(long)]
    no_headers: bool,
}

/// What an instance uses, and the part of it that only two looks tell.
#[derive(Debug, PartialEq, Serialize)]
struct Row {
    #[serde(flatten)]
    instance: InstanceUsage,
    /// Thousandths of a processor; absent where it is not known.
    cpu_millis: Option<u64>,
}

/// What one look found.
#[derive(Debug, Default)]
struct Look {
    instances: Vec<InstanceUsage>,
    missing: Vec<Target>,
}

impl Args {
    /// Runs the verb.
    pub async fn run(self, options: &Options) -> Outcome {
        let look = match observe_existing(options).await? {
            None => Ok((Look { missing: self.names.clone(), ..Look::default() }, Vec::new())),
            Some(mut engine) => {
                let looks = self.look_twice(&mut engine).await;
                engine.close().await;
                looks
            }
        };
        let (Look { instances, missing }, before) = look?;
        for name in &missing {
            note(format_args!("error: {name} is not declared and does not exist; see keel get all"));
        }
        let rows = rows(&before, instances);
        match self.output {
            Some(format) => print_data(format, &rows)?,
            None if rows.is_empty() && missing.is_empty() => note("No running instances found"),
            None if rows.is_empty() => {}
            None => self.print_table(&rows)?,
        }
        Ok(if missing.is_empty() { Exit::Success } else { Exit::Failure })
    }

    /// What there is, and what each used a moment before.
    async fn look_twice(&self, engine: &mut Reconnecting<'_>) -> anyhow::Result<(Look, Vec<InstanceUsage>)> {
        let (status, before) = engine.ask(async |client| look(client, &self.names).await).await?;
        warn_about(&status);
        if before.instances.is_empty() {
            return Ok((before, Vec::new()));
        }
        tokio::time::sleep(INTERVAL).await;
        let (_, now) = engine.ask(async |client| look(client, &self.names).await).await?;
        Ok((now, before.instances))
    }

    fn print_table(&self, rows: &[Row]) -> anyhow::Result<()> {
        let cells: Vec<Vec<String>> = rows.iter().map(cells).collect();
        print(&Columns::default().render((!self.no_headers).then_some(&HEADER), &cells))?;
        let unknown = rows.iter().filter_map(|row| Some((&row.instance.name, row.instance.unknown.as_ref()?)));
        for (name, why) in unknown {
            note(format_args!("warning: {name}: {why}"));
        }
        Ok(())
    }
}

/// Asks for what these names cover, or for all.
async fn look(client: &Client, names: &[Target]) -> Result<(Status, Look), ApiError> {
    let status = synced_status(client).await?;
    if names.is_empty() {
        return Ok((status, Look { instances: client.usage(None).await?, missing: Vec::new() }));
    }
    let mut look = Look::default();
    for name in names {
        match client.usage(Some(name)).await {
            Ok(found) => look.instances.extend(found),
            Err(ApiError { kind: Kind::NotFound, .. }) => look.missing.push(name.clone()),
            Err(error) => return Err(error),
        }
    }
    // Names may overlap.
    let mut seen = BTreeSet::new();
    look.instances.retain(|one| seen.insert(one.runtime_id.clone()));
    Ok((status, look))
}

fn rows(before: &[InstanceUsage], now: Vec<InstanceUsage>) -> Vec<Row> {
    let before: BTreeMap<&str, &Usage> =
        before.iter().filter_map(|one| Some((one.runtime_id.as_str(), one.usage.as_ref()?))).collect();
    let row = |instance: InstanceUsage| {
        let looks = before.get(instance.runtime_id.as_str()).copied().zip(instance.usage.as_ref());
        let cpu_millis = looks.and_then(|(before, now)| cpu_millis(before, now));
        Row { instance, cpu_millis }
    };
    now.into_iter().map(row).collect()
}

/// Thousandths of a processor between two looks; none where they tell of no time, or of two runs.
fn cpu_millis(before: &Usage, now: &Usage) -> Option<u64> {
    let elapsed = u64::try_from((now.at - before.at).num_microseconds()?).ok().filter(|elapsed| *elapsed > 0)?;
    let used = now.cpu_usec.checked_sub(before.cpu_usec)?;
    Some(used.saturating_mul(1000) / elapsed)
}

fn cells(row: &Row) -> Vec<String> {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let usage = row.instance.usage.as_ref();
    let one = |value: fn(&Usage) -> Option<u64>| usage.and_then(value);
    let pair = |one: Option<u64>, other: Option<u64>| Some(format!("{} / {}", size(one?), size(other?)));
    vec![
        row.instance.name.clone(),
        or_dash(row.cpu_millis.map(|millis| format!("{millis}m"))),
        or_dash(one(|usage| usage.memory).map(size)),
        or_dash(one(|usage| usage.memory_limit).map(size)),
        or_dash(one(|usage| usage.pids).map(|pids| pids.to_string())),
        or_dash(pair(one(|usage| usage.received_bytes), one(|usage| usage.sent_bytes))),
        or_dash(pair(one(|usage| usage.read_bytes), one(|usage| usage.written_bytes))),
    ]
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, Utc};

    use super::*;
    use crate::spec::RuntimeKind;

    fn usage(millis: i64, cpu_usec: u64) -> Usage {
        let at: DateTime<Utc> = DateTime::from_timestamp_millis(1_700_000_000_000 + millis).unwrap();
        Usage { cpu_usec, ..Usage::nothing(at) }
    }

    fn instance(runtime_id: &str, usage: Option<Usage>) -> InstanceUsage {
        InstanceUsage {
            deployment: "demo".into(),
            service: "web".into(),
            slot: 0,
            name: "demo/web/0".into(),
            runtime: RuntimeKind::Sandbox,
            runtime_id: runtime_id.into(),
            usage,
            unknown: None,
        }
    }

    #[test]
    fn the_share_of_a_processor_is_what_was_used_between_two_looks() {
        assert_eq!(cpu_millis(&usage(0, 1_000), &usage(1_000, 501_000)), Some(500));
        assert_eq!(cpu_millis(&usage(0, 0), &usage(500, 1_000_000)), Some(2_000), "two processors");
        assert_eq!(cpu_millis(&usage(0, 0), &usage(0, 10)), None, "no time went by");
        assert_eq!(cpu_millis(&usage(0, 10), &usage(1_000, 0)), None, "it was started again meanwhile");
    }

    #[test]
    fn an_instance_is_compared_with_itself_alone() {
        let before = [instance("a", Some(usage(0, 0)))];
        let now = vec![instance("a", Some(usage(1_000, 250_000))), instance("b", Some(usage(1_000, 250_000)))];
        let millis: Vec<Option<u64>> = rows(&before, now).iter().map(|row| row.cpu_millis).collect();
        assert_eq!(millis, [Some(250), None]);
    }

    #[test]
    fn what_is_not_known_is_a_dash() {
        let known = Usage {
            memory: Some(12 << 20),
            memory_limit: Some(64 << 20),
            pids: Some(3),
            received_bytes: Some(1536),
            sent_bytes: Some(10),
            ..usage(0, 0)
        };
        let row = Row { instance: instance("a", Some(known)), cpu_millis: Some(7) };
        assert_eq!(cells(&row), ["demo/web/0", "7m", "12Mi", "64Mi", "3", "1.5Ki / 10", "-"]);
        let row = Row { instance: instance("a", None), cpu_millis: None };
        assert_eq!(cells(&row), ["demo/web/0", "-", "-", "-", "-", "-", "-"]);
    }
}
