//! The copies of applied files: what an apply keeps of the files that it is given, and what older copies lose by it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::SpecFile;
use crate::spec::{MergedDeployment, ParsedFile, RuntimeKind, parse};
use crate::store::AppliedFile;

/// What the files of an apply say, and the copies that are to be kept of those that are not watched.
#[derive(Debug, Default)]
pub(super) struct Submitted {
    /// By path.
    pub(super) parsed: Vec<(PathBuf, ParsedFile)>,
    /// In the order of the files.
    pub(super) copies: Vec<AppliedFile>,
}

impl Submitted {
    /// Reads files that are applied with the runtime `named`, where one is. A deployment for which none is named now
    /// keeps the one that it had, in whichever file it was; `of_watched` tells those of deployments in watched files, of
    /// which nothing is kept here.
    pub(super) fn read(
        files: &[SpecFile],
        is_watched: impl Fn(&SpecFile) -> bool,
        named: Option<RuntimeKind>,
        known: &[AppliedFile],
        of_watched: impl Fn(&str) -> Option<RuntimeKind>,
    ) -> Self {
        // A rehearsal leaves the runtimes as they were named before.
        let named = named.filter(|kind| *kind != RuntimeKind::Sim);
        let before: BTreeMap<&str, RuntimeKind> = known.iter().flat_map(AppliedFile::remembered_runtimes).collect();
        let mut submitted = Self::default();
        for file in files {
            let mut parsed = parse(&file.text);
            if file.path == Path::new("-") {
                parsed.problems.extend(parsed.relative_paths());
            }
            if is_watched(file) {
                let runtime = |name: &str| Some((name.to_owned(), of_watched(name)?));
                parsed.default_runtimes = parsed.deployments().filter_map(runtime).collect();
            } else {
                let runtime = |name: &str| Some((name.to_owned(), named.or_else(|| before.get(name).copied())?));
                parsed.default_runtimes = parsed.deployments().filter_map(runtime).collect();
                submitted.copies.push(AppliedFile {
                    origin: file.path.clone(),
                    text: file.text.clone(),
                    without: BTreeSet::new(),
                    default_runtimes: parsed.default_runtimes.clone(),
                });
            }
            submitted.parsed.push((file.path.clone(), parsed));
        }
        submitted
    }
}

/// Forgets the runtimes of deployments that write one for each of their services: what is written takes the place of
/// what was named.
pub(super) fn forget_unused_runtimes(copies: &mut [AppliedFile], declared: &BTreeMap<String, MergedDeployment>) {
    let is_used = |name: &String| {
        declared.get(name).is_none_or(|merged| merged.services.values().any(|service| service.runtime.is_none()))
    };
    copies.iter_mut().for_each(|copy| copy.default_runtimes.retain(|name, _| is_used(name)));
}

/// The copies of applied files that stay as they are, but for what the new files declare.
pub(super) fn beside(origins: &[PathBuf], submitted: &[AppliedFile], known: &[AppliedFile]) -> Vec<AppliedFile> {
    let places: BTreeSet<String> = submitted.iter().map(AppliedFile::copy_name).collect();
    let goes = |copy: &&AppliedFile| {
        places.contains(&copy.copy_name()) || origins.iter().any(|origin| copy.origin.starts_with(origin))
    };
    known.iter().filter(|copy| !goes(copy)).cloned().collect()
}

