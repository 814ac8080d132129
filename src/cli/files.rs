//! Files that are named on the command line: each a file, a directory or standard input.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};

use crate::controller::{ApplyRequest, SpecFile};
use crate::source::{Found, find};
use crate::spec::{MAX_FILE_SIZE, RuntimeKind};

/// The name that standard input has on the command line and in messages.
const STDIN: &str = "-";

/// Files and directories with specs.
#[derive(Debug, Clone, clap::Args)]
pub struct Files {
    /// File, directory (with its .yaml and .yml files, sub-directories included) or - for standard input; repeatable
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    pub paths: Vec<PathBuf>,
}

impl Files {
    /// Reads everything that is named, to be applied with this runtime where one is named.
    ///
    /// # Errors
    /// One of the paths can't be read, is too large, or is a directory without specs. An empty directory is taken
    /// for a mistake: applying it would remove everything that was applied from it.
    pub fn read(&self, runtime: Option<RuntimeKind>) -> anyhow::Result<ApplyRequest> {
        let mut origins: Vec<PathBuf> = Vec::new();
        for path in &self.paths {
            let path = match is_stdin(path) {
                true => path.clone(),
                false => std::path::absolute(path).with_context(|| format!("can't find {}", path.display()))?,
            };
            if !origins.contains(&path) {
                origins.push(path);
            }
        }
        let Named { files, mut unreadable } = Named::read(&origins);
        for origin in origins.iter().filter(|origin| origin.is_dir()) {
            if unreadable.is_empty() && !files.iter().any(|file| file.path.starts_with(origin)) {
                bail!(
                    "there is no .yaml or .yml file in {}; to remove what was applied from it: keel delete NAME",
                    origin.display()
                );
            }
        }
        let (texts, no_texts): (Vec<_>, Vec<_>) = files.into_iter().map(NamedFile::text).partition(Result::is_ok);
        unreadable.extend(no_texts.into_iter().filter_map(Result::err));
        if !unreadable.is_empty() {
            let all: Vec<String> = unreadable.iter().map(|error| format!("{error:#}")).collect();
            bail!("{}", all.join("\nerror: "));
        }
        let mut files: Vec<SpecFile> = texts.into_iter().filter_map(Result::ok).collect();
        for file in files.iter_mut().filter(|file| is_stream(&file.path)) {
            file.path = PathBuf::from(STDIN);
        }
        // What comes from standard input is no place that something can vanish from.
        origins.retain(|origin| !is_stream(origin));
        Ok(ApplyRequest { files, origins, runtime, attend_to: BTreeSet::new() })
    }
}

/// What was read of the paths that are named on a command line.
#[derive(Debug, Default)]
pub struct Named {
    /// The files, in the order of the paths.
    pub files: Vec<NamedFile>,
    /// What can't be read.
    pub unreadable: Vec<anyhow::Error>,
}

/// A file with its content.
#[derive(Debug)]
pub struct NamedFile {
    /// As it was named, or found below a directory that was named; `-` for standard input.
    pub path: PathBuf,
    /// The content, cut off one byte behind the largest size that is read.
    pub bytes: Vec<u8>,
}

impl Named {
    /// Reads files, and the spec files of directories, as a source that watches them sees them. What an earlier path
    /// covers is not read again.
    pub fn read<P: AsRef<Path>>(paths: &[P]) -> Self {
        let mut named = Self::default();
        let mut covered = BTreeSet::new();
        for path in paths.iter().map(AsRef::as_ref) {
            let Found { files, flawed } = match !is_stdin(path) && path.is_dir() {
                true => find(path),
                false => Found { files: vec![path.to_path_buf()], flawed: Vec::new() },
            };
            let flawed = flawed.into_iter().map(|(path, what)| anyhow!("{}: {what}", path.display()));
            named.unreadable.extend(flawed);
            let real: Vec<PathBuf> = files.iter().map(|file| real(file)).collect();
            for (file, _) in files.into_iter().zip(&real).filter(|(_, real)| !covered.contains(*real)) {
                match read(&file) {
                    Ok(bytes) => named.files.push(NamedFile { path: file, bytes }),
                    Err(error) => named.unreadable.push(error),
                }
            }
            covered.extend(real);
        }
        named
    }
}

