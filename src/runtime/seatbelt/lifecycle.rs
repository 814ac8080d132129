//! Making, starting, ending and removing instances: files, and one process each that does the rest.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use tokio::io::AsyncReadExt;
use tokio::process::Command;

use super::layout::InstanceDir;
use super::observe::{self, Found};
use super::plan::{self, Machine, Planned};
use super::record::{Orders, StopOrder};
use super::supervise::{RUNS, SUPERVISE, TAKEN};
use super::{SeatbeltRuntime, alive, commands, failed, table};
use crate::runtime::file_lock;
use crate::runtime::files::{Durability, make_private, private_file, write_json};
use crate::runtime::{CreateRequest, ErrorKind, Result, RuntimeError, ports};
use crate::spec::HumanDuration;
use crate::state::{InstanceRef, Phase, StopPolicy, StopRequest};

/// Longest time until a program that is started runs.
const START_LIMIT: Duration = Duration::from_secs(30);
/// Longest time that somebody else may take to make an instance: as long as a large image is copied.
const MAKE_LIMIT: Duration = Duration::from_secs(120);
/// Time beyond its grace in which a program that is ended must be gone.
const STOP_LIMIT: Duration = Duration::from_secs(15);
/// Longest time until a supervisor obeys.
const OBEY_LIMIT: Duration = Duration::from_secs(10);
/// Pause between two looks at what a supervisor does.
const PAUSE: Duration = Duration::from_millis(10);
/// Time after which a supervisor is told again.
const TELL_AGAIN: Duration = Duration::from_millis(500);

impl SeatbeltRuntime {
    /// Makes an instance under another name, which appears when it is complete.
    pub(super) fn make(&self, request: &CreateRequest) -> Result<Found> {
        let dir = self.inner.layout.instance(&request.id.runtime_name());
        let what = |error: &io::Error| failed(&format!("creating {}", request.id), error);
        if let Some(found) = observe::one(&dir).map_err(|error| what(&error))? {
            return Ok(found);
        }
        let port = match plan::wants_port(request) {
            true => Some(self.free_port().map_err(|error| what(&error))?),
            false => None,
        };
        let planned = plan::plan(
            request,
            &Machine {
                layout: &self.inner.layout,
                launcher: &self.inner.config.launcher,
                hidden: &self.inner.hidden,
                port,
                user: &self.inner.user,
                now: chrono::Utc::now(),
            },
        )?;
        self.write(&dir, &planned).map_err(|error| what(&error))?;
        let found = observe::one(&dir).map_err(|error| what(&error))?;
        found.ok_or_else(|| failed(&format!("creating {}", request.id), &io::ErrorKind::NotFound.into()))
    }

    /// The record comes last: what has none is no instance. Whoever makes it holds a lock meanwhile, so that what was left
    /// half-made is told from what is being made.
    fn write(&self, dir: &InstanceDir, planned: &Planned) -> io::Result<()> {
        make_private(&dir.0)?;
        let file = private_file().create(true).truncate(false).open(dir.making())?;
        let lock = file_lock::exclusive(file, &dir.making(), Instant::now() + MAKE_LIMIT)?;
        let _lock =
            lock.ok_or_else(|| io::Error::new(io::ErrorKind::TimedOut, "somebody else makes it at the same time"))?;
        if dir.record().exists() {
            return Ok(());
        }
        let made = self.write_alone(dir, planned);
        if made.is_err() {
            let _ = self.unmake(dir);
        }
        made?;
        self.inner.layout.tell()
    }

    fn write_alone(&self, dir: &InstanceDir, planned: &Planned) -> io::Result<()> {
        // Of one that was killed.
        for left in [dir.root(), dir.scratch(), dir.0.join("anonymous")] {
            remove_tree(&left)?;
        }
        for volume in &planned.record.volumes {
            make_private(volume)?;
        }
        planned.record.launch.prepare(planned.image.as_deref(), &planned.profile)?;
        write_json(&dir.record(), &planned.record, Durability::Synced)
    }

    fn free_port(&self) -> io::Result<u16> {
        ports::assign(&self.inner.layout.ports(), &self.inner.config.owner, || {
            let all = observe::all(&self.inner.layout)?;
            Ok(all.iter().flat_map(|one| &one.instance.ports).map(|port| port.host_port).collect::<BTreeSet<u16>>())
        })
    }

