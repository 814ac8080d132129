//! Creating, starting, stopping and removing instances.

use std::fs;
use std::io::{
    self,
    ErrorKind::{NotFound, QuotaExceeded, ReadOnlyFilesystem, StorageFull},
};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use chrono::Utc;
use rustix::process::{Signal, pidfd_send_signal};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::process::Command;

use super::bounds::{FILE_LIMIT, REMOVE_LIMIT};
use super::cgroup;
use super::copy::copy;
use super::fresh::{make_new, unique};
use super::image::{Ready, filled};
use super::layout::{Durability, InstanceDir, make_private, write_json};
use super::links::{self, Written};
use super::network::Texts;
use super::observe::{Entry, Found};
use super::probe::Probe;
use super::process::ProcessKey;
use super::record::{RECORD_VERSION, Record, Root, Run, Started, StopOrder};
use super::requested::requested;
use super::translate::{Machine, launch};
use super::watch::ended;
use super::{
    Inner, PROBE_LIMIT, SandboxRuntime, capabilities, checked_id, confinement, descriptors, dispatch, failed,
    leftovers, lock, not_found, own_disk, remove, settle,
};
use crate::runtime::{CreateRequest, ErrorKind, Result, RuntimeError, StopRequest};
use crate::spec::Signal as SpecSignal;
use crate::state::{InstanceRef, Phase, StopCause, StopPolicy};

/// Longest time that a start may take: the supervisor's own limit, and some for itself.
const START_LIMIT: Duration = Duration::from_secs(100);
/// Time that a supervisor has beyond the grace to reap, write the last output and record the end.
const STOP_MARGIN: Duration = Duration::from_secs(10);
/// Pause between two looks at whether a supervisor that starts an instance can be told to stop.
const SUPERVISOR_PACE: Duration = Duration::from_millis(5);
/// Longest grace that is waited for in one call; Kubernetes allows more, nobody waits for it.
const LONGEST_GRACE: Duration = Duration::from_secs(24 * 3600);
/// Longest answer of a supervisor, in bytes: one line with a message.
const LONGEST_ANSWER: u64 = 64 << 10;

/// Probes the machine in a process of its own, `program`, with a scratch directory in `folder`.
pub(super) async fn probe(program: &Path, folder: &Path) -> Probe {
    cgroup::settle_in();
    let attempt = async {
        let dir = Scratch(folder.join(unique(leftovers::PROBE)?));
        make_new(&dir.0)?;
        let mut command = Command::new(program);
        command
            .arg(dispatch::PROBE)
            .arg(&dir.0)
            .env_clear()
            .env(descriptors::VARIABLE, descriptors::told())
            // Where programs of others are looked for.
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        let output =
            tokio::time::timeout(PROBE_LIMIT, command.output()).await.map_err(|_| io::ErrorKind::TimedOut)??;
        serde_json::from_slice(&output.stdout).map_err(io::Error::other)
    };
    let result: io::Result<Probe> = attempt.await;
    result.unwrap_or_else(|error| Probe::failed(&format!("{} could not probe the machine: {error}", program.display())))
}

/// A directory that goes when nobody uses it any more.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays is swept later.
        let _ = remove::tree(&self.0);
    }
}

/// A directory of an instance that is being made.
struct New {
    dir: InstanceDir,
    /// Says that it is no leftover, however long it takes.
    held: fs::File,
}