impl NamedFile {
    /// The file as text.
    fn text(self) -> anyhow::Result<SpecFile> {
        let Self { path, bytes } = self;
        let name = name(&path);
        if bytes.len() > MAX_FILE_SIZE {
            bail!("{name} is larger than {MAX_FILE_SIZE} bytes; is it a spec file?");
        }
        let text = String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            let line = 1 + error.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count();
            anyhow!("{name}:{line}: the text is not UTF-8; save the file as UTF-8")
        })?;
        Ok(SpecFile { path, text })
    }
}

fn is_stdin(path: &Path) -> bool {
    path == Path::new(STDIN)
}

/// Whether a path leads to bytes that are there once, as standard input: a descriptor of a process, such as a shell's
/// `<(command)`, whose name says nothing of where they come from.
fn is_stream(path: &Path) -> bool {
    let parent = path.parent().unwrap_or(path);
    let is_descriptor = || parent == Path::new("/dev/fd") || (path.starts_with("/proc") && parent.ends_with("fd"));
    is_stdin(path) || path == Path::new("/dev/stdin") || is_descriptor()
}

/// What a path leads to that is neither a file nor a directory; its bytes may never come or never end.
fn special(path: &Path) -> Option<&'static str> {
    use std::os::unix::fs::FileTypeExt as _;
    let found = std::fs::metadata(path).ok()?.file_type();
    match found {
        _ if found.is_file() || found.is_dir() => None,
        _ if found.is_fifo() => Some("a named pipe"),
        _ if found.is_socket() => Some("a socket"),
        _ => Some("a device"),
    }
}

fn name(path: &Path) -> String {
    if is_stdin(path) { "standard input".to_owned() } else { path.display().to_string() }
}

