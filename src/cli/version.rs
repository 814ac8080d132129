//! `keel version`: of this program and of the controller.

use serde::Serialize;

use super::connect::running;
use super::exit::{Exit, Outcome};
use super::output::{DataFormat, note, print, print_data};
use crate::api::{Kind, Version};
use crate::config::Options;

/// Print the version of this program, and of the controller where one runs
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How to print; text when nothing is named
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<DataFormat>,
}

#[derive(Debug, Serialize)]
struct Versions {
    client: String,
    controller: Option<Version>,
}

impl Args {
    /// Runs the verb.
    pub async fn run(self, options: &Options) -> Outcome {
        let client = Version::here().version;
        let controller = match running(options).await {
            Ok(Some(client)) => match client.version().await {
                Err(error) if error.kind == Kind::Ended => None,
                version => Some(version?),
            },
            Ok(None) => None,
            Err(error) => {
                note(format_args!("warning: {error:#}"));
                None
            }
        };
        let versions = Versions { client, controller };
        match self.output {
            Some(format) => print_data(format, &versions)?,
            None => print(&versions.text())?,
        }
        Ok(Exit::Success)
    }
}

impl Versions {
    fn text(&self) -> String {
        let controller = self
            .controller
            .as_ref()
            .map_or_else(|| "none running".to_owned(), |version| format!("{} (pid {})", version.version, version.pid));
        format!("keel {}\ncontroller {controller}\n", self.client)
    }
}
