//! `keel get`: what there is.

use std::collections::{BTreeMap, BTreeSet};

use chrono::Utc;
use serde_json::Value;

use super::connect::{synced_status, warn_about};
use super::exit::{Exit, Outcome, Usage};
use super::output::{Columns, DataFormat, Format, note, print, print_data};
use super::reconnecting::{Reconnecting, observe_existing};
use super::views::{Object, Resource};
use crate::config::Options;
use crate::state::Target;
use crate::status::Status;

/// Show deployments, services, jobs, pools or instances
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Types: deployments (deploy), services (svc), jobs, pools, instances (inst), all; several with commas.\n\
Names: DEPLOYMENT, DEPLOYMENT/SERVICE, DEPLOYMENT/SERVICE/SLOT; the name of a whole shows its parts.\n\n\
Examples:\n  keel get deployments\n  keel get instances demo/web -w\n  keel get svc/demo/web -o yaml\n  \
keel get all -o json\n  keel get instances demo -w -o json | jq --unbuffered -r .state\n\nWorks with a running controller and without one. Exit codes: 1 when a name is not found, 2 when the command line is wrong; with --watch it is waited for."
)]
pub struct Args {
    /// What to show: TYPE, TYPE,TYPE or TYPE/NAME
    #[arg(required = true, value_name = "TYPE[/NAME]")]
    what: String,
    /// Only these
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// How to print; a table when nothing is named
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<Format>,
    /// Go on with what changes, also when the controller ends and another one begins; wait for names that nothing has yet.
    /// JSON is one object after another then, and YAML one document after another, from the first on
    #[arg(short, long)]
    watch: bool,
    /// Leave the heads of the columns out
    #[arg(long)]
    no_headers: bool,
}

/// What is wanted.
#[derive(Debug, PartialEq, Eq)]
struct Selection {
    /// `get all`: answers as one object of three arrays.
    all: bool,
    resources: Vec<Resource>,
    /// None means everything.
    names: Vec<Target>,
}

impl Args {
    /// Runs the verb.
    pub async fn run(self, options: &Options) -> Outcome {
        let selection = selection(&self.what, &self.names)?;
        let Some(mut engine) = observe_existing(options).await? else {
            return self.show_nothing(&selection, options).await;
        };
        let outcome = self.show(&selection, &mut engine).await;
        engine.close().await;
        outcome
    }

    /// Where there is no state directory: says so; a watch goes on with the first controller that runs there.
    async fn show_nothing(&self, selection: &Selection, options: &Options) -> Outcome {
        let nothing = selection.objects(&Status::default());
        let exit = self.print_first(selection, &Status::default(), &nothing, &mut selection.columns())?;
        if !self.watch {
            return Ok(exit);
        }
        // An engine of this process would look once while the first controller is still starting.
        let mut engine = Reconnecting::first_controller(options).await?;
        let status = engine.ask(synced_status).await?;
        let outcome = self.follow(selection, &mut engine, status, nothing, &mut selection.columns()).await;
        engine.close().await;
        outcome
    }

    async fn show(&self, selection: &Selection, engine: &mut Reconnecting<'_>) -> Outcome {
        let status = engine.ask(synced_status).await?;
        warn_about(&status);
        let mut columns = selection.columns();
        let shown = selection.objects(&status);
        let exit = self.print_first(selection, &status, &shown, &mut columns)?;
        if !self.watch {
            return Ok(exit);
        }
        self.follow(selection, engine, status, shown, &mut columns).await
    }

    fn print_first(
        &self,
        selection: &Selection,
        status: &Status,
        shown: &[(Resource, Vec<Object>)],
        columns: &mut [Columns],
    ) -> Outcome {
        let missing = selection.missing(status, shown);
        for name in &missing {
            let what = selection.what();
            note(match self.watch {
                true => format!("waiting for {what} \"{name}\""),
                false => format!("error: {what} \"{name}\" not found"),
            });
        }
        if missing.is_empty() || shown.iter().any(|(_, objects)| !objects.is_empty()) {
            match self.output {
                // Whoever reads a stream is given objects of one shape.
                Some(Format::Json | Format::Yaml) if self.watch => {
                    let nothing: Vec<_> = shown.iter().map(|(resource, _)| (*resource, Vec::new())).collect();
                    self.print_changes(&nothing, shown, columns)?;
                }
                _ => self.print(selection, shown, columns)?,
            }
        }
        Ok(if missing.is_empty() { Exit::Success } else { Exit::Failure })
    }

