//! Spec files that are named with `-f`.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::controller::{ApplyRequest, SpecFile};
use crate::spec::{MAX_FILE_SIZE, is_ignored, is_spec_file};

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
    /// Reads everything that is named.
    ///
    /// # Errors
    /// One of the paths can't be read, is too large, or is a directory without specs. An empty directory is taken
    /// for a mistake: applying it would remove everything that was applied from it.
    pub fn read(&self) -> anyhow::Result<ApplyRequest> {
        let mut request = ApplyRequest { files: Vec::new(), origins: Vec::new() };
        let mut seen = BTreeSet::new();
        for path in &self.paths {
            if path == Path::new(STDIN) {
                if seen.insert(path.clone()) {
                    request.origins.push(path.clone());
                    request.files.push(SpecFile { path: path.clone(), text: text_of(std::io::stdin().lock(), path)? });
                }
                continue;
            }
            let path = std::path::absolute(path).with_context(|| format!("can't find {}", path.display()))?;
            let before = request.files.len();
            add(&path, &mut seen, &mut request.files)?;
            if path.is_dir() && request.files.len() == before && !request.origins.contains(&path) {
                bail!("there is no .yaml or .yml file in {}", path.display());
            }
            if !request.origins.contains(&path) {
                request.origins.push(path);
            }
        }
        Ok(request)
    }
}

/// Adds a file, or every spec file below a directory. Links are followed, each real place is read once.
fn add(path: &Path, seen: &mut BTreeSet<PathBuf>, files: &mut Vec<SpecFile>) -> anyhow::Result<()> {
    let real = path.canonicalize().with_context(|| format!("can't open {}", path.display()))?;
    if !seen.insert(real) {
        return Ok(());
    }
    if !path.is_dir() {
        let file = std::fs::File::open(path).with_context(|| format!("can't open {}", path.display()))?;
        files.push(SpecFile { path: path.to_owned(), text: text_of(file, path)? });
        return Ok(());
    }
    let entries = std::fs::read_dir(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let mut entries = entries.with_context(|| format!("can't list {}", path.display()))?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        let directory = path.is_dir();
        if (directory && !is_ignored(&name)) || (!directory && is_spec_file(&name)) {
            add(&path, seen, files)?;
        }
    }
    Ok(())
}

fn text_of(mut from: impl Read, path: &Path) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(MAX_FILE_SIZE).unwrap_or(u64::MAX);
    let name = if path == Path::new(STDIN) { "standard input".to_owned() } else { path.display().to_string() };
    from.by_ref().take(limit + 1).read_to_end(&mut bytes).with_context(|| format!("can't read {name}"))?;
    if bytes.len() > MAX_FILE_SIZE {
        bail!("{name} is larger than {MAX_FILE_SIZE} bytes; is it a spec file?");
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let line = 1 + error.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count();
        anyhow::anyhow!("{name}:{line}: the text is not UTF-8; save the file as UTF-8")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(paths: &[PathBuf]) -> anyhow::Result<ApplyRequest> {
        Files { paths: paths.to_vec() }.read()
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
    fn a_directory_without_specs_is_a_mistake() {
        let dir = tempfile::tempdir().unwrap();
        let error = read(&[dir.path().to_owned()]).unwrap_err().to_string();
        assert_eq!(error, format!("there is no .yaml or .yml file in {}", dir.path().display()));
    }

    #[test]
    fn a_loop_of_links_ends() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.yaml"), "a").unwrap();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("again")).unwrap();
        assert_eq!(read(&[dir.path().to_owned()]).unwrap().files.len(), 1);
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
