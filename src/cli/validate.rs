//! `keel validate`: says everything that is wrong with specs, and changes nothing.

use std::io::{IsTerminal as _, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet, normalize_untrusted_str};
use chrono::{DateTime, Utc};

use super::files::{Named, NamedFile};
use crate::plan::Schedule;
use crate::spec::{self, ParsedFile, Position, Problem, ServiceSpec};

/// Exit code when there is a problem.
const PROBLEMS: u8 = 1;

/// Exit code when a file or directory could not be read.
const UNREADABLE: u8 = 2;

/// Check specs and report every problem; exit with 1 if there is one, 2 if something can't be read
///
/// All paths are checked together: a service in one file may depend on a service in another.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Files, directories (with their .yaml and .yml files, sub-directories included), or - for standard input
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// How problems are shown; snippet on a terminal and text elsewhere when nothing is named
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<Output>,
}

/// How problems are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// One line per problem: FILE:LINE:COLUMN: PATH: MESSAGE
    Text,
    /// With the lines of the file around
    Snippet,
    /// An array of objects with file, line, column, path, message and help
    Json,
}

/// One problem as `-o json` prints it.
#[derive(serde::Serialize)]
struct Row<'a> {
    file: &'a str,
    line: u32,
    column: u32,
    path: &'a str,
    message: &'a str,
    help: Option<&'a str>,
}

/// A file that was read.
struct Source {
    name: PathBuf,
    text: String,
    parsed: ParsedFile,
}

impl Source {
    /// Whether there are comments and blank lines at most.
    fn declares_nothing(&self) -> bool {
        self.parsed.documents.is_empty() && self.parsed.problems.is_empty()
    }
}

/// Everything that was read.
struct Sources {
    files: Vec<Source>,
    unreadable: Vec<anyhow::Error>,
}

impl Args {
    /// Runs the verb.
    ///
    /// # Errors
    /// When standard output can't be written.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let terminal = std::io::stdout().is_terminal();
        let code = self.check(&mut std::io::stdout().lock(), &mut std::io::stderr().lock(), terminal)?;
        Ok(ExitCode::from(code))
    }

    /// Writes problems to `out`, what can't be read and a summary to `err`, and gives the exit code.
    fn check(self, out: &mut impl Write, err: &mut impl Write, terminal: bool) -> anyhow::Result<u8> {
        let sources = Sources::read(&self.paths);
        let problems = sources.problems();
        let output = self.output.unwrap_or(if terminal { Output::Snippet } else { Output::Text });
        match output {
            Output::Json => write_json(out, &problems)?,
            Output::Text => write_text(out, &problems)?,
            Output::Snippet => write_snippets(out, &problems, &sources.files, terminal)?,
        }
        out.flush()?;
        for error in &sources.unreadable {
            writeln!(err, "error: {error:#}")?;
        }
        if sources.files.is_empty() && sources.unreadable.is_empty() {
            writeln!(err, "warning: no YAML files were found (*.yaml and *.yml are read)")?;
        }
        for source in sources.files.iter().filter(|source| source.declares_nothing()) {
            writeln!(err, "warning: {}: declares nothing", source.name.display())?;
        }
        for (file, deployment) in sources.without_services() {
            let what =
                format!("the deployment {deployment} has no services; write `services: {{}}` where that is meant");
            writeln!(err, "warning: {}: {}", file.display(), normalize_untrusted_str(&what))?;
        }
        for line in sources.corrections().into_iter().chain(sources.past_schedules(Utc::now())) {
            writeln!(err, "warning: {}", normalize_untrusted_str(&line))?;
        }
        if output != Output::Json {
            writeln!(err, "{}", sources.summary(problems.len()))?;
        }
        Ok(match (sources.unreadable.len(), problems.len()) {
            (0, 0) => 0,
            (0, _) => PROBLEMS,
            _ => UNREADABLE,
        })
    }
}

impl Sources {
    fn read(paths: &[PathBuf]) -> Self {
        let Named { files, unreadable } = Named::read(paths);
        let parse = |NamedFile { path, bytes }| {
            let parsed = spec::parse_bytes(&bytes);
            Source { name: path, text: String::from_utf8_lossy(&bytes).into_owned(), parsed }
        };
        Self { files: files.into_iter().map(parse).collect(), unreadable }
    }

    /// Deployments that a file declares without the key for services, and for which no file declares any, as a text has it
    /// that was cut off.
    fn without_services(&self) -> Vec<(&Path, &str)> {
        let files: Vec<(PathBuf, &ParsedFile)> =
            self.files.iter().map(|source| (source.name.clone(), &source.parsed)).collect();
        let deployments = spec::merge(&files).deployments;
        let is_bare = |name: &str| deployments.get(name).is_some_and(|merged| merged.services.is_empty());
        let all = self.files.iter().flat_map(|source| {
            source.parsed.without_services.iter().map(|name| (source.name.as_path(), name.as_str()))
        });
        all.filter(|(_, name)| is_bare(name)).collect()
    }

