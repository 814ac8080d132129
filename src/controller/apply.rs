//! Declares files: checks them, keeps a copy in the state directory, and lets the source see it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::convert;
use super::copies::{Submitted, beside, forget_unused_runtimes, replaced};
use super::engine::Engine;
use super::message::Command;
use super::open::{blinded, local};
use super::others::Watched;
use super::outlook::{Outlook, previews};
use super::{Applied, ApplyRequest, Change, EngineError, Mode, Preview, SpecFile};
use crate::spec::{
    Conflict, Document, DocumentKind, MergedDeployment, ParsedFile, Position, Problem, Prune, RuntimeKind, corrections,
    merge, problems,
};
use crate::status::ProblemView;
use crate::store::{AppliedFile, Declared, read_applied, save_applied};

/// What comes of a problem in an apply.
const NOTHING_APPLIED: &str = "nothing was applied";

/// What an apply would do to the declarations.
struct Proposal {
    declared: BTreeMap<String, MergedDeployment>,
    before: BTreeMap<String, serde_json::Value>,
    pruned: BTreeSet<String>,
    problems: Vec<ProblemView>,
    /// Why an apply would be refused that changes what a watched file declares.
    elsewhere: Vec<ProblemView>,
    kept: Vec<AppliedFile>,
    notes: Vec<String>,
}

impl Proposal {
    /// The same for whoever means it, who may not change what a watched file declares.
    fn into_applied(mut self) -> Self {
        self.problems.append(&mut self.elsewhere);
        self
    }

    fn changes(&self) -> Vec<(String, Change)> {
        let declared = self.declared.iter().map(|(name, merged)| {
            let change = match self.before.get(name) {
                None => Change::Created,
                Some(before) if *before == convert::declaration(merged) => Change::Unchanged,
                Some(_) => Change::Configured,
            };
            (name.clone(), change)
        });
        declared.chain(self.pruned.iter().map(|name| (name.clone(), Change::Pruned))).collect()
    }
}

impl Engine {
    /// What applying these files would do; without files, what would be done for what is declared already. Changes
    /// nothing.
    ///
    /// # Errors
    /// `Invalid` where the runtime that is named has no place here; the state directory can't be read.
    pub async fn preview(&self, request: &ApplyRequest) -> Result<Preview, EngineError> {
        self.check_runtime(request.runtime)?;
        if request.files.is_empty() && request.origins.is_empty() {
            let snapshots = self.ask(Command::Snapshots).await?;
            let unchanged = |snapshot| Outlook { change: Change::Unchanged, old: None, new: None, snapshot };
            return previews(snapshots.into_iter().map(unchanged).collect()).await;
        }
        let proposal = self.proposed(request).await?;
        if !proposal.problems.is_empty() {
            return Ok(Preview { problems: proposal.problems, ..Preview::default() });
        }
        // Whoever edits a copy of a watched file wants to know what comes of it before it counts.
        let would_be =
            |one: &ProblemView| format!("note: {}; this is what would come of changing it there", one.message);
        let notes = proposal.elsewhere.iter().map(would_be).collect();
        let changes = proposal.changes();
        let default_runtime = self.inner.default_runtime;
        let asked = changes.iter().map(|(name, _)| {
            (name.clone(), proposal.declared.get(name).map(|merged| convert::desired(merged, default_runtime)))
        });
        let asked = asked.collect();
        let snapshots = self.ask(|reply| Command::Preview(asked, reply)).await?;
        let outlooks = changes.into_iter().zip(snapshots).map(|((name, change), snapshot)| Outlook {
            change,
            old: proposal.before.get(&name).cloned(),
            new: proposal.declared.get(&name).map(convert::declaration),
            snapshot,
        });
        Ok(Preview { notes, ..previews(outlooks.collect()).await? })
    }

    /// What [`Engine::apply`] would answer. Changes nothing, and does not ask what would come of it, as
    /// [`Engine::preview`] does.
    ///
    /// # Errors
    /// As for [`Engine::preview`].
    pub async fn dry_run(&self, request: &ApplyRequest) -> Result<Applied, EngineError> {
        let proposal = self.proposed(request).await?.into_applied();
        Ok(match proposal.problems.is_empty() {
            true => Applied { results: proposal.changes(), notes: proposal.notes, ..Applied::default() },
            false => Applied { problems: proposal.problems, ..Applied::default() },
        })
    }

