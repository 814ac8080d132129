//! Output of instances as a stream.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use rustix::fs::inotify;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::process::ProcessKey;
use super::readers::Reading;
use super::watch::{drained, ended};
use super::{SandboxRuntime, checked_id, failed, not_found, sys};
use crate::runtime::io::{LogLine, LogOptions, Logs};
use crate::runtime::logfiles::loglines::{Assemble, Joined};
use crate::runtime::logfiles::logreader::{Begin, LogReader};
use crate::runtime::{ErrorKind, Result, RuntimeError};
use crate::state::InstanceRef;

/// Lines, or fragments of lines, that wait for a slow reader before reading stops.
const BACKLOG: usize = 256;
/// Time between two looks at output that can't be watched: short enough to read along.
const POLL: Duration = Duration::from_millis(250);

#[async_trait]
impl Logs for SandboxRuntime {
    async fn logs(&self, instance: &InstanceRef, options: &LogOptions) -> Result<BoxStream<'static, Result<LogLine>>> {
        let begin = options.tail.map_or(Begin::Oldest, Begin::Last);
        self.read_output(instance, options.follow, begin, Joined::new(options.since)).await
    }
}

impl SandboxRuntime {
    /// What is made of the output of an instance; with `follow` until the instance ends or the stream is dropped.
    pub(super) async fn read_output<A: Assemble>(
        &self,
        instance: &InstanceRef,
        follow: bool,
        begin: Begin,
        assemble: A,
    ) -> Result<BoxStream<'static, Result<A::Item>>> {
        let found = self.look(instance).await?.ok_or_else(|| not_found(instance))?;
        let dir = self.inner.dir(&checked_id(instance)?);
        let folder = dir.logs();
        let supervisor = found.run.as_ref().map(|run| run.supervisor).filter(|_| follow);
        // Watched before the first look, so that nothing written in between is missed; looked at now and then where the
        // machine has no watch left to give.
        let follow = supervisor.map(|supervisor| (watch(&folder).ok(), supervisor));
        let read = |error: std::io::Error| failed("reading the output", &error);
        let goes_on = follow.is_some();
        let open = move || {
            // A removal waits for those who read the last lines.
            let reading = Reading::begin(&dir);
            let reader = LogReader::open(&folder, begin, assemble)?;
            Ok::<_, std::io::Error>((if goes_on { reader } else { reader.until_opened() }, reading))
        };
        let (reader, reading) = blocking(open).await?.map_err(read)?;
        let (sender, receiver) = mpsc::channel(BACKLOG);
        tokio::spawn(async move {
            let _reading = reading;
            if let Err(error) = send(reader, follow, &sender).await {
                let _ = sender.send(Err(error)).await;
            }
        });
        Ok(futures::stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) })
            .boxed())
    }
}

fn watch(folder: &PathBuf) -> std::io::Result<AsyncFd<OwnedFd>> {
    let inotify = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
    let flags = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::ONLYDIR;
    inotify::add_watch(&inotify, folder, flags)?;
    sys::wait_ready(inotify, Interest::READABLE)
}

/// Waits until the output may have changed.
async fn changed(watch: &mut Option<AsyncFd<OwnedFd>>) {
    let was_told = match watch {
        Some(watch) => drained(watch).await.is_ok(),
        None => false,
    };
    if !was_told {
        *watch = None;
        tokio::time::sleep(POLL).await;
    }
}

/// Sends what is read until there is no more, or nobody takes it.
async fn send<A: Assemble>(
    mut reader: LogReader<A>,
    follow: Option<(Option<AsyncFd<OwnedFd>>, ProcessKey)>,
    sender: &mpsc::Sender<Result<A::Item>>,
) -> Result<()> {
    let read = |error: std::io::Error| failed("reading the output", &error);
    let is_followed = follow.is_some();
    let opened = follow.map(|(watch, supervisor)| Ok((watch, supervisor.open()?))).transpose();
    let opened = opened.map_err(|error| failed("opening the supervisor's process", &error))?;
    let mut follow = opened.and_then(|(watch, pidfd)| Some((watch, Box::pin(ended(pidfd?)))));
    loop {
        loop {
            let (back, more, items) = blocking(move || {
                let mut items = Vec::new();
                let more = reader.read(&mut items);
                (reader, more, items)
            })
            .await?;
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
        // After the end there is one more look, so that the last lines are never missed.
        let Some((watch, end)) = &mut follow else { break };
        let is_over = tokio::select! {
            () = changed(watch) => false,
            _ = sender.closed() => return Ok(()),
            _ = end.as_mut() => true,
        };
        follow = follow.filter(|_| !is_over);
    }
    // Whoever follows is told a line when it has ended; for others this is all there is, such as a prompt.
    let mut left = Vec::new();
    if !is_followed {
        reader.finish(&mut left);
    }
    for item in left {
        if sender.send(Ok(item)).await.is_err() {
            break;
        }
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(action: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(action)
        .await
        .map_err(|error| RuntimeError::new(ErrorKind::Failed, format!("reading the output: {error}")))
}
