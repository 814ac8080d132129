//! `keel session list`: the sessions that there are.

use chrono::{DateTime, Utc};

use super::controller;
use crate::api::Client;
use crate::cli::exit::{Exit, Outcome};
use crate::cli::output::{Columns, DataFormat, Format, note, print, print_data};
use crate::cli::text::age;
use crate::config::Options;
use crate::controller::SessionView;

const HEADER: [&str; 7] = ["SESSION", "CLIENT", "STATE", "INSTANCE", "AGE", "ENDS IN", "MESSAGE"];
const WIDE: [&str; 5] = ["POOL", "SANDBOX", "WARM", "ELAPSED", "ID"];

/// Show sessions
///
/// Those that live; with --all also those that have ended, of which each pool keeps the last 1,000. Tokens are never shown.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Also those that have ended
    #[arg(short, long)]
    all: bool,
    /// How to print; a table when nothing is named
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<Format>,
    /// Go on with what changes
    #[arg(short, long)]
    watch: bool,
    /// Leave the heads of the columns out
    #[arg(long)]
    no_headers: bool,
}

impl Args {
    /// Runs the verb.
    pub async fn run(self, options: &Options) -> Outcome {
        let client = controller(options).await?;
        let mut columns = Columns::default();
        let mut status = client.status().await?;
        let mut shown = self.sessions(&client).await?;
        self.print(&shown, true, &mut columns)?;
        if !self.watch {
            return Ok(Exit::Success);
        }
        loop {
            status = client.status_after(status.generation).await?;
            let now = self.sessions(&client).await?;
            let changed: Vec<SessionView> = now.iter().filter(|view| !shown.contains(view)).cloned().collect();
            let is_gone = |view: &&SessionView| now.iter().all(|one| one.session != view.session);
            let gone =
                shown.iter().filter(is_gone).map(|view| SessionView { state: "ended".to_owned(), ..view.clone() });
            let changed: Vec<SessionView> = changed.into_iter().chain(gone).collect();
            if !changed.is_empty() {
                self.print(&changed, false, &mut columns)?;
            }
            shown = now;
        }
    }

    async fn sessions(&self, client: &Client) -> anyhow::Result<Vec<SessionView>> {
        let mut views = client.sessions().await?;
        views.retain(|view| self.all || view.ended_at.is_none());
        Ok(views)
    }

    fn print(&self, views: &[SessionView], first: bool, columns: &mut Columns) -> anyhow::Result<()> {
        let data = match self.output {
            Some(Format::Json) => DataFormat::Json,
            Some(Format::Yaml) => DataFormat::Yaml,
            Some(Format::Name) => {
                let names: String = views.iter().map(|view| format!("session/{}\n", view.session)).collect();
                return print(&names);
            }
            Some(Format::Wide) | None => return self.print_table(views, first, columns),
        };
        match first {
            true => print_data(data, &views),
            false => views.iter().try_for_each(|view| print_data(data, view)),
        }
    }

    fn print_table(&self, views: &[SessionView], first: bool, columns: &mut Columns) -> anyhow::Result<()> {
        if views.is_empty() {
            note("No sessions found");
            return Ok(());
        }
        let wide = self.output == Some(Format::Wide);
        let header: Vec<&str> = HEADER.iter().chain(if wide { &WIDE[..] } else { &[] }).copied().collect();
        let now = Utc::now();
        let rows: Vec<Vec<String>> = views.iter().map(|view| row(view, wide, now)).collect();
        let with_header = (first || columns.is_new()) && !self.no_headers;
        print(&columns.render(with_header.then_some(header.as_slice()), &rows))
    }
}

fn row(view: &SessionView, wide: bool, now: DateTime<Utc>) -> Vec<String> {
    let left = view.expires_at.map_or("-".to_owned(), |at| age((at - now).to_std().unwrap_or_default()));
    let narrow = [
        view.session.to_string(),
        view.client.clone(),
        view.state.clone(),
        view.instance.clone(),
        age((now - view.created_at).to_std().unwrap_or_default()),
        left,
        view.message.clone(),
    ];
    let more = [
        view.pool.clone(),
        view.sandbox.clone().unwrap_or_else(|| "-".to_owned()),
        if view.warm { "yes" } else { "no" }.to_owned(),
        format!("{:.1}ms", view.elapsed_ms),
        view.runtime_id.clone(),
    ];
    narrow.into_iter().chain(more.into_iter().filter(|_| wide)).collect()
}