    /// Declares these files. Returns as soon as they count; watch the status for what comes of it.
    ///
    /// # Errors
    /// `Conflict` where this engine may only look; `Invalid` where the runtime that is named has no place here; the state
    /// directory can't be written.
    pub async fn apply(&self, request: &ApplyRequest) -> Result<Applied, EngineError> {
        let (engine, request) = (self.clone(), request.clone());
        to_its_end(async move { engine.apply_now(&request).await }).await
    }

    async fn apply_now(&self, request: &ApplyRequest) -> Result<Applied, EngineError> {
        if self.inner.mode == Mode::Observe {
            return Err(EngineError::Conflict("this engine only looks".to_owned()));
        }
        self.inner.archive.check_kept()?;
        let _one_at_a_time = self.inner.applying.lock().await;
        let proposal = self.proposed(request).await?.into_applied();
        if !proposal.problems.is_empty() {
            return Ok(Applied { problems: proposal.problems, ..Applied::default() });
        }
        let results = proposal.changes();
        self.save(proposal.kept).await?;
        let wanted: BTreeSet<String> = proposal.declared.into_keys().collect();
        self.ask_for(results.iter().map(|(name, _)| name.clone()).collect(), self.heeded(request.runtime)).await?;
        self.ask(|reply| Command::Want(wanted, reply)).await?;
        self.rescan().await?;
        let changed = results.iter().map(|(name, _)| name);
        self.attend_to(changed.chain(&request.attend_to).cloned().collect()).await?;
        Ok(Applied { results, notes: proposal.notes, ..Applied::default() })
    }

    /// Lets what files say of these deployments count and be recorded, also of one that was deleted by name, with the
    /// runtime that is named for services in watched files.
    async fn ask_for(&self, names: BTreeSet<String>, runtime: Option<RuntimeKind>) -> Result<(), EngineError> {
        let Some(source) = &self.inner.source else { return Ok(()) };
        let asked = source.handle.ask_for(names, runtime).await.map_err(blinded)?;
        asked.map_err(local("that it is wanted again can't be recorded"))
    }

    /// Has a one-shot engine work on these deployments from now on: not before they are declared as they are meant to
    /// be, so that it does nothing that is about to be taken back.
    pub(super) async fn attend_to(&self, names: BTreeSet<String>) -> Result<(), EngineError> {
        match self.inner.mode {
            Mode::OneShot => {
                self.ask(|reply| Command::AttendTo(names, reply)).await?;
                // Whoever looks next is not to see what nobody did anything about before.
                self.ask(Command::Settle).await
            }
            Mode::Observe | Mode::Record | Mode::Controller { .. } => Ok(()),
        }
    }

    async fn proposed(&self, request: &ApplyRequest) -> Result<Proposal, EngineError> {
        let watched = self.watched().await?;
        let (engine, request) = (self.clone(), request.clone());
        blocking(move || engine.propose(&request, &watched)).await
    }

    /// Saves copies of applied files, in this order.
    pub(super) async fn save(&self, copies: Vec<AppliedFile>) -> Result<(), EngineError> {
        let dir = self.inner.archive.applied();
        let save = move || save_applied(&copies, &dir);
        blocking(move || save().map_err(local("the applied files can't be kept"))).await
    }

