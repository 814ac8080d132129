//! `keel describe`: all that is known of a deployment, a service or an instance.

use super::connect::{synced_status, warn_about};
use super::description::text;
use super::exit::{Exit, Outcome, Usage};
use super::output::{DataFormat, note, print, print_data};
use super::reconnecting::observe_existing;
use super::views::Resource;
use crate::api::{ApiError, Client, Kind};
use crate::config::Options;
use crate::controller::Description;
use crate::state::{BadIdentity, Target};
use crate::status::Status;

/// Show all that is known of a deployment, a service or an instance
///
/// State, conditions and recent events; of each instance its process, how it ended, and each control: what was asked for,
/// what enforces it for this very instance, and why where it is not enforced.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "keel describe [OPTIONS] [TYPE/]NAME\n       keel describe [OPTIONS] TYPE NAME",
    after_help = "Names: DEPLOYMENT, DEPLOYMENT/SERVICE, DEPLOYMENT/SERVICE/SLOT. A type may come before the name, \
as in keel get; what begins with a type is taken as TYPE/NAME.\n\n\
Examples:\n  keel describe demo\n  keel describe demo/web/0\n  keel describe instance demo/web/0\n  \
keel describe svc/demo/web -o json\n\n\
Works with a running controller and without one. Exit code 1 when nothing of that name is declared or exists."
)]
pub struct Args {
    /// What to describe: NAME, TYPE/NAME or TYPE NAME
    #[arg(required = true, num_args = 1..=2, value_name = "[TYPE/]NAME")]
    what: Vec<String>,
    /// How to print; for people when nothing is named
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<DataFormat>,
}

impl Args {
    /// Runs the verb.
    pub async fn run(self, options: &Options) -> Outcome {
        let target = target(&self.what)?;
        let Some(mut engine) = observe_existing(options).await? else {
            return Ok(not_found(&target));
        };
        let found = engine.ask(async |client| find(client, &target).await).await;
        engine.close().await;
        let (status, found) = found?;
        warn_about(&status);
        let Some(found) = found else { return Ok(not_found(&target)) };
        match self.output {
            Some(format) => print_data(format, &found)?,
            None => print(&text(&found, &target, chrono::Utc::now()))?,
        }
        Ok(Exit::Success)
    }
}

async fn find(client: &Client, target: &Target) -> Result<(Status, Option<Description>), ApiError> {
    let status = synced_status(client).await?;
    match client.describe(target).await {
        Err(ApiError { kind: Kind::NotFound, .. }) => Ok((status, None)),
        found => Ok((status, Some(found?))),
    }
}

fn not_found(target: &Target) -> Exit {
    note(format_args!("error: {target} is not declared and does not exist; see keel get all"));
    Exit::Failure
}

/// The name that is meant, in any of its forms.
fn target(words: &[String]) -> Result<Target, Usage> {
    let (resource, name) = match words {
        [one] => match one.split_once('/').and_then(|(word, name)| Some((Resource::parse(word)?, name))) {
            Some((resource, name)) => (Some(resource), name),
            None => (None, one.as_str()),
        },
        [word, name] => match Resource::parse(word) {
            Some(resource) => (Some(resource), name.as_str()),
            None => {
                return Err(Usage(format!("there is no type {word:?}; write deployment, service or instance")));
            }
        },
        _ => return Err(Usage("one name is described at a time".to_owned())),
    };
    let target: Target = name.parse().map_err(|error: BadIdentity| Usage(error.to_string()))?;
    let depth = match (&target.service, target.slot) {
        (None, _) => Resource::Deployments,
        (Some(_), None) => Resource::Services,
        (Some(_), Some(_)) => Resource::Instances,
    };
    match resource {
        Some(Resource::Jobs | Resource::Pools) if depth == Resource::Services => Ok(target),
        Some(resource) if resource != depth => {
            Err(Usage(format!("{name} names a {}, not a {}", depth.singular(), resource.singular())))
        }
        _ => Ok(target),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &[&str]) -> Result<String, String> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        target(&words).map(|target| target.to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn names_come_alone_or_with_their_type() {
        for words in [&["demo/web/0"][..], &["instance/demo/web/0"], &["inst", "demo/web/0"]] {
            assert_eq!(read(words), Ok("demo/web/0".to_owned()), "{words:?}");
        }
        assert_eq!(read(&["deploy/demo"]), Ok("demo".to_owned()));
        assert_eq!(read(&["svc", "demo/web"]), Ok("demo/web".to_owned()));
    }

    #[test]
    fn a_type_that_does_not_fit_its_name_is_refused() {
        assert_eq!(read(&["svc/demo"]), Err("demo names a deployment, not a service".to_owned()));
        assert_eq!(
            read(&["pod", "demo"]),
            Err("there is no type \"pod\"; write deployment, service or instance".to_owned())
        );
        assert!(read(&["a/b/c"]).is_err());
    }
}