/// The applied files as they would be, in the order in which they are to be saved: the new ones, then old ones that
/// lost something; and which deployments no file declares any more.
pub(super) fn replaced(
    origins: &[PathBuf],
    declared: &BTreeMap<String, MergedDeployment>,
    submitted: Vec<AppliedFile>,
    known: Vec<AppliedFile>,
) -> (Vec<AppliedFile>, BTreeSet<String>) {
    let mut retracted = Vec::new();
    let mut gone = BTreeSet::new();
    let places: BTreeSet<String> = submitted.iter().map(AppliedFile::copy_name).collect();
    for mut file in known {
        let all = file.deployments();
        let again = places.contains(&file.copy_name());
        let vanished = again || origins.iter().any(|origin| file.origin.starts_with(origin));
        let lost: BTreeSet<String> = match vanished {
            true => all,
            false => all.into_iter().filter(|name| declared.contains_key(name)).collect(),
        };
        gone.extend(lost.iter().filter(|name| !declared.contains_key(*name)).cloned());
        // The new copy takes the place of the old one in one step; there is nothing to take back before.
        if !lost.is_empty() && !again {
            file.without.extend(lost);
            retracted.push(file);
        }
    }
    let kept = submitted.into_iter().chain(retracted).collect();
    (kept, gone)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{merge, parses_during};

    const DOCKER: Option<RuntimeKind> = Some(RuntimeKind::Docker);
    const SANDBOX: Option<RuntimeKind> = Some(RuntimeKind::Sandbox);

    fn deployment(name: &str) -> String {
        format!("---\nversion: v1\ndeployment: {name}\nservices: {{web: {{image: {{name: x}}}}}}\n")
    }

    fn written(name: &str, runtime: &str) -> String {
        deployment(name).replace("services:", &format!("runtime: {runtime}\nservices:"))
    }

    fn file(path: &str, text: &str) -> SpecFile {
        SpecFile { path: path.into(), text: text.to_owned() }
    }

    /// Applies files as the engine does; what is kept takes the place of what was.
    fn apply(known: &mut Vec<AppliedFile>, files: &[SpecFile], named: Option<RuntimeKind>) {
        let mut submitted = Submitted::read(files, |_| false, named, known, |_| None);
        let declared = merge(&submitted.parsed).deployments;
        forget_unused_runtimes(&mut submitted.copies, &declared);
        let (kept, _) = replaced(&[], &declared, submitted.copies, known.clone());
        let places: BTreeSet<String> = kept.iter().map(AppliedFile::copy_name).collect();
        known.retain(|old| !places.contains(&old.copy_name()));
        known.extend(kept);
        known.sort_by(|one, other| one.origin.cmp(&other.origin));
    }

    /// Every deployment with the runtime that its service was declared for.
    fn runtimes(known: &[AppliedFile]) -> Vec<(String, Option<RuntimeKind>)> {
        let files: Vec<_> = known.iter().map(|copy| (copy.origin.clone(), copy.parse())).collect();
        let declared = merge(&files).deployments.into_values();
        declared.map(|merged| (merged.name, merged.services["web"].declared_runtime())).collect()
    }

    fn expected(pairs: &[(&str, Option<RuntimeKind>)]) -> Vec<(String, Option<RuntimeKind>)> {
        pairs.iter().map(|(name, runtime)| ((*name).to_owned(), *runtime)).collect()
    }

    #[test]
    fn a_deployment_keeps_its_runtime_however_its_file_moves() {
        let (a, b, c) = (deployment("a"), deployment("b"), deployment("c"));
        let mut known = Vec::new();
        apply(&mut known, &[file("/a.yaml", &a)], DOCKER);
        apply(&mut known, &[file("/b.yaml", &b)], None);
        apply(&mut known, &[file("/c.yaml", &c)], SANDBOX);
        let named = expected(&[("a", DOCKER), ("b", None), ("c", SANDBOX)]);
        assert_eq!(runtimes(&known), named);
        let layouts: [&[SpecFile]; 4] = [
            &[file("/all.yaml", &[a.as_str(), &b, &c].concat())],
            &[file("/ab.yaml", &[a.as_str(), &b].concat()), file("/c.yaml", &c)],
            &[file("-", &[b.as_str(), &c].concat()), file("/moved.yaml", &a)],
            &[file("/a.yaml", &[c.as_str(), &a].concat()), file("/b.yaml", &b)],
        ];
        for files in layouts {
            apply(&mut known, files, None);
            assert_eq!(runtimes(&known), named, "{files:?}");
        }
    }

    #[test]
    fn an_apply_that_names_another_runtime_moves_what_it_declares_and_nothing_else() {
        let mut known = Vec::new();
        let files = [file("/a.yaml", &deployment("a")), file("/b.yaml", &deployment("b"))];
        apply(&mut known, &files, SANDBOX);
        apply(&mut known, &files[..1], DOCKER);
        assert_eq!(runtimes(&known), expected(&[("a", DOCKER), ("b", SANDBOX)]));
        apply(&mut known, &files, Some(RuntimeKind::Sim));
        assert_eq!(runtimes(&known), expected(&[("a", DOCKER), ("b", SANDBOX)]), "a rehearsal names none");
    }

    #[test]
    fn a_runtime_that_is_written_takes_the_place_of_the_one_that_was_named() {
        let mut known = Vec::new();
        apply(&mut known, &[file("/a.yaml", &deployment("a"))], SANDBOX);
        apply(&mut known, &[file("/a.yaml", &written("a", "docker"))], None);
        assert_eq!(runtimes(&known), expected(&[("a", DOCKER)]));
        apply(&mut known, &[file("/a.yaml", &deployment("a"))], None);
        assert_eq!(runtimes(&known), expected(&[("a", None)]));
    }

    #[test]
    fn a_deployment_that_was_deleted_comes_back_without_the_runtime_that_it_had() {
        let mut known = Vec::new();
        let text = deployment("a") + &deployment("b");
        apply(&mut known, &[file("/ab.yaml", &text)], SANDBOX);
        known[0].without.insert("a".to_owned());
        apply(&mut known, &[file("/ab.yaml", &text)], None);
        assert_eq!(runtimes(&known), expected(&[("a", None), ("b", SANDBOX)]));
    }

    #[test]
    fn each_file_is_parsed_a_few_times_however_many_there_are() {
        const FILES: usize = 300;
        let files: Vec<SpecFile> =
            (0..FILES).map(|number| file(&format!("/{number}.yaml"), &deployment(&format!("d{number}")))).collect();
        let mut known = Vec::new();
        apply(&mut known, &files, SANDBOX);
        assert_eq!(parses_during(|| drop(Submitted::read(&files, |_| false, None, &known, |_| None))), FILES);
        assert_eq!(parses_during(|| drop(replaced(&[], &BTreeMap::new(), Vec::new(), known.clone()))), FILES);
    }
}