    /// Works out what the files declare, against what was declared before. Writes nothing.
    fn propose(&self, request: &ApplyRequest, watched: &Watched) -> Result<Proposal, EngineError> {
        self.check_runtime(request.runtime)?;
        let known = read_applied(&self.inner.archive.applied()).map_err(local("the applied files can't be read"))?;
        let is_watched = |file: &SpecFile| self.watches(&file.path);
        let inventory = self.inner.store.inventory().map_err(local("the inventory can't be read"))?;
        let (before, heeded) = (named_runtimes(&inventory), self.heeded(request.runtime));
        let of_watched = |name: &str| heeded.or_else(|| before.get(name).copied());
        let Submitted { parsed, mut copies } =
            Submitted::read(&request.files, is_watched, request.runtime, &known, of_watched);
        let merged = merge(&parsed);
        let mut found = problems(&parsed, &merged);
        for Conflict { file, problem, .. } in
            self.conflicts(&parsed, &beside(&request.origins, &copies, &known), watched)
        {
            let is_told = |(at, one): &(PathBuf, Problem)| *at == file && one.position == problem.position;
            if !found.iter().any(is_told) {
                found.push((file, problem));
            }
        }
        found.extend(
            parsed.iter().flat_map(|(path, file)| cut_off(path, file, &inventory).map(|one| (path.clone(), one))),
        );
        // Where nothing at all is declared, that is told instead.
        let has_any = parsed.iter().any(|(_, file)| !file.documents.is_empty());
        let emptied = parsed.iter().filter(|(path, file)| has_any && is_emptied(path, file, &inventory));
        found.extend(emptied.map(|(path, _)| (path.clone(), emptied_problem())));
        let problems: Vec<ProblemView> =
            found.iter().map(|(file, one)| convert::problem(file, one, NOTHING_APPLIED)).collect();
        let declared = self.completed(&parsed, merged, watched);
        if declared.is_empty() && problems.is_empty() {
            return Err(EngineError::Invalid(nothing_in(request)));
        }
        let before: BTreeMap<String, serde_json::Value> = inventory
            .iter()
            .filter(|entry| entry.removed_at.is_none())
            .filter_map(|entry| Some((entry.name.clone(), serde_json::from_str::<MergedDeployment>(&entry.spec).ok()?)))
            .map(|(name, merged)| (name, convert::declaration(&merged)))
            .collect();
        let elsewhere = declared.values().filter_map(|merged| {
            self.declared_elsewhere(merged, inventory.iter().find(|entry| entry.name == merged.name), watched)
        });
        let elsewhere = elsewhere.collect();
        forget_unused_runtimes(&mut copies, &declared);
        let (kept, gone) = replaced(&request.origins, &declared, copies, known);
        let lost = inventory.iter().filter(|entry| {
            let is_lost = match entry.removed_at {
                None => gone.contains(&entry.name) || self.has_vanished(entry, request, watched),
                // An earlier prune that nobody has finished.
                Some(_) => is_below(entry, request),
            };
            let is_pruned = is_lost && entry.prune != Prune::Never;
            is_pruned && !declared.contains_key(&entry.name) && watched.part(&entry.name).is_none()
        });
        let hold = self.status().hold.clone();
        let is_held = |name: &String| hold.as_ref().is_some_and(|hold| hold.missing.contains(name));
        let (held, pruned): (BTreeSet<String>, _) = lost.map(|entry| entry.name.clone()).partition(is_held);
        let mut notes = self.without_runtime(request, &declared);
        let stays = |entry: &&Declared| {
            is_below(entry, request) && entry.removed_at.is_none() && !declared.contains_key(&entry.name)
        };
        let stale = inventory.iter().filter(stays).filter_map(|entry| Some((entry, watched.why_stale(&entry.name)?)));
        notes.extend(stale.map(|(entry, why)| format!("warning: deployment/{} stays as it was: {why}", entry.name)));
        notes.extend(declared.values().flat_map(corrections).map(|line| format!("warning: {line}")));
        notes.extend(hold.filter(|_| !held.is_empty()).map(|hold| format!("warning: {}", hold.reason)));
        Ok(Proposal { declared, before, pruned, problems, elsewhere, kept, notes })
    }

    /// The runtime that an apply names for services in watched files that name none. What a controller watches stays on its
    /// own; a rehearsal leaves the runtimes as they were named before.
    fn heeded(&self, named: Option<RuntimeKind>) -> Option<RuntimeKind> {
        match self.inner.mode {
            Mode::Controller { .. } => None,
            Mode::Observe | Mode::Record | Mode::OneShot => named.filter(|kind| *kind != RuntimeKind::Sim),
        }
    }