    /// Prints what differs from what was shown, until somebody ends it.
    async fn follow(
        &self,
        selection: &Selection,
        engine: &mut Reconnecting<'_>,
        mut status: Status,
        mut shown: Vec<(Resource, Vec<Object>)>,
        columns: &mut [Columns],
    ) -> Outcome {
        loop {
            let now = selection.objects(&status);
            self.print_changes(&shown, &now, columns)?;
            shown = now;
            status = engine.status_after(status.generation).await?;
        }
    }

    fn print(
        &self,
        selection: &Selection,
        shown: &[(Resource, Vec<Object>)],
        columns: &mut [Columns],
    ) -> anyhow::Result<()> {
        let data = match self.output {
            Some(Format::Json) => Some(DataFormat::Json),
            Some(Format::Yaml) => Some(DataFormat::Yaml),
            Some(Format::Name) => return print(&names(shown)),
            Some(Format::Wide) | None => None,
        };
        if let Some(format) = data {
            return print_data(format, &document(selection, shown));
        }
        if shown.iter().all(|(_, objects)| objects.is_empty()) {
            note("No resources found");
            return Ok(());
        }
        let tables = shown.iter().zip(columns).filter(|((_, objects), _)| !objects.is_empty());
        let texts: Vec<String> =
            tables.map(|((resource, objects), columns)| self.table(*resource, objects, columns)).collect();
        print(&texts.join("\n"))
    }

    /// The rows, below the heads of the columns where none of the same table were printed before.
    fn table(&self, resource: Resource, objects: &[Object], columns: &mut Columns) -> String {
        let wide = self.output == Some(Format::Wide);
        let header = columns.is_new() && !self.no_headers;
        let rows: Vec<Vec<String>> = objects.iter().map(|object| object.row(wide)).collect();
        columns.render(header.then(|| resource.header(wide)).as_deref(), &rows)
    }

    fn print_changes(
        &self,
        before: &[(Resource, Vec<Object>)],
        now: &[(Resource, Vec<Object>)],
        columns: &mut [Columns],
    ) -> anyhow::Result<()> {
        for (((resource, before), (_, now)), columns) in before.iter().zip(now).zip(columns) {
            let changed = changed(*resource, before, now, |one, other| same(self.output, *resource, one, other));
            match self.output {
                _ if changed.is_empty() => {}
                Some(Format::Name) => print(&names(&[(*resource, changed)]))?,
                Some(Format::Json) => {
                    for object in &changed {
                        print_data(DataFormat::Json, &object.value)?;
                    }
                }
                Some(Format::Yaml) => {
                    for object in &changed {
                        print("---\n")?;
                        print_data(DataFormat::Yaml, &object.value)?;
                    }
                }
                Some(Format::Wide) | None => print(&self.table(*resource, &changed, columns))?,
            }
        }
        Ok(())
    }
}

impl Selection {
    fn columns(&self) -> Vec<Columns> {
        self.resources.iter().map(|_| Columns::default()).collect()
    }

    fn objects(&self, status: &Status) -> Vec<(Resource, Vec<Object>)> {
        let now = Utc::now();
        let wanted = |object: &Object| self.names.is_empty() || self.names.iter().any(|name| object.is_named(name));
        let of = |resource: &Resource| resource.objects(status, now).into_iter().filter(wanted).collect();
        self.resources.iter().map(|resource| (*resource, of(resource))).collect()
    }