/// What tells that two paths lead to the same file.
fn real(path: &Path) -> PathBuf {
    match is_stdin(path) {
        true => path.to_path_buf(),
        false => path.canonicalize().unwrap_or_else(|_| path.to_path_buf()),
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    // One byte more than is allowed shows that there is more.
    let limit = u64::try_from(MAX_FILE_SIZE).unwrap_or(u64::MAX) + 1;
    let mut bytes = Vec::new();
    let done = match is_stdin(path) {
        true => std::io::stdin().lock().take(limit).read_to_end(&mut bytes),
        false => {
            if let Some(what) = special(path).filter(|_| !is_stream(path)) {
                bail!("{} is {what}, not a file; to read from a command, pipe it to `-`", path.display());
            }
            let file = std::fs::File::open(path).with_context(|| format!("can't open {}", path.display()))?;
            file.take(limit).read_to_end(&mut bytes)
        }
    };
    done.with_context(|| format!("can't read {}", name(path)))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(paths: &[PathBuf]) -> anyhow::Result<ApplyRequest> {
        Files { paths: paths.to_vec() }.read(None)
    }

    #[test]
    fn a_directory_stands_for_its_spec_files() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("team")).unwrap();
        std::fs::create_dir(dir.path().join(".git")).unwrap();
        for name in ["b.yaml", "a.yml", "team/c.yaml", "notes.txt", ".hidden.yaml", ".git/d.yaml", "b.yaml~"] {
            std::fs::write(dir.path().join(name), name).unwrap();
        }
        let request = read(&[dir.path().to_owned(), dir.path().join("b.yaml")]).unwrap();
        let texts: Vec<&str> = request.files.iter().map(|file| file.text.as_str()).collect();
        assert_eq!(texts, ["a.yml", "b.yaml", "team/c.yaml"]);
        assert_eq!(request.origins, [dir.path().to_owned(), dir.path().join("b.yaml")]);
    }

    #[test]
    fn a_pipe_is_as_standard_input_no_place_that_something_can_vanish_from() {
        use std::io::Write as _;
        use std::os::fd::AsRawFd as _;
        let (reading, mut writing) = std::io::pipe().unwrap();
        writing.write_all(b"a").unwrap();
        drop(writing);
        let request = read(&[format!("/dev/fd/{}", reading.as_raw_fd()).into()]).unwrap();
        let file = SpecFile { path: STDIN.into(), text: "a".to_owned() };
        assert_eq!((request.files, request.origins), (vec![file], vec![]));
    }

    #[test]
    fn what_is_neither_a_file_nor_a_directory_is_refused_and_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let (pipe, socket) = (dir.path().join("pipe"), dir.path().join("socket"));
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for (path, what) in [(pipe, "a named pipe"), (socket, "a socket"), ("/dev/null".into(), "a device")] {
            let named = Named::read(&[&path]);
            let errors: Vec<String> = named.unreadable.iter().map(ToString::to_string).collect();
            let refusal = format!("{} is {what}, not a file; to read from a command, pipe it to `-`", path.display());
            assert_eq!((errors, named.files.len()), (vec![refusal], 0));
        }
    }

    #[test]
    fn names_of_descriptors_are_streams_and_others_below_their_roots_are_not() {
        for stream in ["-", "/dev/stdin", "/dev/fd/63", "/proc/self/fd/3", "/proc/1/fd/0"] {
            assert!(is_stream(Path::new(stream)), "{stream}");
        }
        for path in ["/dev/shm/a.yaml", "/dev/null", "/proc/1/root/a.yaml", "/x/fd/3", "fd/3"] {
            assert!(!is_stream(Path::new(path)), "{path}");
        }
    }

    #[test]
    fn a_directory_without_specs_is_a_mistake() {
        let dir = tempfile::tempdir().unwrap();
        let error = read(&[dir.path().to_owned()]).unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "there is no .yaml or .yml file in {}; to remove what was applied from it: keel delete NAME",
                dir.path().display()
            )
        );
    }

    #[test]
    fn a_loop_of_links_ends() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.yaml"), "a").unwrap();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("again")).unwrap();
        assert_eq!(read(&[dir.path().to_owned()]).unwrap().files.len(), 1);
    }

    #[test]
    fn a_path_within_another_is_read_once() {
        let dir = tempfile::tempdir().unwrap();
        let specs = dir.path().join("specs");
        std::fs::create_dir_all(specs.join("team")).unwrap();
        for name in ["a.yaml", "team/b.yaml", "team/notes.txt"] {
            std::fs::write(specs.join(name), name).unwrap();
        }
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(specs.join("team"), &link).unwrap();
        let named = Named::read(&[specs.join("team/notes.txt"), specs.join("team"), link, specs]);
        let read: Vec<_> = named.files.iter().map(|file| String::from_utf8_lossy(&file.bytes)).collect();
        assert_eq!(read, ["team/notes.txt", "team/b.yaml", "a.yaml"]);
    }

    #[test]
    fn what_a_directory_holds_and_can_not_be_read_is_an_error_as_where_it_is_watched() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("b.yaml");
        std::fs::create_dir(dir.path().join("a.yaml")).unwrap();
        std::os::unix::fs::symlink("nowhere", &link).unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("unrelated")).unwrap();
        std::fs::write(dir.path().join("c.yaml"), "c").unwrap();
        let named = Named::read(&[dir.path()]);
        let errors: Vec<String> = named.unreadable.iter().map(ToString::to_string).collect();
        assert_eq!(
            errors,
            [
                format!("{}: is a directory, not a file; remove or rename it", dir.path().join("a.yaml").display()),
                format!(
                    "{}: is a symbolic link to nowhere, which does not exist; restore what it points to, or remove the link",
                    link.display()
                ),
            ]
        );
        assert_eq!(named.files.len(), 1);
        let all = read(&[dir.path().to_owned()]).unwrap_err().to_string();
        assert_eq!(all, errors.join("\nerror: "));
    }

    #[test]
    fn text_that_is_no_utf8_is_refused_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.yaml");
        std::fs::write(&file, b"a: 1\nb: \xff\n").unwrap();
        let error = read(std::slice::from_ref(&file)).unwrap_err().to_string();
        assert_eq!(error, format!("{}:2: the text is not UTF-8; save the file as UTF-8", file.display()));
    }
}