    /// What is understood otherwise than it is written, or does not count.
    fn corrections(&self) -> Vec<String> {
        let files: Vec<(PathBuf, &ParsedFile)> =
            self.files.iter().map(|source| (source.name.clone(), &source.parsed)).collect();
        spec::merge(&files).deployments.values().flat_map(spec::corrections).collect()
    }

    /// Schedules that name no time after this one. They are no problem of a file, which would else become bad by itself.
    fn past_schedules(&self, now: DateTime<Utc>) -> Vec<String> {
        let files: Vec<(PathBuf, &ParsedFile)> =
            self.files.iter().map(|source| (source.name.clone(), &source.parsed)).collect();
        let deployments = spec::merge(&files).deployments;
        let services = deployments.values().flat_map(|deployment| deployment.services.values());
        let is_over = |spec: &ServiceSpec| Schedule::of(spec).is_some_and(|schedule| schedule.next(now).is_none());
        let over = services.filter(|service| is_over(&service.spec)).map(|service| {
            format!(
                "{}:{}: services.{}.schedule: it names no time that is still to come, so that nothing is run",
                service.file.display(),
                service.position.line,
                service.name
            )
        });
        over.collect()
    }

    /// What is wrong inside of documents and between them, by file and position.
    fn problems(&self) -> Vec<(PathBuf, Problem)> {
        let unread = ParsedFile::unread();
        let mut files: Vec<(PathBuf, &ParsedFile)> =
            self.files.iter().map(|source| (source.name.clone(), &source.parsed)).collect();
        if !self.unreadable.is_empty() {
            files.push((PathBuf::new(), &unread));
        }
        spec::problems(&files, &spec::merge(&files))
    }

    fn summary(&self, problems: usize) -> String {
        let plural = |count: usize, word: &str| match count {
            1 => format!("1 {word}"),
            count => format!("{count} {word}s"),
        };
        let mut text = format!("{} checked", plural(self.files.len(), "file"));
        match problems {
            0 => text.push_str(", no problems"),
            count => text.push_str(&format!(", {}", plural(count, "problem"))),
        }
        match self.unreadable.len() {
            0 => {}
            count => text.push_str(&format!(", {count} not read")),
        }
        text
    }
}

fn write_json(out: &mut impl Write, problems: &[(PathBuf, Problem)]) -> anyhow::Result<()> {
    let names: Vec<String> = problems.iter().map(|(file, _)| file.display().to_string()).collect();
    let rows: Vec<Row<'_>> = problems
        .iter()
        .zip(&names)
        .map(|((_, problem), file)| Row {
            file,
            line: problem.position.line,
            column: problem.position.column,
            path: &problem.path,
            message: &problem.message,
            help: problem.help.as_deref(),
        })
        .collect();
    writeln!(out, "{}", serde_json::to_string_pretty(&rows)?)?;
    Ok(())
}

fn write_text(out: &mut impl Write, problems: &[(PathBuf, Problem)]) -> anyhow::Result<()> {
    for (file, problem) in problems {
        writeln!(out, "{}", normalize_untrusted_str(&format!("{}:{problem}", file.display())))?;
    }
    Ok(())
}

fn write_snippets(
    out: &mut impl Write,
    problems: &[(PathBuf, Problem)],
    files: &[Source],
    colour: bool,
) -> anyhow::Result<()> {
    let plain = !colour || std::env::var_os("NO_COLOR").is_some();
    let renderer = if plain { Renderer::plain() } else { Renderer::styled() };
    for (file, problem) in problems {
        let text = files.iter().find(|source| source.name == *file).map_or("", |source| source.text.as_str());
        let message = normalize_untrusted_str(&problem.message);
        let path = normalize_untrusted_str(&problem.path);
        let name = file.display().to_string();
        let span = span_at(text, problem.position);
        let snippet = Snippet::source(text).path(&name).annotation(AnnotationKind::Primary.span(span).label(&path));
        let mut group = Level::ERROR.primary_title(&message).element(snippet);
        let help = problem.help.as_deref().map(normalize_untrusted_str);
        if let Some(help) = &help {
            group = group.element(Level::HELP.message(help));
        }
        writeln!(out, "{}\n", renderer.render(&[group]))?;
    }
    Ok(())
}

