//! Mounting into instances that run: the controller's side.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use rustix::fs::{FileType, fstat};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::bounds::FILE_LIMIT;
use super::failure::Failure;
use super::graft::{Graft, Grafts, may_show};
use super::links::{self, Unresolved, Written};
use super::{Inner, SandboxRuntime, checked_id, descriptors, dispatch, failed, not_found};
use crate::runtime::{ErrorKind, LateMounts, Result, RuntimeError};
use crate::state::{InstanceRef, LateMount, Phase};

/// Longest time until everything is mounted; it takes some milliseconds, and longer where the disk of a source hangs.
const MOUNT_LIMIT: Duration = Duration::from_secs(30);
/// Longest answer of the helper, in bytes: one message with a path or two.
const LONGEST_ANSWER: u64 = 64 << 10;

#[async_trait]
impl LateMounts for SandboxRuntime {
    async fn check_mounts(&self, mounts: &[LateMount]) -> Result<()> {
        self.may_mount().await?;
        self.grafts(mounts).await.map(drop)
    }

    async fn mount(&self, instance: &InstanceRef, mounts: &[LateMount]) -> Result<()> {
        self.may_mount().await?;
        let found = self.look(instance).await?.ok_or_else(|| not_found(instance))?;
        if !matches!(found.instance.phase, Phase::Running { .. }) {
            let phase = found.instance.phase.name();
            return Err(rejected(format!("instance {} does not run ({phase}), so nothing is mounted", instance.id)));
        }
        let grafts = self.grafts(mounts).await?;
        let writable = grafts.mounts.iter().filter(|mount| !mount.read_only);
        let writable: Vec<PathBuf> = writable.map(|mount| mount.source.clone()).collect();
        self.blocking("remembering what programs may write", FILE_LIMIT, move |inner| {
            links::remember_paths(&inner.view.layout, writable)
                .map_err(|error| failed("remembering which paths the program may write", &error))
        })
        .await?;
        let dir = self.inner.dir(&checked_id(instance)?);
        match tokio::time::timeout(MOUNT_LIMIT, self.run_graft(dir.path(), &grafts)).await {
            Ok(Ok(done)) => done.map_err(|failure| RuntimeError::new(kind(&failure), failure.message)),
            Ok(Err(error)) => Err(failed("mounting", &error)),
            Err(_) => Err(RuntimeError::new(
                ErrorKind::Failed,
                format!("mounting did not end within {} s; does a file system hang?", MOUNT_LIMIT.as_secs()),
            )),
        }
    }
}

impl SandboxRuntime {
    /// Whether this machine and this user can mount into an instance.
    async fn may_mount(&self) -> Result<()> {
        let probe = self.probe().await;
        let lacks = |why: &str| {
            let message = format!("nothing can be mounted into a sandbox that runs: {why}");
            Err(RuntimeError::new(ErrorKind::Unsupported, message))
        };
        match &probe.namespaces {
            Err(why) => lacks(why),
            Ok(()) if !probe.root => {
                lacks("keel does not run as root; declare the directories as `storage` of the pool")
            }
            Ok(()) => Ok(()),
        }
    }

    async fn grafts(&self, mounts: &[LateMount]) -> Result<Grafts> {
        let mounts = mounts.to_vec();
        self.blocking("looking at the sources of mounts", FILE_LIMIT, move |inner| inner.grafts(&mounts)).await
    }

    /// Has the helper mount, and waits for its answer. It is killed where nobody waits any more.
    async fn run_graft(&self, dir: &Path, grafts: &Grafts) -> io::Result<std::result::Result<(), Failure>> {
        let mut command = Command::new(&self.inner.config.supervisor);
        command.arg(dispatch::GRAFT).arg(dir).current_dir("/");
        command.env_clear().env(descriptors::VARIABLE, descriptors::told());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn()?;
        if let Some(mut order) = child.stdin.take() {
            order.write_all(&serde_json::to_vec(grafts)?).await?;
        }
        let mut answer = Vec::new();
        if let Some(told) = child.stdout.take() {
            told.take(LONGEST_ANSWER).read_to_end(&mut answer).await?;
        }
        child.wait().await?;
        match answer.is_empty() {
            true => Err(io::Error::other("its helper was killed")),
            false => Ok(serde_json::from_slice(&answer)?),
        }
    }
}

impl Inner {
    /// What is to be mounted, with the links that lead to the sources followed, outer mounts before inner ones.
    fn grafts(&self, mounts: &[LateMount]) -> Result<Grafts> {
        let own_files = self
            .own_files
            .of(&self.config.hidden)
            .map_err(|error| failed("looking for the paths of Evenkeel's own files", &error))?;
        let writable = mounts.iter().filter(|mount| !mount.readonly).map(|mount| Path::new(&mount.source));
        let written = Written::with(&self.view.layout, writable)
            .map_err(|error| failed("reading which paths programs may write", &error))?;
        let numbered = mounts.iter().enumerate();
        let mut found =
            numbered.map(|(index, mount)| graft(index, mount, &written, &own_files)).collect::<Result<Vec<Graft>>>()?;
        found.sort_by_key(|mount| super::inside::depth(&mount.target));
        Ok(Grafts { mounts: found, own_files })
    }
}

fn graft(index: usize, mount: &LateMount, written: &Written, own_files: &[PathBuf]) -> Result<Graft> {
    let field = format!("mounts[{index}]");
    let what = || format!("{field}.source: {} can't be mounted", mount.source);
    let source = written.resolve(Path::new(&mount.source)).map_err(|error| match error {
        Unresolved::Unreadable(error) => RuntimeError::new(ErrorKind::Failed, format!("{}: {error}", what())),
        Unresolved::Untrusted { .. } => rejected(format!("{}: {error}", what())),
    })?;
    let place = links::open(&source).map_err(|error| failed(&what(), &error))?;
    let mode = fstat(&place).map_err(|error| failed(&what(), &error.into()))?.st_mode;
    may_show(&source, FileType::from_raw_mode(mode), own_files)
        .map_err(|why| rejected(format!("{}: {why}", what())))?;
    Ok(Graft { field, source, target: mount.target.clone(), read_only: mount.readonly })
}

fn rejected(message: String) -> RuntimeError {
    RuntimeError::new(ErrorKind::Rejected, message)
}

const fn kind(failure: &Failure) -> ErrorKind {
    match (failure.lasting, failure.untouched) {
        (true, true) => ErrorKind::Unsupported,
        (true, false) => ErrorKind::Rejected,
        (false, _) => ErrorKind::Failed,
    }
}