    /// Has a supervisor run the program, and waits until it does.
    pub(super) async fn run(&self, instance: &InstanceRef) -> Result<Found> {
        let found = self.known(instance).await?;
        if found.run.is_some() {
            return Ok(found);
        }
        self.end_lost(&found).await?;
        let dir = self.dir(instance)?;
        let end = Instant::now() + START_LIMIT;
        loop {
            let said = tokio::time::timeout(START_LIMIT, self.supervised(&dir)).await;
            let said = said.map_err(|_| slow(instance))?;
            match said.map_err(|error| failed(&format!("starting {}", instance.id), &error))?.trim() {
                RUNS => return self.known(instance).await,
                // By somebody else, or by the supervisor of the run before, which recorded its end and leaves.
                TAKEN => match self.known(instance).await? {
                    found if found.run.is_some() => return Ok(found),
                    _ if Instant::now() < end => tokio::time::sleep(PAUSE).await,
                    _ => return Err(slow(instance)),
                },
                refusal => {
                    let error = RuntimeError::new(ErrorKind::Rejected, format!("start {}: {refusal}", instance.id));
                    let left = self.look(instance).await?.map(|found| found.instance);
                    return Err(match left {
                        Some(left) => error.leaving(left),
                        None => error,
                    });
                }
            }
        }
    }

    /// Starts a supervisor, and gives what it says.
    async fn supervised(&self, dir: &InstanceDir) -> io::Result<String> {
        let mut command = Command::new(&self.inner.config.supervisor);
        command.arg(SUPERVISE).arg(&dir.0).current_dir("/");
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let mut said = String::new();
        if let Some(mut stdout) = child.stdout.take() {
            stdout.read_to_string(&mut said).await?;
        }
        let watch = self.inner.watch.clone();
        tokio::spawn(async move {
            let _ = child.wait().await;
            watch.poke();
        });
        Ok(said)
    }

    /// Ends what is left of a run whose supervisor was lost. A number that means another process by now is left alone.
    pub(super) async fn end_lost(&self, found: &Found) -> Result<()> {
        let Some(run) = found.lost.clone() else { return Ok(()) };
        let dir = self.inner.layout.instance(&found.instance.runtime_id);
        let end = move || {
            // After a reboot every number means something else.
            if table::boot()? != run.boot {
                return Ok(());
            }
            let roots: Vec<_> = [run.program].into_iter().chain(commands::noted(&dir)?).collect();
            table::kill_trees(&roots)
        };
        let ended = tokio::task::spawn_blocking(end).await.unwrap_or_else(|error| Err(io::Error::other(error)));
        ended.map_err(|error| failed(&format!("ending what is left of {}", found.instance.id), &error))
    }