    /// The names that nothing has. A whole that has no such parts yet, as a service without instances, is not missing.
    fn missing(&self, status: &Status, shown: &[(Resource, Vec<Object>)]) -> Vec<&Target> {
        let has = |name: &Target| shown.iter().any(|(_, objects)| objects.iter().any(|object| object.is_named(name)));
        let wholes: Vec<String> = self.resources.iter().flat_map(|resource| resource.wholes(status)).collect();
        self.names.iter().filter(|name| !has(name) && !wholes.contains(&name.to_string())).collect()
    }

    /// What it is about, as messages name it.
    fn what(&self) -> &'static str {
        match self.resources.as_slice() {
            [one] => one.plural(),
            _ => "resources",
        }
    }
}

fn selection(what: &str, names: &[String]) -> Result<Selection, Usage> {
    let parse = |name: &str| name.parse::<Target>().map_err(|error| Usage(error.to_string()));
    let mut names: Vec<Target> = names.iter().map(|name| parse(name)).collect::<Result<_, _>>()?;
    let types = match what.split_once('/') {
        Some((word, name)) => {
            names.push(parse(name)?);
            word
        }
        None => what,
    };
    let mut resources = Vec::new();
    if types.split(',').any(|word| word == "all") {
        return Ok(Selection { all: true, resources: Resource::ALL.to_vec(), names });
    }
    for word in types.split(',') {
        match Resource::parse(word) {
            Some(resource) if resources.contains(&resource) => {}
            Some(resource) => resources.push(resource),
            None => {
                return Err(Usage(format!(
                    "there is no type {word:?}; write deployments, services, jobs, pools, instances or all"
                )));
            }
        }
    }
    Ok(Selection { all: false, resources, names })
}

/// The views alone: an array; of several types, an object of arrays.
fn document(selection: &Selection, shown: &[(Resource, Vec<Object>)]) -> Value {
    let array = |objects: &[Object]| Value::Array(objects.iter().map(|object| object.value.clone()).collect());
    if selection.all || selection.resources.len() > 1 {
        return shown.iter().map(|(resource, objects)| (resource.plural().to_owned(), array(objects))).collect();
    }
    Value::Array(shown.iter().flat_map(|(_, objects)| objects.iter().map(|object| object.value.clone())).collect())
}

fn names(shown: &[(Resource, Vec<Object>)]) -> String {
    let mut text = String::new();
    for (resource, objects) in shown {
        for object in objects {
            text.push_str(&format!("{}/{}\n", resource.singular(), object.name));
        }
    }
    text
}

/// Whether two objects are shown alike.
fn same(format: Option<Format>, resource: Resource, one: &Object, other: &Object) -> bool {
    match format {
        Some(Format::Json | Format::Yaml) => one.value == other.value,
        Some(Format::Name) => one.name == other.name,
        Some(Format::Wide) => one.reads_like(other, resource, true),
        None => one.reads_like(other, resource, false),
    }
}