impl Inner {
    /// Makes the directory of an instance, complete or not at all.
    pub(super) fn create(&self, probe: &Probe, request: &CreateRequest) -> Result<Found> {
        let name = request.id.runtime_name();
        let dir = self.dir(&name);
        settle::settle_slot(&self.view, &request.id)
            .map_err(|error| failed(&format!("ending what is left of the slot of {name}"), &error))?;
        match self.view.one(&name) {
            Ok(Entry::Ours(found)) => return Ok(*found),
            Ok(Entry::Foreign(owner)) => {
                return Err(RuntimeError::new(
                    ErrorKind::NameTaken,
                    format!(
                        "{} belongs to the installation {owner}; use a state directory of your own",
                        dir.path().display()
                    ),
                ));
            }
            Ok(Entry::Nothing) => {}
            Err(error) => return Err(failed(&format!("reading the records of {name}"), &error)),
        }
        // Held until the record is there, which then keeps the image in place.
        let image = self.images.ready(&request.spec.image.name)?;
        let (request, left_out) = match &image {
            Some(image) => filled(request, &image.config)?,
            None => (request.clone(), None),
        };
        let request = &request;
        let machine = Machine {
            layout: &self.view.layout,
            dir: &dir,
            probe,
            capabilities: &capabilities::report(probe),
            own_files: &self
                .own_files
                .of(&self.config.hidden)
                .map_err(|error| failed("looking for the paths of Evenkeel's own files", &error))?,
            written: &Written::of(&self.view.layout, &request.spec)
                .map_err(|error| failed("reading which paths programs may write", &error))?,
            image: image.as_ref(),
            group_name: &cgroup::name(&self.config.owner, self.view.layout.root(), &name)
                .map_err(|error| failed("looking at the sandbox directory", &error))?,
        };
        let (launch, mut conditions) = launch(request, &machine)?;
        conditions.extend(left_out);
        conditions.extend(image.as_ref().and_then(Ready::foreign));
        links::remember(&self.view.layout, &launch)
            .map_err(|error| failed("remembering which paths the program may write", &error))?;
        let mut launch = launch;
        if !launch.namespaces.pid {
            launch.env.insert(settle::MARK.to_owned(), dir.path().to_string_lossy().into_owned());
        }
        let mut record = Record {
            version: RECORD_VERSION,
            owner: self.config.owner.clone(),
            id: request.id.clone(),
            restarts: request.restarts,
            streak: request.streak,
            stop: StopPolicy::of(&request.spec),
            created_at: Utc::now(),
            port: None,
            first_port: None,
            ports: Vec::new(),
            conditions,
            requested: requested(&request.spec),
            launch,
        };
        let wrong = |error: io::Error| failed(&format!("creating {}", dir.path().display()), &error);
        // Copying a root can take minutes. An address or a port that no record has yet is another's after one.
        let new = self.begin(&record).map_err(wrong)?;
        let texts = self.connect(probe, request, &name, &mut record).inspect_err(|_| {
            // What stays is swept later.
            let _ = own_disk::discard(new.dir.path());
        })?;
        self.complete(new, &name, &record, &texts).map_err(|error| {
            self.disconnect(&name, &record.launch.network);
            wrong(error)
        })?;
        match self.view.one(&name) {
            Ok(Entry::Ours(found)) => Ok(*found),
            Ok(Entry::Nothing | Entry::Foreign(_)) => {
                Err(RuntimeError::new(ErrorKind::Failed, format!("{name} was removed while it was created")))
            }
            Err(error) => Err(failed(&format!("reading the records of {name}"), &error)),
        }
    }

    /// Makes the directory of an instance under another name, with its root and without a record.
    fn begin(&self, record: &Record) -> io::Result<New> {
        let dir = self.view.layout.instance(&unique(leftovers::NEW)?);
        make_new(dir.path())?;
        let new = New { held: leftovers::hold(dir.path())?, dir };
        make_private(&new.dir.rootfs())?;
        make_private(&new.dir.logs())?;
        if record.launch.root == Root::Shared {
            make_private(&confinement::scratch(new.dir.path()))?;
        }
        if let Root::Copy { from, .. } = &record.launch.root {
            make_private(&new.dir.copy())?;
            own_disk::limit_copy(&new.dir, &record.launch)?;
            copy(from, &new.dir.copy())?;
        }
        Ok(new)
    }

