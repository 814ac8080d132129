//! `keel doctor`: what each runtime can enforce here.

use super::connect::synced_status;
use super::exit::{Exit, Outcome};
use super::output::{Columns, DataFormat, print, print_data};
use super::reconnecting::observe;
use crate::config::Options;
use crate::controller::RuntimeReport;
use crate::runtime::Support;

/// Show what each runtime can enforce on this machine, and why not
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Every control is enforced, degraded or absent. One that a service names in sandbox.require must be \
enforced, or its start is refused.\n\nExamples:\n  keel doctor\n  keel doctor -o json\n\nWorks with a running \
controller and without one, and changes nothing."
)]
pub struct Args {
    /// How to print; tables when nothing is named
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<DataFormat>,
}

impl Args {
    /// Runs the verb.
    pub async fn run(self, options: &Options) -> Outcome {
        let mut engine = observe(options).await?;
        let reports = engine.ask(async |client| {
            synced_status(client).await?;
            client.runtimes().await
        });
        let reports = reports.await;
        engine.close().await;
        let reports = reports?;
        match self.output {
            Some(format) => print_data(format, &reports)?,
            None => print(&reports.iter().map(text).collect::<Vec<_>>().join("\n"))?,
        }
        Ok(Exit::Success)
    }
}

fn text(report: &RuntimeReport) -> String {
    let version = report.version.as_deref().unwrap_or_default();
    match &report.unreachable {
        Some(why) => format!("{}: not available: {why}\n", report.runtime),
        None => format!("{}: {version}\n{}", report.runtime, table(report)),
    }
}

fn table(report: &RuntimeReport) -> String {
    let rows: Vec<Vec<String>> = report
        .controls
        .iter()
        .map(|one| {
            let (support, why) = match &one.support {
                Support::Enforced => ("enforced", ""),
                Support::Degraded { why } => ("degraded", why.as_str()),
                Support::Absent { why } => ("absent", why.as_str()),
            };
            let by = one.by.as_deref().unwrap_or("-");
            [&one.control.to_string(), support, by, why].map(str::to_owned).to_vec()
        })
        .collect();
    Columns::default().render(Some(&["CONTROL", "SUPPORT", "BY", "WHY"]), &rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::ControlReport;
    use crate::spec::{Control, RuntimeKind};

    #[test]
    fn every_control_has_a_line_with_its_reason() {
        let control = |control, support| ControlReport { control, support, by: None };
        let report = RuntimeReport {
            runtime: RuntimeKind::Sandbox,
            unreachable: None,
            version: Some("sandbox 1".to_owned()),
            controls: vec![
                control(Control::Seccomp, Support::Enforced),
                ControlReport {
                    by: Some("bridges".to_owned()),
                    ..control(Control::NetworkIsolation, Support::Enforced)
                },
                control(Control::Landlock, Support::Absent { why: "switched off".to_owned() }),
            ],
        };
        assert_eq!(
            text(&report),
            "\
sandbox: sandbox 1
CONTROL             SUPPORT    BY        WHY
seccomp             enforced   -
network_isolation   enforced   bridges
landlock            absent     -         switched off
"
        );
    }

    #[test]
    fn a_runtime_that_does_not_answer_says_why() {
        let report = RuntimeReport {
            runtime: RuntimeKind::Docker,
            unreachable: Some("no engine".to_owned()),
            version: None,
            controls: Vec::new(),
        };
        assert_eq!(text(&report), "docker: not available: no engine\n");
    }
}
