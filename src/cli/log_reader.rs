//! Reads output and prints it, from one engine after the other where it is followed.

use std::pin::pin;

use chrono::Utc;
use futures::StreamExt;

use super::exit::{Exit, Outcome};
use super::log_printer::Printer;
use super::output::note;
use super::reconnecting::Reconnecting;
use crate::api::{ApiError, Client, Kind, LogItem, LogQuery, LogResume};
use crate::controller::Bookmark;

/// Reads what a query asks for.
pub struct Reader {
    query: LogQuery,
    printer: Printer,
    bookmark: Bookmark,
    /// Whether an engine has answered; the next one goes on from there.
    has_begun: bool,
    exit: Exit,
    /// What was told last of waiting, until a line comes.
    waiting: Option<String>,
}

/// Why an engine is not read any further.
enum End {
    /// There is no more.
    Done,
    /// It can't be read.
    Lost(ApiError),
    /// A controller runs and knows better.
    Controller(Client),
}

impl Reader {
    /// Has read nothing yet.
    pub fn new(query: LogQuery, timestamps: bool) -> Self {
        Self {
            query,
            printer: Printer::new(timestamps),
            bookmark: Bookmark::new(Utc::now()),
            has_begun: false,
            exit: Exit::Success,
            waiting: None,
        }
    }

    /// Reads to the end. What is followed outlasts the controller.
    ///
    /// # Errors
    /// Nothing of that name is declared or exists; no engine can be asked; standard output can't be written.
    pub async fn read(&mut self, engine: &mut Reconnecting<'_>) -> Outcome {
        loop {
            match self.read_from(engine).await? {
                End::Done => return Ok(self.exit),
                End::Lost(error) if self.query.goes_on() => engine.recover(error).await?,
                End::Lost(error) => return Err(error.into()),
                End::Controller(client) => engine.switch(client).await,
            }
        }
    }

    /// Reads for as long as this engine tells something.
    async fn read_from(&mut self, engine: &mut Reconnecting<'_>) -> anyhow::Result<End> {
        let mut items = match self.has_begun {
            // Nobody has been told anything yet, nor needs to be told that this is another controller.
            false => engine.ask(async |client| client.logs(&self.query).await).await?,
            true => match engine.client().resume_logs(&self.resume()).await {
                Ok(items) => items,
                Err(error) => return Ok(End::Lost(error)),
            },
        };
        self.has_begun = true;
        engine.answers();
        let mut controller = pin!(engine.controller());
        loop {
            let item = tokio::select! {
                item = items.next() => item,
                client = &mut controller, if self.query.goes_on() => return Ok(End::Controller(client)),
            };
            match item {
                Some(Ok(LogItem::Broken(error))) => return Ok(End::Lost(error.into())),
                Some(Ok(LogItem::Gone)) => {
                    self.finish()?;
                    note(format_args!("{} is not declared any more and its last instance is gone", self.query.target));
                    return Ok(End::Done);
                }
                Some(Ok(item)) => self.tell(item, engine)?,
                Some(Err(error)) => return Ok(End::Lost(error)),
                None if self.query.goes_on() => {
                    return Ok(End::Lost(ApiError::new(Kind::Ended, "the log broke off")));
                }
                None => return Ok(End::Done),
            }
        }
    }

    fn resume(&self) -> LogResume {
        LogResume { query: self.query.clone(), after: self.bookmark.clone() }
    }

    /// Ends the last line where it was printed in part.
    ///
    /// # Errors
    /// Standard output can't be written.
    pub fn finish(&mut self) -> anyhow::Result<()> {
        self.printer.end_line()
    }

    fn tell(&mut self, item: LogItem, engine: &mut Reconnecting<'_>) -> anyhow::Result<()> {
        match item {
            LogItem::Instances(names) => {
                self.printer.set_instances(&names);
                self.bookmark.names(&names);
            }
            LogItem::Line { instance, runtime, runtime_id, line } => {
                self.printer.print(&instance, &line)?;
                self.bookmark.line(&instance, runtime, &runtime_id, line.at);
                self.waiting = None;
                engine.works();
            }
            LogItem::NoLines { instance, runtime, runtime_id } => {
                self.bookmark.no_lines(&instance, runtime, &runtime_id);
            }
            LogItem::Failed { instance, error } => {
                self.printer.make_room()?;
                note(format_args!("error: reading the output of {instance} failed: {}", error.error));
                self.exit = Exit::Failure;
            }
            LogItem::Interrupted { instance, error } => {
                self.printer.make_room()?;
                note(format_args!(
                    "warning: the output of {instance} can't be read at present and is tried again: {}",
                    error.error
                ));
            }
            LogItem::Waiting => {
                self.printer.make_room()?;
                self.tell_waiting(engine.client());
            }
            LogItem::Gone | LogItem::Broken(_) => {}
        }
        Ok(())
    }

    fn tell_waiting(&mut self, client: &Client) {
        let hint = if client.has_controller() { "" } else { "; no controller runs that would start one, see keel run" };
        let text = format!("waiting for an instance of {} to run{hint}", self.query.target);
        if self.waiting.as_ref() != Some(&text) {
            note(&text);
            self.waiting = Some(text);
        }
    }
}