    /// Writes the record into a new directory, and shows it now that it is complete.
    fn complete(&self, New { dir: new, held }: New, name: &str, record: &Record, texts: &Texts) -> io::Result<()> {
        for (name, text) in texts {
            let path = new.name_file(name);
            path.parent().map_or(Ok(()), make_private)?;
            fs::write(path, text)?;
        }
        write_json(&new.record(), record, Durability::Boot)?;
        let dir = self.view.layout.instances().join(name);
        // What is there without a record is a leftover; what got one meanwhile is another call's work.
        if dir.exists() && !self.view.layout.instance(name).record().exists() {
            self.set_aside(&dir)?;
        }
        // Whoever removes it from now on holds it. It was written to a moment ago, so that it is no leftover.
        drop(held);
        match rustix::fs::renameat_with(
            rustix::fs::CWD,
            new.path(),
            rustix::fs::CWD,
            &dir,
            rustix::fs::RenameFlags::NOREPLACE,
        ) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::EXIST) => own_disk::discard(new.path()),
            Err(error) => Err(error.into()),
        }
    }

    /// Refuses to touch what a deployment of another owner shares.
    pub(super) fn refuse_foreign(&self, deployment: &str) -> Result<()> {
        let wrong = |error: io::Error| failed("reading the records of all instances", &error);
        for entry in fs::read_dir(self.view.layout.instances()).map_err(wrong)? {
            let name = entry.map_err(wrong)?.file_name();
            let Some(name) = name.to_str().filter(|name| name.split('_').next() == Some(deployment)) else { continue };
            if let Ok(Entry::Foreign(owner)) = self.view.one(name) {
                return Err(RuntimeError::new(
                    ErrorKind::Rejected,
                    format!("the volumes of {deployment} belong to the installation {owner}"),
                ));
            }
        }
        Ok(())
    }

    /// Removes an instance that does not run. False where a supervisor has it.
    fn remove_stopped(&self, id: &str, homes: Option<&cgroup::Homes>) -> Result<bool> {
        let look = || self.view.one(id).map_err(|error| failed(&format!("reading the records of {id}"), &error));
        let end = |found: &Found| {
            settle::settle(&self.view, found).map_err(|error| failed(&format!("ending what is left of {id}"), &error))
        };
        let is_lost = match look()? {
            // Another installation's must stay.
            Entry::Foreign(_) => return Ok(true),
            Entry::Ours(found) => {
                end(&found)?;
                found.lost.is_some()
            }
            Entry::Nothing => false,
        };
        let dir = self.dir(id);
        // From here on no supervisor starts it. It is held until all of it is gone.
        let _lock = match lock::take(&dir) {
            Ok(Some(lock)) => Some(lock),
            // A supervisor that was lost does not act, even if there is one yet that nobody can find.
            Ok(None) if is_lost => None,
            Ok(None) => return Ok(false),
            // There is no directory, or no supervisor could take it either.
            Err(error) if matches!(error.kind(), NotFound | StorageFull | QuotaExceeded | ReadOnlyFilesystem) => None,
            Err(error) => return Err(failed(&format!("taking the lock of {id}"), &error)),
        };
        // It may have been started and lost since.
        if let Entry::Ours(found) = look()? {
            end(&found)?;
        }
        settle::clear_groups(&self.view, id, homes)
            .map_err(|error| failed(&format!("removing the control groups of {id}"), &error))?;
        settle::clear_network(&self.view, id, true)
            .map_err(|error| failed(&format!("removing the network of {id}"), &error))?;
        self.set_aside(dir.path()).map_err(|error| failed(&format!("removing {}", dir.path().display()), &error))?;
        leftovers::sweep_gone(&self.view.layout);
        Ok(true)
    }

    /// Takes a directory out of sight and removes it, unless something is mounted in it.
    pub(super) fn set_aside(&self, dir: &Path) -> io::Result<()> {
        remove::refuse_mounts(dir)?;
        let aside = self.view.layout.instances().join(unique(leftovers::GONE)?);
        match fs::rename(dir, &aside) {
            // Where it is held, somebody took it for a leftover and removes it.
            Ok(()) => leftovers::hold(&aside).map_or(Ok(()), |_held| own_disk::discard(&aside)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl SandboxRuntime {
    /// Starts an instance that does not run.
    pub(super) async fn start_instance(&self, instance: &InstanceRef) -> Result<Found> {
        let id = checked_id(instance)?;
        match self.look(instance).await? {
            None => return Err(not_found(instance)),
            Some(found) if matches!(found.instance.phase, Phase::Running { .. } | Phase::Stopping) => return Ok(found),
            Some(found) if matches!(found.instance.phase, Phase::Paused { .. }) => {
                let message = format!("instance {} can't be started: it is frozen; resume it", instance.id);
                return Err(RuntimeError::new(ErrorKind::Failed, message));
            }
            Some(found) => {
                if let Phase::Unknown { message } = found.instance.phase {
                    return Err(RuntimeError::new(ErrorKind::Rejected, message));
                }
                if found.lost.is_some() {
                    self.settle(&id).await?;
                }
            }
        }
        let started = tokio::time::timeout(START_LIMIT, self.supervise(&id)).await.map_err(|_| {
            RuntimeError::new(
                ErrorKind::Failed,
                format!("instance {} did not start within {} s", instance.id, START_LIMIT.as_secs()),
            )
        })??;
        match started {
            Started::Failed(failure) => {
                let kind = if failure.lasting { ErrorKind::Rejected } else { ErrorKind::Failed };
                let error = RuntimeError::new(kind, format!("instance {}: {}", instance.id, failure.message));
                let Some(found) = self.look(instance).await? else { return Err(error) };
                self.inner.watch.tell(&found).await;
                Err(error.leaving(found.instance))
            }
            Started::Running | Started::Taken => self.look(instance).await?.ok_or_else(|| not_found(instance)),
        }
    }

    /// Starts the supervisor of an instance and waits for its word.
    async fn supervise(&self, id: &str) -> Result<Started> {
        let dir = self.inner.dir(id);
        let wrong = |error: io::Error| {
            let program = self.inner.config.supervisor.display().to_string();
            failed(&format!("starting the supervisor {program}"), &error)
        };
        let (answer, told) = io::pipe().map_err(wrong)?;
        self.inner.spawner.supervise(dir.path(), told.into()).await.map_err(wrong)?;
        let stdout = pipe::Receiver::from_owned_fd(answer.into()).map_err(wrong)?;
        let mut answer = Vec::new();
        stdout.take(LONGEST_ANSWER).read_to_end(&mut answer).await.map_err(wrong)?;
        serde_json::from_slice(&answer)
            .map_err(|_| RuntimeError::new(ErrorKind::Failed, "the supervisor was killed while it started the program"))
    }

    /// Stops an instance that runs, and waits until it ended.
    pub(super) async fn stop_instance(&self, instance: &InstanceRef, stop: &StopRequest) -> Result<Option<Found>> {
        let Some(found) = self.look(instance).await? else { return Ok(None) };
        let Some(run) = &found.run else {
            return if found.lost.is_some() { self.settle(&checked_id(instance)?).await } else { Ok(Some(found)) };
        };
        let grace = stop.grace.min(LONGEST_GRACE);
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let order = StopOrder { signal: stop.signal, grace_ms, cause: stop.cause };
        let limit = grace + STOP_MARGIN;
        if !self.order_stop(instance, run, order, limit).await? {
            // The supervisor is alive and does not act; the program at least must end. The record of it comes when
            // the supervisor goes on.
            self.kill_all(instance, [run.first].to_vec()).await;
            return Err(RuntimeError::new(
                ErrorKind::Failed,
                format!(
                    "the supervisor of instance {} (pid {}) did not stop it within {} s; its program was killed, \
                     its end is not recorded yet",
                    instance.id,
                    run.supervisor.pid,
                    limit.as_secs()
                ),
            ));
        }
        self.settle(&checked_id(instance)?).await
    }

    /// The instance as it is on disk, after what a lost supervisor left was killed and its end recorded.
    async fn settle(&self, id: &str) -> Result<Option<Found>> {
        let id = id.to_owned();
        self.blocking("ending an instance", FILE_LIMIT, move |inner| {
            let found = inner.find(&id)?;
            if let Some(found) = &found {
                settle::settle(&inner.view, found)
                    .map_err(|error| failed(&format!("ending what is left of {id}"), &error))?;
            }
            Ok(found)
        })
        .await
    }

    async fn kill_all(&self, instance: &InstanceRef, processes: Vec<ProcessKey>) {
        let id = instance.runtime_id.clone();
        let kill = move |inner: &Inner| {
            settle::kill_all(&inner.view, &id, &processes);
            Ok(())
        };
        let _ = self.blocking("killing an instance", FILE_LIMIT, kill).await;
    }

    /// Orders a supervisor to stop its instance. False when it has not ended after `limit`.
    async fn order_stop(&self, instance: &InstanceRef, run: &Run, order: StopOrder, limit: Duration) -> Result<bool> {
        let opened = run.supervisor.open().map_err(|error| failed("opening the supervisor's process", &error))?;
        let Some(pidfd) = opened else { return Ok(true) };
        let id = checked_id(instance)?;
        self.blocking("ordering a stop", FILE_LIMIT, move |inner| {
            write_json(&inner.dir(&id).stop(), &order, Durability::Boot)
                .map_err(|error| failed("writing the order to stop", &error))
        })
        .await?;
        self.tell_stopping(instance).await;
        match pidfd_send_signal(&pidfd, Signal::USR1) {
            Ok(()) => {}
            // It ended meanwhile.
            Err(rustix::io::Errno::SRCH) => return Ok(true),
            Err(error) => return Err(failed("telling the supervisor to stop", &error.into())),
        }
        match tokio::time::timeout(limit, ended(pidfd)).await {
            Ok(Ok(())) => Ok(true),
            Ok(Err(error)) => Err(failed("waiting for the supervisor", &error)),
            Err(_) => Ok(false),
        }
    }

    async fn tell_stopping(&self, instance: &InstanceRef) {
        if let Ok(Some(mut found)) = self.look(instance).await {
            if matches!(found.instance.phase, Phase::Running { .. } | Phase::Paused { .. }) {
                // The supervisor is about to be told.
                found.instance.phase = Phase::Stopping;
            }
            self.inner.watch.tell(&found).await;
        }
    }

    /// Removes an instance, killing what runs of it.
    pub(super) async fn remove_instance(&self, instance: &InstanceRef) -> Result<()> {
        let end = tokio::time::Instant::now() + START_LIMIT + STOP_MARGIN;
        while !self.remove_once(instance).await? {
            if tokio::time::Instant::now() >= end {
                let message = format!("instance {} can't be removed: its supervisor does not end", instance.id);
                return Err(RuntimeError::new(ErrorKind::Failed, message));
            }
            tokio::time::sleep(SUPERVISOR_PACE).await;
        }
        Ok(())
    }

    /// Stops an instance and removes it. False where a supervisor has it that was not there to be stopped: one that is
    /// starting it at this moment, which can't be told to stop until it has written who it is.
    async fn remove_once(&self, instance: &InstanceRef) -> Result<bool> {
        let id = checked_id(instance)?;
        let found = self.look(instance).await?;
        if let Some(run) = found.as_ref().and_then(|found| found.run.as_ref()) {
            let order = StopOrder { signal: SpecSignal::KILL, grace_ms: 0, cause: StopCause::Retired };
            if !self.order_stop(instance, run, order, STOP_MARGIN).await? {
                self.kill_all(instance, [run.first, run.supervisor].to_vec()).await;
            }
        }
        // A record that can't be read does not tell where its control groups are.
        let is_unreadable = found.is_some_and(|found| matches!(found.instance.phase, Phase::Unknown { .. }));
        let homes = if is_unreadable { Some(self.probe().await.homes.clone()) } else { None };
        self.blocking("removing an instance", REMOVE_LIMIT, move |inner| inner.remove_stopped(&id, homes.as_ref()))
            .await
    }
}