    /// A rehearsal is refused where services would really be started, and a real start where all is a rehearsal.
    fn check_runtime(&self, named: Option<RuntimeKind>) -> Result<(), EngineError> {
        let default = self.inner.default_runtime;
        let why = match (named, default) {
            (None, _) | (Some(RuntimeKind::Sim), RuntimeKind::Sim) => return Ok(()),
            (Some(RuntimeKind::Sim), _) => {
                format!("the runtime sim is a rehearsal, and services are started on {default} here")
            }
            (Some(named), RuntimeKind::Sim) => {
                format!("the controller that runs here is a rehearsal on sim, so that nothing is started on {named}")
            }
            (Some(_), _) => return Ok(()),
        };
        Err(EngineError::Invalid(format!(
            "{why}; leave --runtime (KEEL_RUNTIME) out, or name another state directory with --state-dir"
        )))
    }

    /// What to say of files that are read where they are, and not copied with the runtime that was named for them, where
    /// any service in them would need it.
    fn without_runtime(&self, request: &ApplyRequest, declared: &BTreeMap<String, MergedDeployment>) -> Vec<String> {
        let Some(named) = request.runtime else { return Vec::new() };
        let services = declared.values().flat_map(|merged| merged.services.values());
        let bare = services.filter(|service| service.runtime.is_none());
        let others = bare.filter_map(|service| {
            let runs_on = service.declared_runtime().unwrap_or(self.inner.default_runtime);
            (runs_on != named).then_some((service.file.as_path(), runs_on))
        });
        let others: BTreeMap<&Path, RuntimeKind> = others.collect();
        let watched = request.files.iter().filter(|file| self.watches(&file.path));
        watched.filter_map(|file| Some(unheeded(&file.path, named, *others.get(file.path.as_path())?))).collect()
    }

    /// Whether a deployment was declared in a watched file below what is applied, and that file is not what declares it
    /// any more.
    fn has_vanished(&self, entry: &Declared, request: &ApplyRequest, watched: &Watched) -> bool {
        is_below(entry, request) && self.watches(&entry.source.file) && !watched.hides(entry)
    }

    /// A deployment that a watched file declares can't be applied from another place. One of which a watched file declares
    /// a service can, where it was before.
    fn declared_elsewhere(
        &self,
        merged: &MergedDeployment,
        entry: Option<&Declared>,
        watched: &Watched,
    ) -> Option<ProblemView> {
        if self.watches(&merged.file) {
            return None;
        }
        let was_there = entry.is_none_or(|entry| self.watches(&entry.source.file));
        let hidden = || entry.filter(|entry| self.watches(&entry.source.file) && watched.hides(entry));
        let place = watched.whole(&merged.name).or_else(|| watched.part(&merged.name).filter(|_| was_there));
        let at = place.or_else(|| hidden().map(|entry| entry.source.clone()))?;
        Some(ProblemView {
            file: merged.file.display().to_string(),
            line: merged.position.line,
            column: merged.position.column,
            path: "deployment".to_owned(),
            message: format!("deployment {} is declared in {at}, which {}", merged.name, self.watching()),
            help: Some("change it there, or remove it there first".to_owned()),
            effect: NOTHING_APPLIED.to_owned(),
        })
    }

    /// Who watches the directories that are looked at.
    fn watching(&self) -> &'static str {
        match self.inner.mode {
            Mode::Controller { .. } => "the controller watches",
            Mode::Observe | Mode::Record | Mode::OneShot => "the last controller watched, as the next one may",
        }
    }

    /// Whether the path lies in a directory that is watched, or was by the last controller.
    pub(super) fn watches(&self, path: &Path) -> bool {
        let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        self.inner.watched.iter().any(|root| path.starts_with(root) || real(path).starts_with(real(root)))
    }
}

/// Whether a deployment was declared in one of the files, or below one of the directories, that are applied.
fn is_below(entry: &Declared, request: &ApplyRequest) -> bool {
    request.origins.iter().any(|origin| entry.source.file.starts_with(origin))
}

/// Runs work on files and the database off the threads that serve everything else.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
) -> Result<T, EngineError> {
    tokio::task::spawn_blocking(work).await.map_err(local("work on files was cut off"))?
}