/// Objects that are new or not the same as before, and those that are gone.
fn changed(
    resource: Resource,
    before: &[Object],
    now: &[Object],
    same: impl Fn(&Object, &Object) -> bool,
) -> Vec<Object> {
    let old: BTreeMap<&str, &Object> = before.iter().map(|object| (object.key.as_str(), object)).collect();
    let as_before = |object: &&Object| old.get(object.key.as_str()).is_some_and(|old| same(object, old));
    let mut out: Vec<Object> = now.iter().filter(|object| !as_before(object)).cloned().collect();
    let still: BTreeSet<&str> = now.iter().map(|object| object.key.as_str()).collect();
    let taken: BTreeSet<&str> = now.iter().map(|object| object.place.as_str()).collect();
    // What took the place of another speaks for both, unless that one was last seen to be on its way out.
    let spoken_for = |object: &Object| taken.contains(object.place.as_str()) && !object.leaving;
    let gone = before.iter().filter(|object| !still.contains(object.key.as_str()) && !spoken_for(object));
    out.extend(gone.map(|object| object.clone().gone(resource)));
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(name: &str, value: Value) -> Object {
        let cells = vec![name.to_owned(), "1/1".to_owned(), "running".to_owned()];
        let text = name.to_owned();
        Object { name: text.clone(), key: text.clone(), place: text, leaving: false, value, cells, wide: Vec::new() }
    }

    #[test]
    fn types_and_names_are_given_in_either_form() {
        let name = |text: &str| text.parse::<Target>().unwrap();
        let plain = selection("svc", &["demo/web".to_owned()]).unwrap();
        assert_eq!(plain, selection("services/demo/web", &[]).unwrap());
        assert_eq!(plain, Selection { all: false, resources: vec![Resource::Services], names: vec![name("demo/web")] });
        let several = selection("inst,deploy,instances", &[]).unwrap();
        assert_eq!(several.resources, [Resource::Instances, Resource::Deployments]);
        assert!(selection("all", &[]).unwrap().all);
        assert_eq!(
            selection("pods", &[]).unwrap_err().to_string(),
            "there is no type \"pods\"; write deployments, services, jobs, pools, instances or all"
        );
    }

    #[test]
    fn a_whole_without_such_parts_is_not_missing_and_a_part_of_it_is() {
        let view = json!({"deployment": "demo", "source": null, "state": "degraded", "message": "", "conditions": []});
        let view = serde_json::from_value(view).unwrap();
        let status = Status { deployments: vec![view], ..Status::default() };
        let missing = |what: &str, name: &str| {
            let selection = selection(what, &[name.to_owned()]).unwrap();
            let shown = selection.objects(&status);
            selection.missing(&status, &shown).len()
        };
        assert_eq!([missing("inst", "demo"), missing("svc", "demo"), missing("deploy", "demo")], [0; 3]);
        assert_eq!([missing("inst", "demo/web"), missing("inst", "other"), missing("deploy", "demo/web")], [1; 3]);
    }

    #[test]
    fn watching_prints_what_is_new_different_or_gone() {
        let before = [object("same", json!(1)), object("different", json!(1)), object("gone", json!(1))];
        let now = [object("same", json!(1)), object("different", json!(2)), object("new", json!(1))];
        let found = changed(Resource::Instances, &before, &now, |one, other| one.value == other.value);
        let rows: Vec<Vec<String>> = found.iter().map(|object| object.row(false)).collect();
        assert_eq!(rows, [["different", "1/1", "running"], ["new", "1/1", "running"], ["gone", "0/1", "removed"]]);
    }

    #[test]
    fn only_what_is_shown_makes_a_difference() {
        let before = object("demo/web/0", json!({"pid": 1}));
        let now = object("demo/web/0", json!({"pid": 2}));
        let same = |format| same(format, Resource::Instances, &before, &now);
        let formats = [None, Some(Format::Wide), Some(Format::Name), Some(Format::Json), Some(Format::Yaml)];
        assert_eq!(formats.map(same), [true, true, true, false, false]);
    }

    #[test]
    fn what_another_took_the_place_of_is_not_told_as_removed_unless_it_was_leaving() {
        let of = |attempt: u32, leaving: bool| Object {
            key: attempt.to_string(),
            leaving,
            ..object("demo/web/0", json!(attempt))
        };
        let told = |before: Object| changed(Resource::Instances, &[before], &[of(1, false)], |_, _| true).len();
        assert_eq!(told(of(0, false)), 1, "the restarted instance alone");
        assert_eq!(told(of(0, true)), 2, "the new instance, and the end of the old one");
    }

    #[test]
    fn json_is_an_array_of_the_views_and_of_all_types_an_object() {
        let shown = [(Resource::Deployments, vec![object("demo", json!({"deployment": "demo"}))])];
        let one = selection("deploy", &[]).unwrap();
        assert_eq!(document(&one, &shown), json!([{"deployment": "demo"}]));
        let two = selection("svc,deploy", &[]).unwrap();
        let of_two = [(Resource::Services, Vec::new()), shown[0].clone()];
        assert_eq!(document(&two, &of_two), json!({"services": [], "deployments": [{"deployment": "demo"}]}));
        let all = selection("all", &[]).unwrap();
        assert_eq!(document(&all, &shown), json!({"deployments": [{"deployment": "demo"}]}));
        assert_eq!(names(&shown), "deployment/demo\n");
    }
}
