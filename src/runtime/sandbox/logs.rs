//! Output of instances as a stream.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use rustix::fs::inotify;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::logreader::LogReader;
use super::process::ProcessKey;
use super::watch::{drained, ended};
use super::{SandboxRuntime, checked_id, failed, not_found, sys};
use crate::runtime::io::{LogLine, LogOptions, Logs};
use crate::runtime::{ErrorKind, Result, RuntimeError};
use crate::state::InstanceRef;

/// Lines that wait for a slow reader before reading stops.
const BACKLOG: usize = 256;

#[async_trait]
impl Logs for SandboxRuntime {
    async fn logs(&self, instance: &InstanceRef, options: &LogOptions) -> Result<BoxStream<'static, Result<LogLine>>> {
        let found = self.look(instance).await?.ok_or_else(|| not_found(instance))?;
        let folder = self.inner.dir(&checked_id(instance)?).logs();
        let supervisor = found.run.as_ref().map(|run| run.supervisor).filter(|_| options.follow);
        // Watched before the first look, so that nothing written in between is missed.
        let follow = supervisor
            .map(|supervisor| Ok((watch(&folder)?, supervisor)))
            .transpose()
            .map_err(|error: std::io::Error| failed("watching the output", &error))?;
        let (sender, receiver) = mpsc::channel(BACKLOG);
        let options = *options;
        tokio::spawn(async move {
            if let Err(error) = send(folder, options, follow, &sender).await {
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

/// Sends lines until there are no more, or nobody reads them.
async fn send(
    folder: PathBuf,
    options: LogOptions,
    follow: Option<(AsyncFd<OwnedFd>, ProcessKey)>,
    sender: &mpsc::Sender<Result<LogLine>>,
) -> Result<()> {
    let read = |error: std::io::Error| failed("reading the output", &error);
    let mut reader = blocking(move || LogReader::open(&folder, options.tail, options.since)).await?.map_err(read)?;
    let mut follow = follow.and_then(|(watch, supervisor)| Some((watch, Box::pin(ended(supervisor.open()?)))));
    loop {
        loop {
            let (back, more, lines) = blocking(move || {
                let mut lines = Vec::new();
                let more = reader.read(&mut lines);
                (reader, more, lines)
            })
            .await?;
            reader = back;
            for line in lines {
                if sender.send(Ok(line)).await.is_err() {
                    return Ok(());
                }
            }
            if !more.map_err(read)? {
                break;
            }
        }
        // After the end there is one more look, so that the last lines are never missed.
        let Some((watch, end)) = &mut follow else { return Ok(()) };
        let is_over = tokio::select! {
            _ = drained(watch) => false,
            _ = sender.closed() => return Ok(()),
            _ = end.as_mut() => true,
        };
        follow = follow.filter(|_| !is_over);
    }
}

async fn blocking<T: Send + 'static>(action: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(action)
        .await
        .map_err(|error| RuntimeError::new(ErrorKind::Failed, format!("reading the output: {error}")))
}