    /// Ends an instance, and waits until it has.
    pub(super) async fn end(&self, instance: &InstanceRef, stop: &StopRequest) -> Result<Option<Found>> {
        let Some(found) = self.look(instance).await? else { return Ok(None) };
        self.end_lost(&found).await?;
        let dir = self.dir(instance)?;
        // A supervisor that is about to start the program, or to leave, has no run.
        if found.run.is_none() && !is_attended(&dir)? {
            return Ok(Some(found));
        }
        let policy = StopPolicy { signal: stop.signal, grace: HumanDuration(stop.grace) };
        let order = StopOrder { policy, cause: stop.cause };
        let end = Instant::now() + stop.grace + STOP_LIMIT;
        let mut told = None;
        loop {
            match self.look(instance).await? {
                None => return Ok(None),
                Some(found) if found.run.is_none() && !is_attended(&dir)? => {
                    // What it recorded last may have come between the two looks.
                    let found = self.known(instance).await?;
                    self.end_lost(&found).await?;
                    return Ok(Some(found));
                }
                Some(_) => {}
            }
            if told.is_none_or(|told: Instant| told.elapsed() >= TELL_AGAIN) {
                told = Some(Instant::now());
                self.order(&dir, |orders| {
                    orders.stop.get_or_insert_with(|| order.clone());
                })
                .await?;
            }
            if Instant::now() >= end {
                let message = format!("{} has not ended though it was killed", instance.id);
                return Err(RuntimeError::new(ErrorKind::Timeout, message));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Changes what a supervisor is to do, and tells it.
    async fn order(&self, dir: &InstanceDir, change: impl FnOnce(&mut Orders)) -> Result<()> {
        let _one_at_a_time = self.inner.ordering.lock().await;
        let write = |error: io::Error| failed("telling a supervisor what to do", &error);
        let mut orders = observe::orders(dir).map_err(write)?;
        change(&mut orders);
        write_json(&dir.orders(), &orders, Durability::Synced).map_err(write)?;
        // It holds its lock, so the number is its own.
        if let Some(supervisor) = alive::holder(dir).map_err(write)? {
            let _ = kill_process(supervisor, Signal::USR1);
        }
        Ok(())
    }

    /// Freezes an instance or lets it run on, and waits until its supervisor has done so.
    pub(super) async fn freeze(&self, instance: &InstanceRef, frozen: bool) -> Result<Found> {
        let found = self.known(instance).await?;
        if !matches!(found.instance.phase, Phase::Running { .. } | Phase::Paused { .. }) {
            return match frozen {
                false => Ok(found),
                true => Err(super::not_running(&found)),
            };
        }
        let dir = self.dir(instance)?;
        self.order(&dir, |orders| orders.frozen = frozen).await?;
        let is_done = |found: &Found| match found.instance.phase {
            Phase::Running { .. } => !frozen,
            Phase::Paused { .. } => frozen,
            _ => true,
        };
        self.until(&dir, OBEY_LIMIT, is_done).await
    }

    /// Waits until an instance is as it should be.
    async fn until(&self, dir: &InstanceDir, limit: Duration, is_so: impl Fn(&Found) -> bool) -> Result<Found> {
        let end = Instant::now() + limit;
        loop {
            let found = observe::one(dir).map_err(|error| failed("reading an instance", &error))?;
            match found {
                Some(found) if is_so(&found) => return Ok(found),
                Some(_) if Instant::now() < end => tokio::time::sleep(PAUSE).await,
                Some(found) => {
                    let message = format!("the supervisor of {} does not obey", found.instance.id);
                    return Err(RuntimeError::new(ErrorKind::Timeout, message));
                }
                None => return Err(RuntimeError::new(ErrorKind::NotFound, "the instance was removed meanwhile")),
            }
        }
    }

    /// Removes an instance that does not run. It goes out of sight first, so that one whose removal was cut off is none.
    pub(super) fn unmake(&self, dir: &InstanceDir) -> io::Result<()> {
        let name = dir.0.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let now = chrono::Utc::now().timestamp_micros();
        let gone = self.inner.layout.instances().join(format!(".gone-{name}.{}.{now}", std::process::id()));
        match fs::rename(&dir.0, &gone) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            renamed => renamed?,
        }
        self.inner.layout.tell()?;
        remove_tree(&gone)
    }

    /// Removes what is left of instances whose making or removal was cut off.
    pub(super) fn sweep(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.inner.layout.instances())? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let dir = self.inner.layout.instance(&name);
            if name.starts_with(".gone-") {
                remove_tree(&entry.path())?;
            } else if !dir.record().exists() && dir.making().exists() {
                let file = private_file().open(dir.making())?;
                let lock = file_lock::exclusive(file, &dir.making(), Instant::now())?;
                if lock.is_some() && !dir.record().exists() {
                    self.unmake(&dir)?;
                }
            }
        }
        Ok(())
    }
}

/// Whether a supervisor has an instance.
fn is_attended(dir: &InstanceDir) -> Result<bool> {
    Ok(alive::holder(dir).map_err(|error| failed("looking for a supervisor", &error))?.is_some())
}

fn slow(instance: &InstanceRef) -> RuntimeError {
    let seconds = START_LIMIT.as_secs();
    RuntimeError::new(ErrorKind::Timeout, format!("starting {} took longer than {seconds} s", instance.id))
}

/// Removes a directory with all that is in it, also where a program took the permission to do so away. No link is followed.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            open_up(path)?;
            fs::remove_dir_all(path)
        }
        removed => removed,
    }
}

fn open_up(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            open_up(&entry.path())?;
        }
    }
    Ok(())
}
