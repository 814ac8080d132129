//! Output of instances as a stream.

use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::mpsc;

use super::layout::InstanceDir;
use super::{SeatbeltRuntime, alive, failed};
use crate::runtime::io::{LogLine, LogOptions, Logs};
use crate::runtime::logfiles::loglines::Joined;
use crate::runtime::logfiles::logreader::{Begin, LogReader};
use crate::runtime::{ErrorKind, Result, RuntimeError};
use crate::state::InstanceRef;

/// Lines that wait for a slow reader before reading stops.
const BACKLOG: usize = 256;
/// Time between two looks at output that is followed: short enough to read along.
const POLL: Duration = Duration::from_millis(100);

#[async_trait]
impl Logs for SeatbeltRuntime {
    async fn logs(&self, instance: &InstanceRef, options: &LogOptions) -> Result<BoxStream<'static, Result<LogLine>>> {
        let found = self.known(instance).await?;
        let dir = self.dir(instance)?;
        let begin = options.tail.map_or(Begin::Oldest, Begin::Last);
        let follow = options.follow && found.run.is_some();
        let reader = LogReader::open(&dir.logs(), begin, Joined::new(options.since));
        let reader = reader.map_err(|error| failed("reading the output", &error))?;
        let reader = if follow { reader } else { reader.until_opened() };
        let (sender, receiver) = mpsc::channel(BACKLOG);
        tokio::spawn(async move {
            if let Err(error) = send(reader, follow.then_some(dir), &sender).await {
                let _ = sender.send(Err(error)).await;
            }
        });
        let next = |mut receiver: mpsc::Receiver<_>| async move { Some((receiver.recv().await?, receiver)) };
        Ok(futures::stream::unfold(receiver, next).boxed())
    }
}

/// Sends what is read until there is no more, or nobody takes it.
async fn send(
    mut reader: LogReader<Joined>,
    follow: Option<InstanceDir>,
    sender: &mpsc::Sender<Result<LogLine>>,
) -> Result<()> {
    let read = |error: std::io::Error| failed("reading the output", &error);
    loop {
        // Looked at before the output, so that the last lines are never missed.
        let is_over = match &follow {
            Some(dir) => alive::holder(dir).map_err(read)?.is_none(),
            None => true,
        };
        loop {
            let (back, more, items) = tokio::task::spawn_blocking(move || {
                let mut items = Vec::new();
                let more = reader.read(&mut items);
                (reader, more, items)
            })
            .await
            .map_err(|error| RuntimeError::new(ErrorKind::Failed, format!("reading the output: {error}")))?;
            reader = back;
            for item in items {
                if sender.send(Ok(item)).await.is_err() {
                    return Ok(());
                }
            }
            if !more.map_err(read)? {
                break;
            }
        }
        if is_over {
            break;
        }
        tokio::select! {
            () = tokio::time::sleep(POLL) => {}
            () = sender.closed() => return Ok(()),
        }
    }
    // Whoever follows is told a line when it has ended; for others this is all there is, such as a prompt.
    let mut left = Vec::new();
    if follow.is_none() {
        reader.finish(&mut left);
    }
    for item in left {
        if sender.send(Ok(item)).await.is_err() {
            break;
        }
    }
    Ok(())
}