/// The bytes of the word at a position.
fn span_at(text: &str, position: Position) -> std::ops::Range<usize> {
    let mark = usize::from(text.starts_with('\u{feff}')) * '\u{feff}'.len_utf8();
    let line_start = text
        .split_inclusive('\n')
        .take(position.line.saturating_sub(1) as usize)
        .map(str::len)
        .sum::<usize>()
        .max(if position.line == 1 { mark } else { 0 });
    let line = text[line_start..].split('\n').next().unwrap_or("");
    let before: usize = line.chars().take(position.column.saturating_sub(1) as usize).map(char::len_utf8).sum();
    let word = line[before..].find([' ', ',', ']', '}', '\r']).unwrap_or(line.len() - before);
    let word = line[before..before + word].trim_end_matches(':').len();
    line_start + before..line_start + before + word
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Exit code, standard output and standard error.
    fn run(paths: &[&Path], output: Output) -> (u8, String, String) {
        let args = Args { paths: paths.iter().map(|path| path.to_path_buf()).collect(), output: Some(output) };
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = args.check(&mut out, &mut err, false).unwrap();
        (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
    }

    /// A directory with one good and one bad file, and with what must not be looked at.
    fn directory() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("good.yaml", "version: v1\ndeployment: a\nservices: { web: { image: { name: nginx } } }\n");
        write("below/bad.yml", "service: db\ndeployment: a\nimgae: { name: nginx }\ndepends: [{ service: web }]\n");
        write("good.yaml~", "broken: [");
        write(".git/x.yaml", "broken: [");
        std::os::unix::fs::symlink(directory.path(), directory.path().join("below/loop")).unwrap();
        directory
    }

    #[test]
    fn directories_are_checked_as_a_whole() {
        let directory = directory();
        let (code, out, err) = run(&[directory.path()], Output::Text);
        let bad = directory.path().join("below/bad.yml");
        assert_eq!(out, format!("{}:3:1: imgae: unknown key `imgae`; did you mean `image`?\n", bad.display()));
        assert_eq!((code, err.as_str()), (1, "2 files checked, 1 problem\n"));
        std::fs::write(&bad, "service: db\ndeployment: a\nimage: { name: x }\ndepends: [{ service: web }]\n").unwrap();
        assert_eq!(run(&[directory.path()], Output::Text).0, 0);
        let (code, out, _) = run(&[&bad], Output::Text);
        assert_eq!(code, 1, "alone it depends on a service that no file declares");
        assert!(out.contains("has no service \"web\""), "{out}");
    }

    #[test]
    fn what_is_corrected_is_told_and_is_no_problem() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a.yaml");
        let text = "version: v1\ndeployment: a\nservices:\n  web:\n    image: { name: nginx }\n    rollout: { max_surge: 0, max_unavailable: 0 }\n";
        std::fs::write(&file, text).unwrap();
        let (code, out, err) = run(&[&file], Output::Text);
        assert_eq!((code, out.as_str()), (0, ""));
        let place =
            format!("warning: {}:4: services.web.rollout.max_unavailable: one replica may be missing", file.display());
        assert!(err.starts_with(&place) && err.ends_with("1 file checked, no problems\n"), "{err}");
    }

    #[test]
    fn a_schedule_that_is_over_is_told_and_is_no_problem() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a.yaml");
        let told = |schedule: &str| {
            let text = format!(
                "version: v1\ndeployment: a\nservices:\n  w:\n    image: {{ name: x }}\n    rtype: cron\n    schedule: '{schedule}'\n"
            );
            std::fs::write(&file, text).unwrap();
            let (code, out, err) = run(&[&file], Output::Text);
            assert_eq!((code, out.as_str()), (0, ""));
            err.replace(&file.display().to_string(), "a.yaml")
        };
        let over =
            "warning: a.yaml:4: services.w.schedule: it names no time that is still to come, so that nothing is run\n";
        assert_eq!(told("0 0 0 1 1 * 2020"), format!("{over}1 file checked, no problems\n"));
        assert_eq!(told("0 0 1 1 *"), "1 file checked, no problems\n");
    }

    #[test]
    fn a_deployment_without_any_service_is_told_and_is_no_problem() {
        let directory = tempfile::tempdir().unwrap();
        let (whole, part) = (directory.path().join("a.yaml"), directory.path().join("b.yaml"));
        let summary = "1 file checked, no problems\n";
        std::fs::write(&whole, "version: v1\ndeployment: a\n").unwrap();
        let told = format!(
            "warning: {}: the deployment a has no services; write `services: {{}}` where that is meant\n",
            whole.display()
        );
        assert_eq!(run(&[&whole], Output::Text), (0, String::new(), told + summary));
        std::fs::write(&part, "deployment: a\nservice: web\nimage: { name: x }\n").unwrap();
        assert_eq!(run(&[directory.path()], Output::Text).2, "2 files checked, no problems\n");
        std::fs::write(&whole, "version: v1\ndeployment: a\nservices: {}\n").unwrap();
        assert_eq!(run(&[&whole], Output::Text).2, summary);
    }

    #[test]
    fn a_target_of_scale_that_does_not_count_is_told_and_is_no_problem() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a.yaml");
        let warnings = |targets: &str, network: &str| {
            let text = format!(
                "version: v1\ndeployment: a\nservices:\n  web:\n    image: {{ name: nginx }}\n    network_mode: {network}\n    \
                 scale: {{ mode: adaptive, min: 1, max: 3, targets: {{ {targets} }} }}\n"
            );
            std::fs::write(&file, text).unwrap();
            let (code, out, err) = run(&[&file], Output::Text);
            assert_eq!((code, out.as_str()), (0, ""));
            err.replace(&file.display().to_string(), "a.yaml")
        };
        let rps = "warning: a.yaml:4: services.web.scale.targets.rps: requests are not counted: it shares its network, and \
                   nobody can tell whose connections are counted there; ";
        let others = "the other targets add replicas, and nothing takes any away\n1 file checked, no problems\n";
        assert_eq!(warnings("cpu: 50, rps: 10", "host"), format!("{rps}{others}"));
        let alone = "there is no other target, so the number of replicas stays\n1 file checked, no problems\n";
        assert_eq!(warnings("rps: 10", "'container:db'"), format!("{rps}{alone}"));
        assert_eq!(warnings("rps: 10", "default"), "1 file checked, no problems\n");
        assert_eq!(warnings("cpu: 50", "host"), "1 file checked, no problems\n");
    }

    #[test]
    fn json_is_an_array_of_problems() {
        let directory = directory();
        let (code, out, err) = run(&[directory.path()], Output::Json);
        let file = directory.path().join("below/bad.yml").display().to_string();
        let expected = serde_json::json!([{
            "file": file, "line": 3, "column": 1, "path": "imgae", "message": "unknown key `imgae`",
            "help": "did you mean `image`?"
        }]);
        assert_eq!((code, serde_json::from_str::<serde_json::Value>(&out).unwrap()), (1, expected));
        assert_eq!(err, "");
        let (code, out, _) = run(&[&directory.path().join("good.yaml")], Output::Json);
        assert_eq!((code, out.as_str()), (0, "[]\n"));
    }

    #[test]
    fn what_is_missing_ends_with_two_and_the_rest_is_checked() {
        let directory = directory();
        let (code, out, err) = run(&[&directory.path().join("none.yaml"), directory.path()], Output::Text);
        assert_eq!(code, 2);
        assert!(out.contains("unknown key `imgae`"), "{out}");
        assert!(err.starts_with("error: can't open ") && err.contains("No such file"), "{err}");
        assert!(err.ends_with("2 files checked, 1 problem, 1 not read\n"), "{err}");
    }

    #[test]
    fn what_may_be_in_a_file_that_can_not_be_read_is_not_said_to_be_missing() {
        let directory = directory();
        std::fs::write(
            directory.path().join("below/bad.yml"),
            "service: db\ndeployment: a\nimage: { name: x }\ndepends: [{ service: cache }, { service: db }]\n",
        )
        .unwrap();
        let missing = directory.path().join("cache.yaml");
        std::os::unix::fs::symlink("nowhere", &missing).unwrap();
        let (code, out, err) = run(&[directory.path()], Output::Text);
        let bad = directory.path().join("below/bad.yml");
        let itself = "depends[1].service: a service can't depend on itself; name another service of the deployment";
        assert_eq!(out, format!("{}:4:42: {itself}\n", bad.display()));
        assert_eq!(code, 2, "{err}");
        std::fs::remove_file(missing).unwrap();
        let (code, out, _) = run(&[directory.path()], Output::Text);
        assert_eq!((code, out.lines().count()), (1, 2), "{out}");
        assert!(out.contains("has no service \"cache\""), "{out}");
    }

    #[test]
    fn snippets_show_the_place() {
        let directory = directory();
        let (_, out, _) = run(&[&directory.path().join("below/bad.yml")], Output::Snippet);
        for part in
            ["error: unknown key `imgae`", "bad.yml:3:1", "3 | imgae: { name: nginx }", "^^^^^ imgae", "did you mean"]
        {
            assert!(out.contains(part), "{part} is not in\n{out}");
        }
    }

    #[test]
    fn the_marked_word_is_the_one_at_the_position() {
        let text = "\u{feff}a: 1\r\n  ö: [two, x]\n";
        let at = |line, column| &text[span_at(text, Position { line, column })];
        assert_eq!(at(1, 1), "a");
        assert_eq!(at(1, 4), "1");
        assert_eq!(at(2, 3), "ö");
        assert_eq!(at(2, 7), "two");
        assert_eq!(at(9, 9), "");
    }
}