/// Does work that somebody may stop waiting for half-way, as a client that goes away does: its locks are held until it is
/// done all the same.
pub(super) async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, EngineError>> + Send + 'static,
) -> Result<T, EngineError> {
    tokio::spawn(work).await.map_err(local("the work was cut off"))?
}

/// Documents of deployments that have services and lack the key for them, as a text has that was cut off; the source takes
/// no such text for the end of them either.
fn cut_off<'a>(path: &'a Path, file: &'a ParsedFile, inventory: &'a [Declared]) -> impl Iterator<Item = Problem> + 'a {
    let lost_services = move |name: &str| {
        let entry = inventory.iter().find(|entry| entry.name == name && entry.removed_at.is_none());
        let merged = entry.and_then(|entry| serde_json::from_str::<MergedDeployment>(&entry.spec).ok());
        merged.is_some_and(|merged| {
            let own = merged.services.values().filter(|service| is_same_file(&service.file, path));
            file.lost_services(name, own.map(|service| service.name.as_str()))
        })
    };
    let is_suspect = |document: &&Document| match &document.kind {
        DocumentKind::Deployment(whole) => file.without_services.contains(&whole.name),
        DocumentKind::Service { .. } => false,
    };
    let suspects = file.documents.iter().filter(is_suspect);
    suspects.filter(move |document| lost_services(document.kind.deployment())).map(|document| Problem {
        position: document.position,
        path: "services".to_owned(),
        message: "there are no `services` any more".to_owned(),
        help: Some("write them again, or `services: {}` to end what was declared".to_owned()),
    })
}

/// Whether a file that declared something is empty, or has comments at most, as a full disk and a copy that was cut off leave
/// it; the source takes no such text for the end of that either.
fn is_emptied(path: &Path, file: &ParsedFile, inventory: &[Declared]) -> bool {
    let is_bare = file.documents.is_empty() && file.problems.is_empty();
    let is_live = |entry: &&Declared| entry.removed_at.is_none();
    let has_part = |entry: &Declared| {
        let merged = serde_json::from_str::<MergedDeployment>(&entry.spec).ok();
        is_same_file(&entry.source.file, path)
            || merged.is_some_and(|merged| merged.services.values().any(|service| is_same_file(&service.file, path)))
    };
    is_bare && inventory.iter().filter(is_live).any(has_part)
}

/// Whether two paths lead to one file, by whatever links. A name without a directory (`-`) is no path.
fn is_same_file(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| path.is_absolute().then(|| path.canonicalize().ok()).flatten();
    one == other || real(one).is_some_and(|one| real(other) == Some(one))
}

/// The runtimes that were named when deployments were applied, by deployment.
fn named_runtimes(inventory: &[Declared]) -> BTreeMap<String, RuntimeKind> {
    let live = inventory.iter().filter(|entry| entry.removed_at.is_none());
    let named = live.filter_map(|entry| {
        let merged = serde_json::from_str::<MergedDeployment>(&entry.spec).ok()?;
        Some((entry.name.clone(), merged.named_runtime()?))
    });
    named.collect()
}

fn emptied_problem() -> Problem {
    Problem {
        position: Position::START,
        path: String::new(),
        message: "declares nothing any more".to_owned(),
        help: Some("remove the file to end what it declared, or write its text again".to_owned()),
    }
}

/// What to say of files that declare nothing: taken at its word, that would remove all that was applied from them.
fn nothing_in(request: &ApplyRequest) -> String {
    let name = |file: &SpecFile| match file.path == Path::new("-") {
        true => "standard input".to_owned(),
        false => file.path.display().to_string(),
    };
    let names: Vec<String> = request.files.iter().map(name).collect();
    format!("nothing is declared in {}; to remove what was applied: keel delete NAME", names.join(", "))
}

/// What to say of a watched file where another runtime is named for it than the controller's.
fn unheeded(file: &Path, named: RuntimeKind, default: RuntimeKind) -> String {
    format!(
        "warning: {} is watched by the controller: services in it that name no runtime run on {default}, not on {named}; \
         name the runtime in the file, or give `keel run` --runtime {named}",
        file.display()
    )
}
